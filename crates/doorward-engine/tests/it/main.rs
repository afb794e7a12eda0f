//! What the engine promises, checked from outside: one file per contract.

// Also in what the tests share, which clippy's exemption of test functions leaves out.
#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod backend;
mod endings;
mod engine;
mod external_data;
mod files;
mod gradients;
mod hostile_files;
mod hostile_models;
#[cfg(feature = "ort")]
mod onnxruntime;
mod support;
mod taps;
