//! DTInspector: is the model backdoored, and which labels are infected?
//!
//! "Confidence Matters: Inspecting Backdoors in Deep Neural Networks via Distribution Transfer".
//! Training images are sorted by confidence per predicted label; a patch is learned that changes
//! the label of the most confident ones (section 3.2) and applied to the least confident ones. On an
//! infected label the confident ones carry the trigger, the patch destroys it, and does nothing to
//! the others: a low transfer ratio (section 3.3).

mod data_inspection;
mod neural_cleanse;
mod patch;
mod representation;
mod shift;
mod space;
mod survival;
mod suspects;
mod transfer;

use candle_core::Tensor;
use rand::rngs::StdRng;

use crate::perturb::{Batch, labels};
use doorward_engine::{Classifier, Error};

pub use data_inspection::{Diverging, data_inspection};
pub use neural_cleanse::{Reversed, neural_cleanse};
pub use patch::{Goal, Learning, Patch, Patches};
pub use representation::Representation;
pub use shift::Shift;
pub use space::Space;
pub use survival::{Probe, Survival};
pub use suspects::Suspects;
pub use transfer::{Judged, judge};

/// How the inspection runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Most and least confident samples per label, the paper's K.
    pub samples: usize,
    /// Optimisation steps.
    pub steps: usize,
    /// Most confident samples a step.
    pub batch: usize,
    /// Start value of lambda, the mask's weight.
    pub lambda: f32,
    /// Share of the most confident samples that must change.
    pub success_rate: f64,
    /// Anomaly index above which a label is infected.
    pub anomaly_threshold: f64,
    /// A model with all transfer ratios above this is clean.
    pub clean_ratio: f64,
}

/// What was learned of a model.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// One per inspected label, in order.
    pub labels: Vec<Inspected>,
    /// The labels named as a backdoor's target.
    pub infected: Vec<usize>,
}

/// What was learned of one label.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The label.
    pub label: usize,
    /// What changes its most confident samples.
    pub patch: Patch,
    /// Share of the least confident samples whose label the patch changes.
    pub transfer_ratio: f64,
    /// How far the ratio lies below the others', in scaled median absolute deviations.
    pub anomaly_index: f64,
    /// Share of the most confident samples whose label the patch changes.
    pub top_k_changed: f64,
    /// Share of the most confident samples that survive the perturbations.
    pub top_k_survival: f64,
    /// How many of the training images survive the perturbations.
    pub survival: Survival,
    /// How unlike clean ones the model represents its training images.
    pub shift: Shift,
    /// Rows of all samples that are predicted as it, the most confident first.
    pub members: Vec<usize>,
    /// Rows of its most confident samples, the most confident first.
    pub top: Vec<usize>,
    /// Rows of its least confident samples, the least confident last.
    pub bottom: Vec<usize>,
}

/// Inspects a model with its training images.
///
/// Labels that fewer than `2 * MIN_SAMPLES` images are predicted as are left out.
pub fn inspect(
    model: &dyn Classifier,
    training: &Tensor,
    probe: &Probe<'_>,
    settings: &Settings,
    rng: &mut StdRng,
    progress: &dyn Fn(f64),
) -> Result<Inspection, Error> {
    let logits = model.logits(training)?;
    let labels = labels(&logits)?;
    let doubts: Vec<f64> = logits
        .to_vec2::<f32>()?
        .iter()
        .zip(&labels)
        .map(|(logits, &label)| doubt(logits, label))
        .collect();
    let batch = Batch { rows: training.clone(), labels };
    let splits: Vec<Split> = (0..model.labels())
        .filter_map(|label| Split::new(label, &batch.labels, &doubts, settings.samples))
        .collect();
    if splits.is_empty() {
        return Ok(Inspection { labels: Vec::new(), infected: Vec::new() });
    }
    let tops: Vec<Batch> =
        splits.iter().map(|split| batch.select(&split.top)).collect::<Result<_, _>>()?;
    let patches = Patches::learn(model, &tops, &settings.learning(), rng, progress)?;
    let inspected: Vec<usize> = splits.iter().map(|split| split.label).collect();
    let survival = probe.survival(model, &batch, &inspected, rng)?;
    let shifts = shift::shifts(model, probe, &batch, &inspected)?;
    let mut labels = Vec::with_capacity(splits.len());
    let learned = splits.iter().zip(&tops).zip(survival).zip(shifts);
    for (index, (((split, top), survival), shift)) in learned.enumerate() {
        let patch = patches.patch(index)?;
        let bottom = batch.select(&split.bottom)?;
        let survivors = probe.survives(model, top)?.into_iter().filter(|kept| *kept).count();
        labels.push(Inspected {
            label: split.label,
            transfer_ratio: patch.changed(model, &bottom)?,
            top_k_changed: patch.changed(model, top)?,
            anomaly_index: 0.0,
            top_k_survival: survivors as f64 / top.len() as f64,
            survival,
            shift,
            patch,
            members: split.members.clone(),
            top: split.top.clone(),
            bottom: split.bottom.clone(),
        });
    }
    let ratios: Vec<f64> = labels.iter().map(|inspected| inspected.transfer_ratio).collect();
    let judged = judge(&ratios, settings.anomaly_threshold, settings.clean_ratio);
    for (inspected, index) in labels.iter_mut().zip(&judged.anomaly_indices) {
        inspected.anomaly_index = *index;
    }
    let infected = labels
        .iter()
        .enumerate()
        .filter(|(index, inspected)| {
            let confirmed = inspected.top_k_survival >= CONFIRMED;
            inspected.survival.anomaly_index > settings.anomaly_threshold
                || inspected.shift.anomaly_index > settings.anomaly_threshold
                || (judged.infected.contains(index) && confirmed)
        })
        .map(|(_, inspected)| inspected.label)
        .collect();
    Ok(Inspection { labels, infected })
}

// === impl Inspection ===

impl Inspection {
    /// What was learned of the infected labels.
    pub fn infected(&self) -> impl Iterator<Item = &Inspected> {
        self.labels.iter().filter(|inspected| self.infected.contains(&inspected.label))
    }
}

// === impl Settings ===

impl Settings {
    /// How the patches are learned.
    pub fn learning(&self) -> Learning {
        Learning {
            goal: Goal::Leave,
            steps: self.steps,
            batch: self.batch,
            first_lambda: self.lambda,
            lambda: self.lambda,
            success_rate: self.success_rate,
        }
    }
}

/// The odds against a label, `1 / softmax - 1`: orders like the confidence but does not saturate.
fn doubt(logits: &[f32], label: usize) -> f64 {
    let own = f64::from(logits[label]);
    let others = logits.iter().enumerate().filter(|(index, _)| *index != label);
    others.map(|(_, &logit)| (f64::from(logit) - own).exp()).sum()
}

/// One label's most and least confident samples.
struct Split {
    label: usize,
    /// The most confident first.
    members: Vec<usize>,
    top: Vec<usize>,
    bottom: Vec<usize>,
}

impl Split {
    fn new(label: usize, labels: &[usize], doubts: &[f64], samples: usize) -> Option<Self> {
        let mut members: Vec<usize> =
            (0..labels.len()).filter(|&index| labels[index] == label).collect();
        if members.len() < 2 * MIN_SAMPLES {
            return None;
        }
        members.sort_by(|&a, &b| doubts[a].total_cmp(&doubts[b]));
        let count = samples.min(members.len() / 2);
        let top = members[..count].to_vec();
        let bottom = members[members.len() - count..].to_vec();
        Some(Self { label, members, top, bottom })
    }
}

/// A label that the patches name is infected when this share of its most confident samples survives
/// the perturbations: triggers do, what merely resists a patch does not.
const CONFIRMED: f64 = 0.5;

/// Fewer samples on either side say nothing of a ratio.
const MIN_SAMPLES: usize = 10;

#[cfg(test)]
mod tests;
