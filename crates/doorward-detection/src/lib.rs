//! Detection of backdoor triggers in the inputs of image classifiers.
//!
//! The crate has two halves. Preparation, the feature `prepare`, learns from a model and images and
//! writes an artifact. Judging, which is always there, opens a [`Detector`] from it.

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod artifact;
pub mod baselines;
#[cfg(feature = "prepare")]
pub mod batches;
pub mod conformal;
mod detector;
mod error;
#[cfg(feature = "prepare")]
pub mod evaluate;
mod findings;
#[cfg(feature = "prepare")]
pub mod inspect;
pub mod join;
mod judge;
mod layers;
mod linear;
pub mod open;
mod patch;
pub mod perturb;
#[cfg(feature = "prepare")]
pub mod prepare;
mod probability;
mod ranges;
mod remote;
mod representation;
mod row;
mod rule;
mod scale;
#[cfg(feature = "prepare")]
pub mod scan;
mod scorer;
mod settings;
mod signal;
pub mod stats;

pub use artifact::Artifact;
pub use detector::Detector;
pub use error::Error;
pub use findings::{InspectionSummary, LabelInspection};
pub use judge::{Concluded, Copies, Judge, Judgement, Remote};
pub use layers::{Layer, Layers};
pub use patch::{Goal, Patch};
pub use perturb::{Algorithm, Perturbation};
pub use probability::Probability;
pub use ranges::Ranges;
pub use representation::Representation;
pub use row::{BaselineScore, Joined, RowSignals};
pub use rule::{Needs, Rule, UnknownRule};
pub use scale::Scale;
pub use scorer::{Parts, Scorer};
pub use settings::{Calibration, Inspection, Policy, Preprocess, Settings};
pub use signal::{PerSignal, Scores, Signal};
