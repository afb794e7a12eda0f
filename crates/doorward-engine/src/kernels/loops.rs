//! Plain loops over contiguous `f32` slices as operators on candle tensors of the CPU; those of
//! other devices candle refuses.

use pulp::Arch;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};

/// `run` writes every value of a result of `shape` from the values of `x`.
pub(crate) fn map<F>(
    name: &'static str,
    x: &Tensor,
    shape: impl Into<Shape>,
    run: F,
) -> Result<Tensor>
where
    F: Fn(&[f32], &mut [f32]),
{
    // Compiles the loop once more for each vector width and runs the widest there is.
    apply(name, x, shape, |x, out| Arch::new().dispatch(|| run(x, out)))
}

/// Like [`map`] for a `run` that chooses its vector width itself.
pub(crate) fn apply<F>(
    name: &'static str,
    x: &Tensor,
    shape: impl Into<Shape>,
    run: F,
) -> Result<Tensor>
where
    F: Fn(&[f32], &mut [f32]),
{
    let op = Loop { name, shape: shape.into(), run };
    x.contiguous()?.apply_op1_no_bwd(&op)
}

/// `run` writes every value of a result of `shape` from the values of `x` and `y`.
pub(crate) fn zip<F>(
    name: &'static str,
    x: &Tensor,
    y: &Tensor,
    shape: impl Into<Shape>,
    run: F,
) -> Result<Tensor>
where
    F: Fn(&[f32], &[f32], &mut [f32]),
{
    apply_two(name, x, y, shape, |x, y, out| Arch::new().dispatch(|| run(x, y, out)))
}

/// Like [`zip`] for a `run` that chooses its vector width itself, as a loop must that is too long
/// for the compiler to make one function of it and what calls it: there it would have the
/// narrowest.
pub(crate) fn apply_two<F>(
    name: &'static str,
    x: &Tensor,
    y: &Tensor,
    shape: impl Into<Shape>,
    run: F,
) -> Result<Tensor>
where
    F: Fn(&[f32], &[f32], &mut [f32]),
{
    let op = Loop { name, shape: shape.into(), run };
    x.contiguous()?.apply_op2_no_bwd(&y.contiguous()?, &op)
}

/// `run` writes every value of a result of `shape` from the values of `x`, `y` and `z`.
pub(crate) fn zip3<F>(
    name: &'static str,
    x: &Tensor,
    y: &Tensor,
    z: &Tensor,
    shape: impl Into<Shape>,
    run: F,
) -> Result<Tensor>
where
    F: Fn(&[f32], &[f32], &[f32], &mut [f32]),
{
    let op = Loop { name, shape: shape.into(), run };
    x.contiguous()?.apply_op3_no_bwd(&y.contiguous()?, &z.contiguous()?, &op)
}

/// A loop over as many operands as `run` takes slices of.
struct Loop<F> {
    name: &'static str,
    shape: Shape,
    run: F,
}

impl<F: Fn(&[f32], &mut [f32])> CustomOp1 for Loop<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = vec![0.0; self.shape.elem_count()];
        let x = values(self.name, storage, layout)?;
        (self.run)(x, &mut out);
        Ok((CpuStorage::F32(out), self.shape.clone()))
    }
}

impl<F: Fn(&[f32], &[f32], &mut [f32])> CustomOp2 for Loop<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = vec![0.0; self.shape.elem_count()];
        let (x, y) = (values(self.name, s1, l1)?, values(self.name, s2, l2)?);
        (self.run)(x, y, &mut out);
        Ok((CpuStorage::F32(out), self.shape.clone()))
    }
}

impl<F: Fn(&[f32], &[f32], &[f32], &mut [f32])> CustomOp3 for Loop<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = vec![0.0; self.shape.elem_count()];
        let (x, y) = (values(self.name, s1, l1)?, values(self.name, s2, l2)?);
        let z = values(self.name, s3, l3)?;
        Arch::new().dispatch(|| (self.run)(x, y, z, &mut out));
        Ok((CpuStorage::F32(out), self.shape.clone()))
    }
}

fn values<'a>(name: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    #[cfg(test)]
    if REFUSED.get() {
        bail!("{name}: a loop where none may run");
    }
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("{name}: operand is not contiguous"),
    }
}

#[cfg(test)]
thread_local! {
    static REFUSED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs a composition: in tests every loop that `run` reaches on this thread is an error, as it is
/// on an accelerator.
pub(crate) fn refused<T>(run: impl FnOnce() -> T) -> T {
    #[cfg(test)]
    REFUSED.set(true);
    let result = run();
    #[cfg(test)]
    REFUSED.set(false);
    result
}
