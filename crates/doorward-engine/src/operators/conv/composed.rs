//! Convolution by candle's own, which takes one stride and one dilation for both axes.
//!
//! Where the strides differ it takes steps of one and what lies between is dropped; where the
//! dilations differ zeros between the kernel's values stand for them. For groups candle convolves
//! one after the other: where every channel is one, a sum over the kernel's places takes fewer
//! calls.

use candle_core::{Result, Tensor};

use super::Conv;
use crate::composition::{Kept, of_channels, places};
use crate::kernels::activation::Activation;
use crate::kernels::affine::ChannelAffine;
use crate::operators::{Backward, Fusible, Kernel, Operator, Saves};

impl Conv {
    pub(super) fn composed(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let x = match &self.before {
            Some(before) => before.composed(x, kept)?,
            None => x.clone(),
        };
        let w = &self.shape.window;
        let x = x.pad_with_zeros(2, w.pad_begin[0], w.pad_end[0])?.pad_with_zeros(
            3,
            w.pad_begin[1],
            w.pad_end[1],
        )?;
        let mut y = match self.shape.is_depthwise() {
            true => self.sum_of_places(&x.contiguous()?, kept)?,
            false => self.convolved(&x, kept)?,
        };
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&of_channels("bias", bias, &y, kept)?)?;
        }
        self.activation.compose(&y)
    }

    pub(super) fn composed_gradient(&self, cotangent: &Tensor, kept: &Kept) -> Result<Tensor> {
        let mut full = match self.shape.is_depthwise() {
            true => self.back_to_places(cotangent, kept)?,
            false => self.back_convolved(cotangent, kept)?,
        };
        for axis in [0, 1] {
            let dim = axis + 2;
            let (begin, size) = (self.shape.window.pad_begin[axis], self.shape.input[1 + axis]);
            let missing = (begin + size).saturating_sub(full.dim(dim)?);
            full = full.pad_with_zeros(dim, 0, missing)?.narrow(dim, begin, size)?;
        }
        full.contiguous()
    }

    /// The convolution of the padded input.
    fn convolved(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let w = &self.shape.window;
        let (stride, steps) = common(w.stride);
        let weight = self.composed_weight(x, kept)?;
        let mut y = x.conv2d(&weight, 0, stride, common(w.dilation).0, self.shape.groups)?;
        for axis in [0, 1] {
            if steps[axis] > 1 {
                y = y.contiguous()?.index_select(&self.steps(axis, x, kept)?, axis + 2)?;
            }
        }
        Ok(y)
    }

    /// The gradient of [`Conv::convolved`], as far as it reaches.
    fn back_convolved(&self, cotangent: &Tensor, kept: &Kept) -> Result<Tensor> {
        let w = &self.shape.window;
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
            .chunk(self.shape.groups, 1)?
            .iter()
            .zip(weight.chunk(self.shape.groups, 0)?)
            .map(|(y, weight)| {
                let (y, weight) = (y.contiguous()?, weight.contiguous()?);
                y.conv_transpose2d(&weight, 0, 0, stride, common(w.dilation).0)
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 1)
    }

    /// [`Conv::convolved`] where every channel has a kernel of its own.
    fn sum_of_places(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let [rows, columns] = self.kernel_places(x, kept)?;
        let weights = self.weights_of_places(x, kept)?;
        let [batch, channels, height, width] =
            [x.dim(0)?, self.shape.output[0], self.shape.output[1], self.shape.output[2]];
        let mut y = Tensor::zeros((batch, channels, height, width), x.dtype(), x.device())?;
        for ky in 0..self.shape.window.kernel[0] {
            let row = x.index_select(&rows.get(ky)?, 2)?;
            for kx in 0..self.shape.window.kernel[1] {
                let weight = weights.get(ky)?.get(kx)?;
                let part = row.index_select(&columns.get(kx)?, 3)?;
                y = (y + part.broadcast_mul(&weight)?)?;
            }
        }
        Ok(y)
    }

    /// The gradient of [`Conv::sum_of_places`].
    fn back_to_places(&self, cotangent: &Tensor, kept: &Kept) -> Result<Tensor> {
        let [rows, columns] = self.kernel_places(cotangent, kept)?;
        let weights = self.weights_of_places(cotangent, kept)?;
        let (batch, channels, out_height, _) = cotangent.dims4()?;
        let [height, width] = [0, 1].map(|axis| {
            self.shape.window.pad_begin[axis]
                + self.shape.input[1 + axis]
                + self.shape.window.pad_end[axis]
        });
        let zeros = |height: usize| {
            let shape = (batch, channels, height, width);
            Tensor::zeros(shape, cotangent.dtype(), cotangent.device())
        };
        let mut gradient = zeros(height)?;
        for ky in 0..self.shape.window.kernel[0] {
            let mut row = zeros(out_height)?;
            for kx in 0..self.shape.window.kernel[1] {
                let part = cotangent.broadcast_mul(&weights.get(ky)?.get(kx)?)?;
                row = row.index_add(&columns.get(kx)?, &part, 3)?;
            }
            gradient = gradient.index_add(&rows.get(ky)?, &row, 2)?;
        }
        Ok(gradient)
    }

    /// Along each axis, where in the padded input every place of the kernel has its values.
    fn kernel_places(&self, x: &Tensor, kept: &Kept) -> Result<[Tensor; 2]> {
        let w = &self.shape.window;
        let along = |axis: usize| {
            kept.get(["rows", "columns"][axis], || {
                let (kernel, count) = (w.kernel[axis], self.shape.output[1 + axis]);
                let at =
                    |k: usize| (0..count).map(move |i| i * w.stride[axis] + k * w.dilation[axis]);
                places((0..kernel).flat_map(at), x.device())?.reshape((kernel, count))
            })
        };
        Ok([along(0)?, along(1)?])
    }

    /// `[ky, kx, 1, channels, 1, 1]`
    fn weights_of_places(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        kept.get("weight", || {
            let weight = self.weight.to_device(x.device())?;
            let (channels, _, ky, kx) = weight.dims4()?;
            let weight = weight.reshape((channels, ky * kx))?.t()?.contiguous()?;
            weight.reshape(vec![ky, kx, 1, channels, 1, 1])
        })
    }

    fn composed_weight(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        kept.get("weight", || {
            let mut weight = self.weight.to_device(x.device())?.contiguous()?;
            for (axis, &step) in common(self.shape.window.dilation).1.iter().enumerate() {
                if step > 1 {
                    let at = (0..weight.dim(axis + 2)?).map(|k| k * step);
                    weight = spread(&weight, axis + 2, step, &places(at, x.device())?)?;
                }
            }
            Ok(weight)
        })
    }

    /// Places of the outputs along an axis among those of stride 1.
    fn steps(&self, axis: usize, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let (count, step) = (self.shape.output[1 + axis], self.shape.window.stride[axis]);
        kept.get(["rows", "columns"][axis], || places((0..count).map(|i| i * step), x.device()))
    }
}

/// The one value that candle takes for both axes, and the rest that is left to do along each.
fn common(each: [usize; 2]) -> (usize, [usize; 2]) {
    if each[0] == each[1] { (each[0], [1, 1]) } else { (1, each) }
}

/// Zeros between the values along a dimension, which come to lie `at` every `step`th place.
fn spread(x: &Tensor, dim: usize, step: usize, at: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    shape[dim] = (shape[dim] - 1) * step + 1;
    Tensor::zeros(shape, x.dtype(), x.device())?.index_add(at, x, dim)
}

impl Operator for Conv {
    fn name(&self) -> &'static str {
        "Conv"
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        self.composed(&inputs[0], kept)
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, output, cotangent } = *at;
        let cotangent = self.activation.composed_gate(output, cotangent)?;
        let gradient = self.composed_gradient(&cotangent, kept)?;
        match &self.before {
            None => Ok(vec![Some(gradient)]),
            Some(before) => Ok(vec![Some(before.composed_gradient(&inputs[0], &gradient, kept)?)]),
        }
    }

    fn saves(&self) -> Saves {
        let output = self.activation != Activation::Identity;
        Saves { inputs: self.before.is_some(), output }
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }

    fn followed_by(&self, next: &Fusible<'_>) -> Option<Box<dyn Operator>> {
        let Fusible::Affine(next) = next else { return None };
        if self.activation != Activation::Identity {
            return None;
        }
        let mut fused = self.rebuilt();
        fused.activation = next.activation;
        if !next.is_unit() {
            let scale = Tensor::new(next.scale.as_slice(), self.weight.device()).ok()?;
            fused.weight = self.weight.broadcast_mul(&scale.reshape(((), 1, 1, 1)).ok()?).ok()?;
            let zero = vec![0.0; self.shape.output[0]];
            let bias = self.bias.as_ref().unwrap_or(&zero);
            fused.bias = Some(
                bias.iter()
                    .zip(next.scale.iter().zip(&next.shift))
                    .map(|(bias, (scale, shift))| bias * scale + shift)
                    .collect(),
            );
        }
        Some(Box::new(fused))
    }

    fn preceded_by(&self, previous: &ChannelAffine) -> Option<Box<dyn Operator>> {
        if self.before.is_some() {
            return None;
        }
        let mut fused = self.rebuilt();
        fused.before = Some(previous.clone());
        Some(Box::new(fused))
    }
}
