//! DTInspector: is the model backdoored, and which labels are infected?
//!
//! "Confidence Matters: Inspecting Backdoors in Deep Neural Networks via Distribution Transfer".
//! Training images are sorted by confidence per predicted label; a patch is learned that changes
//! the label of the most confident ones (section 3.2) and applied to the least confident ones. On
//! an infected label the confident ones carry the trigger, the patch destroys it, and does nothing
//! to the others: a low transfer ratio (section 3.3).

mod data_inspection;
mod finding;
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

use doorward_engine::{Batch, Classifier, Error, labels};

use crate::findings::LabelInspection;
use crate::patch::Goal;
use crate::settings::Inspection as Settings;

pub use data_inspection::{Diverging, data_inspection};
pub use finding::{Inspected, Inspection};
pub use neural_cleanse::{Reversed, neural_cleanse};
pub use patch::{Learning, Patches};
pub use shift::Shift;
pub use space::Space;
pub use survival::{Probe, Survival};
pub use suspects::Suspects;
pub use transfer::{Judged, judge};

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
        .filter_map(|label| Split::new(label, &batch.labels, &doubts, settings.samples.get()))
        .collect();
    if splits.is_empty() {
        return Ok(Inspection { labels: Vec::new(), infected: Vec::new() });
    }
    let tops: Vec<Batch> =
        splits.iter().map(|split| batch.select(&split.top)).collect::<Result<_, _>>()?;
    let patches = Patches::learn(model, &tops, &learning(settings), rng, progress)?;
    let inspected: Vec<usize> = splits.iter().map(|split| split.label).collect();
    let survival = probe.survival(model, &batch, &inspected, rng)?;
    let shifts = shift::shifts(model, probe, &batch, &inspected)?;
    let mut learned = Vec::with_capacity(splits.len());
    for (index, (split, top)) in splits.iter().zip(&tops).enumerate() {
        let patch = patches.patch(index)?;
        let transfer_ratio = patch.changed(model, &batch.select(&split.bottom)?)?;
        let top_k_changed = patch.changed(model, top)?;
        let survivors = probe.survives(model, top)?.into_iter().filter(|kept| *kept).count();
        learned.push((patch, transfer_ratio, top_k_changed, survivors as f64 / top.len() as f64));
    }
    let ratios: Vec<f64> = learned.iter().map(|&(_, transfer_ratio, ..)| transfer_ratio).collect();
    let threshold = settings.anomaly_threshold.into();
    let judged = judge(&ratios, threshold, settings.clean_ratio.value());
    let (mut labels, mut infected) = (Vec::with_capacity(splits.len()), Vec::new());
    let findings = splits.into_iter().zip(learned).zip(survival).zip(shifts);
    for (index, (((split, learned), survival), shift)) in findings.enumerate() {
        let (patch, transfer_ratio, top_k_changed, top_k_survival) = learned;
        let confirmed = top_k_survival >= CONFIRMED;
        if survival.anomaly_index > threshold
            || shift.anomaly_index > threshold
            || (judged.infected.contains(&index) && confirmed)
        {
            infected.push(split.label);
        }
        let figures = LabelInspection {
            label: split.label,
            transfer_ratio,
            anomaly_index: judged.anomaly_indices[index],
            top_k_changed,
            mask_l1: patch.mask_l1()?,
            top_k_survival,
            survival: survival.share,
            survival_excess: survival.excess,
            survival_anomaly_index: survival.anomaly_index,
            shift: shift.auroc,
            shift_anomaly_index: shift.anomaly_index,
        };
        let Split { members, top, bottom, .. } = split;
        let survivors = survival.survivors;
        labels.push(Inspected { figures, patch, survivors, members, top, bottom });
    }
    Ok(Inspection { labels, infected })
}

/// The settings by which an inspection learns its patches.
pub fn learning(settings: &Settings) -> Learning {
    Learning {
        goal: Goal::Leave,
        steps: settings.steps.get(),
        batch: settings.batch.get(),
        first_lambda: settings.lambda,
        lambda: settings.lambda,
        success_rate: settings.success_rate.value(),
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
