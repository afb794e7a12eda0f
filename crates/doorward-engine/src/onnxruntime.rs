//! onnxruntime in place of the program where logits alone are asked for.
//!
//! A session is given the very bytes that the program is compiled from, with more outputs: the
//! activations that a trace reads, and what a softmax takes that the program leaves away. It has to
//! answer like the program before it is used: gradients come from the program, and must be those of the function that predicts.

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use candle_onnx::onnx;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::{OutputSelector, RunOptions, Session, SessionOutputs};
use ort::value::{Outlet, TensorElementType, TensorRef};
use prost::Message;

use crate::classifier::Trace;
use crate::domain::InputDomain;
use crate::error::Error;
use crate::onnx::ending;
use crate::program::Program;
use crate::step::Mode;
use crate::taps::Tap;

/// A model in onnxruntime.
#[derive(Debug)]
pub(super) struct Runtime {
    /// One at a time, which has all threads: another session would be another copy of the weights.
    session: Mutex<Session>,
    output: String,
    /// The activations that a trace reads.
    taps: Vec<Tap>,
    /// The name of what the last layer sees.
    features: Option<String>,
    /// Shape of a row, channels first.
    shape: [usize; 3],
    labels: usize,
    channels_last: bool,
    /// Rows that the graph was written for, if their number was fixed.
    fixed_rows: Option<usize>,
}

// === impl Runtime ===

impl Runtime {
    /// The model whose file is `bytes`, and is at `path` if it keeps tensors in files beside it.
    ///
    /// `None` where `program` has to predict all the same, and why is in the log.
    pub(super) fn new(
        bytes: &[u8],
        path: Option<&Path>,
        program: &Program,
        domain: &InputDomain,
        labels: usize,
    ) -> Result<Option<Self>, Error> {
        let refused = |why: &str| {
            tracing::warn!("predictions do not come from onnxruntime: {why}");
            Ok(None)
        };
        if !matches!(program.device(), Device::Cpu) {
            return refused("the model is on an accelerator");
        }
        let Some(output) = program.logits_name() else {
            return refused("the file computes no logits, and they are computed from what it has");
        };
        if program.operators().any(|name| name == "DynamicQuantizeLinear") {
            return refused("it quantises the rows of a batch as one");
        }
        let taps = program.tapped().to_vec();
        if taps.iter().any(|tap| ending::is_made(&tap.name)) {
            return refused("activations inside of its functions have no name");
        }
        load_library()?;
        let features = program.features_name().filter(|name| !ending::is_made(name));
        let features = features.map(str::to_owned);
        let read = taps.iter().map(|tap| tap.name.as_str()).chain(features.as_deref());
        let mut more: Vec<&str> = std::iter::once(output).chain(read).collect();
        more.sort_unstable();
        more.dedup();
        more.retain(|&name| name != program.output_name());
        let bytes = match more.as_slice() {
            [] => Cow::Borrowed(bytes),
            more => Cow::Owned(with_outputs(bytes, more)),
        };
        let session = session(bytes, path).map_err(|error| failed(&error))?;
        let input = named(session.inputs(), program.input_name())?;
        let float =
            |outlet: &Outlet| outlet.dtype().tensor_type() == Some(TensorElementType::Float32);
        if !float(input) || !float(named(session.outputs(), output)?) {
            return refused("the input or the output is not FLOAT");
        }
        for tap in &taps {
            if !float(named(session.outputs(), &tap.name)?) {
                return refused("an activation that is read is not FLOAT");
            }
        }
        let dims = input.dtype().tensor_shape().map_or([].as_slice(), |shape| shape);
        let fixed_rows = dims.first().and_then(|&rows| usize::try_from(rows).ok());
        let runtime = Self {
            output: output.to_owned(),
            taps,
            features,
            shape: domain.shape,
            labels,
            channels_last: domain.channels_last,
            fixed_rows: fixed_rows.filter(|&rows| rows > 0),
            session: Mutex::new(session),
        };
        runtime.agree(program, domain)?;
        tracing::info!("predictions come from onnxruntime");
        Ok(Some(runtime))
    }

    /// `[n, C, H, W] -> [n, labels]`.
    pub(super) fn logits(&self, batch: &Tensor) -> Result<Tensor, Error> {
        let mut logits = Vec::new();
        self.run(batch, [self.output.as_str()], &mut |outputs, rows| {
            logits.push(self.output_of(outputs, &self.output, rows)?);
            Ok(())
        })?;
        match logits.as_slice() {
            [] => Ok(Tensor::zeros((0, self.labels), DType::F32, &Device::Cpu)?),
            logits => self.checked(&Tensor::cat(logits, 0)?),
        }
    }

    /// The logits with all that is read on the way to them.
    pub(super) fn trace(&self, batch: &Tensor) -> Result<Trace, Error> {
        let names = self.taps.iter().map(|tap| tap.name.as_str());
        let names = names.chain(self.features.as_deref()).chain([self.output.as_str()]);
        let mut parts = Vec::new();
        self.run(batch, names, &mut |outputs, rows| {
            let mut read = Vec::with_capacity(self.taps.len());
            for tap in &self.taps {
                read.push(tap.read(&self.output_of(outputs, &tap.name, rows)?, Mode::Loops)?);
            }
            let features = self.features.as_ref().map(|name| {
                Ok::<_, Error>(self.output_of(outputs, name, rows)?.reshape((rows, ()))?)
            });
            parts.push(Trace {
                logits: self.checked(&self.output_of(outputs, &self.output, rows)?)?,
                features: features.transpose()?,
                statistics: (!read.is_empty()).then(|| Tensor::cat(&read, 1)).transpose()?,
            });
            Ok(())
        })?;
        Trace::join(&parts)
    }

    /// Runs the batch in parts, and shows `each` the outputs of a part and how many rows it has.
    fn run<'a>(
        &self,
        batch: &Tensor,
        names: impl IntoIterator<Item = &'a str>,
        each: &mut dyn FnMut(&SessionOutputs<'_>, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let rows = batch.dim(0)?;
        if batch.dims()[1..] != self.shape {
            let (got, expected) = (batch.dims(), self.shape);
            let reason = format!("input 0 is {got:?}, expected rows of {expected:?}");
            return Err(candle_core::Error::Msg(reason).into());
        }
        let selected = names.into_iter().fold(OutputSelector::no_default(), OutputSelector::with);
        let options = RunOptions::new().map_err(|error| failed(&error))?.with_outputs(selected);
        let batch = match self.channels_last {
            true => batch.permute((0, 2, 3, 1))?,
            false => batch.clone(),
        };
        let batch = batch.contiguous()?;
        let (storage, layout) = batch.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
            let reason = format!("input 0 is {:?}, expected F32 on the CPU", batch.dtype());
            return Err(candle_core::Error::Msg(reason).into());
        };
        let row = self.shape.iter().product::<usize>();
        let values = &values[layout.start_offset()..][..rows * row];
        let mut dims = batch.dims().to_vec();
        for part in values.chunks(self.fixed_rows.unwrap_or(MAX_ROWS) * row) {
            let wanted = part.len() / row;
            dims[0] = self.fixed_rows.unwrap_or(wanted);
            // Rows of zeros that nobody asked for.
            let mut part = Cow::Borrowed(part);
            if dims[0] > wanted {
                part.to_mut().resize(dims[0] * row, 0.0);
            }
            let input = TensorRef::from_array_view((&dims[..], &part[..]));
            let input = input.map_err(|error| failed(&error))?;
            // A session whose thread panicked is as good as before: it keeps nothing of a call.
            let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            let outputs = session.run_with_options(ort::inputs![input], &options);
            each(&outputs.map_err(|error| failed(&error))?, wanted)?;
        }
        Ok(())
    }

    /// The first rows of an output.
    fn output_of(
        &self,
        outputs: &SessionOutputs<'_>,
        name: &str,
        rows: usize,
    ) -> Result<Tensor, Error> {
        let output = outputs.get(name).ok_or_else(|| failed(&format!("it gives no {name:?}")))?;
        let (shape, values) = output.try_extract_tensor::<f32>().map_err(|error| failed(&error))?;
        let shape: Vec<usize> = shape.iter().map(|&dim| dim as usize).collect();
        let whole = Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?;
        if shape.first().is_none_or(|&got| got < rows) {
            return Err(failed(&format!("{name:?} is of shape {shape:?}, expected {rows} rows")));
        }
        Ok(whole.narrow(0, 0, rows)?)
    }

    /// Logits, if that is what they are.
    fn checked(&self, logits: &Tensor) -> Result<Tensor, Error> {
        let rows = logits.dim(0)?;
        match logits.dims() {
            _ if logits.elem_count() == rows * self.labels => {
                Ok(logits.reshape((rows, self.labels))?)
            }
            shape => {
                let (output, labels) = (&self.output, self.labels);
                Err(failed(&format!(
                    "{output:?} is of shape {shape:?}, expected {labels} logits a row"
                )))
            }
        }
    }

    /// Refuses a session that does not give what the program does, on two rows.
    fn agree(&self, program: &Program, domain: &InputDomain) -> Result<(), Error> {
        let rows = domain.noise(2, &Device::Cpu)?;
        let values = |logits: Tensor| logits.flatten_all()?.to_vec1::<f32>();
        let (program, runtime) = (program.trace(&rows)?, self.trace(&rows)?);
        if let (Some(expected), Some(read)) = (&program.statistics, &runtime.statistics) {
            let scale = expected.abs()?.max_all()?.to_scalar::<f32>()?;
            let off = (expected - read)?.abs()?.max_all()?.to_scalar::<f32>()?;
            if off > TOLERANCE * scale {
                return Err(failed(&format!(
                    "its activations differ from the program's by {off} at most, of {scale}"
                )));
            }
        }
        let (expected, answered) = (values(program.logits)?, values(runtime.logits)?);
        let finite = expected.iter().filter(|value| value.is_finite());
        let scale = finite.fold(0f32, |most, value| most.max(value.abs()));
        let alike = |(a, b): (&f32, &f32)| {
            (a - b).abs() <= TOLERANCE * scale || !a.is_finite() && !b.is_finite()
        };
        if let Some(at) = expected.iter().zip(&answered).position(|pair| !alike(pair)) {
            let (row, label) = (at / self.labels, at % self.labels);
            return Err(failed(&format!(
                "its logit of label {label} is {}, and the program's {} (row {row} of the \
                 comparison at load)",
                answered[at], expected[at]
            )));
        }
        Ok(())
    }
}

/// Finds the library; what came of it the first time stands for the life of the process.
///
/// Nothing of `ort` may be called before this has succeeded: it panics without a library, and takes
/// one that it failed to load for loaded when asked again.
fn load_library() -> Result<(), Error> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let path = std::env::var_os("ORT_DYLIB_PATH")
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| format!("{prefix}onnxruntime{suffix}").into());
        let environment = ort::init_from(&path).map_err(|error| {
            format!("{error}; ORT_DYLIB_PATH is the path of its library, version 1.17 or later")
        })?;
        environment.with_telemetry(false).commit();
        // Never released: at the end of the process `ort` would do it after the library's own
        // destructors have run, which up to 1.20 at least ends in a segmentation fault.
        std::mem::forget(Environment::current().map_err(|error| error.to_string())?);
        Ok(())
    });
    loaded.clone().map_err(|reason| Error::Onnxruntime { reason })
}

fn session(bytes: Cow<'_, [u8]>, path: Option<&Path>) -> ort::Result<Session> {
    let mut builder = Session::builder()?
        // What goes wrong is an error here as well.
        .with_log_level(LogLevel::Fatal)?
        .with_intra_threads(rayon::current_num_threads())?
        // Cores that wait for the next call are the proxy's.
        .with_intra_op_spinning(false)?;
    match (bytes, path) {
        (bytes, None) => builder.commit_from_memory(&bytes),
        (Cow::Borrowed(_), Some(path)) => builder.commit_from_file(path),
        (Cow::Owned(bytes), Some(path)) => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).to_string_lossy();
            builder.with_config_entry(EXTERNAL_FOLDER, folder)?.commit_from_memory(&bytes)
        }
    }
}

/// The model with more outputs, which protobuf merges with those that are there.
fn with_outputs(bytes: &[u8], names: &[&str]) -> Vec<u8> {
    let output = |name: &&str| onnx::ValueInfoProto { name: (*name).into(), ..Default::default() };
    let output = names.iter().map(output).collect();
    let graph = onnx::GraphProto { output, ..Default::default() };
    let more = onnx::ModelProto { graph: Some(graph), ..Default::default() };
    [bytes, &more.encode_to_vec()].concat()
}

fn named<'a>(outlets: &'a [Outlet], name: &str) -> Result<&'a Outlet, Error> {
    let named = outlets.iter().find(|outlet| outlet.name() == name);
    named.ok_or_else(|| failed(&format!("it knows no {name:?}")))
}

fn failed(reason: &dyn std::fmt::Display) -> Error {
    Error::Onnxruntime { reason: reason.to_string() }
}

/// onnxruntime's setting for the folder where a session made of bytes finds tensors in files of
/// their own; 1.20 does not know it yet.
const EXTERNAL_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// Rows of one call: the activations of more are memory that is kept for good.
const MAX_ROWS: usize = 32;

/// Largest difference that is taken for rounding, as a share of the largest logit. Sums in another
/// order differ by a hundredth of this; channels in another
/// order, or probabilities in place of logits, by far more.
const TOLERANCE: f32 = 1e-2;
