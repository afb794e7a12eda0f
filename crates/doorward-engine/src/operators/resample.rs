//! Weighted sums along one dimension: what resizing an image is, one axis after the other.

use candle_core::{Result, Tensor};

use crate::composition::{Kept, along, sums, with_rows};
use crate::kernels::loops;
use crate::operators::{Backward, Kernel, Operator, Saves};

/// ONNX `Resize` and `Upsample` along one dimension.
#[derive(Debug)]
pub(crate) struct Resample {
    /// For every output place, the input places it is the sum of, and their weights.
    pub(crate) taps: Vec<Vec<(usize, f32)>>,
    /// Size of the dimension, and values of the dimensions behind it.
    pub(crate) size: usize,
    pub(crate) inner: usize,
    /// Shapes of the input's row and of the output's.
    pub(crate) rows: [Vec<usize>; 2],
}

impl Resample {
    fn matrix(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        kept.get("taps", || sums(&self.taps, self.size, x.device()))
    }
}

impl Operator for Resample {
    fn name(&self) -> &'static str {
        "Resize"
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        let (x, shape) = (&inputs[0], with_rows(inputs[0].dim(0)?, &self.rows[1]));
        along(x, self.inner, &self.matrix(x, kept)?)?.reshape(shape)
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
        let shape = with_rows(cotangent.dim(0)?, &self.rows[0]);
        let matrix = self.matrix(cotangent, kept)?;
        Ok(vec![Some(along(cotangent, self.inner, &matrix.t()?)?.reshape(shape)?)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}

impl Kernel for Resample {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let shape = with_rows(inputs[0].dim(0)?, &self.rows[1]);
        loops::map(self.name(), &inputs[0], shape, |x, out| {
            let blocks = x.chunks_exact(self.size * self.inner);
            for (x, out) in blocks.zip(out.chunks_exact_mut(self.taps.len() * self.inner)) {
                for (taps, out) in self.taps.iter().zip(out.chunks_exact_mut(self.inner)) {
                    for &(from, weight) in taps {
                        let x = &x[from * self.inner..][..self.inner];
                        out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
                    }
                }
            }
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
        let shape = with_rows(cotangent.dim(0)?, &self.rows[0]);
        let gradient = loops::map(self.name(), cotangent, shape, |dy, out| {
            let blocks = dy.chunks_exact(self.taps.len() * self.inner);
            for (dy, out) in blocks.zip(out.chunks_exact_mut(self.size * self.inner)) {
                for (taps, dy) in self.taps.iter().zip(dy.chunks_exact(self.inner)) {
                    for &(to, weight) in taps {
                        let out = &mut out[to * self.inner..][..self.inner];
                        out.iter_mut().zip(dy).for_each(|(out, dy)| *out += weight * dy);
                    }
                }
            }
        })?;
        Ok(vec![Some(gradient)])
    }
}
