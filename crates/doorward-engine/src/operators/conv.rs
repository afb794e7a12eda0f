//! Convolution (ONNX `Conv`), with bias, activation and a preceding per-channel affine fused in.
//!
//! On the CPU both directions run on one of the kernels in [`plan`]; elsewhere candle's own
//! convolutions are composed.

mod composed;
mod plan;

use std::sync::OnceLock;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::composition::Kept;
use crate::kernels::activation::Activation;
use crate::kernels::affine::ChannelAffine;
use crate::kernels::load::{Affine, Load, Plain};
use crate::kernels::loops;
use crate::kernels::window::Window;
use crate::operators::{Operator, Saves};
use plan::Plan;

/// A convolution of images of one size.
#[derive(Debug)]
pub(crate) struct Conv {
    window: Window,
    groups: usize,
    in_shape: [usize; 3],
    out_shape: [usize; 3],
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
            window,
            groups,
            in_shape,
            out_shape,
            weight,
            bias,
            before: None,
            activation: Activation::Identity,
            forward: OnceLock::new(),
            backward: OnceLock::new(),
        })
    }

    pub(crate) fn out_shape(&self) -> [usize; 3] {
        self.out_shape
    }

    fn rebuilt(&self) -> Self {
        Self {
            window: self.window.clone(),
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            before: self.before.clone(),
            forward: OnceLock::new(),
            backward: OnceLock::new(),
            ..*self
        }
    }

    fn weight_values(&self) -> Result<Vec<f32>> {
        self.weight.flatten_all()?.to_vec1()
    }

    fn forward_plan(&self) -> Result<&Plan> {
        if let Some(ready) = self.forward.get() {
            return Ok(ready);
        }
        let built = Plan::forward(self, &self.weight_values()?);
        Ok(self.forward.get_or_init(|| built))
    }

    fn backward_plan(&self) -> Result<&Plan> {
        if let Some(ready) = self.backward.get() {
            return Ok(ready);
        }
        let built = Plan::backward(self, &self.weight_values()?);
        Ok(self.backward.get_or_init(|| built))
    }

    fn forward_cpu(&self, x: &Tensor, shares: usize) -> Result<Tensor> {
        let shape = (x.dim(0)?, self.out_shape[0], self.out_shape[1], self.out_shape[2]);
        let plan = self.forward_plan()?;
        loops::apply("conv", x, shape, |x, out| match &self.before {
            None => self.run(plan, x, Plain, shares, out),
            Some(before) => {
                let load = Affine {
                    scale: &before.scale,
                    shift: &before.shift,
                    activation: before.activation,
                };
                self.run(plan, x, load, shares, out);
            }
        })
    }

    /// Every share is some of the output channels; more than one takes one image.
    fn run<L: Load>(&self, plan: &Plan, x: &[f32], load: L, shares: usize, out: &mut [f32]) {
        let bias = self.bias.as_deref();
        let [channels, height, width] = self.out_shape;
        let unit = match plan.unit() {
            Some(unit) if shares > 1 => unit,
            _ => return plan.run(x, load, bias, self.activation, 0, out),
        };
        let channels = channels.div_ceil(unit).div_ceil(shares) * unit;
        out.par_chunks_mut(channels * height * width).enumerate().for_each(|(share, out)| {
            plan.run(x, load, bias, self.activation, share * channels, out);
        });
    }

    fn backward_cpu(&self, cotangent: &Tensor) -> Result<Tensor> {
        let plan = self.backward_plan()?;
        let shape = (cotangent.dim(0)?, self.in_shape[0], self.in_shape[1], self.in_shape[2]);
        loops::apply("conv gradient", cotangent, shape, |y, out| {
            plan.run(y, Plain, None, Activation::Identity, 0, out);
        })
    }
}

impl Operator for Conv {
    fn name(&self) -> &'static str {
        "Conv"
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        self.composed(&inputs[0], kept)
    }

    fn compose_vjp(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
        kept: &Kept,
    ) -> Result<Vec<Option<Tensor>>> {
        let cotangent = self.activation.composed_gate(output, cotangent)?;
        let gradient = self.composed_gradient(&cotangent, kept)?;
        match &self.before {
            None => Ok(vec![Some(gradient)]),
            Some(before) => Ok(vec![Some(before.composed_gradient(&inputs[0], &gradient, kept)?)]),
        }
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        self.forward_cpu(&inputs[0], 1)
    }

    fn products(&self, _row: &[usize]) -> usize {
        let ([ins, ..], [outs, height, width]) = (self.in_shape, self.out_shape);
        let taps: usize = self.window.kernel.iter().product();
        [height, width, outs, ins / self.groups].into_iter().fold(taps, usize::saturating_mul)
    }

    fn forward_shared(&self, inputs: &[Tensor], shares: usize) -> Result<Tensor> {
        let shares = if inputs[0].dim(0)? == 1 { shares } else { 1 };
        self.forward_cpu(&inputs[0], shares)
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let cotangent = self.activation.gate(output, cotangent)?;
        let gradient = self.backward_cpu(&cotangent)?;
        match &self.before {
            None => Ok(vec![Some(gradient)]),
            Some(before) => Ok(vec![Some(before.gradient(&inputs[0], &gradient)?)]),
        }
    }

    fn saves(&self) -> Saves {
        let output = self.activation != Activation::Identity;
        Saves { inputs: self.before.is_some(), output }
    }

    fn absorb_after(&self, next: &ChannelAffine) -> Option<Box<dyn Operator>> {
        if self.activation != Activation::Identity {
            return None;
        }
        let mut fused = self.rebuilt();
        fused.activation = next.activation;
        if !next.is_unit() {
            let scale = Tensor::new(next.scale.as_slice(), self.weight.device()).ok()?;
            fused.weight = self.weight.broadcast_mul(&scale.reshape(((), 1, 1, 1)).ok()?).ok()?;
            let zero = vec![0.0; self.out_shape[0]];
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

    fn absorb_before(&self, previous: &ChannelAffine) -> Option<Box<dyn Operator>> {
        if self.before.is_some() {
            return None;
        }
        let mut fused = self.rebuilt();
        fused.before = Some(previous.clone());
        Some(Box::new(fused))
    }
}

#[cfg(test)]
mod tests;
