//! The protected model, compiled once from ONNX into a program over candle tensors.
//!
//! [`Model`] is that program with what the firewall knows of its input; [`Classifier`] is all that
//! the perturbations, the inspection and the detection ask of it.

// What tests/ shares with tests in here names the crate.
#[cfg(test)]
extern crate self as doorward_engine;

mod activation;
mod axes;
mod batch;
mod binary;
mod bounds;
mod compile;
mod composed;
mod constant;
mod conv;
mod correlate;
mod depthwise;
mod einsum;
mod external;
mod fold;
mod fuse;
mod graph;
mod input;
mod kernel;
mod layout;
mod linear;
mod load;
mod lower;
mod lrn;
mod margins;
mod math;
mod matmul;
mod matrix;
mod norm;
#[cfg(feature = "ort")]
mod onnxruntime;
mod operator;
mod patterns;
mod pointwise;
mod pool;
mod predictions;
mod prelu;
mod program;
mod reduce;
mod registers;
mod resample;
mod select;
mod shape;
mod shifted;
mod strided;
mod sweep;
mod unary;
mod winograd;
mod wire;

use std::fs::File;
use std::io::Read;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use graph::Graph;

pub use batch::{Batch, gather, rows};
pub use bounds::Bounds;
use layout::Layout;
pub use lower::operator_table;
pub use margins::{label, labels, margin, margin_cotangent, margins};
pub use predictions::Predictions;
pub use program::Program;

/// A differentiable classifier of images.
pub trait Classifier: Send + Sync {
    /// What it takes.
    fn domain(&self) -> &InputDomain;

    /// Number of labels.
    fn labels(&self) -> usize;

    /// What its file calls its output, where there is a file.
    fn output_name(&self) -> Option<&str> {
        None
    }

    /// Where its tensors live.
    fn device(&self) -> &Device;

    /// `f(x)`: `[n, C, H, W] -> [n, labels]`.
    fn logits(&self, batch: &Tensor) -> Result<Tensor, Error>;

    /// The logits, and the gradient to the input of `sum(logits * cotangent)`.
    ///
    /// The batch is cut into parts that run in parallel; `cotangent` is asked for each with the
    /// rows it stands for and their logits, and returns as many rows of `[labels]`.
    fn logits_and_gradient(
        &self,
        batch: &Tensor,
        cotangent: &Cotangent<'_>,
    ) -> Result<(Tensor, Tensor), Error>;

    /// The representations that the last layer sees, `[n, features]`; `None` where the model does not
    /// end in a fully connected layer.
    fn features(&self, batch: &Tensor) -> Result<Option<Tensor>, Error> {
        let _ = batch;
        Ok(None)
    }
}

/// See [`Classifier::logits_and_gradient`].
pub type Cotangent<'a> = dyn Fn(Range<usize>, &Tensor) -> candle_core::Result<Tensor> + Sync + 'a;

/// A compiled model and its input.
#[derive(Debug)]
pub struct Model {
    program: Program,
    domain: InputDomain,
    labels: usize,
    digest: String,
    /// Predicts in place of the program.
    #[cfg(feature = "ort")]
    runtime: Option<onnxruntime::Runtime>,
}

/// What a model takes: the shape of one row and the range of its values.
#[derive(Clone, Debug, PartialEq)]
pub struct InputDomain {
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Smallest value a channel can take.
    pub lower: Vec<f32>,
    /// Largest value a channel can take.
    pub upper: Vec<f32>,
    /// Whether whoever sends an image has its channels last; rows have them first all the same.
    pub channels_last: bool,
    /// Whether the model file declares FLOAT, so that bytes without a datatype are FP32.
    pub fp32: bool,
}

/// Why a model cannot be loaded or evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A constant cannot be decoded.
    #[error("initializer {name:?}: {reason}")]
    Constant {
        /// Its name in the graph.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A model of the wrong kind of input.
    #[error(
        "input {name:?} is {got}, expected FLOAT of shape [batch, channels, height, width] with all but the batch fixed"
    )]
    InputType {
        /// The input.
        name: String,
        /// What it is.
        got: String,
    },
    /// Not exactly one input.
    #[error("the model takes {got} inputs {names:?}, expected one image")]
    Inputs {
        /// How many.
        got: usize,
        /// The first of them.
        names: Vec<String>,
    },
    /// A node that its operator's definition, or this program, does not allow.
    #[error("node {node:?} ({op}): {reason}")]
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op: String,
        /// What is wrong.
        reason: String,
    },
    /// The bytes are no ONNX model.
    #[error("not an ONNX model: {reason}")]
    NotOnnx {
        /// What the decoder says.
        reason: String,
    },
    /// onnxruntime is not found, does not take the model, or gives something else than the program.
    #[cfg(feature = "ort")]
    #[error("onnxruntime: {reason}")]
    Onnxruntime {
        /// What it says.
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
        /// What it gives.
        got: String,
    },
    /// Not exactly one output, or one that no node computes.
    #[error("the model gives {names:?}, expected one output that a node computes from the input")]
    Outputs {
        /// What it gives.
        names: Vec<String>,
    },
    /// Channel statistics that do not fit the model.
    #[error(
        "preprocess.{what} has {got} values, expected 1 or one for each of {channels} channels"
    )]
    Preprocess {
        /// `mean` or `std`.
        what: &'static str,
        /// Values given.
        got: usize,
        /// Channels of the model.
        channels: usize,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The first CUDA device where this build knows CUDA and there is one, else the CPU.
pub fn device() -> Device {
    if !candle_core::utils::cuda_is_available() {
        return Device::Cpu;
    }
    Device::new_cuda(0).unwrap_or_else(|error| {
        tracing::warn!(%error, "no CUDA device, using the CPU");
        Device::Cpu
    })
}

// === impl Model ===

impl Model {
    /// Compiles the ONNX file at `path`; `mean` and `std` normalise pixels in [0, 1] to its input.
    pub fn load(path: &Path, mean: &[f32], std: &[f32], device: &Device) -> Result<Self, Error> {
        let bytes = read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let graph = Graph::decode(&bytes, path.parent())?;
        let digest = digest(&bytes, &graph.external);
        #[cfg(feature = "ort")]
        let beside = (!graph.external.is_empty()).then_some(path);
        // Not needed any more, and as large as the program that is made of it.
        #[cfg(not(feature = "ort"))]
        drop(bytes);
        let model = Self::new(Program::assemble(graph, device)?, mean, std, digest)?;
        #[cfg(feature = "ort")]
        let model = model.with_onnxruntime(&bytes, beside)?;
        Ok(model)
    }

    /// Like [`Model::load`], from the bytes of a file that keeps all of its data in itself.
    pub fn decode(bytes: &[u8], mean: &[f32], std: &[f32], device: &Device) -> Result<Self, Error> {
        let model = Self::new(
            Program::compile(bytes, device)?,
            mean,
            std,
            hex::encode(Sha256::digest(bytes)),
        )?;
        #[cfg(feature = "ort")]
        let model = model.with_onnxruntime(bytes, None)?;
        Ok(model)
    }

    fn new(program: Program, mean: &[f32], std: &[f32], digest: String) -> Result<Self, Error> {
        let shape = <[usize; 3]>::try_from(program.input_shape()).map_err(|_| {
            let got = format!("FLOAT of shape {}", Layout::batch_first(program.input_shape()));
            Error::InputType { name: program.input_name().into(), got }
        })?;
        let labels = match program.output_shape() {
            &[labels] if labels >= 2 => labels,
            shape => {
                let got =
                    format!("{:?} of shape {}", program.output_name(), Layout::batch_first(shape));
                return Err(Error::Output { got });
            }
        };
        let per_channel = |what, values: &[f32]| match values {
            [value] => Ok(vec![*value; shape[0]]),
            values if values.len() == shape[0] => Ok(values.to_vec()),
            values => Err(Error::Preprocess { what, got: values.len(), channels: shape[0] }),
        };
        let (mean, std) = (per_channel("mean", mean)?, per_channel("std", std)?);
        let normalised =
            |pixel: f32| mean.iter().zip(&std).map(|(mean, std)| (pixel - mean) / std).collect();
        let channels_last = program.channels_last();
        let (lower, upper) = (normalised(0.0), normalised(1.0));
        let fp32 = program.takes_fp32();
        let domain = InputDomain { shape, lower, upper, channels_last, fp32 };
        Ok(Self {
            program,
            domain,
            labels,
            digest,
            #[cfg(feature = "ort")]
            runtime: None,
        })
    }

    /// Predicts by onnxruntime from now on. The same bytes, and their path if they are not all.
    #[cfg(feature = "ort")]
    fn with_onnxruntime(self, bytes: &[u8], path: Option<&Path>) -> Result<Self, Error> {
        let Self { program, domain, labels, .. } = &self;
        let runtime = onnxruntime::Runtime::new(bytes, path, program, domain, *labels)?;
        Ok(Self { runtime, ..self })
    }

    /// Whether onnxruntime predicts; if not, the program does.
    #[cfg(feature = "ort")]
    pub fn uses_onnxruntime(&self) -> bool {
        self.runtime.is_some()
    }

    /// SHA-256 of the ONNX file, hexadecimal.
    ///
    /// Where tensors are kept in other files: of the ONNX file followed by the SHA-256, 32 bytes
    /// each, of these files in the order of their names.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The compiled steps.
    pub fn program(&self) -> &Program {
        &self.program
    }
}

impl Classifier for Model {
    fn domain(&self) -> &InputDomain {
        &self.domain
    }

    fn labels(&self) -> usize {
        self.labels
    }

    fn output_name(&self) -> Option<&str> {
        Some(self.program.output_name())
    }

    fn device(&self) -> &Device {
        self.program.device()
    }

    fn logits(&self, batch: &Tensor) -> Result<Tensor, Error> {
        #[cfg(feature = "ort")]
        if let Some(runtime) = &self.runtime {
            return runtime.logits(batch);
        }
        self.program.forward(batch)
    }

    fn logits_and_gradient(
        &self,
        batch: &Tensor,
        cotangent: &Cotangent<'_>,
    ) -> Result<(Tensor, Tensor), Error> {
        self.program.vjp(batch, cotangent)
    }

    fn features(&self, batch: &Tensor) -> Result<Option<Tensor>, Error> {
        self.program.features(batch)
    }
}

/// The file, unless it is larger than any protobuf message.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::with_capacity(size.min(MAX_FILE) as usize);
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        0..=MAX_FILE => Ok(bytes),
        _ => Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("more than {MAX_FILE} bytes"),
        )),
    }
}

fn digest(bytes: &[u8], external: &[[u8; 32]]) -> String {
    let mut digest = Sha256::new_with_prefix(bytes);
    external.iter().for_each(|file| digest.update(file));
    hex::encode(digest.finalize())
}

/// Protobuf's own limit.
const MAX_FILE: u64 = 1 << 31;

// === impl InputDomain ===

impl InputDomain {
    /// Values in one row.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a row has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape of one row as it is sent.
    pub fn sent_shape(&self) -> [usize; 3] {
        let [channels, height, width] = self.shape;
        if self.channels_last { [height, width, channels] } else { self.shape }
    }

    /// Whole rows as they are sent, with their channels brought to the front.
    pub fn rows_of_sent(&self, sent: Vec<f32>) -> Vec<f32> {
        let [channels, height, width] = self.shape;
        if !self.channels_last || channels == 1 || self.is_empty() {
            return sent;
        }
        let mut rows = Vec::with_capacity(sent.len());
        for row in sent.chunks_exact(channels * height * width) {
            for channel in 0..channels {
                rows.extend(row[channel..].iter().step_by(channels));
            }
        }
        rows
    }

    /// The other way round: whole rows as they are sent.
    pub fn sent_of_rows(&self, rows: Vec<f32>) -> Vec<f32> {
        let [channels, height, width] = self.shape;
        if !self.channels_last || channels == 1 || self.is_empty() {
            return rows;
        }
        let mut sent = Vec::with_capacity(rows.len());
        for row in rows.chunks_exact(channels * height * width) {
            for pixel in 0..height * width {
                sent.extend(row[pixel..].iter().step_by(height * width));
            }
        }
        sent
    }

    /// Bytes of one image as a row of model input.
    pub fn normalise(&self, pixels: &[u8]) -> Vec<f32> {
        let plane = self.shape[1] * self.shape[2];
        let mut row = Vec::with_capacity(pixels.len());
        for (i, plane) in pixels.chunks(plane).enumerate() {
            let channel = i % self.shape[0];
            let (lower, upper) = (self.lower[channel], self.upper[channel]);
            row.extend(plane.iter().map(|&byte| {
                // Exact at both ends, so that no pixel leaves the domain by rounding.
                let share = f32::from(byte) / 255.0;
                lower + share * (upper - lower)
            }));
        }
        row
    }
}
