//! Classifiers as people's files have them give onnxruntime's logits.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use doorward_engine::{Choice, Classifier, Error, Model, labels};

use super::engine::{references, relative_error};
use super::support::models_cannot_be_loaded;

fn file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/files");
    folder.join(name).with_extension("onnx")
}

/// The files that `tests/golden/files.py` makes.
fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(file("x").parent().unwrap()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "onnx")).collect();
    files.sort();
    assert!(files.len() >= 50, "only {} files", files.len());
    files
}

fn load(path: &Path, choice: &Choice) -> Result<Model, Error> {
    Model::load_chosen(path, choice, &[0.0], &[1.0], &Device::Cpu)
}

#[test]
fn files_give_the_logits_of_onnxruntime() {
    if models_cannot_be_loaded() {
        return;
    }
    let mut wrong = Vec::new();
    for path in files() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let expected = references(&path.with_extension("safetensors"));
        let input_shape = expected.get("input_shape").map(|shape| {
            shape.to_vec1::<i64>().unwrap().into_iter().map(|size| size as usize).collect()
        });
        let model = match load(&path, &Choice { input_shape, ..Choice::default() }) {
            Ok(model) => model,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (input, expected) = (&expected["input"], &expected["logits"]);
        // The program's own, whoever predicts: fused, onnxruntime rounds some elsewhere.
        let logits = model.program().forward(input).unwrap();
        let off = relative_error(&logits, expected);
        if off > 1e-4 || labels(&logits).unwrap() != labels(expected).unwrap() {
            wrong.push(format!("{name}: off by {off}"));
        }
        if let Err(reason) = slopes(&model, input, &name) {
            wrong.push(format!("{name}: {reason}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The gradient is the slope along a direction; what rounds has that of what does not round.
fn slopes(model: &Model, input: &Tensor, name: &str) -> Result<(), String> {
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let sum = |logits: &Tensor| values(logits).iter().map(|&value| f64::from(value)).sum::<f64>();
    let (_, gradient) = model.logits_and_gradient(input, &|_, logits| logits.ones_like()).unwrap();
    let gradient = values(&gradient);
    let length = gradient.iter().map(|&slope| f64::from(slope).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() || length < 1e-6 {
        return Err(format!("a gradient of length {length}"));
    }
    if ROUNDS.iter().any(|rounds| name.starts_with(rounds)) {
        return Ok(());
    }
    let range = f64::from(model.domain().upper[0] - model.domain().lower[0]);
    let step = 2e-3 * range;
    let moved = |sign: f64| {
        let along = gradient.iter().map(|&slope| (sign * step * f64::from(slope) / length) as f32);
        let along = Tensor::from_vec(along.collect::<Vec<_>>(), input.shape(), &Device::Cpu);
        sum(&model.program().forward(&(input + along.unwrap()).unwrap()).unwrap())
    };
    let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
    match (slope - length).abs() < 0.05 * length {
        true => Ok(()),
        false => Err(format!("a slope of {slope}, and a gradient of length {length}")),
    }
}

/// Files with steps.
const ROUNDS: &[&str] = &["dynamic", "operators-on-integers", "qdq", "rounding"];

#[test]
fn what_a_file_leaves_open_has_to_be_chosen() {
    if models_cannot_be_loaded() {
        return;
    }
    let chosen = |name: &str, input_shape: Option<&[usize]>, output: Option<&str>| {
        let choice = Choice {
            input_shape: input_shape.map(<[usize]>::to_vec),
            output: output.map(str::to_owned),
        };
        load(&file(name), &choice)
    };
    let open = chosen("open-height-width", None, None).unwrap_err();
    assert!(matches!(open, Error::OpenShape { .. }), "{open}");
    for wrong in [&[1, 9, 8][..], &[3, 9], &[3, 9, 8, 1]] {
        let error = chosen("open-height-width", Some(wrong), None).unwrap_err();
        assert!(matches!(error, Error::InputShape { .. }), "{error}");
    }
    let sizes = [[3, 9, 8], [3, 12, 20]].map(|shape| {
        let model = chosen("open-height-width", Some(&shape), None).unwrap();
        assert_eq!(model.domain().shape, shape);
        model.digest().to_owned()
    });
    assert_ne!(sizes[0], sizes[1]);
    let features = chosen("features-beside", None, Some("features")).unwrap();
    assert_eq!((features.labels(), features.output_name()), (6, Some("features")));
    let error = chosen("features-beside", None, Some("probabilities")).unwrap_err();
    assert!(error.to_string().contains("[\"features\", \"logits\"]"), "{error}");
    for (name, output) in [
        ("dictionary", "p"),
        ("features-beside", "logits"),
        ("label-beside", "p"),
        ("map-beside", "logits"),
        ("probabilities-beside", "logits"),
    ] {
        assert_eq!(chosen(name, None, None).unwrap().output_name(), Some(output), "{name}");
    }
}

#[test]
fn bytes_are_taken_as_they_are() {
    if models_cannot_be_loaded() {
        return;
    }
    let load = |mean: f32, std: f32| {
        Model::load(&file("bytes-channels-last"), &[mean], &[std], &Device::Cpu)
    };
    for model in [load(0.0, 1.0).unwrap(), load(0.0, 1.0 / 255.0).unwrap()] {
        let domain = model.domain();
        assert_eq!((&domain.lower, &domain.upper), (&vec![0.0; 3], &vec![255.0; 3]));
        assert!(domain.channels_last && !domain.fp32);
    }
    assert!(matches!(load(0.5, 0.25), Err(Error::Bytes { .. })));
}
