//! Image classifiers in ONNX, compiled once into a program over candle tensors, with gradients to
//! their input.
//!
//! [`Model`] is that program with what is known of its input; [`Classifier`] is all that
//! perturbations, inspections and detections ask of it.

// What tests/ shares with tests in here names the crate.
#[cfg(test)]
extern crate self as doorward_engine;

mod batch;
mod bounds;
mod classifier;
mod compile;
mod composition;
mod device;
mod domain;
mod error;
mod fold;
mod fuse;
mod kernels;
mod layout;
mod lower;
mod margins;
mod model;
mod onnx;
#[cfg(feature = "ort")]
mod onnxruntime;
mod operators;
mod predictions;
mod program;
mod size;
mod step;

pub use batch::{Batch, batches, gather, rows};
pub use bounds::Bounds;
pub use classifier::{Classifier, Cotangent};
pub use device::device;
pub use domain::InputDomain;
pub use error::Error;
pub use lower::operator_table;
pub use margins::{label, labels, margin, margin_cotangent, margins};
pub use model::Model;
pub use predictions::Predictions;
pub use program::Program;
