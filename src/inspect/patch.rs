//! Patches that change a label: DTInspector, section 3.2, equation 1.
//!
//! ```text
//! x' = (1 - M) * x + M * P        minimise  mean(max(m_z(x'), -kappa)) + lambda * |M|_1
//! ```
//!
//! The paper drives the squared softmax probability of label z to zero. On a saturated softmax that
//! has no gradient, and the patch of a truly infected label never starts to move; the margin of the
//! logits always has one. Mask and pattern go through tanh, Adam steps with the rate and moments of
//! Neural Cleanse, and lambda follows its schedule: multiplied after `PATIENCE` successes in a row,
//! divided after as many failures. Labels are independent and learned in one batch.

use candle_core::{Device, Result as CandleResult, Tensor};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::index::sample;

use super::Settings;
use crate::model::{Classifier, Error};
use crate::perturb::{Batch, Bounds, margin_cotangent, margins, predictions};

/// A mask and a pattern: `x' = (1 - mask) * x + mask * pattern`.
#[derive(Clone, Debug)]
pub struct Patch {
    /// `[1, 1, H, W]` in [0, 1].
    pub mask: Tensor,
    /// `[1, C, H, W]`, inside the input domain.
    pub pattern: Tensor,
}

/// The patches of several labels.
#[derive(Clone, Debug)]
pub struct Patches {
    /// `[labels, 1, H, W]`
    masks: Tensor,
    /// `[labels, C, H, W]`
    patterns: Tensor,
}

// === impl Patch ===

impl Patch {
    /// The patched rows.
    pub fn apply(&self, rows: &Tensor) -> CandleResult<Tensor> {
        let kept = rows.broadcast_mul(&self.mask.affine(-1.0, 1.0)?)?;
        kept.broadcast_add(&self.pattern.broadcast_mul(&self.mask)?)
    }

    /// Share of the rows whose label changes.
    pub fn changed(&self, model: &dyn Classifier, batch: &Batch) -> Result<f64, Error> {
        let after = predictions(&model.logits(&self.apply(&batch.rows)?)?)?;
        let changed = after.iter().zip(&batch.labels).filter(|((label, _), z)| label != *z).count();
        Ok(changed as f64 / batch.len() as f64)
    }

    /// `|M|_1` in pixels.
    pub fn mask_l1(&self) -> CandleResult<f64> {
        Ok(f64::from(self.mask.sum_all()?.to_scalar::<f32>()?))
    }
}

// === impl Patches ===

impl Patches {
    /// Learns one patch per batch of `tops`, each holding samples of one label.
    ///
    /// A label's result is the smallest mask that changed `success_rate` of all its samples, or
    /// the last one where none did.
    pub fn learn(
        model: &dyn Classifier,
        tops: &[Batch],
        settings: &Settings,
        rng: &mut StdRng,
        progress: &dyn Fn(f64),
    ) -> Result<Self, Error> {
        let bounds = Bounds::new(model.domain(), model.device())?;
        let count = tops.len();
        let mut raw = Raw::new(model, count, rng)?;
        let mut schedule = vec![Schedule::new(settings.lambda); count];
        let mut best: Vec<Option<(f64, Patch)>> = vec![None; count];
        for step in 0..settings.steps {
            let all = raw.patches(&bounds)?;
            let picked: Vec<Batch> = tops
                .iter()
                .map(|top| {
                    let some = sample(rng, top.len(), settings.batch.min(top.len())).into_vec();
                    top.select(&some)
                })
                .collect::<CandleResult<_>>()?;
            let lambdas: Vec<f32> = schedule.iter().map(|schedule| schedule.lambda).collect();
            let changed = raw.step(model, &bounds, &all, &picked, &lambdas)?;
            for (index, schedule) in schedule.iter_mut().enumerate() {
                schedule.update(changed[index] >= settings.success_rate);
            }
            let last = step + 1 == settings.steps;
            if last || (step + 1) % CHECK_EVERY == 0 {
                let all = raw.patches(&bounds)?;
                for (index, top) in tops.iter().enumerate() {
                    let patch = all.patch(index)?;
                    let l1 = patch.mask_l1()?;
                    let smaller = best[index].as_ref().is_none_or(|(best, _)| l1 < *best);
                    if smaller && patch.changed(model, top)? >= settings.success_rate {
                        best[index] = Some((l1, patch));
                    }
                }
            }
            progress((step + 1) as f64 / settings.steps as f64);
        }
        let last = raw.patches(&bounds)?;
        let mut masks = Vec::with_capacity(count);
        let mut patterns = Vec::with_capacity(count);
        for (index, best) in best.into_iter().enumerate() {
            let patch = match best {
                Some((_, patch)) => patch,
                None => last.patch(index)?,
            };
            masks.push(patch.mask);
            patterns.push(patch.pattern);
        }
        Ok(Self { masks: Tensor::cat(&masks, 0)?, patterns: Tensor::cat(&patterns, 0)? })
    }

    /// The patch at a position.
    pub fn patch(&self, index: usize) -> CandleResult<Patch> {
        Ok(Patch {
            mask: self.masks.narrow(0, index, 1)?,
            pattern: self.patterns.narrow(0, index, 1)?,
        })
    }
}

/// What Adam moves: masks and patterns before tanh, and their moments.
struct Raw {
    mask: Moving,
    pattern: Moving,
    steps: i32,
}

struct Moving {
    value: Tensor,
    first: Tensor,
    second: Tensor,
}

impl Raw {
    fn new(model: &dyn Classifier, count: usize, rng: &mut StdRng) -> CandleResult<Self> {
        let [channels, height, width] = model.domain().shape;
        let device = model.device();
        Ok(Self {
            mask: Moving::random((count, 1, height, width), MASK_START, rng, device)?,
            pattern: Moving::random((count, channels, height, width), 0.0, rng, device)?,
            steps: 0,
        })
    }

    fn patches(&self, bounds: &Bounds) -> CandleResult<Patches> {
        let unit = |raw: &Tensor| raw.tanh()?.affine(0.5, 0.5);
        let patterns = unit(&self.pattern.value)?
            .broadcast_mul(&bounds.range)?
            .broadcast_add(&bounds.lower)?;
        Ok(Patches { masks: unit(&self.mask.value)?, patterns })
    }

    /// One Adam step on every label; returns the share of the picked samples that had changed.
    fn step(
        &mut self,
        model: &dyn Classifier,
        bounds: &Bounds,
        patches: &Patches,
        picked: &[Batch],
        lambdas: &[f32],
    ) -> Result<Vec<f64>, Error> {
        let patched: Vec<Tensor> = picked
            .iter()
            .enumerate()
            .map(|(index, batch)| patches.patch(index)?.apply(&batch.rows))
            .collect::<CandleResult<_>>()?;
        let patched = Tensor::cat(&patched, 0)?;
        let labels: Vec<usize> = picked.iter().flat_map(|batch| batch.labels.clone()).collect();
        let (logits, gradient) = model.logits_and_gradient(&patched, &|rows, logits| {
            margin_cotangent(logits, &labels[rows], |m| if m > -KAPPA { 1.0 } else { 0.0 })
        })?;
        let margins = margins(&logits, &labels)?;
        let (mut mask_gradients, mut pattern_gradients) = (Vec::new(), Vec::new());
        let mut changed = Vec::with_capacity(picked.len());
        let mut start = 0;
        for (index, batch) in picked.iter().enumerate() {
            let own = gradient.narrow(0, start, batch.len())?;
            let share = 1.0 / batch.len() as f64;
            let Patch { mask, pattern } = patches.patch(index)?;
            // d x' / d M = P - x, d x' / d P = M.
            let towards = batch.rows.neg()?.broadcast_add(&pattern)?;
            let to_mask = ((&own * towards)?.sum_keepdim(0)?.sum_keepdim(1)? * share)?;
            mask_gradients.push((to_mask + f64::from(lambdas[index]))?);
            pattern_gradients.push((own.sum_keepdim(0)? * share)?.broadcast_mul(&mask)?);
            let own = &margins[start..start + batch.len()];
            changed.push(own.iter().filter(|&&margin| margin < 0.0).count() as f64 * share);
            start += batch.len();
        }
        self.steps += 1;
        // d/dr of (tanh(r) + 1) / 2 is (1 - tanh(r)^2) / 2.
        let slope = |raw: &Tensor| raw.tanh()?.sqr()?.affine(-0.5, 0.5);
        let to_mask = Tensor::cat(&mask_gradients, 0)?.mul(&slope(&self.mask.value)?)?;
        let to_pattern = Tensor::cat(&pattern_gradients, 0)?
            .mul(&slope(&self.pattern.value)?)?
            .broadcast_mul(&bounds.range)?;
        self.mask.adam(&to_mask, self.steps)?;
        self.pattern.adam(&to_pattern, self.steps)?;
        Ok(changed)
    }
}

impl Moving {
    fn random(
        shape: (usize, usize, usize, usize),
        centre: f32,
        rng: &mut StdRng,
        device: &Device,
    ) -> CandleResult<Self> {
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let values: Vec<f32> =
            (0..count).map(|_| centre + rng.random_range(-0.5..0.5f32)).collect();
        let value = Tensor::from_vec(values, shape, device)?;
        Ok(Self { first: value.zeros_like()?, second: value.zeros_like()?, value })
    }

    fn adam(&mut self, gradient: &Tensor, step: i32) -> CandleResult<()> {
        let [beta1, beta2] = BETAS;
        self.first = ((&self.first * beta1)? + (gradient * (1.0 - beta1))?)?;
        self.second = ((&self.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let first = (&self.first / (1.0 - beta1.powi(step)))?;
        let second = (&self.second / (1.0 - beta2.powi(step)))?;
        self.value = (&self.value - (first / (second.sqrt()? + 1e-8)?)? * LEARNING_RATE)?;
        Ok(())
    }
}

/// Neural Cleanse's dynamic weight of the mask, per label.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    lambda: f32,
    successes: usize,
    failures: usize,
}

impl Schedule {
    fn new(lambda: f32) -> Self {
        Self { lambda, successes: 0, failures: 0 }
    }

    fn update(&mut self, success: bool) {
        if success {
            self.successes += 1;
            self.failures = 0;
        } else {
            self.failures += 1;
            self.successes = 0;
        }
        if self.successes == PATIENCE {
            self.successes = 0;
            self.lambda *= MULTIPLIER;
        }
        if self.failures == PATIENCE {
            self.failures = 0;
            self.lambda /= MULTIPLIER.powf(1.5);
        }
    }
}

/// Samples whose label has changed by this margin pull no more.
const KAPPA: f32 = 2.0;

/// Masks start at about 0.12 everywhere: tanh's slope there still lets them grow.
const MASK_START: f32 = -1.0;

/// Neural Cleanse's.
const LEARNING_RATE: f64 = 0.1;
const BETAS: [f64; 2] = [0.5, 0.9];
const PATIENCE: usize = 5;
const MULTIPLIER: f32 = 1.5;

/// Steps between looks at all samples for a smaller mask that succeeds.
const CHECK_EVERY: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lambda_rises_with_successes_and_falls_faster_with_failures() {
        let mut schedule = Schedule::new(1e-4);
        (0..PATIENCE).for_each(|_| schedule.update(true));
        assert!((schedule.lambda - 1.5e-4).abs() < 1e-9);
        (0..PATIENCE).for_each(|_| schedule.update(false));
        assert!(schedule.lambda < 1e-4);
    }

    #[test]
    fn a_full_mask_replaces_and_an_empty_one_keeps() {
        let rows = Tensor::full(0.25f32, (2, 3, 2, 2), &Device::Cpu).unwrap();
        let pattern = Tensor::full(0.75f32, (1, 3, 2, 2), &Device::Cpu).unwrap();
        for (mask, expected) in [(0f32, 0.25f32), (1.0, 0.75), (0.5, 0.5)] {
            let mask = Tensor::full(mask, (1, 1, 2, 2), &Device::Cpu).unwrap();
            let patched = Patch { mask, pattern: pattern.clone() }.apply(&rows).unwrap();
            let values: Vec<f32> = patched.flatten_all().unwrap().to_vec1().unwrap();
            assert!(values.iter().all(|value| (value - expected).abs() < 1e-6));
        }
    }
}
