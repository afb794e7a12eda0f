//! Operators that move values without computing.

use candle_core::{Result, Tensor};

use crate::composition::{Kept, with_rows};
use crate::kernels::loops;
use crate::kernels::strided::{Walk, copy, row_major};
use crate::operators::{Backward, Fusible, Kernel, Operator, Saves};

/// ONNX `Concat` along a dimension that is not the batch.
#[derive(Debug)]
pub(crate) struct Concat {
    /// Dimension of `[n, ...row]`.
    pub(crate) dim: usize,
    /// The parts in order: `None` for an input, `[1, ...row]` for a constant.
    pub(crate) parts: Vec<Option<Tensor>>,
    /// Each part's size along the dimension.
    pub(crate) sizes: Vec<usize>,
}

/// `Flatten`, `Reshape` and the like: the same row in another shape.
#[derive(Debug)]
pub(crate) struct Reshape {
    /// Shapes of the input's row and of the output's.
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

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
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

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
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

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        inputs[0].reshape(with_rows(inputs[0].dim(0)?, &self.rows[1]))
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
        let shape = with_rows(cotangent.dim(0)?, &self.rows[0]);
        Ok(vec![Some(cotangent.reshape(shape)?)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }

    fn fusible(&self) -> Option<Fusible<'_>> {
        Some(Fusible::Row(&self.rows[1]))
    }

    fn followed_by(&self, next: &Fusible<'_>) -> Option<Box<dyn Operator>> {
        match next {
            Fusible::Row(row) => {
                Some(Box::new(Self { rows: [self.rows[0].clone(), row.to_vec()] }))
            }
            _ => None,
        }
    }
}

impl Operator for Pad {
    fn name(&self) -> &'static str {
        "Pad"
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        let mut y = inputs[0].clone();
        for &(dim, before, after) in &self.dims {
            y = resize(&y, dim, before, after, self.value)?;
        }
        Ok(y)
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
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
        loops::map("Transpose", x, dims, |x, out| copy(&walk, 0, x, out))
    }
}

/// [`Transpose::permuted`] by candle's operators.
pub(crate) fn composed_permuted(x: &Tensor, order: &[usize]) -> Result<Tensor> {
    x.permute(order)?.contiguous()
}

/// The order that undoes one.
pub(crate) fn inverse(order: &[usize]) -> Vec<usize> {
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
    back
}

impl Operator for Transpose {
    fn name(&self) -> &'static str {
        "Transpose"
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        composed_permuted(&inputs[0], &self.order)
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
        Ok(vec![Some(composed_permuted(cotangent, &inverse(&self.order))?)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }

    fn fusible(&self) -> Option<Fusible<'_>> {
        Some(Fusible::Order(&self.order))
    }

    fn is_identity(&self) -> bool {
        self.order.iter().enumerate().all(|(to, &from)| to == from)
    }

    fn followed_by(&self, next: &Fusible<'_>) -> Option<Box<dyn Operator>> {
        match next {
            Fusible::Order(order) => {
                Some(Box::new(Self { order: order.iter().map(|&dim| self.order[dim]).collect() }))
            }
            _ => None,
        }
    }
}

impl Kernel for Transpose {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        Self::permuted(&inputs[0], &self.order)
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
        Ok(vec![Some(Self::permuted(cotangent, &inverse(&self.order))?)])
    }
}
