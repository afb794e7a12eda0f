//! Reasons why a model cannot be loaded or evaluated.

use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Reasons why a model cannot be loaded or evaluated.
///
/// ```
/// use candle_core::Device;
/// use doorward_engine::{Error, Program};
///
/// let error = Program::compile(b"no model", &Device::Cpu).unwrap_err();
/// assert!(matches!(error, Error::NotOnnx { .. }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// Statistics of the channels that do not fit the model.
    #[error("{what} has {got} values, expected 1 or one for each of {channels} channels")]
    Channels {
        /// The statistic: `mean` or `std`.
        what: &'static str,
        /// Values given.
        got: usize,
        /// Channels of the model.
        channels: usize,
    },
    /// A constant cannot be decoded.
    #[error("initializer {name:?}: {reason}")]
    Constant {
        /// Its name in the graph.
        name: String,
        /// The fault.
        reason: String,
    },
    /// An output that holds decisions, which have no margin.
    #[error(
        "the model gives {output:?}, which operator {op} makes decisions of, expected scores of labels: logits or probabilities"
    )]
    Decisions {
        /// The output.
        output: String,
        /// The operator.
        op: String,
    },
    /// A model of the wrong kind of input.
    #[error(
        "input {name:?} is {got}, expected FLOAT of shape [batch, channels, height, width] with all but the batch fixed"
    )]
    InputType {
        /// The input.
        name: String,
        /// Type and shape that the file declares.
        got: String,
    },
    /// Not exactly one input.
    #[error("the model takes {got} inputs {names:?}, expected one image")]
    Inputs {
        /// Number of inputs.
        got: usize,
        /// The first of them.
        names: Vec<String>,
    },
    /// No output of the name that was asked for.
    #[error("the model gives {names:?}, and no {wanted:?}")]
    NoOutput {
        /// The name.
        wanted: String,
        /// The first names of the outputs.
        names: Vec<String>,
    },
    /// A node that its operator's definition, or this program, does not allow.
    #[error("node {node:?} ({op}): {reason}")]
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// The fault.
        reason: String,
    },
    /// The bytes are no ONNX model.
    #[error("not an ONNX model: {reason}")]
    NotOnnx {
        /// The decoder's reason.
        reason: String,
    },
    /// onnxruntime is not found, does not take the model, or gives something else than the program.
    #[cfg(feature = "ort")]
    #[error("onnxruntime: {reason}")]
    Onnxruntime {
        /// onnxruntime's reason, or the difference.
        reason: String,
    },
    /// An operator that is not supported.
    #[error("node {node:?}: operator {op} is not supported")]
    Operator {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
    },
    /// An operator set that is not supported.
    #[error("operator set {got} is not supported, expected {} to {}", expected.start(), expected.end())]
    Opset {
        /// The model's.
        got: i64,
        /// The supported ones.
        expected: RangeInclusive<i64>,
    },
    /// An output that is no row of logits.
    #[error(
        "the model gives {got}, expected logits of shape [batch, labels] for two or more labels"
    )]
    Output {
        /// Name and shape of the output.
        got: String,
    },
    /// Several outputs that may be meant, or none that a node computes.
    #[error("the model gives {names:?}, expected one output that a node computes from the input")]
    Outputs {
        /// The first names of the outputs.
        names: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

// === impl Error ===

impl Error {
    pub(crate) fn not_onnx(reason: String) -> Self {
        Self::NotOnnx { reason }
    }
}

/// Names in an error.
pub(crate) const MAX_SHOWN: usize = 8;
