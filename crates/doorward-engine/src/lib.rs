//! Image classifiers in ONNX, compiled once into a program over candle tensors, with gradients to
//! their input.
//!
//! [`Model`] is that program with what is known of its input. [`Classifier`] is all that
//! perturbations, inspections and detections ask of it, so that a test can stand in for a model.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use doorward_engine::{Classifier, Model, margin_cotangent};
//!
//! # if cfg!(feature = "ort") { return Ok(()); } // It needs a library.
//! let path = "tests/golden/net-cnn6.onnx".as_ref();
//! let model = Model::load(path, &[0.0], &[1.0], &Device::Cpu)?;
//! let [channels, height, width] = model.domain().shape;
//! let batch = Tensor::full(0.5f32, (2, channels, height, width), model.device())?;
//! // The gradient of label 1's margin to every value of the input.
//! let (logits, gradient) = model.logits_and_gradient(&batch, &|rows, logits| {
//!     margin_cotangent(logits, &vec![1; rows.len()], |_| 1.0)
//! })?;
//! assert_eq!(logits.dims(), [2, model.labels()]);
//! assert_eq!(gradient.dims(), batch.dims());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Design
//!
//! - **A model file may be anything.** Whatever is unknown is an error at load that names the node;
//!   a loaded program does not fail on rows of its shape.
//! - **Rows are independent.** A tensor is `[n, ...row]` whatever the graph does to the batch, so a
//!   batch can be cut anywhere, and its parts run in parallel, each on one thread.
//! - **Gradients are written out.** Several of candle's own are wrong: max pooling's has a wrong
//!   factor, and the fused softmax and layer norm return none, without an error.
//! - **candle-nn is not used.** Its activations and its softmax are the same compositions of
//!   candle's operators that stand here in a line each; its fused ones have no gradient, and the
//!   CPU's loops here are faster.

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
mod taps;

pub use batch::{Batch, batches, gather, rows};
pub use bounds::Bounds;
pub use classifier::{Classifier, Cotangent, Trace};
pub use device::device;
pub use domain::InputDomain;
pub use error::{Error, FileKind};
pub use lower::operator_table;
pub use margins::{label, labels, margin, margin_cotangent, margins};
pub use model::{Choice, Model};
pub use onnx::ending::OutputKind;
pub use predictions::Predictions;
pub use program::Program;

/// The README, so that its example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
