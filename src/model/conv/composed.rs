//! Convolution by candle's own, which takes one stride and one dilation for both axes.
//!
//! Where the strides differ it takes steps of one and what lies between is dropped; where the
//! dilations differ zeros between the kernel's values stand for them.

use candle_core::{Result, Tensor};

use super::Conv;
use crate::model::composed::{Kept, places};
use crate::model::operator::of_channels;

impl Conv {
    pub(super) fn composed(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let x = match &self.before {
            Some(before) => before.composed(x, kept)?,
            None => x.clone(),
        };
        let w = &self.window;
        let x = x.pad_with_zeros(2, w.pad_begin[0], w.pad_end[0])?.pad_with_zeros(
            3,
            w.pad_begin[1],
            w.pad_end[1],
        )?;
        let (stride, steps) = common(w.stride);
        let weight = self.composed_weight(&x, kept)?;
        let mut y = x.conv2d(&weight, 0, stride, common(w.dilation).0, self.groups)?;
        for axis in [0, 1] {
            if steps[axis] > 1 {
                y = y.contiguous()?.index_select(&self.steps(axis, &x, kept)?, axis + 2)?;
            }
        }
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&of_channels("bias", bias, &y, kept)?)?;
        }
        self.activation.compose(&y)
    }

    pub(super) fn composed_gradient(&self, cotangent: &Tensor, kept: &Kept) -> Result<Tensor> {
        let w = &self.window;
        let (stride, steps) = common(w.stride);
        let mut dy = cotangent.clone();
        for axis in [0, 1] {
            if steps[axis] > 1 {
                let at = self.steps(axis, cotangent, kept)?;
                dy = spread(&dy, axis + 2, steps[axis], &at)?;
            }
        }
        let weight = self.composed_weight(&dy, kept)?;
        let parts = dy
            .chunk(self.groups, 1)?
            .iter()
            .zip(weight.chunk(self.groups, 0)?)
            .map(|(y, weight)| {
                let (y, weight) = (y.contiguous()?, weight.contiguous()?);
                y.conv_transpose2d(&weight, 0, 0, stride, common(w.dilation).0)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut full = Tensor::cat(&parts, 1)?;
        for axis in [0, 1] {
            let dim = axis + 2;
            let (begin, size) = (w.pad_begin[axis], self.in_shape[1 + axis]);
            let missing = (begin + size).saturating_sub(full.dim(dim)?);
            full = full.pad_with_zeros(dim, 0, missing)?.narrow(dim, begin, size)?;
        }
        full.contiguous()
    }

    fn composed_weight(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        kept.get("weight", || {
            let mut weight = self.weight.to_device(x.device())?.contiguous()?;
            for (axis, &step) in common(self.window.dilation).1.iter().enumerate() {
                if step > 1 {
                    let at = (0..weight.dim(axis + 2)?).map(|k| k * step);
                    weight = spread(&weight, axis + 2, step, &places(at, x.device())?)?;
                }
            }
            Ok(weight)
        })
    }

    /// Where the outputs lie along an axis among those of stride 1.
    fn steps(&self, axis: usize, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let (count, step) = (self.out_shape[1 + axis], self.window.stride[axis]);
        kept.get(["rows", "columns"][axis], || places((0..count).map(|i| i * step), x.device()))
    }
}

/// What candle takes for both axes, and what is left to do along each.
fn common(each: [usize; 2]) -> (usize, [usize; 2]) {
    if each[0] == each[1] { (each[0], [1, 1]) } else { (1, each) }
}

/// Zeros between the values along a dimension, which come to lie `at` every `step`th place.
fn spread(x: &Tensor, dim: usize, step: usize, at: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    shape[dim] = (shape[dim] - 1) * step + 1;
    Tensor::zeros(shape, x.dtype(), x.device())?.index_add(at, x, dim)
}
