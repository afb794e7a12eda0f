//! Softmax and normalisations over runs of values that lie side by side.

use candle_core::{Result, Tensor};

use crate::composition::Kept;
use crate::kernels::{loops, math};
use crate::operators::{Backward, Kernel, Operator, Saves};

/// ONNX `Softmax` and `LogSoftmax` along one stretch of dimensions.
#[derive(Debug)]
pub(crate) struct Softmax {
    pub(crate) log: bool,
    /// Values of one distribution.
    pub(crate) len: usize,
    /// Values of the dimensions behind it: 1 for the last.
    pub(crate) inner: usize,
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias`, statistics over runs of `len` values:
/// ONNX `LayerNormalization`, `InstanceNormalization` and `GroupNormalization`.
#[derive(Debug)]
pub(crate) struct Normalization {
    pub(crate) name: &'static str,
    pub(crate) len: usize,
    pub(crate) epsilon: f32,
    /// One for each of the values that follow each other, `repeat` of them alike; over again when
    /// they end.
    pub(crate) scale: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) repeat: usize,
}

// === impl Softmax ===

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "LogSoftmax" } else { "Softmax" }
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        let x = inputs[0].reshape(((), self.len, self.inner))?;
        let x = x.broadcast_sub(&x.max_keepdim(1)?)?;
        let powers = x.exp()?;
        let sum = powers.sum_keepdim(1)?;
        let y = match self.log {
            true => x.broadcast_sub(&sum.log()?)?,
            false => powers.broadcast_div(&sum)?,
        };
        y.reshape(inputs[0].shape())
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { output, cotangent, .. } = *at;
        let y = output.reshape(((), self.len, self.inner))?;
        let dy = cotangent.reshape(y.shape())?;
        let gradient = match self.log {
            true => (&dy - y.exp()?.broadcast_mul(&dy.sum_keepdim(1)?)?)?,
            false => (&y * dy.broadcast_sub(&(&dy * &y)?.sum_keepdim(1)?)?)?,
        };
        Ok(vec![Some(gradient.reshape(output.shape())?)])
    }

    fn saves(&self) -> Saves {
        Saves::OUTPUT
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}

impl Kernel for Softmax {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        loops::map(self.name(), &inputs[0], inputs[0].shape(), |x, out| {
            let block = self.len * self.inner;
            for (x, out) in x.chunks_exact(block).zip(out.chunks_exact_mut(block)) {
                match self.inner {
                    1 => softmax(x, out, self.log),
                    inner => {
                        let mut column = vec![0.0; self.len];
                        let mut result = vec![0.0; self.len];
                        for i in 0..inner {
                            let values = x[i..].iter().step_by(inner);
                            column.iter_mut().zip(values).for_each(|(to, from)| *to = *from);
                            softmax(&column, &mut result, self.log);
                            let to = out[i..].iter_mut().step_by(inner);
                            to.zip(&result).for_each(|(to, from)| *to = *from);
                        }
                    }
                }
            }
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { output, cotangent, .. } = *at;
        let (log, inner) = (self.log, self.inner);
        let gradient = loops::zip(self.name(), output, cotangent, output.shape(), |y, dy, out| {
            let block = self.len * inner;
            let blocks = y.chunks_exact(block).zip(dy.chunks_exact(block));
            for ((y, dy), out) in blocks.zip(out.chunks_exact_mut(block)) {
                for i in 0..inner {
                    let y = y[i..].iter().step_by(inner);
                    let dy = dy[i..].iter().step_by(inner);
                    let out = out[i..].iter_mut().step_by(inner);
                    if log {
                        // dy - softmax(x) <dy, 1>
                        let sum: f32 = dy.clone().sum();
                        for ((out, y), dy) in out.zip(y).zip(dy) {
                            *out = dy - math::exp(*y) * sum;
                        }
                    } else {
                        // y (dy - <dy, y>)
                        let sum: f32 = dy.clone().zip(y.clone()).map(|(dy, y)| dy * y).sum();
                        for ((out, y), dy) in out.zip(y).zip(dy) {
                            *out = y * (dy - sum);
                        }
                    }
                }
            }
        })?;
        Ok(vec![Some(gradient)])
    }
}

#[inline(always)]
fn softmax(x: &[f32], out: &mut [f32], log: bool) {
    let largest = x.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    out.iter_mut().zip(x).for_each(|(out, x)| *out = math::exp(x - largest));
    let sum = lanes_sum(out, |y| y);
    if log {
        let shift = largest + sum.ln();
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x - shift);
    } else {
        let scale = 1.0 / sum;
        out.iter_mut().for_each(|out| *out *= scale);
    }
}

// === impl Normalization ===

impl Normalization {
    #[inline(always)]
    fn statistics(&self, x: &[f32]) -> (f32, f32) {
        let mean = lanes_sum(x, |x| x) / self.len as f32;
        let variance = lanes_sum(x, |x| (x - mean) * (x - mean)) / self.len as f32;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }

    /// The start of the parameters of the run of this index, and their number.
    fn parameters(&self, run: usize) -> (usize, usize) {
        let count = self.len / self.repeat;
        (run * count % self.scale.len(), count)
    }
}

impl Normalization {
    /// Runs without their means, and one over their deviations.
    fn composed_statistics(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = x.reshape(((), self.len))?;
        let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let variance = centred.sqr()?.mean_keepdim(1)?;
        let inverse = (variance + f64::from(self.epsilon))?.sqrt()?.recip()?;
        Ok((centred, inverse))
    }

    /// A tensor with its values beside the parameters they have: `[_, parameters, repeat]`.
    fn beside_parameters(&self, x: &Tensor) -> Result<Tensor> {
        x.reshape(((), self.scale.len(), self.repeat))
    }

    fn kept_parameters(
        &self,
        name: &'static str,
        values: &[f32],
        x: &Tensor,
        kept: &Kept,
    ) -> Result<Tensor> {
        kept.get(name, || Tensor::from_slice(values, (1, values.len(), 1), x.device()))
    }
}

impl Operator for Normalization {
    fn name(&self) -> &'static str {
        self.name
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        let x = &inputs[0];
        let (centred, inverse) = self.composed_statistics(x)?;
        self.beside_parameters(&centred.broadcast_mul(&inverse)?)?
            .broadcast_mul(&self.kept_parameters("scale", &self.scale, x, kept)?)?
            .broadcast_add(&self.kept_parameters("bias", &self.bias, x, kept)?)?
            .reshape(x.shape())
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        let x = &inputs[0];
        let (centred, inverse) = self.composed_statistics(x)?;
        // As on the CPU: g = scale dy; (g - mean(g) - x_hat mean(g x_hat)) / sigma
        let scale = self.kept_parameters("scale", &self.scale, x, kept)?;
        let g = self.beside_parameters(cotangent)?.broadcast_mul(&scale)?;
        let g = g.reshape(centred.shape())?;
        let unit = centred.broadcast_mul(&inverse)?;
        let of_product = (&g * &unit)?.mean_keepdim(1)?;
        let rest = g.broadcast_sub(&g.mean_keepdim(1)?)?;
        let gradient = (rest - unit.broadcast_mul(&of_product)?)?.broadcast_mul(&inverse)?;
        Ok(vec![Some(gradient.reshape(x.shape())?)])
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}

impl Kernel for Normalization {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        loops::map(self.name, &inputs[0], inputs[0].shape(), |x, out| {
            let runs = x.chunks_exact(self.len).zip(out.chunks_exact_mut(self.len));
            for (run, (x, out)) in runs.enumerate() {
                let (mean, inverse) = self.statistics(x);
                let (start, count) = self.parameters(run);
                let (scale, bias) = (&self.scale[start..][..count], &self.bias[start..][..count]);
                if self.repeat == 1 {
                    for (((out, x), scale), bias) in out.iter_mut().zip(x).zip(scale).zip(bias) {
                        *out = (x - mean) * inverse * scale + bias;
                    }
                    continue;
                }
                let spans = x.chunks_exact(self.repeat).zip(out.chunks_exact_mut(self.repeat));
                for ((x, out), (scale, bias)) in spans.zip(scale.iter().zip(bias)) {
                    let (scale, shift) = (scale * inverse, bias - mean * scale * inverse);
                    out.iter_mut().zip(x).for_each(|(out, x)| *out = x * scale + shift);
                }
            }
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        let x = &inputs[0];
        let gradient = loops::zip(self.name, x, cotangent, x.shape(), |x, dy, out| {
            let runs = x.chunks_exact(self.len).zip(dy.chunks_exact(self.len));
            for (run, ((x, dy), out)) in runs.zip(out.chunks_exact_mut(self.len)).enumerate() {
                let (mean, inverse) = self.statistics(x);
                let (start, count) = self.parameters(run);
                let scale = &self.scale[start..][..count];
                // g = scale dy; (g - mean(g) - x_hat mean(g x_hat)) / sigma
                let spans = dy.chunks_exact(self.repeat).zip(out.chunks_exact_mut(self.repeat));
                if self.repeat == 1 {
                    for ((out, dy), scale) in out.iter_mut().zip(dy).zip(scale) {
                        *out = dy * scale;
                    }
                } else {
                    for ((dy, out), scale) in spans.zip(scale) {
                        out.iter_mut().zip(dy).for_each(|(out, dy)| *out = dy * scale);
                    }
                }
                let of_sum = lanes_sum(out, |g| g) / self.len as f32;
                let of_product =
                    lanes_sum2(out, x, |g, x| g * (x - mean)) * inverse / self.len as f32;
                for (out, x) in out.iter_mut().zip(x) {
                    *out = (*out - of_sum - (x - mean) * inverse * of_product) * inverse;
                }
            }
        })?;
        Ok(vec![Some(gradient)])
    }
}

/// Sums in sixteen lanes: in one, every addition waits for the one before.
#[inline(always)]
pub(crate) fn lanes_sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f(*value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&value| f(value)).sum::<f32>()
}

#[inline(always)]
fn lanes_sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += f(*a, *b);
        }
    }
    lanes.iter().sum::<f32>() + rest_a.iter().zip(rest_b).map(|(a, b)| f(*a, *b)).sum::<f32>()
}

const LANES: usize = 16;
