//! Detection of backdoor triggers in the inputs of image classifiers.

pub mod artifact;
pub mod calibrate;
pub mod detect;
pub mod evaluate;
pub mod inspect;
pub mod perturb;
pub mod scan;
mod settings;
pub mod stats;

pub use settings::{
    Algorithm, Calibration, Inspection, Perturbation, Policy, Preprocess, Probability, Rule,
    Settings,
};
