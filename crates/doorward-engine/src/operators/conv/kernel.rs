//! Convolution on the CPU: a plan each way, made when it is first needed.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::Conv;
use crate::kernels::activation::Activation;
use crate::kernels::convolution::Plan;
use crate::kernels::load::{Affine, Load, Plain};
use crate::kernels::loops;
use crate::operators::{Backward, Kernel};

impl Conv {
    fn weight_values(&self) -> Result<Vec<f32>> {
        self.weight.flatten_all()?.to_vec1()
    }

    fn forward_plan(&self) -> Result<&Plan> {
        if let Some(ready) = self.forward.get() {
            return Ok(ready);
        }
        let built = Plan::forward(&self.shape, &self.weight_values()?);
        Ok(self.forward.get_or_init(|| built))
    }

    fn backward_plan(&self) -> Result<&Plan> {
        if let Some(ready) = self.backward.get() {
            return Ok(ready);
        }
        let built = Plan::backward(&self.shape, &self.weight_values()?);
        Ok(self.backward.get_or_init(|| built))
    }

    pub(super) fn forward_cpu(&self, x: &Tensor, shares: usize) -> Result<Tensor> {
        let shape = (x.dim(0)?, self.shape.output[0], self.shape.output[1], self.shape.output[2]);
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
        let [channels, height, width] = self.shape.output;
        let unit = match plan.unit() {
            Some(unit) if shares > 1 => unit,
            _ => return plan.run(x, load, bias, self.activation, 0, out),
        };
        let channels = channels.div_ceil(unit).div_ceil(shares) * unit;
        out.par_chunks_mut(channels * height * width).enumerate().for_each(|(share, out)| {
            plan.run(x, load, bias, self.activation, share * channels, out);
        });
    }

    pub(super) fn backward_cpu(&self, cotangent: &Tensor) -> Result<Tensor> {
        let plan = self.backward_plan()?;
        let shape =
            (cotangent.dim(0)?, self.shape.input[0], self.shape.input[1], self.shape.input[2]);
        loops::apply("conv gradient", cotangent, shape, |y, out| {
            plan.run(y, Plain, None, Activation::Identity, 0, out);
        })
    }
}

impl Kernel for Conv {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        self.forward_cpu(&inputs[0], 1)
    }

    fn products(&self, _row: &[usize]) -> usize {
        let ([ins, ..], [outs, height, width]) = (self.shape.input, self.shape.output);
        let taps: usize = self.shape.window.kernel.iter().product();
        [height, width, outs, ins / self.shape.groups].into_iter().fold(taps, usize::saturating_mul)
    }

    fn forward_shared(&self, inputs: &[Tensor], shares: usize) -> Result<Tensor> {
        let shares = if inputs[0].dim(0)? == 1 { shares } else { 1 };
        self.forward_cpu(&inputs[0], shares)
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, output, cotangent } = *at;
        let cotangent = self.activation.gate(output, cotangent)?;
        let gradient = self.backward_cpu(&cotangent)?;
        match &self.before {
            None => Ok(vec![Some(gradient)]),
            Some(before) => Ok(vec![Some(before.gradient(&inputs[0], &gradient)?)]),
        }
    }
}
