//! Expected values are the examples of the ONNX specification, unless a comment says otherwise.

use candle_onnx::onnx::attribute_proto::AttributeType;
use candle_onnx::onnx::tensor_proto::DataType;
use candle_onnx::onnx::tensor_shape_proto::{Dimension, dimension};
use candle_onnx::onnx::type_proto::{Tensor, Value};
use candle_onnx::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};
use prost::Message;

use super::{REGISTRY, fold};
use crate::error::Error;
use crate::onnx::constant::{Constant, Values};
use crate::onnx::graph::Graph;

const BUDGET: usize = 1 << 20;

/// The batch while shapes are computed.
const SENTINEL: i64 = (1 << 31) - 1;

fn f(dims: &[usize], values: &[f32]) -> Constant {
    Constant { dims: dims.to_vec(), values: Values::F32(values.to_vec()) }
}

fn i(dims: &[usize], values: &[i64]) -> Constant {
    Constant { dims: dims.to_vec(), values: Values::I64(values.to_vec()) }
}

fn line(values: &[i64]) -> Constant {
    i(&[values.len()], values)
}

fn row(values: &[f32]) -> Constant {
    f(&[values.len()], values)
}

fn int(name: &str, value: i64) -> AttributeProto {
    let r#type = AttributeType::Int.into();
    AttributeProto { name: name.into(), i: value, r#type, ..AttributeProto::default() }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let (ints, r#type) = (values.to_vec(), AttributeType::Ints.into());
    AttributeProto { name: name.into(), ints, r#type, ..AttributeProto::default() }
}

fn float(name: &str, value: f32) -> AttributeProto {
    let r#type = AttributeType::Float.into();
    AttributeProto { name: name.into(), f: value, r#type, ..AttributeProto::default() }
}

fn text(name: &str, value: &str) -> AttributeProto {
    let r#type = AttributeType::String.into();
    AttributeProto { name: name.into(), s: value.into(), r#type, ..AttributeProto::default() }
}

/// A graph of this node alone.
fn graph(mut node: NodeProto, constants: Vec<TensorProto>, opset: i64) -> Result<Graph, Error> {
    let dimension =
        |size| Dimension { value: Some(dimension::Value::DimValue(size)), ..Dimension::default() };
    let shape = Some(TensorShapeProto { dim: vec![dimension(1), dimension(4)] });
    let tensor = Tensor { elem_type: DataType::Float.into(), shape };
    let input = ValueInfoProto {
        name: "graph-input".into(),
        r#type: Some(TypeProto { value: Some(Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    };
    let name = node.output.first().cloned().unwrap_or_default();
    let output = ValueInfoProto { name, ..ValueInfoProto::default() };
    node.output.truncate(1);
    let graph = GraphProto {
        input: vec![input],
        output: vec![output],
        node: vec![node],
        initializer: constants,
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { version: opset, ..Default::default() }];
    let model = ModelProto { graph: Some(graph), opset_import, ..ModelProto::default() };
    Graph::decode(&model.encode_to_vec(), None, None)
}

fn outputs(
    op: &str,
    inputs: &[Option<&Constant>],
    attributes: &[AttributeProto],
    budget: usize,
) -> Result<Vec<Constant>, String> {
    let node = NodeProto {
        op_type: op.into(),
        output: vec!["folded".into()],
        attribute: attributes.to_vec(),
        ..NodeProto::default()
    };
    let graph = graph(node, vec![], 17).map_err(|error| error.to_string())?;
    let mut left = budget;
    let folded = fold(&graph.nodes[0], inputs, &mut left).map_err(|error| error.to_string())?;
    let values: usize = folded.iter().map(|constant| constant.values.len()).sum();
    assert!(op == "Constant" || budget - left >= values, "{op} costs nothing");
    for constant in &folded {
        assert_eq!(constant.dims.iter().product::<usize>(), constant.values.len(), "{op}");
    }
    Ok(folded)
}

#[track_caller]
fn gives(op: &str, inputs: &[&Constant], attributes: &[AttributeProto], expected: &Constant) {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    let folded = outputs(op, &inputs, attributes, BUDGET).unwrap();
    assert_eq!(folded, std::slice::from_ref(expected), "{op}");
}

#[track_caller]
fn refuses(op: &str, inputs: &[&Constant], attributes: &[AttributeProto], expected: &str) {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    let error = outputs(op, &inputs, attributes, BUDGET).unwrap_err();
    assert!(error.contains(expected), "{error}\ndoes not contain\n{expected}");
}

#[test]
fn the_registry_is_in_alphabetical_order() {
    assert!(REGISTRY.is_sorted_by_key(|(name, _)| name));
}

#[test]
fn arithmetic_broadcasts() {
    let (column, three) = (i(&[2, 1], &[10, 20]), line(&[1, 2, 3]));
    gives("Add", &[&column, &three], &[], &i(&[2, 3], &[11, 12, 13, 21, 22, 23]));
    gives("Sub", &[&row(&[1.0, 2.0]), &f(&[], &[0.5])], &[], &row(&[0.5, 1.5]));
    gives("Sum", &[&three, &three, &three], &[], &line(&[3, 6, 9]));
    gives("Max", &[&row(&[3.0, f32::NEG_INFINITY]), &row(&[1.0, 4.0])], &[], &row(&[3.0, 4.0]));
    gives("Min", &[&three, &line(&[2]), &line(&[0, 9, 9])], &[], &line(&[0, 2, 2]));
    gives("Max", &[&three], &[], &three);
    gives("Where", &[&line(&[1, 0, 1]), &three, &column], &[], &i(&[2, 3], &[1, 10, 3, 1, 20, 3]));
    gives("Mul", &[&i(&[0], &[]), &i(&[2, 1], &[1, 2])], &[], &i(&[2, 0], &[]));
    refuses("Add", &[&three, &line(&[1, 2])], &[], "[3] and [2] do not broadcast");
    refuses("Add", &[&three, &row(&[1.0])], &[], "differ in type");
    refuses("Where", &[&row(&[1.0]), &three, &three], &[], "input 0 holds floats");
    let long = i(&[1 << 11, 1], &[1; 1 << 11]);
    refuses("Add", &[&long, &i(&[1, 1 << 11], &[1; 1 << 11])], &[], "too many values");
}

#[test]
fn integers_are_exact_or_an_error() {
    gives("Div", &[&line(&[-7, 7, -7]), &line(&[2, -2, -2])], &[], &line(&[-3, -3, 3]));
    gives("Mul", &[&line(&[SENTINEL]), &line(&[3 * 224 * 224])], &[], &line(&[SENTINEL * 150_528]));
    gives("Cast", &[&line(&[SENTINEL * 9])], &[int("to", 6)], &line(&[SENTINEL * 9]));
    refuses("Mul", &[&line(&[i64::MAX]), &line(&[2])], &[], "no 64-bit integer");
    refuses("Add", &[&line(&[i64::MAX]), &line(&[1])], &[], "no 64-bit integer");
    refuses("Sub", &[&line(&[i64::MIN]), &line(&[1])], &[], "no 64-bit integer");
    refuses("Div", &[&line(&[1]), &line(&[0])], &[], "for 1 and 0 is no 64-bit integer");
    refuses("Div", &[&line(&[i64::MIN]), &line(&[-1])], &[], "no 64-bit integer");
    refuses("Mod", &[&line(&[1]), &line(&[0])], &[], "no 64-bit integer");
    refuses("Neg", &[&line(&[i64::MIN])], &[], "exceeds 64 bits");
    refuses("Abs", &[&line(&[i64::MIN])], &[], "exceeds 64 bits");
    refuses("Pow", &[&line(&[10]), &line(&[19])], &[], "no 64-bit integer");
    refuses("Pow", &[&line(&[2]), &line(&[-1])], &[], "no 64-bit integer");
    refuses("ReduceProd", &[&line(&[SENTINEL, SENTINEL, SENTINEL])], &[], "exceeds 64 bits");
    refuses("ReduceSum", &[&line(&[i64::MAX, i64::MAX])], &[], "exceeds 64 bits");
    refuses("CumSum", &[&line(&[i64::MAX, 1]), &i(&[], &[0])], &[], "exceeds 64 bits");
    refuses("Cast", &[&row(&[f32::NAN])], &[int("to", 7)], "NaN is no 64-bit integer");
    refuses("Cast", &[&row(&[1e19])], &[int("to", 7)], "no 64-bit integer");
    refuses("Floor", &[&line(&[1])], &[], "holds integers");
}

#[test]
fn remainders_have_the_sign_that_the_attribute_asks_for() {
    let (left, right) = (line(&[-4, 7, 5, 4, -7, 8]), line(&[2, -3, 8, -2, 3, 5]));
    gives("Mod", &[&left, &right], &[], &line(&[0, -2, 5, 0, 2, 3]));
    gives("Mod", &[&left, &right], &[int("fmod", 1)], &line(&[0, 1, 5, 0, -1, 3]));
    gives("Mod", &[&row(&[-4.5]), &row(&[2.0])], &[int("fmod", 1)], &row(&[-0.5]));
    refuses("Mod", &[&row(&[1.0]), &row(&[2.0])], &[], "fmod 1");
}

#[test]
fn unary_operators_follow_their_definitions() {
    gives("Sign", &[&row(&[-2.0, 0.0, 3.0])], &[], &row(&[-1.0, 0.0, 1.0]));
    gives("Sign", &[&line(&[-2, 0, 3])], &[], &line(&[-1, 0, 1]));
    gives("Round", &[&row(&[0.5, 1.5, -2.5])], &[], &row(&[0.0, 2.0, -2.0]));
    gives("Ceil", &[&row(&[-1.5, 1.2])], &[], &row(&[-1.0, 2.0]));
    gives("Sqrt", &[&row(&[1.0, 4.0, 9.0])], &[], &row(&[1.0, 2.0, 3.0]));
    gives("Relu", &[&row(&[-1.0, 2.0])], &[], &row(&[0.0, 2.0]));
    gives("Not", &[&line(&[1, 0])], &[], &line(&[0, 1]));
    gives("Xor", &[&line(&[1, 0]), &line(&[1, 1])], &[], &line(&[0, 1]));
    gives("Sigmoid", &[&row(&[0.0])], &[], &row(&[0.5]));
    gives("Pow", &[&line(&[1, 2, 3]), &row(&[4.0, 5.0, 2.0])], &[], &line(&[1, 32, 9]));
    gives("Pow", &[&row(&[2.0, 9.0]), &line(&[3, 2])], &[], &row(&[8.0, 81.0]));
    gives("Clip", &[&row(&[-2.0, 0.5, 2.0])], &[float("max", 1.0)], &row(&[-2.0, 0.5, 1.0]));
    gives("Clip", &[&line(&[-2, 5]), &i(&[], &[0]), &i(&[], &[3])], &[], &line(&[0, 3]));
    refuses("Relu", &[&row(&[1.0])], &[int("surprise", 1)], "\"surprise\" is not supported");
}

#[test]
fn casts_round_and_narrow() {
    gives("Cast", &[&row(&[1.9, -1.9])], &[int("to", 7)], &line(&[1, -1]));
    gives("Cast", &[&row(&[0.5, 0.0])], &[int("to", 9)], &line(&[1, 0]));
    gives("Cast", &[&line(&[300, -1])], &[int("to", 2)], &line(&[44, 255]));
    gives("Cast", &[&row(&[0.1])], &[int("to", 10)], &row(&[0.099_975_586]));
    gives("Cast", &[&row(&[1.01])], &[int("to", 16)], &row(&[1.007_812_5]));
    gives("CastLike", &[&line(&[2, 3]), &row(&[])], &[], &row(&[2.0, 3.0]));
    gives("CastLike", &[&row(&[1.0, 0.0]), &line(&[])], &[], &line(&[1, 0]));
    refuses("CastLike", &[&row(&[2.0]), &line(&[])], &[], "other than 0 and 1");
    refuses("Cast", &[&row(&[2.0])], &[int("to", 8)], "\"to\" is 8");
}

#[test]
fn quantised_values_are_scaled() {
    let (x, scale) = (line(&[0, 3, 128, 255]), f(&[], &[2.0]));
    let expected = row(&[-256.0, -250.0, 0.0, 254.0]);
    gives("DequantizeLinear", &[&x, &scale, &i(&[], &[128])], &[], &expected);
    let (x, scales) = (i(&[1, 3, 2], &[3, 89, 34, 200, 74, 59]), row(&[2.0, 4.0, 5.0]));
    let expected = f(&[1, 3, 2], &[-162.0, 10.0, -100.0, 564.0, -20.0, -95.0]);
    gives("DequantizeLinear", &[&x, &scales, &line(&[84, 59, 78])], &[], &expected);
    gives(
        "DequantizeLinear",
        &[&x, &scales],
        &[int("axis", -2)],
        &f(&[1, 3, 2], &[6.0, 178.0, 136.0, 800.0, 370.0, 295.0]),
    );
    refuses("DequantizeLinear", &[&x, &scales], &[int("axis", 2)], "3 scales and 1 zero points");
}

#[test]
fn shapes_are_read_and_made() {
    let source = f(&[3, 4, 5], &[0.0; 60]);
    gives("Shape", &[&source], &[], &line(&[3, 4, 5]));
    gives("Shape", &[&source], &[int("start", -1)], &line(&[5]));
    gives("Shape", &[&source], &[int("start", 1), int("end", -1)], &line(&[4]));
    gives("Shape", &[&source], &[int("start", 5), int("end", i64::MIN)], &line(&[]));
    gives("Size", &[&source], &[], &i(&[], &[60]));
    gives("Flatten", &[&source], &[int("axis", 2)], &f(&[12, 5], &[0.0; 60]));
    gives("Flatten", &[&source], &[int("axis", 3)], &f(&[60, 1], &[0.0; 60]));
    gives("Flatten", &[&source], &[int("axis", -3)], &f(&[1, 60], &[0.0; 60]));
    gives("Flatten", &[&f(&[], &[2.0])], &[int("axis", 0)], &f(&[1, 1], &[2.0]));
    let one = f(&[1, 3, 1], &[1.0, 2.0, 3.0]);
    gives("Squeeze", &[&one], &[], &row(&[1.0, 2.0, 3.0]));
    gives("Squeeze", &[&one, &line(&[-1])], &[], &f(&[1, 3], &[1.0, 2.0, 3.0]));
    gives("Squeeze", &[&one], &[ints("axes", &[0])], &f(&[3, 1], &[1.0, 2.0, 3.0]));
    refuses("Squeeze", &[&one], &[ints("axes", &[1])], "is not of size 1");
    gives("Unsqueeze", &[&row(&[1.0]), &line(&[0, -1])], &[], &f(&[1, 1, 1], &[1.0]));
    gives("Reshape", &[&one, &line(&[0, -1])], &[], &f(&[1, 3], &[1.0, 2.0, 3.0]));
    let empty = f(&[0, 3], &[]);
    gives("Reshape", &[&empty, &line(&[3, 0])], &[int("allowzero", 1)], &f(&[3, 0], &[]));
    gives("ConstantOfShape", &[&line(&[2, 2])], &[], &f(&[2, 2], &[0.0; 4]));
    refuses("ConstantOfShape", &[&line(&[SENTINEL, 3])], &[], "too many values");
    refuses("ConstantOfShape", &[&line(&[1; 65])], &[], "65 values, expected up to 64");
    let deep = f(&[1; 40], &[1.0]);
    refuses("Gather", &[&deep, &i(&[1; 40], &[0])], &[], "79 axes");
}

#[test]
fn repetition_is_counted_before_it_is_done() {
    let column = i(&[3, 1], &[1, 2, 3]);
    gives("Expand", &[&column, &line(&[2])], &[], &i(&[3, 2], &[1, 1, 2, 2, 3, 3]));
    gives("Expand", &[&column, &line(&[2, 1, 1])], &[], &i(&[2, 3, 1], &[1, 2, 3, 1, 2, 3]));
    refuses("Expand", &[&column, &line(&[SENTINEL, 3, 1])], &[], "too many values");
    refuses("Expand", &[&column, &line(&[2, 1])], &[], "do not broadcast");
    let square = i(&[2, 2], &[1, 2, 3, 4]);
    gives("Tile", &[&square, &line(&[1, 2])], &[], &i(&[2, 4], &[1, 2, 1, 2, 3, 4, 3, 4]));
    refuses("Tile", &[&square, &line(&[i64::MAX, 9])], &[], "too many values");
    refuses("Tile", &[&square, &line(&[2])], &[], "expected 2 of them");
    gives("Range", &[&i(&[], &[10]), &i(&[], &[6]), &i(&[], &[-3])], &[], &line(&[10, 7]));
    gives("Range", &[&f(&[], &[1.0]), &f(&[], &[5.0]), &f(&[], &[2.0])], &[], &row(&[1.0, 3.0]));
    gives("Range", &[&line(&[3]), &line(&[1]), &line(&[1])], &[], &line(&[]));
    let ends = [i(&[], &[i64::MIN]), i(&[], &[i64::MAX])];
    refuses("Range", &[&ends[0], &ends[1], &i(&[], &[1])], &[], "too many values");
    refuses("Range", &[&ends[0], &ends[1], &i(&[], &[0])], &[], "step that is not 0");
    let floats = [f(&[], &[0.0]), f(&[], &[f32::INFINITY])];
    refuses("Range", &[&floats[0], &floats[1], &f(&[], &[1.0])], &[], "too many values");
    refuses("Range", &[&floats[0], &floats[1], &floats[1]], &[], "step that is not 0");
}

#[test]
fn constants_are_split_along_an_axis() {
    let six = row(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let split = |inputs: &[&Constant], attributes: &[AttributeProto]| {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        outputs("Split", &inputs, attributes, BUDGET)
    };
    let parts = vec![row(&[1.0, 2.0]), row(&[3.0, 4.0, 5.0, 6.0])];
    assert_eq!(split(&[&six, &line(&[2, 4])], &[]).unwrap(), parts);
    assert_eq!(split(&[&six], &[ints("split", &[2, 4])]).unwrap(), parts);
    let parts = vec![row(&[1.0, 2.0, 3.0, 4.0]), row(&[5.0, 6.0])];
    let four = int("num_outputs", 2);
    assert_eq!(split(&[&six, &line(&[4, 2])], &[four]).unwrap(), parts);
    let seven = row(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let lengths: Vec<_> = split(&[&seven], &[int("num_outputs", 4)]).unwrap();
    assert_eq!(lengths.iter().map(|part| part.values.len()).collect::<Vec<_>>(), [2, 2, 2, 1]);
    let square = f(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let parts = vec![f(&[2, 1], &[1.0, 4.0]), f(&[2, 2], &[2.0, 3.0, 5.0, 6.0])];
    assert_eq!(split(&[&square, &line(&[1, 2])], &[int("axis", -1)]).unwrap(), parts);
    refuses("Split", &[&six, &line(&[2, 5])], &[], "do not add up to 6");
    refuses("Split", &[&six, &line(&[-1, 7])], &[], "do not add up to 6");
    refuses("Split", &[&six], &[ints("split", &[2, 2])], "do not add up to 6");
    refuses("Split", &[&six], &[int("num_outputs", 0)], "none or more than");
    refuses("Split", &[&six], &[int("num_outputs", i64::MAX)], "none or more than");
    refuses("Split", &[&six, &i(&[1 << 16], &[0; 1 << 16])], &[], "and more do not add up to 6");
}

#[test]
fn values_are_gathered_and_scattered() {
    let data = i(&[2, 2], &[0, 1, 2, 3]);
    gives("GatherND", &[&data, &i(&[2, 2], &[0, 0, 1, 1])], &[], &line(&[0, 3]));
    gives("GatherND", &[&data, &i(&[2, 1], &[1, 0])], &[], &i(&[2, 2], &[2, 3, 0, 1]));
    let cube = i(&[2, 2, 2], &[0, 1, 2, 3, 4, 5, 6, 7]);
    let batched = int("batch_dims", 1);
    gives("GatherND", &[&cube, &i(&[2, 1], &[1, 0])], &[batched], &i(&[2, 2], &[2, 3, 4, 5]));
    refuses("GatherND", &[&data, &i(&[1, 2], &[0, 2])], &[], "index 2 is outside of axis 1");
    refuses("GatherND", &[&data, &i(&[1, 3], &[0, 0, 0])], &[], "indices of shape [1, 3]");
    refuses("GatherND", &[&data, &data], &[int("batch_dims", 2)], "2 axes do not stay");
    let nine = i(&[3, 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let picks = i(&[2, 3], &[1, 2, 0, 2, 0, 0]);
    gives("GatherElements", &[&nine, &picks], &[], &i(&[2, 3], &[4, 8, 3, 7, 2, 3]));
    refuses("GatherElements", &[&nine, &line(&[0])], &[], "indices of shape [1]");
    let eight = row(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let indices = i(&[4, 1], &[4, 3, 1, 7]);
    let updates = row(&[9.0, 10.0, 11.0, 12.0]);
    let expected = row(&[1.0, 11.0, 3.0, 10.0, 9.0, 6.0, 7.0, 12.0]);
    gives("ScatterND", &[&eight, &indices, &updates], &[], &expected);
    let twice = i(&[2, 1], &[-1, 1]);
    let added = i(&[2, 2], &[0, 11, 12, 23]);
    let sums = [&data, &twice, &i(&[2, 2], &[5, 10, 5, 10])];
    gives("ScatterND", &sums, &[text("reduction", "add")], &i(&[2, 2], &[0, 1, 12, 23]));
    let own = [&data, &twice, &added];
    gives("ScatterND", &own, &[text("reduction", "max")], &i(&[2, 2], &[0, 1, 12, 23]));
    refuses("ScatterND", &own, &[text("reduction", "mean")], "\"reduction\" is \"mean\"");
    refuses("ScatterND", &[&data, &twice, &line(&[1])], &[], "expected [2, 2]");
    refuses("ScatterND", &[&data, &i(&[2, 1], &[0, 2]), &added], &[], "index 2 is outside");
    gives("ScatterND", &[&data, &i(&[0, 1], &[]), &i(&[0, 2], &[])], &[], &data);
}

#[test]
fn masks_are_made() {
    let nine = i(&[3, 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    gives("Trilu", &[&nine], &[], &i(&[3, 3], &[1, 2, 3, 0, 5, 6, 0, 0, 9]));
    let lower = int("upper", 0);
    let below = i(&[3, 3], &[0, 0, 0, 4, 0, 0, 7, 8, 0]);
    gives("Trilu", &[&nine, &i(&[], &[-1])], &[lower], &below);
    gives("Trilu", &[&nine, &i(&[], &[i64::MIN])], &[], &nine);
    gives("EyeLike", &[&i(&[2, 3], &[7; 6])], &[int("k", 1)], &i(&[2, 3], &[0, 1, 0, 0, 0, 1]));
    gives("EyeLike", &[&i(&[1, 1], &[7])], &[int("dtype", 1)], &f(&[1, 1], &[1.0]));
    gives("NonZero", &[&i(&[2, 2], &[1, 0, 1, 1])], &[], &i(&[2, 3], &[0, 1, 1, 0, 0, 1]));
    gives("NonZero", &[&i(&[], &[1])], &[], &i(&[0, 1], &[]));
    let hot = [&line(&[0, -1, 5]), &i(&[], &[3]), &line(&[2, 9])];
    gives("OneHot", &hot, &[], &i(&[3, 3], &[9, 2, 2, 2, 2, 9, 2, 2, 2]));
    gives("OneHot", &hot, &[int("axis", 0)], &i(&[3, 3], &[9, 2, 2, 2, 2, 2, 2, 9, 2]));
    let huge = [&line(&[0]), &i(&[], &[SENTINEL]), &line(&[2, 9])];
    refuses("OneHot", &huge, &[], "too many values");
    gives("Less", &[&line(&[1, 2]), &line(&[2])], &[], &line(&[1, 0]));
    gives("GreaterOrEqual", &[&row(&[1.0, f32::NAN]), &row(&[1.0])], &[], &line(&[1, 0]));
}

#[test]
fn reductions_take_axes_from_either_place() {
    let six = i(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    gives("ReduceSum", &[&six], &[ints("axes", &[1])], &i(&[2, 1], &[6, 15]));
    gives("ReduceSum", &[&six, &line(&[-2])], &[int("keepdims", 0)], &line(&[5, 7, 9]));
    gives("ReduceProd", &[&six], &[int("keepdims", 0)], &i(&[], &[720]));
    gives("ReduceSum", &[&six, &line(&[])], &[int("noop_with_empty_axes", 1)], &six);
    gives(
        "ReduceMean",
        &[&f(&[2, 2], &[1.0, 2.0, 3.0, 6.0])],
        &[ints("axes", &[0])],
        &f(&[1, 2], &[2.0, 4.0]),
    );
    gives("ReduceMax", &[&row(&[1.0, f32::NEG_INFINITY])], &[], &row(&[1.0]));
    gives("ReduceMin", &[&six], &[ints("axes", &[0]), int("keepdims", 0)], &line(&[1, 2, 3]));
    let empty = f(&[2, 0], &[]);
    gives("ReduceSum", &[&empty], &[ints("axes", &[1])], &f(&[2, 1], &[0.0, 0.0]));
    gives("ReduceProd", &[&empty], &[int("keepdims", 0)], &f(&[], &[1.0]));
    refuses("ReduceMax", &[&empty], &[], "nothing to reduce");
    let axis = i(&[], &[0]);
    gives("CumSum", &[&line(&[1, 2, 3]), &axis], &[], &line(&[1, 3, 6]));
    gives("CumSum", &[&line(&[1, 2, 3]), &axis], &[int("exclusive", 1)], &line(&[0, 1, 3]));
    let both = [int("exclusive", 1), int("reverse", 1)];
    gives("CumSum", &[&line(&[1, 2, 3]), &axis], &both, &line(&[5, 3, 0]));
    gives("CumSum", &[&six, &axis], &[], &i(&[2, 3], &[1, 2, 3, 5, 7, 9]));
    gives("CumSum", &[&six, &i(&[], &[-1])], &[], &i(&[2, 3], &[1, 3, 6, 4, 9, 15]));
}

#[test]
fn matrices_multiply() {
    let (a, b) = (f(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), f(&[2, 1], &[5.0, 6.0]));
    gives("MatMul", &[&a, &b], &[], &f(&[2, 1], &[17.0, 39.0]));
    gives("MatMul", &[&a, &row(&[5.0, 6.0])], &[], &row(&[17.0, 39.0]));
    gives("MatMul", &[&row(&[1.0, 1.0]), &a], &[], &row(&[4.0, 6.0]));
    gives("MatMul", &[&row(&[1.0, 2.0]), &row(&[3.0, 4.0])], &[], &f(&[], &[11.0]));
    let stack = f(&[2, 1, 2, 2], &[1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 2.0]);
    let columns = f(&[3, 2, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let expected = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0];
    gives("MatMul", &[&stack, &columns], &[], &f(&[2, 3, 2, 1], &expected));
    refuses("MatMul", &[&b, &a], &[], "of shapes [2, 1] and [2, 2]");
    refuses("MatMul", &[&a, &f(&[], &[1.0])], &[], "of shapes");
    let attributes = [float("alpha", 2.0), float("beta", 10.0), int("transA", 1)];
    gives("Gemm", &[&a, &b, &row(&[1.0])], &attributes, &f(&[2, 1], &[56.0, 78.0]));
    gives("Gemm", &[&b, &b], &[int("transB", 1)], &f(&[2, 2], &[25.0, 30.0, 30.0, 36.0]));
    refuses("Gemm", &[&a, &b, &row(&[1.0, 2.0])], &[], "input 2 of shape [2]");
    let half = f(&[1, 1, 2], &[0.5, 0.5]);
    gives("Softmax", &[&f(&[1, 1, 2], &[3.0, 3.0])], &[int("axis", -1)], &half);
    gives("Softmax", &[&f(&[1, 2], &[1000.0, 0.0])], &[], &f(&[1, 2], &[1.0, 0.0]));
    refuses("Softmax", &[&half], &[int("axis", 1)], "expected the last one");
    refuses("Softmax", &[&half], &[], "its axis is absent");
}

/// Results that are small do not make work free.
#[test]
fn work_is_drawn_from_the_budget() {
    let (long, square) = (f(&[1 << 12], &[1.0; 1 << 12]), f(&[64, 64], &[1.0; 1 << 12]));
    for (op, inputs) in [
        ("ReduceSum", vec![Some(&long)]),
        ("NonZero", vec![Some(&long)]),
        ("MatMul", vec![Some(&long), Some(&long)]),
        ("Gemm", vec![Some(&square), Some(&square)]),
    ] {
        let error = outputs(op, &inputs, &[], 60).unwrap_err();
        assert!(error.contains("too many values"), "{op}: {error}");
    }
}

/// The specification's own examples, one file each:
/// `crates/doorward-engine/tests/golden/onnx_cases.py DIR` writes them.
#[test]
fn the_specifications_examples_hold() {
    let Ok(folder) = std::env::var("DOORWARD_ONNX_CASES") else {
        eprintln!("skipped: DOORWARD_ONNX_CASES is not set");
        return;
    };
    let (mut held, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "onnx") {
            continue;
        }
        match example(&std::fs::read(&path).unwrap()) {
            Ok(()) => held += 1,
            Err(reason) => wrong.push(format!("{}: {reason}", path.display())),
        }
    }
    wrong.sort();
    println!("{held} hold, {} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(held > 0);
    assert!(!wrong.iter().any(|reason| reason.contains("got ")), "see above");
}

fn example(bytes: &[u8]) -> Result<(), String> {
    let model = ModelProto::decode(bytes).unwrap();
    let proto = model.graph.unwrap();
    let node = proto.node[0].clone();
    let opset = model.opset_import.iter().find(|import| import.domain.is_empty());
    let opset = opset.map_or(21, |import| import.version.clamp(9, 21));
    let mut tensors = Vec::new();
    for tensor in proto.initializer {
        // Decoded one by one: a case of a type that is not supported is no failure.
        let only = NodeProto {
            op_type: "Identity".into(),
            input: vec![tensor.name.clone()],
            output: vec!["alone".into()],
            ..NodeProto::default()
        };
        let graph = graph(only, vec![tensor], 21).map_err(|error| error.to_string())?;
        tensors.extend(graph.constants);
    }
    let named = |name: &str| tensors.iter().find(|(own, _)| own == name).map(|(_, own)| own);
    let inputs: Vec<_> = node.input.iter().map(|name| named(name)).collect();
    let expected: Vec<_> =
        node.output.iter().map(|name| named(&format!("expected_{name}"))).collect();
    let mut single = node.clone();
    single.input.clear();
    let graph = graph(single, vec![], opset).map_err(|error| error.to_string())?;
    let folded =
        fold(&graph.nodes[0], &inputs, &mut BUDGET.clone()).map_err(|error| error.to_string())?;
    if folded.len() != expected.len() {
        return Err(format!("{} outputs, expected {}", folded.len(), expected.len()));
    }
    // To what 16 bits it would round is not kept of its second input.
    let tolerance = if node.op_type == "CastLike" { 1e-2 } else { 1e-5 };
    for (got, expected) in folded.iter().zip(expected) {
        let Some(expected) = expected else { continue };
        let same = got.dims == expected.dims
            && match (&got.values, &expected.values) {
                (Values::F32(got), Values::F32(expected)) => {
                    got.iter().zip(expected).all(|(&got, &expected)| {
                        got == expected
                            || (got.is_nan() && expected.is_nan())
                            || (got - expected).abs() <= tolerance * expected.abs().max(1.0)
                    })
                }
                (got, expected) => got == expected,
            };
        if !same {
            return Err(format!("got {got:?}, expected {expected:?}"));
        }
    }
    Ok(())
}
