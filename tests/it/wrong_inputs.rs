//! What people get wrong, and what the program tells them: what came, what was expected, where.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::Command;

use doorward_detection::artifact::FORMAT;
use doorward_detection::artifact::{Artifact, Expected};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::support::models_cannot_be_loaded;
use super::support::onnx::{Graph, input};
use candle_onnx::onnx::type_proto::Value;
use prost::Message;

/// A folder with a small model, images and settings, all valid until a test changes them.
struct Workplace {
    folder: TempDir,
}

impl Workplace {
    fn new() -> Self {
        let workplace = Self { folder: tempfile::tempdir().expect("a folder") };
        workplace.write("model.onnx", &linear(3).encode());
        workplace.write("clean.bin", &records(60));
        workplace.write("training.bin", &records(40));
        workplace.write("doorward.toml", workplace.settings("").as_bytes());
        workplace
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    /// The required keys, and `more`.
    fn settings(&self, more: &str) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        format!(
            "upstream.url = 'http://127.0.0.1:1'\n\
             model.path = '{}'\n\
             calibration.clean_images = '{}'\n\
             calibration.artifact = '{}'\n\
             calibration.fit_images = 20\n\
             calibration.holdout_images = 40\n\
             perturbation.steps = 3\n\
             policy.max_false_rejection_rate = 0.1\n\
             {more}\n",
            path("model.onnx"),
            path("clean.bin"),
            path("artifact"),
        )
    }

    fn with(&self, more: &str) -> &Self {
        self.write("doorward.toml", self.settings(more).as_bytes());
        self
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_doorward"))
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .expect("the program");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!errors.contains('\x1b'), "colours, and no terminal: {errors}");
        (output.status.code(), errors)
    }

    /// Runs a command that must fail, with these words in its last line.
    fn fails(&self, arguments: &[&str], expected: &[&str]) {
        let (code, errors) = self.run(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        let from = errors.rfind("doorward: ").unwrap_or_else(|| panic!("no message: {errors}"));
        for words in expected {
            assert!(errors[from..].contains(words), "{errors}\ndoes not say\n{words}");
        }
    }

    fn check_passes(&self) {
        let (code, errors) = self.run(&["config", "check", "doorward.toml"]);
        assert_eq!(code, Some(0), "{errors}");
    }

    fn check_fails(&self, expected: &[&str]) {
        self.fails(&["config", "check", "doorward.toml"], expected);
    }

    fn calibrate_fails(&self, expected: &[&str]) {
        self.fails(&["calibrate", "-c", "doorward.toml"], expected);
    }

    fn evaluate_fails(&self, expected: &[&str]) {
        let images = ["--clean", "clean.bin", "--triggered", "clean.bin"];
        self.fails(&[["evaluate", "-c", "doorward.toml"].as_slice(), &images].concat(), expected);
    }

    fn calibrated() -> Self {
        let workplace = Self::new();
        let (code, errors) = workplace.run(&["calibrate", "-c", "doorward.toml"]);
        assert_eq!(code, Some(0), "{errors}");
        workplace
    }
}

/// Logits that are sums of the pixels of an image of 1 x 4 x 4.
fn linear(labels: usize) -> Graph {
    let weight: Vec<f32> = (0..16 * labels).map(|i| ((i * 7) % 5) as f32 - 2.0).collect();
    Graph::new(&[1, 4, 4])
        .floats("w", &[16, labels as i64], &weight)
        .node("Flatten", &["x"], "f", vec![])
        .node("MatMul", &["f", "w"], "y", vec![])
}

/// Records of 1 x 4 x 4 pixels.
fn records(count: usize) -> Vec<u8> {
    (0..17 * count)
        .map(|i| if i % 17 == 0 { 0 } else { ((i * 2_654_435_761) >> 7) as u8 })
        .collect()
}

#[test]
fn model_that_is_not_there() {
    let workplace = Workplace::new();
    std::fs::remove_file(workplace.path("model.onnx")).unwrap();
    let expected = ["cannot load the model", "model.onnx", "No such file"];
    workplace.check_fails(&expected);
    workplace.calibrate_fails(&expected);
    workplace.evaluate_fails(&expected);
}

#[test]
fn file_that_is_no_model() {
    let workplace = Workplace::new();
    for bytes in [b"".as_slice(), b"hello, world", &[0xff; 64]] {
        workplace.write("model.onnx", bytes);
        workplace.check_fails(&["cannot load the model", "model.onnx", "not an ONNX model"]);
    }
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 45\n";
    for (bytes, kind, advice) in [
        (b"PK\x03\x04\0\0\0\0archive/data.pklFB".as_slice(), "a PyTorch file", "torch.onnx.export"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a Python pickle", "torch.onnx.export"),
        (b"\x89HDF\r\n\x1a\n\0\0", "a Keras model", "tf2onnx"),
        (b"\x1c\0\0\0TFL3\x14\0", "a TensorFlow Lite model", "tf2onnx"),
        (b"\x58\x09\0\0\0\0\0\0{\"w\":{\"dtype\"", "a safetensors file", "torch.onnx.export"),
        (pointer, "a git-lfs pointer", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page", "fetch it again"),
        (b"\x1f\x8b\x08\0\0", "a compressed file", "unpack it"),
        (b"PK\x03\x04\x14\0\0\0model.onnx", "a zip archive", "unpack it"),
    ] {
        workplace.write("model.onnx", bytes);
        workplace.check_fails(&["model.onnx", &format!("it is {kind}"), advice]);
    }
}

#[test]
fn operator_that_is_not_known() {
    let workplace = Workplace::new();
    let graph = Graph::new(&[1, 4, 4]).node("Flatten", &["x"], "f", vec![]);
    workplace.write("model.onnx", &graph.node("Shrink", &["f"], "y", vec![]).encode());
    workplace.check_fails(&[
        "model.onnx",
        "node \"Shrink_1\": operator Shrink is not supported",
        "docs/operators.md",
    ]);
}

#[test]
fn model_with_two_inputs() {
    let workplace = Workplace::new();
    let mut graph = Graph::new(&[1, 4, 4]).node("Add", &["x", "z"], "y", vec![]);
    graph.inputs.push(input("z", &[1, 4, 4]));
    workplace.write("model.onnx", &graph.encode());
    workplace.check_fails(&["model.onnx", "the model takes 2 inputs [\"x\", \"z\"], expected one"]);
}

#[test]
fn model_that_gives_no_logits() {
    let workplace = Workplace::new();
    workplace
        .write("model.onnx", &Graph::new(&[1, 4, 4]).node("Relu", &["x"], "y", vec![]).encode());
    workplace.check_fails(&[
        "\"y\" of shape [batch, 1, 4, 4], expected one score for each label",
        "a detector",
    ]);
    // The softmax of one number is one.
    let one = Graph { output: "p".into(), ..linear(1) };
    workplace.write("model.onnx", &one.node("Softmax", &["y"], "p", vec![]).encode());
    workplace.check_fails(&["\"p\" of shape [batch, 1], expected one score for each label"]);
    let decided = Graph { output: "p".into(), ..linear(2) };
    workplace.write("model.onnx", &decided.node("Sign", &["y"], "p", vec![]).encode());
    workplace.check_fails(&["\"p\"", "Sign", "export the model without its last step"]);
}

#[test]
fn model_whose_sizes_or_outputs_are_open() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new();
    let mut model = linear(3).model();
    let graph = model.graph.as_mut().unwrap();
    graph.input = vec![input("x", &[1, 4, 4])];
    let Some(Value::TensorType(tensor)) =
        graph.input[0].r#type.as_mut().and_then(|kind| kind.value.as_mut())
    else {
        panic!("no tensor");
    };
    for dim in &mut tensor.shape.as_mut().unwrap().dim[2..] {
        dim.value = None;
    }
    workplace.write("model.onnx", &model.encode_to_vec());
    workplace.check_fails(&["FLOAT of shape [batch, 1, ?, ?]", "set model.input_shape"]);
    workplace.with("model.input_shape = [3, 4, 4]");
    workplace.check_fails(&["[batch, 1, ?, ?]", "[3, 4, 4]"]);
    workplace.with("model.input_shape = [1, 4, 4]");
    workplace.check_passes();
    let graph = linear(3).node("Tanh", &["y"], "z", vec![]).node("Exp", &["x"], "e", vec![]);
    let mut two =
        Graph { output: "z".into(), ..graph }.node("Flatten", &["e"], "v", vec![]).model();
    let outputs = &mut two.graph.as_mut().unwrap().output;
    outputs.push(input("v", &[16]));
    outputs[0] = input("z", &[3]);
    workplace.write("model.onnx", &two.encode_to_vec());
    workplace.with("");
    workplace.check_fails(&["the model gives [\"z\", \"v\"]", "set model.output"]);
    workplace.with("model.output = 'z'");
    workplace.check_passes();
}

#[test]
fn model_that_takes_no_image() {
    let workplace = Workplace::new();
    workplace.write("model.onnx", &Graph::new(&[16]).node("Relu", &["x"], "y", vec![]).encode());
    workplace.check_fails(&["input \"x\" is FLOAT of shape [batch, 16], expected an image"]);
}

#[test]
fn images_of_another_shape() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new();
    workplace.write("clean.bin", &records(60)[1..]);
    workplace.calibrate_fails(&[
        "calibration.clean_images",
        "clean.bin unpacks to 1019 bytes, expected a multiple of 17",
    ]);
    let mut idx = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 5];
    idx.extend([7; 50]);
    workplace.write("t10k-images-idx3-ubyte", &idx);
    let training = workplace.path("t10k-images-idx3-ubyte");
    workplace.write("clean.bin", &records(60));
    workplace.with(&format!("calibration.training_images = '{}'", training.display()));
    let expected = [
        "calibration.training_images",
        "t10k-images-idx3-ubyte is an array of [2, 5, 5], expected [count, 1, 4, 4]",
    ];
    workplace.calibrate_fails(&expected);
    workplace.fails(&["inspect", "-c", "doorward.toml"], &expected);
}

#[test]
fn too_few_images() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new();
    workplace.write("clean.bin", &records(28));
    workplace.calibrate_fails(&[
        "calibration.clean_images holds 28 images, expected at least 29",
        "20 to fit the perturbations and 9 held out",
        "0.1",
    ]);
    workplace.write("clean.bin", &[]);
    workplace.calibrate_fails(&["clean.bin holds no images"]);
}

#[test]
fn preprocessing_that_the_model_was_not_trained_with() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new();
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion-mnist");
    let settings = format!(
        "upstream.url = 'http://127.0.0.1:1'
model.path = '{assets}/model.onnx'
preprocess.std = 0.00392156862745098
calibration.clean_images = ['{assets}/fit.bin.gz', '{assets}/holdout.bin.gz']
calibration.artifact = 'a.safetensors'
"
    );
    workplace.write("doorward.toml", settings.as_bytes());
    workplace.calibrate_fails(&[
        "labelled clean images with mean = 0.0 and std = 1.0 (inputs from 0 to 1)",
        "set [preprocess] as the model was trained",
    ]);
}

#[test]
fn source_that_cannot_be_read() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new();
    workplace.with("calibration.training_images = 'missing.bin'");
    let expected =
        ["calibration.training_images", "missing.bin cannot be read", "No such file or directory"];
    workplace.calibrate_fails(&expected);
    workplace.fails(&["inspect", "-c", "doorward.toml"], &expected);
    // Named .gz, but not.
    workplace.write("training.bin.gz", &records(40));
    workplace.with("calibration.training_images = 'training.bin.gz'");
    workplace.calibrate_fails(&["training.bin.gz cannot be read", "gzip header"]);
    let workplace = Workplace::calibrated();
    let arguments =
        ["evaluate", "-c", "doorward.toml", "--clean", "no.bin", "--triggered", "clean.bin"];
    workplace.fails(&arguments, &["--clean", "no.bin cannot be read", "No such file"]);
}

#[test]
fn inspection_without_training_images() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::new();
    workplace
        .fails(&["inspect", "-c", "doorward.toml"], &["calibration.training_images is not set"]);
}

#[test]
fn channel_statistics_of_another_number() {
    let workplace = Workplace::new();
    for key in ["mean", "std"] {
        workplace.with(&format!("preprocess.{key} = [0.5, 0.25, 0.5]"));
        workplace.check_fails(&[&format!("preprocess.{key} has 3 values, expected 1")]);
    }
}

#[test]
fn keys_that_are_unknown_or_missing() {
    let workplace = Workplace::new();
    workplace.with("model.nmae = 'x'");
    workplace.check_fails(&["doorward.toml", "line 9", "nmae"]);
    workplace.with("[polici]\nmode = 'enforce'");
    workplace.check_fails(&["doorward.toml", "polici"]);
    for key in ["upstream.url", "model.path", "calibration.clean_images"] {
        let settings = workplace.settings("");
        let rest: Vec<&str> = settings.lines().filter(|line| !line.starts_with(key)).collect();
        workplace.write("doorward.toml", rest.join("\n").as_bytes());
        workplace.check_fails(&[&format!("{key} is not set")]);
    }
    workplace.fails(&["config", "check", "no.toml"], &["cannot read no.toml", "No such file"]);
}

#[test]
fn artifact_of_another_model() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::calibrated();
    workplace.write("model.onnx", &linear(4).encode());
    workplace.evaluate_fails(&["run `doorward calibrate`", "artifact", "the model", "expected"]);
}

#[test]
fn artifact_with_other_settings() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::calibrated();
    workplace.with("perturbation.max_epsilon = 0.25");
    workplace.evaluate_fails(&["run `doorward calibrate`", "artifact", "the settings", "expected"]);
    workplace.with("preprocess.mean = 0.5");
    workplace.evaluate_fails(&["the settings"]);
    workplace.with("").write("clean.bin", &records(59));
    workplace.evaluate_fails(&["the images"]);
}

#[test]
fn artifact_of_another_format() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::calibrated();
    let bytes = std::fs::read(workplace.path("artifact")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata: HashMap<String, String> = header.metadata().clone().unwrap();
    let format = |format: u32| format!("\"format\":{format}");
    let other = FORMAT + 1;
    let manifest = metadata["doorward.manifest"].replacen(&format(FORMAT), &format(other), 1);
    assert_ne!(manifest, metadata["doorward.manifest"]);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: BTreeMap<_, _> = file.tensors().into_iter().collect();
    let mut hash = Sha256::new();
    hash.update((manifest.len() as u64).to_le_bytes());
    hash.update(&manifest);
    for (name, view) in &tensors {
        for part in [name.as_bytes(), view.data()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    metadata.insert("doorward.sha256".into(), hex::encode(hash.finalize()));
    metadata.insert("doorward.manifest".into(), manifest);
    let changed = safetensors::serialize(tensors, Some(metadata.clone())).unwrap();
    let refused = format!("has format {other}, expected {FORMAT}");
    workplace.write("artifact", &changed);
    workplace.evaluate_fails(&["artifact", &refused]);
    // Another format may well be digested in another way.
    metadata.insert("doorward.sha256".into(), "00".into());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    workplace.write("artifact", &safetensors::serialize(file.tensors(), Some(metadata)).unwrap());
    workplace.evaluate_fails(&["artifact", &refused]);
}

#[test]
fn artifact_that_is_corrupted() {
    if models_cannot_be_loaded() {
        return;
    }
    let workplace = Workplace::calibrated();
    let path = workplace.path("artifact");
    let original = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(*original.first_chunk().unwrap()) as usize;
    for at in [0, 7, 8, 20, header / 2, header + 7, header + 8, original.len() - 1] {
        let mut bytes = original.clone();
        bytes[at] ^= 0x20;
        workplace.write("artifact", &bytes);
        workplace.evaluate_fails(&["run `doorward calibrate`", "artifact is corrupted"]);
    }
    for len in [0, 4, 8, header, original.len() / 2, original.len() - 1] {
        workplace.write("artifact", &original[..len]);
        workplace.evaluate_fails(&["run `doorward calibrate`", "artifact is corrupted"]);
    }
    let mut longer = original.clone();
    longer.push(0);
    workplace.write("artifact", &longer);
    workplace.evaluate_fails(&["artifact is corrupted"]);

    // Every byte of the header and some of the tensors, without a process each.
    let expected = Expected {
        artifact_digest: None,
        model_digest: "".into(),
        settings_digest: "".into(),
        data_digest: None,
    };
    let read = |bytes: &[u8]| {
        let device = candle_core::Device::Cpu;
        Artifact::decode(bytes, "test", &expected, &device).unwrap_err().to_string()
    };
    assert!(read(&original).contains("does not fit the model"));
    for at in (0..header + 8).chain((header + 8..original.len()).step_by(31)) {
        let mut bytes = original.clone();
        bytes[at] ^= 0x01;
        let error = read(&bytes);
        assert!(error.contains("corrupted") || error.contains("has format"), "{at}: {error}");
    }
    // What replaces it takes no notice of it.
    let (code, errors) = workplace.run(&["calibrate", "-c", "doorward.toml"]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("replacing the artifact"), "{errors}");
}
