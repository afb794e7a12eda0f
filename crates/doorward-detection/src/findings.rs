//! The findings of an inspection, without what they rest on.

use serde::{Deserialize, Serialize};

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
    /// The survival less the share of clean images that keep the label.
    pub survival_excess: f64,
    /// MAD anomaly index of the excess on the high side, 0 below the median.
    pub survival_anomaly_index: f64,
    /// AUROC between its training images and its clean ones, along the way that the model
    /// represents them apart.
    pub shift: f64,
    /// Anomaly index of that on the high side, 0 below the median.
    pub shift_anomaly_index: f64,
}
