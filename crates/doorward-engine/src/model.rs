//! A compiled model with what is known of its input.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::classifier::{Classifier, Cotangent, Trace};
use crate::domain::InputDomain;
use crate::error::Error;
use crate::layout::Layout;
use crate::onnx::ending::OutputKind;
use crate::onnx::graph::Graph;
#[cfg(feature = "ort")]
use crate::onnxruntime;
use crate::program::Program;

/// A compiled model and its input.
///
/// [`Model::load`] reads it from a file; the rest of its face is [`Classifier`].
#[derive(Debug)]
pub struct Model {
    program: Program,
    domain: InputDomain,
    labels: usize,
    /// What the file's output holds.
    output_kind: OutputKind,
    digest: String,
    /// Predicts in place of the program.
    #[cfg(feature = "ort")]
    runtime: Option<onnxruntime::Runtime>,
}

/// What a model file leaves open.
///
/// ```
/// # if cfg!(feature = "ort") { return Ok(()); } // It needs a library.
/// use candle_core::Device;
/// use doorward_engine::{Choice, Classifier, Model};
///
/// // Heights and widths are open in this file.
/// let path = "tests/golden/files/open-height-width.onnx".as_ref();
/// let choice = Choice { input_shape: Some(vec![3, 9, 8]), ..Choice::default() };
/// let model = Model::load_chosen(path, &choice, &[0.0], &[1.0], &Device::Cpu)?;
/// assert_eq!(model.domain().shape, [3, 9, 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The shape of one row of the input, as the file has it, without the batch.
    pub input_shape: Option<Vec<usize>>,
    /// The output that holds a score for each label.
    pub output: Option<String>,
}

// === impl Choice ===

impl Choice {
    /// The digest of a file with this choice: its own where nothing is chosen.
    fn mixed_into(&self, file: String) -> String {
        match self {
            Self { input_shape: None, output: None } => file,
            chosen => hex::encode(Sha256::digest(format!("{file} {chosen:?}"))),
        }
    }
}

// === impl Model ===

impl Model {
    /// Compiles the ONNX file at `path`; `mean` and `std` normalise pixels in [0, 1] to its input,
    /// with one value for all channels or one for each.
    ///
    /// Fails if the file cannot be read, is no ONNX model of one image to a row of logits, has an
    /// operator or an attribute that is not supported, or has another number of channels.
    ///
    /// ```
    /// # if cfg!(feature = "ort") { return Ok(()); } // It needs a library.
    /// use candle_core::Device;
    /// use doorward_engine::{Classifier, Model};
    ///
    /// let path = "tests/golden/net-cnn6.onnx".as_ref();
    /// let model = Model::load(path, &[0.5], &[0.25], &Device::Cpu)?;
    /// assert_eq!(model.domain().lower[0], -2.0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load(path: &Path, mean: &[f32], std: &[f32], device: &Device) -> Result<Self, Error> {
        Self::load_chosen(path, &Choice::default(), mean, std, device)
    }

    /// Compiles the ONNX file at `path` with what it leaves open chosen.
    ///
    /// Fails as [`Model::load`] does, and if the file does not have what is chosen.
    pub fn load_chosen(
        path: &Path,
        choice: &Choice,
        mean: &[f32],
        std: &[f32],
        device: &Device,
    ) -> Result<Self, Error> {
        let bytes = read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let graph = Graph::decode(&bytes, path.parent(), choice.output.as_deref())?;
        let digest = choice.mixed_into(digest(&bytes, &graph.external));
        #[cfg(feature = "ort")]
        let beside = (!graph.external.is_empty()).then_some(path);
        // Not needed any more, and as large as the program that is made of it.
        #[cfg(not(feature = "ort"))]
        drop(bytes);
        let program = Program::of_logits(graph, choice.input_shape.as_deref(), device)?;
        let model = Self::new(program, mean, std, digest)?;
        #[cfg(feature = "ort")]
        let model = model.with_onnxruntime(&bytes, beside)?;
        Ok(model)
    }

    /// Compiles the bytes of an ONNX file that keeps all of its data in itself.
    ///
    /// Fails as [`Model::load`] does.
    ///
    /// ```
    /// # if cfg!(feature = "ort") { return Ok(()); } // It needs a library.
    /// use candle_core::Device;
    /// use doorward_engine::Model;
    ///
    /// let bytes = std::fs::read("tests/golden/net-cnn6.onnx")?;
    /// let model = Model::decode(&bytes, &[0.0], &[1.0], &Device::Cpu)?;
    /// assert_eq!(model.digest().len(), 64);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn decode(bytes: &[u8], mean: &[f32], std: &[f32], device: &Device) -> Result<Self, Error> {
        let model = Self::new(
            Program::of_logits(Graph::decode(bytes, None, None)?, None, device)?,
            mean,
            std,
            hex::encode(Sha256::digest(bytes)),
        )?;
        #[cfg(feature = "ort")]
        let model = model.with_onnxruntime(bytes, None)?;
        Ok(model)
    }

    fn new(
        (program, output_kind): (Program, OutputKind),
        mean: &[f32],
        std: &[f32],
        digest: String,
    ) -> Result<Self, Error> {
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
            values => Err(Error::Channels { what, got: values.len(), channels: shape[0] }),
        };
        let (mean, std) = (per_channel("mean", mean)?, per_channel("std", std)?);
        let normalised =
            |pixel: f32| mean.iter().zip(&std).map(|(mean, std)| (pixel - mean) / std).collect();
        let channels_last = program.channels_last();
        let (mut lower, mut upper): (Vec<f32>, Vec<f32>) = (normalised(0.0), normalised(1.0));
        if program.takes_bytes() {
            let as_they_are = |lower: f32, upper: f32| {
                move |(a, b): (&f32, &f32)| (a - lower).abs() < 0.5 && (b - upper).abs() < 0.5
            };
            let mut ends = lower.iter().zip(&upper);
            if ends.clone().all(as_they_are(0.0, 1.0)) || ends.all(as_they_are(0.0, 255.0)) {
                (lower, upper) = (vec![0.0; shape[0]], vec![255.0; shape[0]]);
            } else {
                return Err(Error::Bytes { name: program.input_name().into(), mean, std });
            }
        }
        let fp32 = program.takes_fp32();
        let domain = InputDomain { shape, lower, upper, channels_last, fp32 };
        let (program, output_kind) = match output_kind {
            OutputKind::Logits if gives_probabilities(&program, &domain)? => {
                (program.with_logarithm(), OutputKind::Probabilities)
            }
            known => (program, known),
        };
        Ok(Self {
            program,
            domain,
            labels,
            output_kind,
            digest,
            #[cfg(feature = "ort")]
            runtime: None,
        })
    }

    /// Predicts by onnxruntime from now on, given the same bytes, and their path if they are not
    /// all.
    #[cfg(feature = "ort")]
    fn with_onnxruntime(self, bytes: &[u8], path: Option<&Path>) -> Result<Self, Error> {
        let Self { program, domain, labels, .. } = &self;
        let runtime = onnxruntime::Runtime::new(bytes, path, program, domain, *labels)?;
        Ok(Self { runtime, ..self })
    }

    /// True if onnxruntime predicts; if not, the program does.
    #[cfg(feature = "ort")]
    pub fn uses_onnxruntime(&self) -> bool {
        self.runtime.is_some()
    }

    /// SHA-256 of the ONNX file, hexadecimal.
    ///
    /// If tensors are kept in other files, it is the SHA-256 of the ONNX file followed by those of
    /// these files, 32 bytes each, in the order of their names. A [`Choice`] is mixed into it.
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

    fn output_kind(&self) -> OutputKind {
        self.output_kind
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

    fn taps(&self) -> Vec<usize> {
        self.program.taps().map(|(_, statistics)| statistics).collect()
    }

    fn trace(&self, batch: &Tensor) -> Result<Trace, Error> {
        #[cfg(feature = "ort")]
        if let Some(runtime) = &self.runtime {
            let trace = runtime.trace(batch)?;
            // What has no name in the graph only the program sees.
            let features = match trace.features {
                None => self.program.features(batch)?,
                features => features,
            };
            return Ok(Trace { features, ..trace });
        }
        self.program.trace(batch)
    }

    fn features(&self, batch: &Tensor) -> Result<Option<Tensor>, Error> {
        self.program.features(batch)
    }
}

/// True if what looks like logits in the graph are rows without a negative value that sum to one, on
/// all of some rows of noise: probabilities by an ending that nobody knows.
fn gives_probabilities(program: &Program, domain: &InputDomain) -> Result<bool, Error> {
    let batch = domain.noise(PROBES, program.device())?;
    let rows = program.forward(&batch)?.to_vec2::<f32>()?;
    let sums_to_one = |row: &Vec<f32>| {
        let sum: f32 = row.iter().sum();
        row.iter().all(|&value| value >= 0.0) && (sum - 1.0).abs() < SUM_TOLERANCE
    };
    Ok(rows.iter().all(sums_to_one))
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

/// Rows of noise that tell probabilities from logits, which do not sum to one by chance.
const PROBES: usize = 4;

/// Half precision is off by some thousandths.
const SUM_TOLERANCE: f32 = 5e-3;

/// Protobuf's own limit.
const MAX_FILE: u64 = 1 << 31;
