//! Bytes that are no model, or hardly one, give an error: soon, in little memory and stack.

use std::time::{Duration, Instant};

use candle_onnx::onnx::tensor_proto::DataType;
use candle_onnx::onnx::{
    FunctionProto, OperatorSetIdProto, SparseTensorProto, StringStringEntryProto, TensorProto,
};
use prost::Message;

use super::engine::golden;
use super::hostile_models::{outcome, peak_memory, refused};
use super::support::onnx::{Graph, int, ints};

/// Far above what any of these takes.
const HANG: Duration = Duration::from_secs(30);

fn identity() -> Graph {
    Graph::new(&[4]).node("Relu", &["x"], "y", vec![])
}

fn error(bytes: &[u8]) -> String {
    let start = Instant::now();
    let error = outcome(bytes).expect_err("an error");
    assert!(start.elapsed() < HANG, "took {:?}", start.elapsed());
    // Whatever a file holds, its reader sees a line.
    assert!(error.len() < 1 << 14, "an error of {} bytes", error.len());
    error
}

#[track_caller]
fn refuses(bytes: &[u8], expected: &str) {
    let error = error(bytes);
    assert!(error.contains(expected), "{error}\ndoes not contain\n{expected}");
}

/// A field of bytes, as protobuf writes it.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(bytes.len() + 12);
    varint(&mut encoded, number << 3 | 2);
    varint(&mut encoded, bytes.len() as u64);
    encoded.extend_from_slice(bytes);
    encoded
}

fn varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// A model of this graph, whose bytes may be anything.
fn model(graph: &[u8]) -> Vec<u8> {
    let opset = OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() };
    [field(8, &opset.encode_to_vec()), field(7, graph)].concat()
}

#[test]
fn every_prefix_of_a_model_is_refused_or_runs() {
    let (_, path) =
        golden().into_iter().min_by_key(|(_, path)| path.metadata().unwrap().len()).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let start = Instant::now();
    let runs = (0..bytes.len()).filter(|&end| outcome(&bytes[..end]).is_ok()).count();
    assert!(runs <= 1, "{runs} prefixes run");
    assert!(start.elapsed() < HANG, "took {:?}", start.elapsed());
}

#[test]
fn every_bit_of_a_small_model_can_flip() {
    let bytes = Graph::new(&[2, 2])
        .floats("w", &[4, 2], &[0.5; 8])
        .integers("s", &[2], &[0, -1])
        .node("Reshape", &["x", "s"], "r", vec![int("allowzero", 0)])
        .node("MatMul", &["r", "w"], "m", vec![])
        .node("Softmax", &["m"], "y", vec![int("axis", -1)])
        .encode();
    let start = Instant::now();
    let mut flipped = bytes.clone();
    let mut runs = 0;
    for bit in 0..bytes.len() * 8 {
        flipped[bit / 8] ^= 1 << (bit % 8);
        runs += usize::from(outcome(&flipped).is_ok());
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    println!("{runs} of {} still run", bytes.len() * 8);
    assert!(start.elapsed() < HANG, "took {:?}", start.elapsed());
}

#[test]
fn bytes_that_are_no_protobuf_are_refused() {
    refuses(&[], "an empty file");
    refuses(b"not a model at all", "not an ONNX model");
    refuses(&[0xff; 64], "longer than 64 bits");
    refuses(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f], "ends too early");
    refuses(&[0x3b], "a group");
    refuses(&[0x02, 0x00], "number is 0");
    refuses(&[0x38, 0x01], "holds an integer, expected bytes");
    let bytes = identity().encode();
    refuses(&[bytes.as_slice(), &bytes].concat(), "more than one");
}

#[test]
fn nodes_do_not_lead_back_to_themselves() {
    let cycle = Graph::new(&[4])
        .node("Add", &["x", "b"], "a", vec![])
        .node("Relu", &["a"], "b", vec![])
        .node("Relu", &["b"], "y", vec![]);
    refused(cycle, "it needs its own result");
    let own = Graph::new(&[4]).node("Add", &["x", "y"], "y", vec![]);
    refused(own, "it needs its own result");
    let constant = Graph::new(&[4]).floats("c", &[1], &[1.0]).node("Relu", &["x"], "c", vec![]);
    refused(constant, "defined twice");
}

#[test]
fn initializers_are_what_they_say() {
    let tensor = |tensor: TensorProto, dims: &[i64]| identity().tensor("w", dims, tensor).encode();
    let floats = |len| TensorProto {
        data_type: DataType::Float.into(),
        float_data: vec![1.0; len],
        ..TensorProto::default()
    };
    let raw = |kind: DataType, len| TensorProto {
        data_type: kind.into(),
        raw_data: vec![1; len],
        ..TensorProto::default()
    };
    refuses(&tensor(floats(3), &[4]), "needs 4 values, got 3");
    refuses(&tensor(floats(5), &[4]), "needs 4 values, got 5");
    refuses(&tensor(raw(DataType::Float, 15), &[4]), "15 bytes of data are no multiple of 4");
    refuses(&tensor(raw(DataType::Float16, 4), &[4]), "needs 4 values, got 2");
    refuses(&tensor(floats(0), &[1 << 40]), "has more than");
    refuses(&tensor(floats(0), &[1 << 32, 1 << 32]), "has more than");
    refuses(&tensor(floats(0), &[-1]), "negative dimension -1");
    refuses(&tensor(floats(1), &[1; 65]), "more than 64 axes");
    refuses(&tensor(raw(DataType::String, 4), &[4]), "element type STRING");
    refuses(&tensor(raw(DataType::Complex64, 8), &[1]), "element type COMPLEX64");
    refuses(&tensor(TensorProto { data_type: -7, ..floats(1) }, &[1]), "number -7");
    let both = TensorProto { raw_data: vec![0; 4], ..floats(1) };
    refuses(&tensor(both, &[1]), "both raw and typed data");
    let other = TensorProto { data_type: DataType::Int64.into(), ..floats(1) };
    refuses(&tensor(other, &[1]), "values of another type than INT64");
    let wide = TensorProto { int32_data: vec![256], ..raw(DataType::Uint8, 0) };
    refuses(&tensor(wide, &[1]), "256 is no UINT8");
    let huge = TensorProto { uint64_data: vec![u64::MAX], ..raw(DataType::Uint64, 0) };
    refuses(&tensor(huge, &[1]), "exceeds 63 bits");
    refuses(
        &identity().floats("w", &[1], &[1.0]).floats("w", &[1], &[2.0]).encode(),
        "\"w\": defined twice",
    );
    let external = TensorProto {
        external_data: vec![StringStringEntryProto {
            key: "location".into(),
            value: "/etc/passwd".into(),
        }],
        ..floats(0)
    };
    refuses(&tensor(external, &[1]), "another file");
}

#[test]
fn what_is_left_out_elsewhere_is_refused() {
    let mut sparse = identity().model();
    let graph = sparse.graph.as_mut().unwrap();
    graph.sparse_initializer.push(SparseTensorProto::default());
    refuses(&sparse.encode_to_vec(), "sparse_initializer");
    let mut replaced = identity().model();
    let relu = FunctionProto { name: "Relu".into(), ..FunctionProto::default() };
    replaced.functions.push(relu.clone());
    refuses(&replaced.encode_to_vec(), "replaces operator \"Relu\"");
    // One that nobody uses is none of our business; one that is missing is no operator.
    let mut own = identity().model();
    own.functions.push(FunctionProto { domain: "own".into(), ..relu });
    assert_eq!(outcome(&own.encode_to_vec()), Ok(()));
    own.graph.as_mut().unwrap().node[0].domain = "other".into();
    refuses(&own.encode_to_vec(), "operator other.Relu is not supported");
}

#[test]
fn texts_are_short_and_utf_8() {
    let mut bytes = identity().encode();
    let at = bytes.windows(4).position(|window| window == b"Relu").unwrap();
    bytes[at] = 0xff;
    refuses(&bytes, "is not UTF-8");
    let long = "n".repeat(1 << 24);
    refuses(&Graph::new(&[4]).node("Relu", &["x"], &long, vec![]).encode(), "has 167772");
    refuses(&Graph::new(&[4]).node(&long, &["x"], "y", vec![]).encode(), "has 167772");
    refuses(&identity().floats(&long, &[1], &[1.0]).encode(), "has 167772");
    refuses(&Graph::new(&[4]).node("Relu", &[&long], "y", vec![]).encode(), "has 167772");
    let attribute = vec![int(&long, 1)];
    refuses(&Graph::new(&[4]).node("Relu", &["x"], "y", attribute).encode(), "has 167772");
    let twice = vec![int("axis", 1), int("axis", 2)];
    refuses(&Graph::new(&[4]).node("Softmax", &["x"], "y", twice).encode(), "given twice");
    // A list that is not shown as a whole.
    let many = vec![ints("axes", &vec![-9; 1 << 20])];
    let weight = || Graph::new(&[4]).floats("w", &[1], &[1.0]);
    let folded = weight().node("Unsqueeze", &["w"], "u", many).needing("u");
    refuses(&folded.encode(), "axes has 1048576 values");
    let many = vec![ints("pads", &vec![-9; 1 << 20])];
    error(&Graph::new(&[4]).node("Pad", &["x"], "y", many).encode());
    let many = vec![ints("perm", &vec![-9; 1 << 20])];
    let folded = weight().node("Transpose", &["w"], "u", many).needing("u");
    error(&folded.encode());
    let wrong = vec![ints("axis", &vec![-9; 1 << 20])];
    error(&Graph::new(&[4]).node("Softmax", &["x"], "y", wrong).encode());
}

/// A body in a body in a body: nothing follows them down.
#[test]
fn nested_subgraphs_cost_no_stack() {
    for depth in [1, 100, 1_000, 100_000] {
        // NodeProto { op_type: "If", attribute: AttributeProto { type: GRAPH, g: GraphProto { node
        // } } }, written from its end: each level adds a few bytes in front.
        let mut reversed = field(4, b"If");
        reversed.reverse();
        for _ in 0..depth {
            for number in [1, 6, 5] {
                let mut head = Vec::new();
                if number == 5 {
                    // The attribute's type, GRAPH, in front of the graph.
                    varint(&mut head, 20 << 3);
                    head.push(5);
                    reversed.extend(head.drain(..).rev());
                }
                varint(&mut head, number << 3 | 2);
                varint(&mut head, reversed.len() as u64);
                reversed.extend(head.into_iter().rev());
            }
        }
        reversed.reverse();
        let node = [field(2, b"y"), field(4, b"If"), reversed].concat();
        let mut graph = identity().model().graph.unwrap();
        graph.node.clear();
        let graph = [graph.encode_to_vec(), field(1, &node)].concat();
        let expected = if depth == 1 { "it has no output" } else { "more than 16 deep" };
        refuses(&model(&graph), expected);
    }
    // A value's type nests as well; that is prost's to limit.
    for depth in [100, 1_000, 5_000] {
        let mut r#type = Vec::new();
        for _ in 0..depth {
            r#type = field(4, &field(1, &r#type));
        }
        let mut graph = identity().model().graph.unwrap();
        graph.input.clear();
        let input = [field(1, b"x"), field(2, &r#type)].concat();
        let graph = [graph.encode_to_vec(), field(11, &input)].concat();
        refuses(&model(&graph), "recursion limit");
    }
}

#[test]
fn files_of_many_parts_take_little_time_and_memory() {
    let before = peak_memory();
    let graph = identity().model().graph.unwrap().encode_to_vec();
    // NodeProto { input: "y", op_type: "Relu", output: "" }, and what is in no version of ONNX.
    for (part, expected) in [
        (
            field(1, &[field(1, b"y"), field(4, b"Relu"), field(2, b"z")].concat()),
            "more than 65536 nodes",
        ),
        (field(1, &[]), "has no output"),
        (field(5, &[]), "element type UNDEFINED"),
        (field(5, &field(8, b"")), "element type UNDEFINED"),
        (field(11, &[]), "takes 1000001 inputs"),
        (field(12, &[]), "more than 1024 outputs"),
    ] {
        let parts = part.repeat(1_000_000);
        refuses(&model(&[graph.as_slice(), &parts].concat()), expected);
    }
    let node = |part: Vec<u8>| {
        let node = [field(4, b"Relu"), part.repeat(1_000_000)].concat();
        model(&[graph.as_slice(), &field(1, &node)].concat())
    };
    refuses(&node(field(1, b"")), "more than 4096 inputs or outputs");
    refuses(&node(field(5, b"")), "more than 64 attributes");
    let mut nodes = Vec::new();
    for i in 0..1_000_000 {
        let (from, to) = (format!("a{i}"), format!("a{}", i + 1));
        let inner = [field(1, from.as_bytes()), field(2, to.as_bytes()), field(4, b"Relu")];
        nodes.extend(field(1, &inner.concat()));
    }
    let first = field(1, &[field(1, b"y"), field(2, b"a0"), field(4, b"Relu")].concat());
    refuses(&model(&[graph.as_slice(), &first, &nodes].concat()), "more than 65536 nodes");
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        let took = after.saturating_sub(before);
        assert!(took < 1 << 20, "took {took} KiB");
    }
}

#[test]
fn constants_may_be_nan_or_infinite_but_sizes_may_not() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0, 1e-45] {
        let graph = || Graph::new(&[4]).floats("w", &[4, 2], &[value; 8]);
        let weights = graph().node("MatMul", &["x", "w"], "y", vec![]);
        assert_eq!(outcome(&weights.encode()), Ok(()));
        let scaled = graph().floats("s", &[4], &[value; 4]).node("Mul", &["x", "s"], "y", vec![]);
        assert_eq!(outcome(&scaled.encode()), Ok(()));
        let folded =
            graph().node("Exp", &["w"], "e", vec![]).node("MatMul", &["x", "e"], "y", vec![]);
        assert_eq!(outcome(&folded.encode()), Ok(()));
        if value.abs() > 1e30 || value.is_nan() {
            let size = graph().node("Cast", &["w"], "c", vec![int("to", 7)]).needing("c");
            refused(size, "no 64-bit integer");
            let range = graph()
                .floats("v", &[], &[value])
                .floats("1", &[], &[1.0])
                .node("Range", &["1", "v", "1"], "r", vec![])
                .needing("r");
            if value > 0.0 {
                refused(range, "too many values");
            }
        }
    }
}

/// Identity passes constants on, and folding goes on behind it.
#[test]
fn constants_pass_through_identity() {
    let graph = Graph::new(&[4])
        .integers("s", &[2], &[3, 1])
        .node("Identity", &["s"], "t", vec![])
        .node("ConstantOfShape", &["t"], "zeros", vec![])
        .node("ReduceSum", &["zeros"], "zero", vec![int("keepdims", 0)])
        .node("Add", &["x", "zero"], "y", vec![]);
    assert_eq!(outcome(&graph.encode()), Ok(()));
}
