//! ONNX `LRN`: local response normalisation across channels.

use candle_core::{Result, Tensor};

use crate::composition::{Kept, along, sums};
use crate::kernels::loops;
use crate::operators::{Backward, Kernel, Operator, Saves};

/// `x / (bias + alpha / size * sum of x^2 over the channels around)^beta`
#[derive(Debug)]
pub(crate) struct LocalResponse {
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    pub(crate) bias: f32,
    /// Channels in a window.
    pub(crate) size: usize,
    pub(crate) channels: usize,
    /// Values of one channel.
    pub(crate) plane: usize,
}

impl LocalResponse {
    /// Channels before and after one that its window reaches over.
    fn reach(&self) -> [usize; 2] {
        [(self.size - 1) / 2, self.size / 2]
    }

    /// `out[c] = sum of values[d]` over `d` from `c - before` to `c + after`.
    fn around(&self, values: &[f32], [before, after]: [usize; 2], out: &mut [f32]) {
        for (channel, out) in out.chunks_exact_mut(self.plane).enumerate() {
            out.fill(0.0);
            let end = (channel + after + 1).min(self.channels);
            let window = channel.saturating_sub(before) * self.plane..end * self.plane;
            for values in values[window].chunks_exact(self.plane) {
                out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
            }
        }
    }

    /// Sums over windows as a matrix of channels, times `alpha / size`.
    fn windows(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        kept.get("windows", || {
            let [before, after] = self.reach();
            let share = self.alpha / self.size as f32;
            let window = |channel: usize| {
                let end = (channel + after + 1).min(self.channels);
                (channel.saturating_sub(before)..end).map(|from| (from, share)).collect()
            };
            let windows: Vec<_> = (0..self.channels).map(window).collect();
            sums(&windows, self.channels, x.device())
        })
    }

    /// The base of the power.
    fn composed_bases(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let sums = along(&x.sqr()?, self.plane, &self.windows(x, kept)?)?.reshape(x.shape())?;
        sums + f64::from(self.bias)
    }

    /// The bases of the power, for one image.
    fn bases(&self, x: &[f32]) -> Vec<f32> {
        let squares: Vec<f32> = x.iter().map(|x| x * x).collect();
        let mut bases = vec![0.0; x.len()];
        self.around(&squares, self.reach(), &mut bases);
        let share = self.alpha / self.size as f32;
        bases.iter_mut().for_each(|base| *base = self.bias + share * *base);
        bases
    }
}

impl Operator for LocalResponse {
    fn name(&self) -> &'static str {
        "LRN"
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        let bases = self.composed_bases(&inputs[0], kept)?;
        &inputs[0] * bases.powf(-f64::from(self.beta))?
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        let (x, beta) = (&inputs[0], f64::from(self.beta));
        let bases = self.composed_bases(x, kept)?;
        let direct = (cotangent * bases.powf(-beta)?)?;
        let through = ((cotangent * x)? * bases.powf(-beta - 1.0)?)?;
        let around = along(&through, self.plane, &self.windows(x, kept)?.t()?)?;
        let around = (around.reshape(x.shape())? * x)?;
        Ok(vec![Some((direct - (around * (2.0 * beta))?)?)])
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}

impl Kernel for LocalResponse {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let image = self.channels * self.plane;
        loops::map(self.name(), &inputs[0], inputs[0].shape(), |x, out| {
            for (x, out) in x.chunks_exact(image).zip(out.chunks_exact_mut(image)) {
                let bases = self.bases(x);
                for ((out, x), base) in out.iter_mut().zip(x).zip(bases) {
                    *out = x * base.powf(-self.beta);
                }
            }
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        let (x, image) = (&inputs[0], self.channels * self.plane);
        // The channels in whose windows a channel is lie the other way round.
        let [before, after] = self.reach();
        let share = 2.0 * self.alpha * self.beta / self.size as f32;
        let gradient = loops::zip(self.name(), x, cotangent, x.shape(), |x, dy, out| {
            let images = x.chunks_exact(image).zip(dy.chunks_exact(image));
            for ((x, dy), out) in images.zip(out.chunks_exact_mut(image)) {
                let bases = self.bases(x);
                let through: Vec<f32> = dy
                    .iter()
                    .zip(x)
                    .zip(&bases)
                    .map(|((dy, x), base)| dy * x * base.powf(-self.beta - 1.0))
                    .collect();
                self.around(&through, [after, before], out);
                for (((out, x), dy), base) in out.iter_mut().zip(x).zip(dy).zip(&bases) {
                    *out = dy * base.powf(-self.beta) - share * x * *out;
                }
            }
        })?;
        Ok(vec![Some(gradient)])
    }
}
