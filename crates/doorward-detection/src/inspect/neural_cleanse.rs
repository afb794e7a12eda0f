//! Neural Cleanse (Wang et al. 2019), the baseline that DTInspector is compared with.
//!
//! For every label the smallest patch that gives clean images of all labels that label; a label
//! whose patch is far smaller than the others' is a backdoor's target (section IV). Its masks go
//! through the same optimiser as DTInspector's, with its own schedule: lambda starts at zero and is
//! raised once 99 % of the images get the label.

use rand::rngs::StdRng;

use super::patch::{Learning, Patches};
use crate::patch::{Goal, Patch};
use crate::stats::low_anomaly_indices;
use doorward_engine::{Batch, Classifier, Error};

/// The trigger that was reversed for one label.
#[derive(Clone, Debug)]
pub struct Reversed {
    /// The label.
    pub label: usize,
    /// The patch that gives images the label.
    pub patch: Patch,
    /// l1 norm of its mask, pixels.
    pub mask_l1: f64,
    /// Share of the clean images that get the label.
    pub reached: f64,
    /// The distance of the norm below the others', in scaled median absolute deviations.
    pub anomaly_index: f64,
}

impl Reversed {
    /// True if the label is a backdoor's target.
    pub fn infected(&self) -> bool {
        self.anomaly_index > THRESHOLD
    }
}

/// Reverses a trigger for every label from clean images, `batch` of them a step.
pub fn neural_cleanse(
    model: &dyn Classifier,
    clean: &Batch,
    steps: usize,
    batch: usize,
    rng: &mut StdRng,
    progress: &dyn Fn(f64),
) -> Result<Vec<Reversed>, Error> {
    let learning = Learning {
        goal: Goal::Reach,
        steps,
        batch,
        first_lambda: 0.0,
        lambda: LAMBDA,
        success_rate: SUCCESS_RATE,
    };
    let targets: Vec<Batch> = (0..model.labels())
        .map(|label| Batch { rows: clean.rows.clone(), labels: vec![label; clean.len()] })
        .collect();
    let patches = Patches::learn(model, &targets, &learning, rng, progress)?;
    let mut learned = Vec::with_capacity(targets.len());
    for (label, target) in targets.iter().enumerate() {
        let patch = patches.patch(label)?;
        let (mask_l1, reached) = (patch.mask_l1()?, patch.reached(model, Goal::Reach, target)?);
        learned.push((patch, mask_l1, reached));
    }
    let norms: Vec<f64> = learned.iter().map(|&(_, mask_l1, _)| mask_l1).collect();
    let indices = low_anomaly_indices(&norms, MAD_FLOOR);
    let reversed = |(label, ((patch, mask_l1, reached), anomaly_index))| Reversed {
        label,
        patch,
        mask_l1,
        reached,
        anomaly_index,
    };
    Ok(learned.into_iter().zip(indices).enumerate().map(reversed).collect())
}

/// The authors'.
const LAMBDA: f32 = 1e-3;
const SUCCESS_RATE: f64 = 0.99;
const THRESHOLD: f64 = 2.0;

/// Pixels; keeps equal norms apart from a division by zero.
const MAD_FLOOR: f64 = 1e-6;
