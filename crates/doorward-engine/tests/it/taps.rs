//! Statistics that a forward pass reads beside the logits, against onnxruntime's activations.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use doorward_engine::{Classifier, Model};

use crate::engine::{load, references, relative_error};

const NETS: [&str; 5] =
    ["net-cnn6", "net-resnet", "net-densenet", "net-alexnet", "attention-class-token"];

#[test]
fn statistics_are_those_of_the_activations() {
    for net in NETS {
        let model = load(&golden_file(&format!("{net}.onnx")));
        let expected = references(&golden_file(&format!("taps-{net}.safetensors")));
        let batch = &references(&golden_file(&format!("{net}.safetensors")))["input"];
        // Parts of a few rows, and one part.
        for batch in [batch.clone(), Tensor::cat(&[batch; 20], 0).unwrap()] {
            let trace = model.trace(&batch).unwrap();
            let rows = batch.dim(0).unwrap();
            assert_eq!(values(&trace.logits), values(&model.forward(&batch).unwrap()), "{net}");
            let statistics = trace.statistics.expect("activations");
            let mut at = 0;
            for (name, count) in model.taps() {
                let got = statistics.narrow(1, at, count).unwrap();
                let once = &expected[name];
                let expected = Tensor::cat(&vec![once; rows / once.dim(0).unwrap()], 0).unwrap();
                let error = relative_error(&got, &expected);
                assert!(error < 1e-5, "{net}, {name}: {error}");
                at += count;
            }
            assert!(at > 0, "{net} has no taps");
            assert_eq!(statistics.dims(), [rows, at], "{net}");
        }
    }
}

#[test]
fn a_trace_has_what_the_last_layer_sees() {
    let path = golden_file("net-cnn6.onnx");
    let bytes = std::fs::read(&path).unwrap();
    let model = Model::decode(&bytes, &[0.0], &[1.0], &Device::Cpu).unwrap();
    let batch = &references(&path.with_extension("safetensors"))["input"];
    let trace = model.trace(batch).unwrap();
    let alone = model.features(batch).unwrap().expect("a last layer");
    // A trace may be onnxruntime's, which sums in another order.
    for (traced, alone) in values(&trace.features.expect("a last layer")).iter().zip(values(&alone))
    {
        assert!((traced - alone).abs() <= 1e-4 * alone.abs().max(1.0), "{traced} and {alone}");
    }
    let statistics: usize = model.taps().iter().sum();
    assert_eq!(trace.statistics.map(|all| all.dims()[1]), Some(statistics));
}

#[test]
fn a_model_without_activations_has_no_statistics() {
    let model = load(&golden_file("flatten-gemm.onnx"));
    let batch = &references(&golden_file("flatten-gemm.safetensors"))["input"];
    assert!(model.trace(batch).unwrap().statistics.is_none());
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn golden_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}
