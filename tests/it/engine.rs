//! The engine against PyTorch's values and gradients, and against central differences.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use doorward::model::Program;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn load(path: &Path) -> Program {
    Program::compile(&std::fs::read(path).unwrap(), &Device::Cpu)
        .unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

fn references(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Largest difference, relative to the largest expected magnitude.
fn relative_error(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
    let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
    let scale = expected.iter().fold(1e-6f32, |max, value| max.max(value.abs()));
    let worst = got.iter().zip(&expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(got.iter().all(|value| value.is_finite()));
    worst / scale
}

fn check(model: &Program, expected: &HashMap<String, Tensor>, name: &str) {
    let input = &expected["input"];
    let cotangent = &expected["cotangent"];
    let logits = model.forward(input).unwrap();
    if !name.ends_with("softmax") {
        let error = relative_error(&logits, &expected["logits"]);
        assert!(error < 1e-4, "{name}: logits off by {error}");
        let (again, gradient) =
            model.vjp(input, &|rows, _| cotangent.narrow(0, rows.start, rows.len())).unwrap();
        assert!(relative_error(&again, &logits) < 1e-6, "{name}");
        let error = relative_error(&gradient, &expected["gradient"]);
        assert!(error < 1e-3, "{name}: gradient off by {error}");
    } else {
        // The softmax at the end is left away: what it would give must still agree.
        let out = match name {
            "log-softmax" => candle_nn::ops::log_softmax(&logits, 1),
            _ => candle_nn::ops::softmax(&logits, 1),
        };
        assert!(relative_error(&out.unwrap(), &expected["logits"]) < 1e-4, "{name}");
    }
}

#[test]
fn golden_models_agree_with_pytorch() {
    let mut checked = 0;
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    for path in names.iter().filter(|path| path.extension().is_some_and(|e| e == "onnx")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        println!("{name}");
        check(&load(path), &references(&path.with_extension("safetensors")), name);
        checked += 1;
    }
    assert!(checked >= 60, "only {checked} golden models");
}
