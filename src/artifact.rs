//! The file that the offline flow writes and the online flow reads.

use serde::{Deserialize, Serialize};

/// Everything about an artifact but its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Layout of the file; a reader takes only its own.
    pub format: u32,
    /// Version of the program that wrote it.
    pub doorward: String,
    /// When it was written, seconds since 1970-01-01 UTC.
    pub created: u64,
    /// SHA-256 of the ONNX file.
    pub model_digest: String,
    /// SHA-256 over the clean and training images as they were read.
    pub data_digest: String,
    /// SHA-256 over the settings that shape the artifact.
    pub settings_digest: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// Channels, height, width of the model input.
    pub input_shape: [usize; 3],
    /// Number of labels.
    pub labels: usize,
    /// Clean images used.
    pub images: ImageCounts,
    /// The perturbations.
    pub perturbation: PerturbationSummary,
    /// DTInspector's findings; absent without training images.
    pub inspection: Option<InspectionSummary>,
    /// The fitted thresholds.
    pub thresholds: Thresholds,
}

/// How many images each part used; no image serves two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCounts {
    /// Fitted the perturbations.
    pub fit: usize,
    /// Fitted the thresholds.
    pub holdout: usize,
    /// Inspected training images.
    pub training: usize,
}

/// What the universal perturbation reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PerturbationSummary {
    /// l-infinity radius, in units of the full pixel range.
    pub epsilon: f32,
    /// Share of the held-out clean images whose label it changes.
    pub fooling_rate: f64,
    /// l2 norm of the universal perturbation, in units of the full pixel range.
    pub l2: f64,
    /// The label most perturbed held-out images land on.
    pub sink: usize,
    /// Share of the perturbed held-out images on the sink.
    pub sink_share: f64,
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
}

/// The calibrated rule, fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// One per label, by label.
    pub labels: Vec<LabelThreshold>,
    /// Upper bound on the probability that an input like the calibration images is rejected.
    pub false_rejection_rate_bound: f64,
    /// Share of the held-out images that the thresholds turn away.
    pub holdout_rejected: f64,
}

/// A label's threshold: reject when `(score - location) / spread > threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelThreshold {
    /// Centre of the label's clean scores.
    pub location: f32,
    /// Spread of the label's clean scores.
    pub spread: f32,
    /// Largest standardised score that passes.
    pub threshold: f32,
    /// Held-out images behind the threshold.
    pub images: usize,
    /// Whether the threshold is shared with other labels.
    pub pooled: bool,
}
