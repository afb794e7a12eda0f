//! Plain loops over contiguous `f32` slices as operators on candle tensors.
//!
//! On a device other than the CPU the operands are copied to the CPU and the result back: correct
//! everywhere, slow there.

use pulp::Arch;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, bail,
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
    on_cpu(x, |x| x.contiguous()?.apply_op1_no_bwd(&op))
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
    let op = Loop { name, shape: shape.into(), run };
    let y = y.to_device(&Device::Cpu)?.contiguous()?;
    on_cpu(x, |x| x.contiguous()?.apply_op2_no_bwd(&y, &op))
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
    let y = y.to_device(&Device::Cpu)?.contiguous()?;
    let z = z.to_device(&Device::Cpu)?.contiguous()?;
    on_cpu(x, |x| x.contiguous()?.apply_op3_no_bwd(&y, &z, &op))
}

fn on_cpu(x: &Tensor, run: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => run(x),
        device => run(&x.to_device(&Device::Cpu)?)?.to_device(device),
    }
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
        Arch::new().dispatch(|| (self.run)(x, y, &mut out));
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
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("{name}: operand is not contiguous"),
    }
}
