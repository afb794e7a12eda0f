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
    /// Statistics that turn pixels into other values than bytes, for an input of bytes.
    #[error(
        "the input {name:?} is UINT8, the bytes of an image as they are, which mean {mean:?} and std {std:?} do not give"
    )]
    Bytes {
        /// The input.
        name: String,
        /// One value for all channels, or one for each.
        mean: Vec<f32>,
        /// One value for all channels, or one for each.
        std: Vec<f32>,
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
    /// A file of another kind than ONNX.
    #[error("it is {kind}, not an ONNX model")]
    Foreign {
        /// What the file is.
        kind: FileKind,
    },
    /// A shape that was chosen for an input whose own is another.
    #[error("input {name:?} is {got}, which is not of the chosen shape {chosen:?}")]
    InputShape {
        /// The input.
        name: String,
        /// Type and shape that the file declares.
        got: String,
        /// The shape of one row that was chosen.
        chosen: Vec<usize>,
    },
    /// A model of the wrong kind of input.
    #[error(
        "input {name:?} is {got}, expected an image, FLOAT or UINT8 of shape [batch, channels, height, width] or [batch, height, width, channels]"
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
    /// An input whose sizes are open, and not chosen.
    #[error("input {name:?} is {got}: which channels, height and width it takes is not fixed")]
    OpenShape {
        /// The input.
        name: String,
        /// Type and shape that the file declares.
        got: String,
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
    #[error("the model gives {got}, expected one score for each label, [batch, labels]")]
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

/// What a file is that is no ONNX model, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A compressed file, gzip or the like.
    Compressed,
    /// Nothing at all.
    Empty,
    /// A pointer that git-lfs leaves in place of a large file.
    GitLfs,
    /// A web page.
    Html,
    /// Keras, HDF5 or a `.keras` archive.
    Keras,
    /// OpenVINO's description of a network.
    OpenVino,
    /// Python objects, as PyTorch, joblib and others write them.
    Pickle,
    /// PyTorch's archive: weights, or TorchScript.
    PyTorch,
    /// Weights without a graph.
    Safetensors,
    /// TensorFlow Lite.
    TfLite,
    /// An archive of other files.
    Zip,
}

// === impl FileKind ===

impl FileKind {
    /// The kind of a file by its bytes; `None` for any other.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let start = &bytes[..bytes.len().min(PROBED)];
        let holds = |text: &[u8]| start.windows(text.len()).any(|window| window == text);
        let text = start.trim_ascii_start();
        Some(match start {
            [] => Self::Empty,
            [b'P', b'K', 3, 4, ..] if holds(b"data.pkl") => Self::PyTorch,
            [b'P', b'K', 3, 4, ..] if holds(b"metadata.json") => Self::Keras,
            [b'P', b'K', 3, 4, ..] => Self::Zip,
            [0x89, b'H', b'D', b'F', ..] => Self::Keras,
            [0x1f, 0x8b, ..] | [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', ..] => Self::Compressed,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Compressed,
            [0x80, 2..=5, ..] => Self::Pickle,
            [_, _, _, _, b'T', b'F', b'L', b'3', ..] => Self::TfLite,
            [_, _, _, _, _, _, 0, 0, b'{', b'"', ..] => Self::Safetensors,
            _ if start.starts_with(b"version https://git-lfs") => Self::GitLfs,
            _ if text.starts_with(b"<?xml") || text.starts_with(b"<net") => Self::OpenVino,
            _ if text.starts_with(b"<") => Self::Html,
            _ => return None,
        })
    }
}

impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Compressed => "a compressed file",
            Self::Empty => "an empty file",
            Self::GitLfs => "a git-lfs pointer, which stands for a file that was not fetched",
            Self::Html => "a web page",
            Self::Keras => "a Keras model",
            Self::OpenVino => "an OpenVINO network",
            Self::Pickle => "a Python pickle, as of PyTorch or scikit-learn",
            Self::PyTorch => "a PyTorch file",
            Self::Safetensors => "a safetensors file, weights without a network",
            Self::TfLite => "a TensorFlow Lite model",
            Self::Zip => "a zip archive",
        })
    }
}

/// Bytes of a file that tell its kind; an archive names its first file there.
const PROBED: usize = 1 << 9;

// === impl Error ===

impl Error {
    pub(crate) fn not_onnx(reason: String) -> Self {
        Self::NotOnnx { reason }
    }
}

/// Names in an error.
pub(crate) const MAX_SHOWN: usize = 8;
