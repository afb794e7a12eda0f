//! The ONNX file as a checked graph: nodes in order, constants decoded, one input, one output.

use std::collections::{HashMap, HashSet};

use candle_core::DType;
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
    /// Those that no initializer fills.
    pub(crate) inputs: Vec<Input>,
    pub(crate) output: String,
    /// Version of the default operator set.
    pub(crate) opset: i64,
}

/// What the graph declares of an input.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) name: String,
    /// `None` for a tensor without a shape, or for what is no tensor.
    pub(crate) dims: Option<Vec<Dim>>,
    /// ONNX's number for the element type.
    element: i32,
}

/// One dimension of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dim {
    Fixed(i64),
    /// Its name; empty where it has none.
    Open(String),
}

/// One operator of the graph.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) op: String,
    /// Empty names stand for optional inputs that are absent.
    pub(crate) inputs: Vec<String>,
    /// At least one; empty names stand for outputs that nobody reads.
    pub(crate) outputs: Vec<String>,
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
        let inputs: Vec<Input> = graph
            .input
            .iter()
            .filter(|input| !constants.contains_key(&input.name))
            .map(Input::read)
            .collect();
        let [output] = graph.output.as_slice() else {
            let names = graph.output.iter().map(|output| output.name.clone()).collect();
            return Err(Error::Outputs { names });
        };
        let output = output.name.clone();
        let mut defined: HashSet<String> = constants.keys().cloned().collect();
        defined.extend(inputs.iter().map(|input| input.name.clone()));
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
        Ok(Self { nodes, constants, inputs, output, opset })
    }
}

impl Graph {
    /// Whether the input is an image with its channels last: few values in the last dimension, many
    /// in the first, and a transposition that moves the last to the front.
    pub(crate) fn channels_last(&self, row: &[usize]) -> bool {
        let to_front = |node: &Node| {
            node.op == "Transpose" && matches!(node.ints("perm"), Ok(Some([0, 3, 1, 2])))
        };
        matches!(row, &[height, _, 1..=4] if height > 4) && self.nodes.iter().any(to_front)
    }
}

/// How many values a row of an activation has; `None` for none, or for more than can be meant.
pub(crate) fn row_values(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|count| (1..=MAX_ROW_VALUES).contains(count))
}

// === impl Input ===

impl Input {
    fn read(input: &onnx::ValueInfoProto) -> Self {
        let (element, dims) = match input.r#type.as_ref().and_then(|t| t.value.as_ref()) {
            Some(TypeValue::TensorType(tensor)) => (tensor.elem_type, tensor.shape.as_ref()),
            _ => (0, None),
        };
        let dims = dims.map(|shape| {
            let read = |dim: &onnx::tensor_shape_proto::Dimension| match &dim.value {
                Some(Dimension::DimValue(value)) => Dim::Fixed(*value),
                Some(Dimension::DimParam(name)) => Dim::Open(name.clone()),
                None => Dim::Open(String::new()),
            };
            shape.dim.iter().map(read).collect()
        });
        Self { name: input.name.clone(), dims, element }
    }

    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    /// Whether its values are read as `f32`.
    fn is_float(&self) -> bool {
        FLOATS.iter().any(|&float| self.element == float as i32)
    }

    /// The sizes behind the first dimension, or all of them.
    pub(crate) fn row(&self, batch_first: bool) -> Result<Vec<usize>, Error> {
        if !self.is_float() {
            return Err(self.wrong());
        }
        let dims = self.dims.as_deref().unwrap_or_default();
        let fixed: Option<Vec<usize>> = dims
            .iter()
            .skip(usize::from(batch_first))
            .map(|dim| match dim {
                Dim::Fixed(size) if *size > 0 => usize::try_from(*size).ok(),
                _ => None,
            })
            .collect();
        match fixed {
            Some(row) if row_values(&row).is_some() && !(batch_first && row.is_empty()) => Ok(row),
            _ => Err(self.wrong()),
        }
    }

    /// The batch that the graph was written for, if it was fixed.
    pub(crate) fn fixed_batch(&self) -> Option<i64> {
        match self.dims.as_deref() {
            Some([Dim::Fixed(size), ..]) => Some(*size),
            _ => None,
        }
    }

    /// An error that says what it is.
    pub(crate) fn wrong(&self) -> Error {
        let kind = type_name(self.element);
        let got = match &self.dims {
            None => format!("{kind} without a shape"),
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
                format!("{kind} of shape [{}]", dims.join(", "))
            }
        };
        Error::InputType { name: self.name.clone(), got }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Open(name) if name.is_empty() => f.write_str("?"),
            Self::Open(name) => f.write_str(name),
        }
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
            outputs: proto.output.clone(),
            attributes,
        };
        if node.outputs.iter().all(String::is_empty) {
            return Err(node.error("it has no output".into()));
        }
        Ok(node)
    }

    /// An operator without attributes in place of this one.
    pub(crate) fn replaced_by(&self, op: &str, input: &str) -> Self {
        Self {
            name: self.name.clone(),
            op: op.into(),
            inputs: vec![input.into()],
            outputs: self.outputs.clone(),
            attributes: HashMap::new(),
        }
    }

    /// A function of many as functions of two, each on the result of the one before.
    pub(crate) fn in_pairs(&self) -> Option<Vec<Self>> {
        let [first, second, rest @ ..] = self.inputs.as_slice() else {
            return None;
        };
        if !matches!(self.op.as_str(), "Max" | "Min" | "Sum") || rest.is_empty() {
            return None;
        }
        let between = |index: usize| format!("{} after {index}", self.outputs[0]);
        let pairs = std::iter::once((first.clone(), second))
            .chain(rest.iter().enumerate().map(|(index, next)| (between(index), next)));
        let last = rest.len();
        let node = |(index, (left, right)): (usize, (String, &String))| Self {
            name: self.name.clone(),
            op: self.op.clone(),
            inputs: vec![left, right.clone()],
            outputs: vec![if index == last { self.outputs[0].clone() } else { between(index) }],
            attributes: HashMap::new(),
        };
        Some(pairs.enumerate().map(node).collect())
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

    pub(crate) fn from_tensor(tensor: &candle_core::Tensor) -> Result<Self, Error> {
        let flat = tensor.flatten_all()?;
        let values = match tensor.dtype().is_float() {
            true => Values::F32(flat.to_dtype(DType::F32)?.to_vec1()?),
            false => Values::I64(flat.to_dtype(DType::I64)?.to_vec1()?),
        };
        Ok(Self { dims: tensor.dims().to_vec(), values })
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

/// What an input may hold.
const FLOATS: [DataType; 4] =
    [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double];

/// Operator sets whose definitions the lowerings follow.
pub(crate) const OPSETS: std::ops::RangeInclusive<i64> = 9..=21;

/// A gigabyte of `f32`.
const MAX_VALUES: usize = 1 << 28;

/// An image of 4096 x 4096 in three channels, and more than any layer of a classifier: a quarter
/// of a gigabyte of `f32`.
const MAX_ROW_VALUES: usize = 1 << 26;
