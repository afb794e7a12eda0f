//! Operators that move values without computing.

use candle_core::{Result, Tensor};

use super::kernel;
use super::operator::{Operator, Saves, with_rows};
use super::strided::{Walk, row_major};

/// ONNX `Concat` along a dimension that is not the batch.
#[derive(Debug)]
pub(crate) struct Concat {
    /// Dimension of `[n, ...row]`.
    pub(crate) dim: usize,
    /// In order: `None` for an input, `[1, ...row]` for a constant.
    pub(crate) parts: Vec<Option<Tensor>>,
    /// Each part's size along the dimension.
    pub(crate) sizes: Vec<usize>,
}

/// `Flatten`, `Reshape` and the like: the same row in another shape.
#[derive(Debug)]
pub(crate) struct Reshape {
    /// Of the input and of the output.
    pub(crate) rows: [Vec<usize>; 2],
}

/// ONNX `Pad` with a constant along dimensions that are not the batch.
#[derive(Debug)]
pub(crate) struct Pad {
    /// Dimension, values before, values after; negative counts drop values.
    pub(crate) dims: Vec<(usize, isize, isize)>,
    pub(crate) value: f32,
}

/// The dimensions in another order, the batch's first.
#[derive(Debug)]
pub(crate) struct Transpose {
    pub(crate) order: Vec<usize>,
}

/// Values of a row by their strides: ONNX `Slice`, `Expand` and `Gather` of one index.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) name: &'static str,
    pub(crate) in_row: Vec<usize>,
    /// Where the first value is in the input's row.
    pub(crate) offset: isize,
    /// Size and stride of each dimension of the output's row.
    pub(crate) dims: Vec<(usize, isize)>,
}

/// ONNX `Gather` along one dimension.
#[derive(Debug)]
pub(crate) struct Gather {
    pub(crate) indices: Vec<usize>,
    /// Size of the dimension, and values of the dimensions behind it.
    pub(crate) size: usize,
    pub(crate) inner: usize,
    pub(crate) rows: [Vec<usize>; 2],
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let mut inputs = inputs.iter();
        let Some(n) = inputs.clone().next().map(|input| input.dim(0)).transpose()? else {
            candle_core::bail!("Concat has no input");
        };
        let parts = self
            .parts
            .iter()
            .filter_map(|part| match part {
                None => inputs.next().cloned().map(Ok),
                Some(constant) => {
                    let shape = with_rows(n, &constant.dims()[1..]);
                    Some(constant.broadcast_as(shape).and_then(|part| part.contiguous()))
                }
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, self.dim)
    }

    fn vjp(
        &self,
        _inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut start = 0;
        let mut gradients = Vec::with_capacity(self.parts.len());
        for (part, &size) in self.parts.iter().zip(&self.sizes) {
            if part.is_none() {
                gradients.push(Some(cotangent.narrow(self.dim, start, size)?.contiguous()?));
            }
            start += size;
        }
        Ok(gradients)
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }
}

impl Operator for Reshape {
    fn name(&self) -> &'static str {
        "Reshape"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        inputs[0].reshape(with_rows(inputs[0].dim(0)?, &self.rows[1]))
    }

    fn vjp(
        &self,
        _inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let shape = with_rows(cotangent.dim(0)?, &self.rows[0]);
        Ok(vec![Some(cotangent.reshape(shape)?)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }

    fn absorbed_by(&self, previous: &dyn Operator) -> Option<Box<dyn Operator>> {
        previous.absorb_reshape(&self.rows[1])
    }

    fn absorb_reshape(&self, row: &[usize]) -> Option<Box<dyn Operator>> {
        Some(Box::new(Self { rows: [self.rows[0].clone(), row.to_vec()] }))
    }
}

impl Operator for Pad {
    fn name(&self) -> &'static str {
        "Pad"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let mut y = inputs[0].clone();
        for &(dim, before, after) in &self.dims {
            y = resize(&y, dim, before, after, self.value)?;
        }
        Ok(y)
    }

    fn vjp(
        &self,
        _inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut gradient = cotangent.clone();
        for &(dim, before, after) in &self.dims {
            gradient = resize(&gradient, dim, -before, -after, 0.0)?;
        }
        Ok(vec![Some(gradient.contiguous()?)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }
}

/// Adds `value`s, or drops what is there, before and after along a dimension.
fn resize(x: &Tensor, dim: usize, before: isize, after: isize, value: f32) -> Result<Tensor> {
    let added = |count: isize| -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        shape[dim] = count.max(0).unsigned_abs();
        Tensor::full(value, shape, x.device())
    };
    let dropped = |count: isize| count.min(0).unsigned_abs();
    let x = match (before > 0, after > 0) {
        (false, false) => x.clone(),
        (true, false) => Tensor::cat(&[&added(before)?, x], dim)?,
        (false, true) => Tensor::cat(&[x, &added(after)?], dim)?,
        (true, true) => Tensor::cat(&[&added(before)?, x, &added(after)?], dim)?,
    };
    let len = x.dim(dim)? - dropped(before) - dropped(after);
    x.narrow(dim, dropped(before), len)
}

// === impl Transpose ===

impl Transpose {
    /// `x` with its dimensions in this order, copied in runs where the last one stays.
    pub(crate) fn permuted(x: &Tensor, order: &[usize]) -> Result<Tensor> {
        let dims: Vec<usize> = order.iter().map(|&dim| x.dims()[dim]).collect();
        let from = row_major(x.dims());
        let strides: Vec<isize> = order.iter().map(|&dim| from[dim]).collect();
        let walk = Walk::new(&dims, [&row_major(&dims), &strides]);
        kernel::map("Transpose", x, dims, |x, out| copy(&walk, 0, x, out))
    }

    /// The tensor that, permuted, is `x`.
    pub(crate) fn unpermuted(x: &Tensor, order: &[usize]) -> Result<Tensor> {
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
        Self::permuted(x, &back)
    }
}

/// From the strides of `walk`'s second tensor, `offset` values on, to those of its first, which has
/// runs of stride one.
#[inline(always)]
fn copy(walk: &Walk<2>, offset: isize, x: &[f32], out: &mut [f32]) {
    let [_, stride] = walk.inner;
    walk.each(|[to, from], len| {
        let from = from + offset;
        let out = &mut out[to as usize..][..len];
        match stride {
            1 => out.copy_from_slice(&x[from as usize..][..len]),
            0 => out.fill(x[from as usize]),
            stride if stride > 0 => {
                let values = x[from as usize..].iter().step_by(stride.unsigned_abs());
                out.iter_mut().zip(values).for_each(|(out, x)| *out = *x);
            }
            stride => {
                let values = x[..=from as usize].iter().rev().step_by(stride.unsigned_abs());
                out.iter_mut().zip(values).for_each(|(out, x)| *out = *x);
            }
        }
    });
}

impl Operator for Transpose {
    fn name(&self) -> &'static str {
        "Transpose"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        Self::permuted(&inputs[0], &self.order)
    }

    fn vjp(
        &self,
        _inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(Self::unpermuted(cotangent, &self.order)?)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }

    fn absorbed_by(&self, previous: &dyn Operator) -> Option<Box<dyn Operator>> {
        previous.absorb_order(&self.order)
    }

    fn absorb_order(&self, order: &[usize]) -> Option<Box<dyn Operator>> {
        Some(Box::new(Self { order: order.iter().map(|&dim| self.order[dim]).collect() }))
    }

    fn is_identity(&self) -> bool {
        self.order.iter().enumerate().all(|(to, &from)| to == from)
    }
}

// === impl View ===

impl View {
    fn walk(&self, n: usize) -> Walk<2> {
        let shape = with_rows(n, &self.row());
        let in_len: usize = self.in_row.iter().product();
        let strides: Vec<isize> = std::iter::once(in_len as isize)
            .chain(self.dims.iter().map(|&(_, stride)| stride))
            .collect();
        Walk::new(&shape, [&row_major(&shape), &strides])
    }

    fn row(&self) -> Vec<usize> {
        self.dims.iter().map(|&(size, _)| size).collect()
    }
}

impl Operator for View {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let n = inputs[0].dim(0)?;
        let walk = self.walk(n);
        kernel::map(self.name, &inputs[0], with_rows(n, &self.row()), |x, out| {
            copy(&walk, self.offset, x, out);
        })
    }

    fn vjp(
        &self,
        _inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let n = cotangent.dim(0)?;
        let (walk, offset) = (self.walk(n), self.offset);
        let stride = walk.inner[1];
        let gradient = kernel::map(self.name, cotangent, with_rows(n, &self.in_row), |dy, out| {
            walk.each(|[from, to], len| {
                let to = to + offset;
                let dy = &dy[from as usize..][..len];
                if stride == 1 {
                    let out = &mut out[to as usize..][..len];
                    out.iter_mut().zip(dy).for_each(|(out, dy)| *out += dy);
                } else {
                    for (i, dy) in dy.iter().enumerate() {
                        out[(to + i as isize * stride) as usize] += dy;
                    }
                }
            });
        })?;
        Ok(vec![Some(gradient)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "Gather"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let shape = with_rows(inputs[0].dim(0)?, &self.rows[1]);
        kernel::map(self.name(), &inputs[0], shape, |x, out| {
            let blocks = x.chunks_exact(self.size * self.inner);
            for (x, out) in blocks.zip(out.chunks_exact_mut(self.indices.len() * self.inner)) {
                for (&index, out) in self.indices.iter().zip(out.chunks_exact_mut(self.inner)) {
                    out.copy_from_slice(&x[index * self.inner..][..self.inner]);
                }
            }
        })
    }

    fn vjp(
        &self,
        _inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let shape = with_rows(cotangent.dim(0)?, &self.rows[0]);
        let gradient = kernel::map(self.name(), cotangent, shape, |dy, out| {
            let blocks = dy.chunks_exact(self.indices.len() * self.inner);
            for (dy, out) in blocks.zip(out.chunks_exact_mut(self.size * self.inner)) {
                for (&index, dy) in self.indices.iter().zip(dy.chunks_exact(self.inner)) {
                    let out = &mut out[index * self.inner..][..self.inner];
                    out.iter_mut().zip(dy).for_each(|(out, dy)| *out += dy);
                }
            }
        })?;
        Ok(vec![Some(gradient)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }
}
