//! onnxruntime predicts what the program does, and says so where it cannot.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use candle_onnx::onnx::tensor_proto::{DataLocation, DataType};
use candle_onnx::onnx::tensor_shape_proto::{Dimension, dimension};
use candle_onnx::onnx::type_proto::Value;
use candle_onnx::onnx::{ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use doorward_engine::{Classifier, Error, Model};
use prost::Message;

use super::engine::{golden, references, relative_error};
use super::support::models_cannot_be_loaded;
use super::support::onnx::{Graph, int, ints};

fn decode(model: &[u8]) -> Model {
    Model::decode(model, &[0.0], &[1.0], &Device::Cpu).unwrap()
}

/// Both answers to some rows, which are the same.
#[track_caller]
fn agrees(model: &Model, rows: usize) -> Vec<Vec<f32>> {
    let [channels, height, width] = model.domain().shape;
    let values: Vec<f32> =
        (0..rows * model.domain().len()).map(|i| (i * 31 % 17) as f32 / 16.0).collect();
    let batch = Tensor::from_vec(values, (rows, channels, height, width), &Device::Cpu).unwrap();
    let (own, other) = (model.program().forward(&batch).unwrap(), model.logits(&batch).unwrap());
    assert!(relative_error(&other, &own) < 1e-4);
    let (own, read) = (model.program().trace(&batch).unwrap(), model.trace(&batch).unwrap());
    assert!(relative_error(&read.logits, &own.logits) < 1e-4);
    for (own, read) in [(own.statistics, read.statistics), (own.features, read.features)] {
        assert_eq!(own.is_some(), read.is_some());
        if let (Some(own), Some(read)) = (own, read) {
            assert!(relative_error(&read, &own) < 1e-4);
        }
    }
    other.to_vec2().unwrap()
}

/// Four weighted sums of an image of 3 x 5 x 5; `input` is its shape in the graph.
fn sums(input: &[usize]) -> Graph {
    let weights: Vec<f32> = (0..75 * 4).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
    Graph::new(input).floats("w", &[75, 4], &weights)
}

/// An image of 3 x 5 x 5 whose sums are called `y`, and the output `z`.
fn sums_of(images: &str, graph: Graph) -> Graph {
    let mut graph = graph.node("Flatten", &[images], "flat", vec![]).node(
        "MatMul",
        &["flat", "w"],
        "y",
        vec![],
    );
    graph.output = "z".into();
    graph
}

/// With so many rows in the graph's own description.
fn with_fixed_rows(graph: Graph, rows: i64) -> Vec<u8> {
    let mut model = graph.model();
    let shape = input_tensor(&mut model).shape.as_mut().unwrap();
    let value = Some(dimension::Value::DimValue(rows));
    shape.dim[0] = Dimension { value, ..Dimension::default() };
    model.encode_to_vec()
}

fn input_tensor(model: &mut ModelProto) -> &mut candle_onnx::onnx::type_proto::Tensor {
    let input = &mut model.graph.as_mut().unwrap().input[0];
    match input.r#type.as_mut().and_then(|kind| kind.value.as_mut()) {
        Some(Value::TensorType(tensor)) => tensor,
        _ => panic!("no tensor"),
    }
}

/// The model with all that it gives in one row, which makes labels of it.
fn flattened(file: &[u8]) -> Vec<u8> {
    let mut model = ModelProto::decode(file).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let given = std::mem::replace(&mut graph.output[0].name, "labels".into());
    graph.output[0].r#type = None;
    graph.node.push(NodeProto {
        op_type: "Flatten".into(),
        input: vec![given],
        output: vec!["labels".into()],
        ..NodeProto::default()
    });
    model.encode_to_vec()
}

#[test]
fn golden_models_give_the_same_logits() {
    if models_cannot_be_loaded() {
        return;
    }
    let mut checked = 0;
    for (name, path) in golden() {
        let file = std::fs::read(&path).unwrap();
        let model =
            Model::decode(&file, &[0.0], &[1.0], &Device::Cpu).or_else(|error| match error {
                Error::Output { .. } => {
                    Model::decode(&flattened(&file), &[0.0], &[1.0], &Device::Cpu)
                }
                error => Err(error),
            });
        let model = match model {
            Ok(model) => model,
            // Of other rows than images.
            Err(Error::InputType { .. }) => continue,
            Err(error) => panic!("{name}: {error}"),
        };
        // Where the input itself is what a sigmoid or the like takes at the end, it has no name.
        let named = model.program().logits_name().is_some();
        assert_eq!(model.uses_onnxruntime(), named, "{name}");
        let input = &references(&path.with_extension("safetensors"))["input"];
        let (own, other) = (model.program().forward(input).unwrap(), model.logits(input).unwrap());
        let error = relative_error(&other, &own);
        assert!(error < 1e-4, "{name}: off by {error}");
        checked += 1;
    }
    assert!(checked >= 100, "only {checked} golden models take images");
}

#[test]
fn the_demos_images_have_the_same_labels() {
    if models_cannot_be_loaded() {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/fashion-mnist");
    let model = Model::load(&folder.join("model.onnx"), &[0.0], &[1.0], &Device::Cpu).unwrap();
    assert!(model.uses_onnxruntime());
    for name in ["clean.bin.gz", "triggered.bin.gz"] {
        let mut records = Vec::new();
        let file = File::open(folder.join(name)).unwrap();
        flate2::read::GzDecoder::new(file).read_to_end(&mut records).unwrap();
        let row = model.domain().len();
        let values: Vec<f32> = records
            .chunks_exact(1 + row)
            .flat_map(|record| model.domain().normalise(&record[1..]))
            .collect();
        let batch = Tensor::from_vec(values, (records.len() / (1 + row), 1, 28, 28), &Device::Cpu);
        let batch = batch.unwrap();
        let labels = |logits: Tensor| logits.argmax(D::Minus1).unwrap().to_vec1::<u32>().unwrap();
        let own = labels(model.program().forward(&batch).unwrap());
        assert_eq!(labels(model.logits(&batch).unwrap()), own, "{name}");
    }
}

#[test]
fn channels_may_be_last() {
    if models_cannot_be_loaded() {
        return;
    }
    let graph = sums(&[5, 5, 3]).node("Transpose", &["x"], "t", vec![ints("perm", &[0, 3, 1, 2])]);
    let graph = sums_of("t", graph).node("Relu", &["y"], "z", vec![]);
    let model = decode(&graph.encode());
    assert!(model.program().channels_last() && model.uses_onnxruntime());
    assert_eq!(model.domain().shape, [3, 5, 5]);
    agrees(&model, 3);
}

#[test]
fn a_fixed_number_of_rows_takes_any_number() {
    if models_cannot_be_loaded() {
        return;
    }
    let graph = sums_of("x", sums(&[3, 5, 5])).node("Relu", &["y"], "z", vec![]);
    let open = agrees(&decode(&graph.clone().encode()), 7);
    for fixed in [1, 3, 16] {
        let model = decode(&with_fixed_rows(graph.clone(), fixed));
        assert!(model.uses_onnxruntime());
        assert_eq!(agrees(&model, 7), open, "{fixed}");
    }
    // More than one call takes.
    agrees(&decode(&graph.encode()), 100);
}

#[test]
fn a_softmax_at_the_end_is_left_away() {
    if models_cannot_be_loaded() {
        return;
    }
    for op in ["LogSoftmax", "Softmax"] {
        let graph = sums_of("x", sums(&[3, 5, 5]))
            .node(op, &["y"], "p", vec![int("axis", 1)])
            .node("Identity", &["p"], "z", vec![]);
        let model = decode(&graph.encode());
        assert!(model.uses_onnxruntime());
        assert_eq!(model.program().output_name(), "z");
        assert_eq!(model.program().logits_name(), Some("y"));
        let logits = agrees(&model, 2);
        assert!(logits[0].iter().any(|logit| logit.abs() > 1.0), "{logits:?}");
    }
}

#[test]
fn tensors_are_read_from_files_beside_the_model() {
    if models_cannot_be_loaded() {
        return;
    }
    let folder = tempfile::TempDir::new().unwrap();
    let weights: Vec<u8> = (0..75 * 4).flat_map(|i| (i as f32).sin().to_le_bytes()).collect();
    std::fs::write(folder.path().join("weights.bin"), weights).unwrap();
    let location = StringStringEntryProto { key: "location".into(), value: "weights.bin".into() };
    let weights = TensorProto {
        data_type: DataType::Float.into(),
        data_location: DataLocation::External.into(),
        external_data: vec![location],
        ..TensorProto::default()
    };
    let graph = Graph::new(&[3, 5, 5]).tensor("w", &[75, 4], weights);
    // The softmax has the session made of other bytes than the file's.
    for op in ["Relu", "Softmax"] {
        let graph = sums_of("x", graph.clone()).node(op, &["y"], "z", vec![]);
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, graph.encode()).unwrap();
        let model = Model::load(&path, &[0.0], &[1.0], &Device::Cpu).unwrap();
        assert!(model.uses_onnxruntime());
        agrees(&model, 3);
    }
}

#[test]
fn the_program_predicts_for_inputs_of_other_numbers() {
    if models_cannot_be_loaded() {
        return;
    }
    let weights: Vec<f64> = (0..75 * 4).map(f64::from).collect();
    let weights = TensorProto {
        data_type: DataType::Double.into(),
        double_data: weights,
        ..TensorProto::default()
    };
    let graph = Graph::new(&[3, 5, 5]).tensor("w", &[75, 4], weights);
    let mut model = sums_of("x", graph).node("Relu", &["y"], "z", vec![]).model();
    input_tensor(&mut model).elem_type = DataType::Double.into();
    let model = decode(&model.encode_to_vec());
    assert!(!model.uses_onnxruntime());
    agrees(&model, 3);
}

#[test]
fn wrong_rows_are_refused() {
    if models_cannot_be_loaded() {
        return;
    }
    let graph = sums_of("x", sums(&[3, 5, 5])).node("Relu", &["y"], "z", vec![]);
    let model = decode(&graph.encode());
    let rows = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
    let error = model.logits(&rows(&[2, 3, 5, 4]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("expected rows of [3, 5, 5]"), "{error}");
    assert_eq!(model.logits(&rows(&[0, 3, 5, 5]).unwrap()).unwrap().dims(), [0, 4]);
}
