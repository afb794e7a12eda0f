//! Exported models against the frameworks they come from, one at a time.

use std::collections::HashMap;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use doorward_engine::{Choice, Classifier, Model, OutputKind, Program};
use serde_json::{Value, json};

type References = HashMap<String, Tensor>;

/// Largest differences, relative to the largest magnitude.
#[derive(Clone, Copy)]
struct Errors {
    logits: f32,
    gradient: f32,
}

/// Compares every `NAME.onnx` of a folder with its `NAME.safetensors`; whether all agree.
pub(crate) fn run(folder: &Path, only: &[String], json: bool) -> Result<bool, Box<dyn Error>> {
    let wanted =
        |path: &PathBuf| only.is_empty() || only.iter().any(|part| name(path).contains(part));
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "onnx"))
        .filter(|path| path.with_extension("safetensors").exists() && wanted(path))
        .collect();
    models.sort();
    let mut lines: Vec<Value> = Vec::new();
    let [mut loaded, mut agreeing] = [0; 2];
    for path in &models {
        let start = Instant::now();
        let name = name(path);
        let outcome = catch_unwind(AssertUnwindSafe(|| compare(path)))
            .unwrap_or_else(|_| Err("it panics".into()));
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(errors) => {
                loaded += 1;
                let agrees = errors.logits < LOGITS_LIMIT && errors.gradient < GRADIENT_LIMIT;
                agreeing += usize::from(agrees);
                let verdict = if agrees { "ok" } else { "OFF" };
                let Errors { logits, gradient } = errors;
                if !json {
                    println!("{verdict:4} {name:42} logits {logits:.1e}  gradient {gradient:.1e}");
                }
                lines.push(json!({
                    "name": name, "agrees": agrees, "logits": logits, "gradient": gradient,
                    "seconds": seconds,
                }));
            }
            Err(reason) => {
                if !json {
                    println!("FAIL {name:42} {reason}");
                }
                lines.push(json!({"name": name, "agrees": false, "error": reason.to_string()}));
            }
        }
    }
    let total = models.len();
    if json {
        let summary = json!({
            "models": total, "loaded": loaded, "agreeing": agreeing, "results": lines,
        });
        println!("{summary}");
    } else {
        println!("{agreeing} of {total} agree, {} do not run", total - loaded);
    }
    Ok(total > 0 && agreeing == total)
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn compare(path: &Path) -> Result<Errors, Box<dyn Error>> {
    let device = Device::Cpu;
    let expected = candle_core::safetensors::load(path.with_extension("safetensors"), &device)?;
    if !expected.contains_key("cotangent") {
        return compare_logits(path, &expected);
    }
    let program = Program::compile(&std::fs::read(path)?, &device)?;
    // Channels last in the file are channels first in the program.
    let rotated = program.input_shape() != &expected["input"].dims()[1..];
    let rotate = |tensor: &Tensor| {
        if rotated { tensor.permute([0, 3, 1, 2])?.contiguous() } else { Ok(tensor.clone()) }
    };
    // More rows than threads, and as many as no dimension has: what mistakes the batch for another
    // dimension, or one row for another, is not right by chance.
    let index = Tensor::new(ROWS, &device)?;
    let repeated = |name| -> Result<Tensor, Box<dyn Error>> {
        Ok(of(&expected, name)?.index_select(&index, 0)?)
    };
    let (input, cotangent) = (rotate(&repeated("input")?)?, repeated("cotangent")?);
    let (output, gradient) =
        program.vjp(&input, &|rows, _| cotangent.narrow(0, rows.start, rows.len()))?;
    let forward = program.forward(&input)?;
    if relative_error(&forward, &output)? > 1e-5 {
        return Err("its forward pass alone gives other logits than the one with gradient".into());
    }
    Ok(Errors {
        logits: relative_error(&output, &repeated("logits")?)?,
        gradient: relative_error(&gradient, &rotate(&repeated("gradient")?)?)?,
    })
}

/// The logits of a model, less their mean where its output is probabilities: no gradient is known.
fn compare_logits(path: &Path, expected: &References) -> Result<Errors, Box<dyn Error>> {
    let input_shape = expected.get("input_shape").map(Tensor::to_vec1::<i64>).transpose()?;
    let input_shape =
        input_shape.map(|shape| shape.into_iter().map(|size| size as usize).collect());
    let choice = Choice { input_shape, ..Choice::default() };
    let model = Model::load_chosen(path, &choice, &[0.0], &[1.0], &Device::Cpu)?;
    let input = of(expected, "input")?;
    let input = match model.domain().channels_last {
        true => input.permute([0, 3, 1, 2])?.contiguous()?,
        false => input.clone(),
    };
    let centred = |logits: &Tensor| match model.output_kind() {
        OutputKind::Logits => Ok(logits.clone()),
        _ => logits.broadcast_sub(&logits.mean_keepdim(1)?),
    };
    let (got, wanted) = (centred(&model.logits(&input)?)?, centred(of(expected, "logits")?)?);
    Ok(Errors { logits: relative_error(&got, &wanted)?, gradient: 0.0 })
}

fn of<'a>(expected: &'a References, name: &str) -> Result<&'a Tensor, Box<dyn Error>> {
    expected.get(name).ok_or_else(|| format!("the references have no {name:?}").into())
}

fn relative_error(got: &Tensor, expected: &Tensor) -> Result<f32, Box<dyn Error>> {
    if got.dims() != expected.dims() {
        return Err(format!("shape {:?}, expected {:?}", got.dims(), expected.dims()).into());
    }
    let got: Vec<f32> = got.flatten_all()?.to_vec1()?;
    let expected: Vec<f32> = expected.flatten_all()?.to_vec1()?;
    if !got.iter().all(|value| value.is_finite()) {
        return Ok(f32::INFINITY);
    }
    let scale = expected.iter().fold(1e-6f32, |max, value| max.max(value.abs()));
    let worst = got.iter().zip(&expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    Ok(worst / scale)
}

/// The order in which the two rows of the references make a batch.
const ROWS: &[u32] = &[0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1];

/// Both in single precision, summed in another order.
const LOGITS_LIMIT: f32 = 1e-4;

/// A ReLU or a window close to its kink may fall on the other side.
const GRADIENT_LIMIT: f32 = 1e-3;
