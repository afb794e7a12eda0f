//! The ONNX file as a checked graph: nodes in order, constants decoded, one input, one output.

use std::collections::{HashMap, HashSet};

use candle_onnx::onnx::{
    self, AttributeProto, GraphProto, ModelProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataType, tensor_shape_proto::dimension::Value as Dimension,
    type_proto::Value as TypeValue,
};
use prost::Message;

use super::Error;

/// A graph that can be lowered node by node.
#[derive(Debug)]
pub(crate) struct Graph {
    /// In the order of evaluation.
    pub(crate) nodes: Vec<Node>,
    pub(crate) constants: HashMap<String, Constant>,
    pub(crate) input: String,
    /// Without the batch.
    pub(crate) input_shape: Vec<usize>,
    pub(crate) output: String,
    /// Version of the default operator set.
    pub(crate) opset: i64,
}

/// One operator of the graph.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) op: String,
    /// Empty names stand for optional inputs that are absent.
    pub(crate) inputs: Vec<String>,
    pub(crate) output: String,
    attributes: HashMap<String, Attribute>,
}

#[derive(Debug)]
enum Attribute {
    Float(f32),
    Floats(Vec<f32>),
    Int(i64),
    Ints(Vec<i64>),
    Tensor(Constant),
    Text(String),
    /// Of a type that no supported operator takes.
    Unsupported,
}

/// A decoded constant, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constant {
    pub(crate) dims: Vec<usize>,
    pub(crate) values: Values,
}

/// 64-bit floats are read as `F32`, 32-bit integers and booleans as `I64`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

// === impl Graph ===

impl Graph {
    /// Reads an ONNX model.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let model = ModelProto::decode(bytes)
            .map_err(|source| Error::NotOnnx { reason: format!("{source}") })?;
        let opset = model
            .opset_import
            .iter()
            .find(|import| import.domain.is_empty() || import.domain == "ai.onnx")
            .map(|import| import.version);
        let (Some(opset), Some(graph)) = (opset, model.graph) else {
            return Err(Error::NotOnnx { reason: "no graph, or no operator set".into() });
        };
        if !OPSETS.contains(&opset) {
            return Err(Error::Opset { got: opset, expected: OPSETS });
        }
        Self::check(graph, opset)
    }

    fn check(graph: GraphProto, opset: i64) -> Result<Self, Error> {
        let mut constants = HashMap::new();
        for tensor in &graph.initializer {
            let decoded = Constant::decode(tensor)
                .map_err(|reason| Error::Constant { name: tensor.name.clone(), reason })?;
            constants.insert(tensor.name.clone(), decoded);
        }
        let inputs: Vec<_> =
            graph.input.iter().filter(|input| !constants.contains_key(&input.name)).collect();
        let [input] = inputs.as_slice() else {
            let names = inputs.iter().map(|input| input.name.clone()).collect();
            return Err(Error::Inputs { names });
        };
        let input_shape = input_shape(input)?;
        let [output] = graph.output.as_slice() else {
            let names = graph.output.iter().map(|output| output.name.clone()).collect();
            return Err(Error::Outputs { names });
        };
        let (input, output) = (input.name.clone(), output.name.clone());
        let mut defined: HashSet<String> = constants.keys().cloned().collect();
        defined.insert(input.clone());
        defined.insert(String::new());
        let mut nodes = Vec::with_capacity(graph.node.len());
        for (index, proto) in graph.node.iter().enumerate() {
            let node = Node::check(proto, index)?;
            if let Some(missing) = node.inputs.iter().find(|name| !defined.contains(*name)) {
                return Err(
                    node.error(format!("input {missing:?} is not defined by any earlier node"))
                );
            }
            for name in &proto.output {
                if !name.is_empty() && !defined.insert(name.clone()) {
                    return Err(node.error(format!("output {name:?} is defined twice")));
                }
            }
            nodes.push(node);
        }
        if !defined.contains(&output) {
            return Err(Error::Outputs { names: vec![output] });
        }
        Ok(Self { nodes, constants, input, input_shape, output, opset })
    }
}

/// How many values a row of an activation has; `None` for none, or for more than can be meant.
pub(crate) fn row_values(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|count| !shape.is_empty() && (1..=MAX_ROW_VALUES).contains(count))
}

fn input_shape(input: &onnx::ValueInfoProto) -> Result<Vec<usize>, Error> {
    let wrong = |got: String| Error::InputType { name: input.name.clone(), got };
    let tensor = match input.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => tensor,
        _ => return Err(wrong("not a tensor".into())),
    };
    if tensor.elem_type != DataType::Float as i32 {
        return Err(wrong(format!("element type {}", type_name(tensor.elem_type))));
    }
    let Some(shape) = &tensor.shape else {
        return Err(wrong("a tensor without a shape".into()));
    };
    let text: Vec<String> = shape
        .dim
        .iter()
        .map(|dim| match &dim.value {
            Some(Dimension::DimValue(value)) => value.to_string(),
            Some(Dimension::DimParam(name)) => name.clone(),
            None => "?".into(),
        })
        .collect();
    let fixed: Option<Vec<usize>> = shape
        .dim
        .iter()
        .skip(1)
        .map(|dim| match dim.value {
            Some(Dimension::DimValue(value)) if value > 0 => usize::try_from(value).ok(),
            _ => None,
        })
        .collect();
    match fixed {
        Some(fixed) if row_values(&fixed).is_some() => Ok(fixed),
        _ => Err(wrong(format!("shape [{}]", text.join(", ")))),
    }
}

// === impl Node ===

impl Node {
    fn check(proto: &onnx::NodeProto, index: usize) -> Result<Self, Error> {
        let name = if proto.name.is_empty() { format!("#{index}") } else { proto.name.clone() };
        if !(proto.domain.is_empty() || proto.domain == "ai.onnx") {
            let op = format!("{}.{}", proto.domain, proto.op_type);
            return Err(Error::Operator { node: name, op });
        }
        let mut attributes = HashMap::new();
        for attribute in &proto.attribute {
            let value = Attribute::decode(attribute).map_err(|reason| Error::Node {
                node: name.clone(),
                op: proto.op_type.clone(),
                reason: format!("attribute {:?}: {reason}", attribute.name),
            })?;
            attributes.insert(attribute.name.clone(), value);
        }
        let node = Self {
            name,
            op: proto.op_type.clone(),
            inputs: proto.input.clone(),
            output: proto.output.first().cloned().unwrap_or_default(),
            attributes,
        };
        if node.output.is_empty() {
            return Err(node.error("it has no output".into()));
        }
        // Dropout's mask and the like: a second output that somebody names is somebody's input.
        if proto.output.iter().skip(1).any(|name| !name.is_empty()) && node.op != "Dropout" {
            return Err(node.error("more than one output".into()));
        }
        Ok(node)
    }

    /// An error that names this node.
    pub(crate) fn error(&self, reason: String) -> Error {
        Error::Node { node: self.name.clone(), op: self.op.clone(), reason }
    }

    /// Refuses attributes that the lowering does not read.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Error> {
        match self.attributes.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(self.error(format!("attribute {name:?} is not supported"))),
            None => Ok(()),
        }
    }

    pub(crate) fn float(&self, name: &str, default: f32) -> Result<f32, Error> {
        match self.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Float(value)) => Ok(*value),
            Some(other) => Err(self.mistyped(name, "a float", other)),
        }
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> Result<i64, Error> {
        match self.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Int(value)) => Ok(*value),
            Some(other) => Err(self.mistyped(name, "an integer", other)),
        }
    }

    pub(crate) fn ints(&self, name: &str) -> Result<Option<&[i64]>, Error> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values)),
            Some(other) => Err(self.mistyped(name, "integers", other)),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, Error> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(name, "a string", other)),
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<Option<&Constant>, Error> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Tensor(constant)) => Ok(Some(constant)),
            Some(other) => Err(self.mistyped(name, "a tensor", other)),
        }
    }

    /// The value of a `Constant` node.
    pub(crate) fn constant(&self) -> Result<Constant, Error> {
        let scalar = |values| Constant { dims: vec![], values };
        if self.attributes.len() != 1 {
            let got = self.attributes.len();
            return Err(self.error(format!("{got} attributes, expected one")));
        }
        match self.attributes.iter().next() {
            Some((name, Attribute::Tensor(constant))) if name == "value" => Ok(constant.clone()),
            Some((name, Attribute::Float(value))) if name == "value_float" => {
                Ok(scalar(Values::F32(vec![*value])))
            }
            Some((name, Attribute::Floats(values))) if name == "value_floats" => {
                Ok(Constant { dims: vec![values.len()], values: Values::F32(values.clone()) })
            }
            Some((name, Attribute::Int(value))) if name == "value_int" => {
                Ok(scalar(Values::I64(vec![*value])))
            }
            Some((name, Attribute::Ints(values))) if name == "value_ints" => {
                Ok(Constant { dims: vec![values.len()], values: Values::I64(values.clone()) })
            }
            _ => Err(self.error("its value is of a kind that is not supported".into())),
        }
    }

    fn mistyped(&self, name: &str, expected: &str, got: &Attribute) -> Error {
        self.error(format!("attribute {name:?} is {got:?}, expected {expected}"))
    }
}

// === impl Attribute ===

impl Attribute {
    fn decode(proto: &AttributeProto) -> Result<Self, String> {
        Ok(match AttributeType::try_from(proto.r#type) {
            Ok(AttributeType::Float) => Self::Float(proto.f),
            Ok(AttributeType::Floats) => Self::Floats(proto.floats.clone()),
            Ok(AttributeType::Int) => Self::Int(proto.i),
            Ok(AttributeType::Ints) => Self::Ints(proto.ints.clone()),
            Ok(AttributeType::String) => Self::Text(String::from_utf8_lossy(&proto.s).into_owned()),
            Ok(AttributeType::Tensor) => match &proto.t {
                Some(tensor) => Self::Tensor(Constant::decode(tensor)?),
                None => return Err("a tensor attribute without its tensor".into()),
            },
            Ok(_) => Self::Unsupported,
            Err(_) => return Err(format!("unknown type {}", proto.r#type)),
        })
    }
}

// === impl Constant ===

impl Constant {
    fn decode(tensor: &TensorProto) -> Result<Self, String> {
        let dims = tensor
            .dims
            .iter()
            .map(|&dim| usize::try_from(dim).map_err(|_| format!("negative dimension {dim}")))
            .collect::<Result<Vec<_>, _>>()?;
        let count = dims
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .filter(|&count| count <= MAX_VALUES)
            .ok_or_else(|| format!("shape {dims:?} has more than {MAX_VALUES} values"))?;
        if tensor.data_location != 0 || !tensor.external_data.is_empty() {
            return Err("external data is not supported".into());
        }
        let raw = &tensor.raw_data;
        let kind = DataType::try_from(tensor.data_type);
        let values = match kind {
            Ok(DataType::Float) if raw.is_empty() => Values::F32(tensor.float_data.clone()),
            Ok(DataType::Float) => Values::F32(little_endian(raw, f32::from_le_bytes)?),
            Ok(DataType::Double) if raw.is_empty() => {
                Values::F32(tensor.double_data.iter().map(|&value| value as f32).collect())
            }
            Ok(DataType::Double) => {
                Values::F32(little_endian(raw, |bytes| f64::from_le_bytes(bytes) as f32)?)
            }
            Ok(DataType::Int64) if raw.is_empty() => Values::I64(tensor.int64_data.clone()),
            Ok(DataType::Int64) => Values::I64(little_endian(raw, i64::from_le_bytes)?),
            Ok(DataType::Int32) if raw.is_empty() => {
                Values::I64(tensor.int32_data.iter().map(|&value| value.into()).collect())
            }
            Ok(DataType::Int32) => {
                Values::I64(little_endian(raw, |bytes| i32::from_le_bytes(bytes).into())?)
            }
            Ok(DataType::Bool) if !raw.is_empty() => {
                Values::I64(raw.iter().map(|&byte| byte.into()).collect())
            }
            Ok(DataType::Bool) => {
                Values::I64(tensor.int32_data.iter().map(|&value| value.into()).collect())
            }
            _ => return Err(format!("element type {}", type_name(tensor.data_type))),
        };
        if values.len() != count {
            return Err(format!("shape {dims:?} needs {count} values, got {}", values.len()));
        }
        Ok(Self { dims, values })
    }

    pub(crate) fn floats(&self) -> Option<&[f32]> {
        match &self.values {
            Values::F32(values) => Some(values),
            Values::I64(_) => None,
        }
    }

    pub(crate) fn integers(&self) -> Option<&[i64]> {
        match &self.values {
            Values::F32(_) => None,
            Values::I64(values) => Some(values),
        }
    }
}

// === impl Values ===

impl Values {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I64(values) => values.len(),
        }
    }
}

fn little_endian<const N: usize, T>(
    raw: &[u8],
    read: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, String> {
    match raw.as_chunks::<N>() {
        (chunks, []) => Ok(chunks.iter().map(|bytes| read(*bytes)).collect()),
        _ => Err(format!("{} bytes of data are no multiple of {N}", raw.len())),
    }
}

fn type_name(data_type: i32) -> String {
    match DataType::try_from(data_type) {
        Ok(known) => known.as_str_name().to_owned(),
        Err(_) => format!("number {data_type}"),
    }
}

/// Operator sets whose definitions the lowerings follow.
const OPSETS: std::ops::RangeInclusive<i64> = 9..=21;

/// A gigabyte of `f32`.
const MAX_VALUES: usize = 1 << 28;

/// An image of 4096 x 4096 in three channels, and more than any layer of a classifier: a quarter
/// of a gigabyte of `f32`.
const MAX_ROW_VALUES: usize = 1 << 26;
