//! Weights beside the ONNX file are read from the model's folder, and from nowhere else.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::tensor_proto::{DataLocation, DataType};
use candle_onnx::onnx::{ModelProto, StringStringEntryProto, TensorProto};
use doorward_engine::{Classifier, Model};
use prost::Message;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::support::models_cannot_be_loaded;
use super::support::onnx::Graph;

const WEIGHTS: [f32; 8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
const BIASES: [f32; 2] = [0.5, -0.5];

fn raw(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn external(entries: &[(&str, &str)]) -> TensorProto {
    let entry = |&(key, value): &(&str, &str)| StringStringEntryProto {
        key: key.into(),
        value: value.into(),
    };
    TensorProto {
        data_type: DataType::Float.into(),
        data_location: DataLocation::External.into(),
        external_data: entries.iter().map(entry).collect(),
        ..TensorProto::default()
    }
}

/// Images of 1x2x2 values, two labels.
fn model(weights: TensorProto, biases: TensorProto) -> ModelProto {
    Graph::new(&[1, 2, 2])
        .tensor("w", &[4, 2], weights)
        .tensor("b", &[2], biases)
        .node("Flatten", &["x"], "flat", vec![])
        .node("Gemm", &["flat", "w", "b"], "y", vec![])
        .model()
}

fn saved(folder: &Path, model: &ModelProto) -> Result<Model, String> {
    let path = folder.join("model.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    Model::load(&path, &[0.0], &[1.0], &Device::Cpu).map_err(|error| error.to_string())
}

fn inline() -> TensorProto {
    TensorProto {
        data_type: DataType::Float.into(),
        float_data: BIASES.to_vec(),
        ..TensorProto::default()
    }
}

/// The weights in a file beside the model, which is as given.
fn with_weights(entries: &[(&str, &str)], file: &[u8]) -> Result<Model, String> {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("weights.bin"), file).unwrap();
    saved(folder.path(), &model(external(entries), inline()))
}

#[track_caller]
fn refuses(entries: &[(&str, &str)], expected: &str) {
    let error = with_weights(entries, &raw(&WEIGHTS)).unwrap_err();
    assert!(error.contains(expected), "{error}\ndoes not contain\n{expected}");
}

#[test]
fn tensors_are_read_from_files_beside_the_model() {
    if models_cannot_be_loaded() {
        return;
    }
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("parts")).unwrap();
    // A gap before and after, as exporters align tensors to pages.
    let weights = [vec![0xff; 16], raw(&WEIGHTS), vec![0xff; 3]].concat();
    fs::write(folder.path().join("weights.bin"), &weights).unwrap();
    fs::write(folder.path().join("parts/biases"), raw(&BIASES)).unwrap();
    let proto = model(
        external(&[("location", "weights.bin"), ("offset", "16"), ("length", "32")]),
        external(&[("location", "./parts/biases"), ("checksum", "ignored")]),
    );
    let loaded = saved(folder.path(), &proto).unwrap();
    let row = Tensor::ones((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
    let logits = loaded.logits(&row).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(logits, [[16.5, 19.5]]);

    // The digest as documented; "./parts/biases" comes before "weights.bin".
    let mut digest = Sha256::new_with_prefix(proto.encode_to_vec());
    digest.update(Sha256::digest(raw(&BIASES)));
    digest.update(Sha256::digest(&weights));
    assert_eq!(loaded.digest(), format!("{:x}", HexOf(&digest.finalize())));

    // A byte that no tensor is made of is part of the model all the same.
    let mut changed = weights.clone();
    changed[50] ^= 1;
    fs::write(folder.path().join("weights.bin"), &changed).unwrap();
    assert_ne!(saved(folder.path(), &proto).unwrap().digest(), loaded.digest());
}

struct HexOf<'a>(&'a [u8]);

impl std::fmt::LowerHex for HexOf<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[test]
fn a_model_in_one_file_has_that_files_digest() {
    if models_cannot_be_loaded() {
        return;
    }
    let weights = TensorProto {
        data_type: DataType::Float.into(),
        raw_data: raw(&WEIGHTS),
        ..TensorProto::default()
    };
    let proto = model(weights, inline());
    let folder = TempDir::new().unwrap();
    let digest = Sha256::digest(proto.encode_to_vec());
    let loaded = saved(folder.path(), &proto).unwrap();
    assert_eq!(loaded.digest(), format!("{:x}", HexOf(&digest)));
}

#[test]
fn bytes_without_a_folder_have_no_external_data() {
    let proto = model(external(&[("location", "weights.bin")]), inline());
    let error = Model::decode(&proto.encode_to_vec(), &[0.0], &[1.0], &Device::Cpu).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("\"w\"") && error.contains("another file"), "{error}");
}

#[test]
fn locations_stay_in_the_models_folder() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("weights.bin"), raw(&WEIGHTS)).unwrap();
    let absolute = outside.path().join("weights.bin");
    refuses(
        &[("location", absolute.to_str().unwrap())],
        "expected the path of a file in the model",
    );
    for location in
        ["../weights.bin", "a/../weights.bin", "", "/", "..", "weights.bin/../weights.bin"]
    {
        refuses(&[("location", location)], "expected the path of a file in the model");
    }
    refuses(&[("location", ".")], "is not a file");
    refuses(&[("location", "weights\0.bin")], "external data");
    refuses(&[("location", "nothing.bin")], "\"w\"");
    refuses(&[], "no location");
}

#[cfg(unix)]
#[test]
fn links_do_not_lead_out_of_the_models_folder() {
    if models_cannot_be_loaded() {
        return;
    }
    use std::os::unix::fs::symlink;
    let (outside, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(outside.path().join("weights.bin"), raw(&WEIGHTS)).unwrap();
    fs::write(folder.path().join("here.bin"), raw(&WEIGHTS)).unwrap();
    symlink(outside.path().join("weights.bin"), folder.path().join("file")).unwrap();
    symlink(outside.path(), folder.path().join("folder")).unwrap();
    symlink("here.bin", folder.path().join("inside")).unwrap();
    symlink("loop", folder.path().join("loop")).unwrap();
    let linked = |location: &str| {
        saved(folder.path(), &model(external(&[("location", location)]), inline()))
    };
    assert!(linked("file").unwrap_err().contains("leads out of the model's folder"));
    assert!(linked("folder/weights.bin").unwrap_err().contains("leads out of the model's folder"));
    assert!(linked("loop").is_err());
    assert!(linked("inside").is_ok());
    // Never opened: a pipe would wait for a writer.
    let pipe = std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status();
    if pipe.is_ok_and(|status| status.success()) {
        assert!(linked("pipe").unwrap_err().contains("is not a file"));
    }
}

#[test]
fn ranges_agree_with_the_file_and_the_shape() {
    let at = |entries: &[(&'static str, &'static str)]| {
        [[("location", "weights.bin")].as_slice(), entries].concat()
    };
    refuses(&at(&[("length", "28")]), "needs 32 bytes");
    refuses(&at(&[("length", "36")]), "needs 32 bytes");
    refuses(&at(&[("offset", "1")]), "bytes 1 to 33 are not in a file of 32 bytes");
    refuses(&at(&[("offset", "18446744073709551615")]), "is beyond");
    refuses(&at(&[("offset", "18446744073709551616")]), "expected a number of bytes");
    refuses(&at(&[("offset", "-4")]), "expected a number of bytes");
    refuses(&at(&[("length", "32 ")]), "expected a number of bytes");
    refuses(&at(&[("offset", "0"), ("offset", "4")]), "\"offset\" twice");
    refuses(&at(&[("location", "weights.bin")]), "\"location\" twice");
    refuses(&at(&[("surprise", "")]), "have a key \"surprise\"");
    let both = TensorProto { float_data: WEIGHTS.to_vec(), ..external(&at(&[])) };
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("weights.bin"), raw(&WEIGHTS)).unwrap();
    let error = saved(folder.path(), &model(both, inline())).unwrap_err();
    assert!(error.contains("both in this file and in another"), "{error}");
    // A small file for many tensors is no small model.
    let overlapping = model(external(&at(&[])), external(&at(&[("offset", "24")])));
    let error = saved(folder.path(), &overlapping).unwrap_err();
    assert!(error.contains("overlaps"), "{error}");
    // Of 4 TiB, none of which is on the disk.
    let sparse = fs::File::create(folder.path().join("weights.bin")).unwrap();
    if sparse.set_len(1 << 42).is_ok() {
        let error = saved(folder.path(), &model(external(&at(&[])), inline())).unwrap_err();
        assert!(error.contains("more than 4294967296 bytes"), "{error}");
    }
}
