//! Convolution (ONNX `Conv`), with bias, activation and a preceding per-channel affine fused in.
//!
//! On the CPU both directions run on one of the kernels in [`Plan`]; elsewhere candle's own
//! convolutions are composed.

mod composed;
mod kernel;

use std::sync::OnceLock;

use candle_core::Tensor;

use crate::kernels::activation::Activation;
use crate::kernels::affine::ChannelAffine;
use crate::kernels::convolution::Plan;
use crate::kernels::window::{ConvShape, Window};

/// A convolution of images of one size.
#[derive(Debug)]
pub(crate) struct Conv {
    shape: ConvShape,
    /// `[out channels, in channels / groups, ky, kx]`
    weight: Tensor,
    bias: Option<Vec<f32>>,
    /// Applied to the input, not to the padding.
    before: Option<ChannelAffine>,
    activation: Activation,
    forward: OnceLock<Plan>,
    backward: OnceLock<Plan>,
}

// === impl Conv ===

impl Conv {
    /// `None` when the kernel does not fit the padded input.
    pub(crate) fn new(
        mut window: Window,
        groups: usize,
        in_shape: [usize; 3],
        weight: Tensor,
        bias: Option<Vec<f32>>,
    ) -> Option<Self> {
        let [_, height, width] = in_shape;
        let out_shape =
            [weight.dims()[0], window.positions(0, height)?, window.positions(1, width)?];
        for axis in [0, 1] {
            // No step is taken, and a large stride would cost as many phases.
            if out_shape[1 + axis] == 1 {
                window.stride[axis] = 1;
            }
        }
        Some(Self {
            shape: ConvShape { window, groups, input: in_shape, output: out_shape },
            weight,
            bias,
            before: None,
            activation: Activation::Identity,
            forward: OnceLock::new(),
            backward: OnceLock::new(),
        })
    }

    pub(crate) fn out_shape(&self) -> [usize; 3] {
        self.shape.output
    }

    fn rebuilt(&self) -> Self {
        Self {
            shape: self.shape.clone(),
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            before: self.before.clone(),
            forward: OnceLock::new(),
            backward: OnceLock::new(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests;
