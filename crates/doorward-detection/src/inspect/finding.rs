//! The findings of an inspection.

use serde::{Deserialize, Serialize};

use super::patch::Patch;

/// The findings on a model, with all that they rest on.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// One per inspected label, in order.
    pub labels: Vec<Inspected>,
    /// The labels named as a backdoor's target.
    pub infected: Vec<usize>,
}

/// The findings on one label, with all that they rest on.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The figures.
    pub figures: LabelInspection,
    /// The patch that changes its most confident samples.
    pub patch: Patch,
    /// Rows of the training images that survive the perturbations.
    pub survivors: Vec<usize>,
    /// Rows of all samples that are predicted as it, the most confident first.
    pub members: Vec<usize>,
    /// Rows of its most confident samples, the most confident first.
    pub top: Vec<usize>,
    /// Rows of its least confident samples, the least confident last.
    pub bottom: Vec<usize>,
}

/// DTInspector's findings on every label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InspectionSummary {
    /// One entry per label that had enough samples, by label.
    pub labels: Vec<LabelInspection>,
    /// Labels named as a backdoor's target.
    pub infected: Vec<usize>,
}

/// DTInspector's findings on one label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelInspection {
    /// The label.
    pub label: usize,
    /// Share of the low-confidence samples whose label the patch changes.
    pub transfer_ratio: f64,
    /// MAD anomaly index on the low side, 0 above the median.
    pub anomaly_index: f64,
    /// Share of the high-confidence samples whose label the patch changes.
    pub top_k_changed: f64,
    /// l1 norm of the mask, pixels.
    pub mask_l1: f64,
    /// Share of the high-confidence samples that keep their label under the perturbations.
    pub top_k_survival: f64,
    /// Share of the training images predicted as the label that keep it under the perturbations.
    pub survival: f64,
    /// That share less the share of clean images that keep it.
    pub survival_excess: f64,
    /// MAD anomaly index of the excess on the high side, 0 below the median.
    pub survival_anomaly_index: f64,
    /// AUROC between its training images and its clean ones, along the way that the model represents them apart.
    pub shift: f64,
    /// Anomaly index of that on the high side, 0 below the median.
    pub shift_anomaly_index: f64,
}

// === impl Inspection ===

impl Inspection {
    /// The findings on the infected labels.
    pub fn infected(&self) -> impl Iterator<Item = &Inspected> {
        self.labels.iter().filter(|inspected| self.infected.contains(&inspected.figures.label))
    }

    /// The findings without what they rest on.
    pub fn summary(&self) -> InspectionSummary {
        let labels = self.labels.iter().map(|inspected| inspected.figures).collect();
        InspectionSummary { labels, infected: self.infected.clone() }
    }
}
