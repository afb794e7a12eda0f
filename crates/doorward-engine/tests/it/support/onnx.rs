//! ONNX models made by tests.

use candle_onnx::onnx::attribute_proto::AttributeType;
use candle_onnx::onnx::tensor_proto::DataType;
use candle_onnx::onnx::tensor_shape_proto::{Dimension, dimension};
use candle_onnx::onnx::type_proto::{Tensor, Value};
use candle_onnx::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};
use prost::Message;

/// A graph that [`Graph::encode`] turns into a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub(crate) inputs: Vec<ValueInfoProto>,
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) constants: Vec<TensorProto>,
    pub(crate) output: String,
}

impl Graph {
    /// One input `x` of rows of `shape`, and the output `y`.
    pub(crate) fn new(shape: &[usize]) -> Self {
        Self { inputs: vec![input("x", shape)], output: "y".into(), ..Self::default() }
    }

    pub(crate) fn node(
        mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<AttributeProto>,
    ) -> Self {
        self.nodes.push(NodeProto {
            name: format!("{op}_{}", self.nodes.len()),
            op_type: op.into(),
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: if output.is_empty() { vec![] } else { vec![output.into()] },
            attribute: attributes,
            ..NodeProto::default()
        });
        self
    }

    /// The output `y` as `x`, computed such that `name` is needed for it, whatever that is.
    pub(crate) fn needing(self, name: &str) -> Self {
        self.integers("none of it", &[1], &[0])
            .node("Size", &[name], "size", vec![])
            .node("Mul", &["size", "none of it"], "no size", vec![])
            .node("Cast", &["no size"], "no value", vec![int("to", 1)])
            .node("Add", &["x", "no value"], "y", vec![])
    }

    pub(crate) fn floats(mut self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        self.constants.push(TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: DataType::Float.into(),
            float_data: values.to_vec(),
            ..TensorProto::default()
        });
        self
    }

    pub(crate) fn integers(mut self, name: &str, dims: &[i64], values: &[i64]) -> Self {
        self.constants.push(TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: DataType::Int64.into(),
            int64_data: values.to_vec(),
            ..TensorProto::default()
        });
        self
    }

    pub(crate) fn tensor(mut self, name: &str, dims: &[i64], tensor: TensorProto) -> Self {
        self.constants.push(TensorProto { name: name.into(), dims: dims.to_vec(), ..tensor });
        self
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        self.model().encode_to_vec()
    }

    pub(crate) fn model(self) -> ModelProto {
        let graph = GraphProto {
            input: self.inputs,
            node: self.nodes,
            initializer: self.constants,
            output: vec![ValueInfoProto { name: self.output, ..ValueInfoProto::default() }],
            ..GraphProto::default()
        };
        let opset = OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() };
        ModelProto {
            ir_version: 8,
            graph: Some(graph),
            opset_import: vec![opset],
            ..ModelProto::default()
        }
    }
}

/// A float input with an open batch in front.
pub(crate) fn input(name: &str, shape: &[usize]) -> ValueInfoProto {
    let dimension = |value| Dimension { value: Some(value), ..Dimension::default() };
    let mut dim = vec![dimension(dimension::Value::DimParam("batch".into()))];
    dim.extend(shape.iter().map(|&size| dimension(dimension::Value::DimValue(size as i64))));
    let tensor =
        Tensor { elem_type: DataType::Float.into(), shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { value: Some(Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    let r#type = AttributeType::Int.into();
    AttributeProto { name: name.into(), i: value, r#type, ..AttributeProto::default() }
}

pub(crate) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let (ints, r#type) = (values.to_vec(), AttributeType::Ints.into());
    AttributeProto { name: name.into(), ints, r#type, ..AttributeProto::default() }
}

pub(crate) fn float(name: &str, value: f32) -> AttributeProto {
    let r#type = AttributeType::Float.into();
    AttributeProto { name: name.into(), f: value, r#type, ..AttributeProto::default() }
}
