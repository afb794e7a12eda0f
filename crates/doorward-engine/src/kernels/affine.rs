//! The per-channel affine that other operators absorb.

use candle_core::{Result, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::activation::Activation;
use super::loops;
use crate::composition::{Kept, of_channels};

/// `activation(scale[c] * x + shift[c])` for channel `c`, the dimension after the batch: batch
/// normalisation at inference, constant arithmetic per channel, ReLU and ReLU6.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChannelAffine {
    pub(crate) scale: Vec<f32>,
    pub(crate) shift: Vec<f32>,
    pub(crate) activation: Activation,
}

impl ChannelAffine {
    /// An activation alone.
    pub(crate) fn unit(channels: usize, activation: Activation) -> Self {
        Self { scale: vec![1.0; channels], shift: vec![0.0; channels], activation }
    }

    /// True if scale and shift change nothing: only the activation is left.
    pub(crate) fn is_unit(&self) -> bool {
        self.scale.iter().all(|&scale| scale == 1.0) && self.shift.iter().all(|&shift| shift == 0.0)
    }

    /// `cotangent` times the derivative at `x`; at a bound of the activation it is zero, as
    /// PyTorch's.
    pub(crate) fn gradient(&self, x: &Tensor, cotangent: &Tensor) -> Result<Tensor> {
        let plane = self.plane(x);
        loops::apply_two("affine gradient", x, cotangent, x.shape(), |x, dy, out| {
            Arch::new().dispatch(Gradient { affine: self, plane, x, dy, out });
        })
    }

    /// The output by candle's operators.
    pub(crate) fn composed(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        self.activation.compose(&self.scaled(x, kept)?)
    }

    /// [`ChannelAffine::gradient`] by candle's operators.
    pub(crate) fn composed_gradient(
        &self,
        x: &Tensor,
        cotangent: &Tensor,
        kept: &Kept,
    ) -> Result<Tensor> {
        let passed = match self.activation {
            Activation::Identity => cotangent.clone(),
            activation => activation.composed_gate(&self.scaled(x, kept)?, cotangent)?,
        };
        match self.is_unit() {
            true => Ok(passed),
            false => passed.broadcast_mul(&of_channels("scale", &self.scale, x, kept)?),
        }
    }

    /// The scaled and shifted values, before the activation.
    fn scaled(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        if self.is_unit() {
            return Ok(x.clone());
        }
        x.broadcast_mul(&of_channels("scale", &self.scale, x, kept)?)?.broadcast_add(&of_channels(
            "shift",
            &self.shift,
            x,
            kept,
        )?)
    }

    fn of_row(&self, row: usize) -> (f32, f32) {
        let channel = row % self.scale.len();
        (self.scale[channel], self.shift[channel])
    }

    /// Values of one channel of `x`.
    pub(crate) fn plane(&self, x: &Tensor) -> usize {
        x.dims()[2..].iter().product()
    }
}

/// [`ChannelAffine::gradient`] of all planes.
struct Gradient<'a> {
    affine: &'a ChannelAffine,
    plane: usize,
    x: &'a [f32],
    dy: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { affine, plane, x, dy, out } = self;
        // Between infinities everything passes: no branch in the loop.
        let [low, high] = affine.activation.bounds();
        let rows =
            x.chunks_exact(plane).zip(dy.chunks_exact(plane)).zip(out.chunks_exact_mut(plane));
        for (i, ((x, dy), out)) in rows.enumerate() {
            let (scale, shift) = affine.of_row(i);
            let ((x, x_rest), (dy, dy_rest)) = (S::as_simd_f32s(x), S::as_simd_f32s(dy));
            let (out, out_rest) = S::as_mut_simd_f32s(out);
            let [scales, shifts, lows, highs] =
                [scale, shift, low, high].map(|value| simd.splat_f32s(value));
            for ((out, dy), x) in out.iter_mut().zip(dy).zip(x) {
                let y = simd.add_f32s(simd.mul_f32s(*x, scales), shifts);
                let inside =
                    simd.and_m32s(simd.greater_than_f32s(y, lows), simd.less_than_f32s(y, highs));
                let passed = simd.mul_f32s(*dy, scales);
                *out = simd.select_f32s(inside, passed, simd.splat_f32s(0.0));
            }
            for ((out, dy), x) in out_rest.iter_mut().zip(dy_rest).zip(x_rest) {
                let y = x * scale + shift;
                *out = if (y > low) & (y < high) { dy * scale } else { 0.0 };
            }
        }
    }
}
