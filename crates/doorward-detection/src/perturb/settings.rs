//! The settings of the search for universal perturbations.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::probability::Probability;

/// `[perturbation]`
#[derive(Clone, Debug)]
pub struct Perturbation {
    /// Share of the fit images whose label the universal perturbation must change.
    pub fooling_rate: Probability,
    /// Largest l-infinity radius tried, in units of the full pixel range.
    pub max_epsilon: f32,
    /// Optimisation steps per radius.
    pub steps: NonZeroUsize,
    /// Images per step.
    pub batch: NonZeroUsize,
    /// The algorithm that searches for the universal perturbation.
    pub algorithm: Algorithm,
    /// The number of universal perturbations; each costs a prediction an input.
    pub count: NonZeroUsize,
}

/// The algorithm that searches for the universal perturbation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// As published, image by image; `steps` and `batch` play no part.
    DeepFool,
    /// Sign steps on the margins of a batch.
    Gradient,
}
