//! The engine against PyTorch's values and gradients.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use doorward_engine::Program;

/// The golden models, by name.
pub(crate) fn golden() -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut models: Vec<(String, PathBuf)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "onnx"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    models.sort();
    assert!(models.len() >= 120, "only {} golden models", models.len());
    models
}

pub(crate) fn load(path: &Path) -> Program {
    Program::compile(&std::fs::read(path).unwrap(), &Device::Cpu)
        .unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

pub(crate) fn references(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Largest difference, relative to the largest expected magnitude.
pub(crate) fn relative_error(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    let scale = expected.iter().fold(1e-6f32, |max, value| max.max(value.abs()));
    let worst = got.iter().zip(&expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(got.iter().all(|value| value.is_finite()));
    worst / scale
}

/// Relative errors of logits and gradient.
fn errors(model: &Program, expected: &HashMap<String, Tensor>) -> (f32, f32) {
    let (input, cotangent) = (&expected["input"], &expected["cotangent"]);
    let logits = model.forward(input).unwrap();
    let (again, gradient) =
        model.vjp(input, &|rows, _| cotangent.narrow(0, rows.start, rows.len())).unwrap();
    assert!(relative_error(&again, &logits) < 1e-6);
    (relative_error(&logits, &expected["logits"]), relative_error(&gradient, &expected["gradient"]))
}

#[test]
fn golden_models_agree_with_pytorch() {
    for (name, path) in golden() {
        let (model, expected) = (load(&path), references(&path.with_extension("safetensors")));
        // f32 on both sides, summed in another order.
        let (logits, gradient) = errors(&model, &expected);
        assert!(logits < 1e-4, "{name}: logits off by {logits}");
        assert!(gradient < 1e-3, "{name}: gradient off by {gradient}");
    }
}

/// `python tests/golden/make.py --zoo DIR` makes the references.
#[test]
fn trained_models_agree_with_pytorch() {
    let Ok(references_folder) = std::env::var("DOORWARD_GOLDEN_ZOO") else {
        println!("skipped: DOORWARD_GOLDEN_ZOO is not set");
        return;
    };
    let data = std::env::var("DOORWARD_DATA").unwrap_or_else(|_| "../shared".into());
    // Relative to the repository.
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(data).join("zoo");
    let mut checked = 0;
    for entry in std::fs::read_dir(references_folder).unwrap() {
        let path = entry.unwrap().path();
        let model = zoo.join(path.file_stem().unwrap()).join("model.onnx");
        let (logits, gradient) = errors(&load(&model), &references(&path));
        println!("{}: logits {logits:.1e}, gradient {gradient:.1e}", model.display());
        assert!(logits < 1e-4, "{}: logits off by {logits}", model.display());
        // A pixel near a kink may fall on its other side; the largest magnitude is the scale.
        assert!(gradient < 1e-2, "{}: gradient off by {gradient}", model.display());
        checked += 1;
    }
    assert!(checked > 0, "no references in the folder");
}

/// `DOORWARD_UPDATE=1` writes it.
#[test]
fn the_operator_table_is_what_the_registry_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operators.md");
    let table = doorward_engine::operator_table();
    if std::env::var("DOORWARD_UPDATE").is_ok() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &table).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == table, "docs/operators.md is out of date: run with DOORWARD_UPDATE=1");
}
