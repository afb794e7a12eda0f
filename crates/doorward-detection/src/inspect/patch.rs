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

use crate::patch::{Goal, Patch};
use crate::perturb::adam::Adam;
use doorward_engine::{Batch, Bounds, Classifier, Error, margin_cotangent, margins};

/// The settings by which patches are learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learning {
    /// The effect that they are to have.
    pub goal: Goal,
    /// Optimisation steps.
    pub steps: usize,
    /// Samples of each label a step.
    pub batch: usize,
    /// The weight of the mask at the first step.
    pub first_lambda: f32,
    /// The weight that takes the place of zero after enough successes.
    pub lambda: f32,
    /// Share of the samples that must reach the goal.
    pub success_rate: f64,
}

/// The patches of several labels.
#[derive(Clone, Debug)]
pub struct Patches {
    /// `[labels, 1, H, W]`
    masks: Tensor,
    /// `[labels, C, H, W]`
    patterns: Tensor,
}

// === impl Patches ===

impl Patches {
    /// Learns one patch per batch of `tops`, each with the rows and the one label it is for.
    ///
    /// A label's result is the smallest mask that was good for `success_rate` of all its rows, or
    /// the last one where none was.
    pub fn learn(
        model: &dyn Classifier,
        tops: &[Batch],
        learning: &Learning,
        rng: &mut StdRng,
        progress: &dyn Fn(f64),
    ) -> Result<Self, Error> {
        let bounds = Bounds::new(model.domain(), model.device())?;
        let count = tops.len();
        let mut raw = Raw::new(model, count, rng)?;
        let mut schedule = vec![Schedule::new(learning); count];
        let mut best: Vec<Option<(f64, Patch)>> = vec![None; count];
        for step in 0..learning.steps {
            let all = raw.patches(&bounds)?;
            let picked: Vec<Batch> = tops
                .iter()
                .map(|top| {
                    let some = sample(rng, top.len(), learning.batch.min(top.len())).into_vec();
                    top.select(&some)
                })
                .collect::<CandleResult<_>>()?;
            let lambdas: Vec<f32> = schedule.iter().map(|schedule| schedule.lambda).collect();
            let reached = raw.step(model, learning.goal, &bounds, &all, &picked, &lambdas)?;
            for (index, schedule) in schedule.iter_mut().enumerate() {
                schedule.update(reached[index] >= learning.success_rate);
            }
            let last = step + 1 == learning.steps;
            if last || (step + 1) % CHECK_EVERY == 0 {
                let all = raw.patches(&bounds)?;
                for (index, top) in tops.iter().enumerate() {
                    let patch = all.patch(index)?;
                    let l1 = patch.mask_l1()?;
                    let smaller = best[index].as_ref().is_none_or(|(best, _)| l1 < *best);
                    let reached = || patch.reached(model, learning.goal, top);
                    if smaller && reached()? >= learning.success_rate {
                        best[index] = Some((l1, patch));
                    }
                }
            }
            progress((step + 1) as f64 / learning.steps as f64);
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

impl Goal {
    /// The weight of a margin that has not gone far enough.
    fn weight(self, margin: f32) -> f32 {
        match self {
            Self::Leave if margin > -KAPPA => 1.0,
            Self::Reach if margin < KAPPA => -1.0,
            Self::Leave | Self::Reach => 0.0,
        }
    }

    fn is_reached(self, margin: f32) -> bool {
        match self {
            Self::Leave => margin < 0.0,
            Self::Reach => margin > 0.0,
        }
    }
}

/// Masks and patterns before tanh.
struct Raw {
    mask: Adam,
    pattern: Adam,
}

impl Raw {
    fn new(model: &dyn Classifier, count: usize, rng: &mut StdRng) -> CandleResult<Self> {
        let [channels, height, width] = model.domain().shape;
        let device = model.device();
        Ok(Self {
            mask: random((count, 1, height, width), MASK_START, rng, device)?,
            pattern: random((count, channels, height, width), 0.0, rng, device)?,
        })
    }

    fn patches(&self, bounds: &Bounds) -> CandleResult<Patches> {
        let unit = |raw: &Tensor| raw.tanh()?.affine(0.5, 0.5);
        let patterns = unit(&self.pattern.value)?
            .broadcast_mul(&bounds.range)?
            .broadcast_add(&bounds.lower)?;
        Ok(Patches { masks: unit(&self.mask.value)?, patterns })
    }

    /// One Adam step on every label; returns the share of the picked samples that were at the goal.
    fn step(
        &mut self,
        model: &dyn Classifier,
        goal: Goal,
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
            margin_cotangent(logits, &labels[rows], |margin| goal.weight(margin))
        })?;
        let margins = margins(&logits, &labels)?;
        let (mut mask_gradients, mut pattern_gradients) = (Vec::new(), Vec::new());
        let mut reached = Vec::with_capacity(picked.len());
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
            let there = own.iter().filter(|&&margin| goal.is_reached(margin)).count();
            reached.push(there as f64 * share);
            start += batch.len();
        }
        // d/dr of (tanh(r) + 1) / 2 is (1 - tanh(r)^2) / 2.
        let slope = |raw: &Tensor| raw.tanh()?.sqr()?.affine(-0.5, 0.5);
        let to_mask = Tensor::cat(&mask_gradients, 0)?.mul(&slope(&self.mask.value)?)?;
        let to_pattern = Tensor::cat(&pattern_gradients, 0)?
            .mul(&slope(&self.pattern.value)?)?
            .broadcast_mul(&bounds.range)?;
        self.mask.step(&to_mask)?;
        self.pattern.step(&to_pattern)?;
        Ok(reached)
    }
}

fn random(
    shape: (usize, usize, usize, usize),
    centre: f32,
    rng: &mut StdRng,
    device: &Device,
) -> CandleResult<Adam> {
    let count = shape.0 * shape.1 * shape.2 * shape.3;
    let values: Vec<f32> = (0..count).map(|_| centre + rng.random_range(-0.5..0.5f32)).collect();
    Adam::new(Tensor::from_vec(values, shape, device)?, LEARNING_RATE, DECAY)
}

/// Neural Cleanse's dynamic weight of the mask, per label.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    lambda: f32,
    /// Takes the place of zero.
    least: f32,
    successes: usize,
    failures: usize,
}

impl Schedule {
    fn new(learning: &Learning) -> Self {
        let Learning { first_lambda, lambda, .. } = *learning;
        Self { lambda: first_lambda, least: lambda, successes: 0, failures: 0 }
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
            let raised = self.lambda * MULTIPLIER;
            self.lambda = if self.lambda == 0.0 { self.least } else { raised };
        }
        if self.failures == PATIENCE {
            self.failures = 0;
            self.lambda /= MULTIPLIER.powf(1.5);
        }
    }
}

/// Samples that are past the goal by this margin pull no more.
const KAPPA: f32 = 2.0;

/// Masks start at about 0.12 everywhere: tanh's slope there still lets them grow.
const MASK_START: f32 = -1.0;

/// Neural Cleanse's.
const LEARNING_RATE: f64 = 0.1;
const DECAY: [f64; 2] = [0.5, 0.9];
const PATIENCE: usize = 5;
const MULTIPLIER: f32 = 1.5;

/// Steps between looks at all samples for a smaller mask that succeeds.
const CHECK_EVERY: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lambda_rises_with_successes_and_falls_faster_with_failures() {
        let learning = Learning {
            goal: Goal::Leave,
            steps: 1,
            batch: 1,
            first_lambda: 1e-4,
            lambda: 1e-4,
            success_rate: 0.95,
        };
        let mut schedule = Schedule::new(&learning);
        (0..PATIENCE).for_each(|_| schedule.update(true));
        assert!((schedule.lambda - 1.5e-4).abs() < 1e-9);
        (0..PATIENCE).for_each(|_| schedule.update(false));
        assert!(schedule.lambda < 1e-4);
        // Neural Cleanse starts at zero.
        let mut schedule = Schedule::new(&Learning { first_lambda: 0.0, ..learning });
        (0..PATIENCE).for_each(|_| schedule.update(true));
        assert_eq!(schedule.lambda, 1e-4);
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
