//! Detection of backdoor triggers in the inputs of image classifiers.

pub mod artifact;
pub mod baselines;
pub mod batches;
pub mod conformal;
mod detector;
mod error;
pub mod evaluate;
pub mod inspect;
pub mod join;
mod judge;
pub mod open;
pub mod perturb;
pub mod prepare;
mod remote;
mod row;
mod rule;
pub mod scan;
mod scorer;
mod settings;
mod signal;
pub mod stats;

pub use artifact::Artifact;
pub use detector::Detector;
pub use error::Error;
pub use judge::{Concluded, Copies, Judge, Judgement, Remote};
pub use row::{BaselineScore, RowSignals};
pub use rule::{Needs, Rule, UnknownRule};
pub use scorer::Scorer;
pub use settings::{
    Algorithm, Calibration, Inspection, Perturbation, Policy, Preprocess, Probability, Settings,
};
pub use signal::{PerSignal, Scores, Signal};
