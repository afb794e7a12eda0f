//! What detection promises, checked from outside: one file per contract.

// Also in what the tests share, which clippy's exemption of test functions leaves out.
#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::num::NonZeroUsize;

use doorward_detection::{Algorithm, Perturbation, Probability};

mod guarantee;
mod perturbations;
#[path = "../../../doorward-engine/tests/it/support/mod.rs"]
#[allow(dead_code, reason = "the engine's tests make more kinds of models")]
mod support;
mod undefined;

/// A search for a perturbation.
fn search(fooling_rate: f64, max_epsilon: f32, steps: usize, batch: usize) -> Perturbation {
    Perturbation {
        fooling_rate: Probability::new(fooling_rate).unwrap(),
        max_epsilon,
        steps: NonZeroUsize::new(steps).unwrap(),
        batch: NonZeroUsize::new(batch).unwrap(),
        algorithm: Algorithm::Gradient,
        count: NonZeroUsize::MIN,
    }
}
