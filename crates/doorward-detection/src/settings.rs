//! The settings of preparation and judging: typed, complete and already valid.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use doorward_images::Pictures;

use crate::conformal::Budget;
use crate::perturb::Perturbation;
use crate::probability::Probability;
use crate::rule::Rule;

/// The settings of preparation and judging.
#[derive(Clone, Debug)]
pub struct Settings {
    /// From image bytes to model input.
    pub preprocess: Preprocess,
    /// The images, and how many of them serve what.
    pub calibration: Calibration,
    /// The search for universal perturbations.
    pub perturbation: Perturbation,
    /// The settings of DTInspector.
    pub inspection: Inspection,
    /// The rule that rejects, and its budget.
    pub policy: Policy,
}

/// `[preprocess]`: model input = (byte / 255 - mean) / std, per channel, of what `pictures` gives.
#[derive(Clone, Debug)]
pub struct Preprocess {
    /// One value for all channels, or one per channel.
    pub mean: Vec<f32>,
    /// One value for all channels, or one per channel; above zero.
    pub std: Vec<f32>,
    /// From a picture to bytes in the model's shape.
    pub pictures: Pictures,
}

/// `[calibration]`
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Sources of clean images, read in order.
    pub clean_images: Vec<PathBuf>,
    /// Sources of training images, read in order; empty: no inspection.
    pub training_images: Vec<PathBuf>,
    /// The number of clean images fit the perturbations.
    pub fit_images: NonZeroUsize,
    /// At most how many of the following clean images fit the thresholds.
    pub holdout_images: NonZeroUsize,
    /// Seed of the offline flow; `None` draws one from the system.
    pub seed: Option<u64>,
}

/// `[inspection]`
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Samples with the highest, and as many with the lowest, confidence per label (the paper's K).
    pub samples: NonZeroUsize,
    /// Optimisation steps of the patches.
    pub steps: NonZeroUsize,
    /// High-confidence samples per label and step.
    pub batch: NonZeroUsize,
    /// Start value of the mask's weight lambda.
    pub lambda: f32,
    /// Share of the high-confidence samples whose label the patch must change.
    pub success_rate: Probability,
    /// Anomaly index above which a label counts as infected.
    pub anomaly_threshold: f32,
    /// A model whose transfer ratios are all above this is clean.
    pub clean_ratio: Probability,
}

/// The rule that turns inputs away, and the number of clean ones that it may.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The rule that makes a verdict of signals.
    pub rule: Rule,
    /// The false-rejection budget of the calibrated rule.
    pub max_false_rejection_rate: Probability,
    /// The number of times the per-input budget of the other labels an infected label gets.
    pub infected_budget: f32,
}

// === impl Policy ===

impl Policy {
    /// The budget that it allows.
    pub fn budget(&self) -> Budget {
        Budget {
            rate: self.max_false_rejection_rate.value(),
            infected_weight: self.infected_budget.into(),
        }
    }
}
