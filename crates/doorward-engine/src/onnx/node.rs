//! One operator of a graph, with its attributes.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use candle_onnx::onnx::attribute_proto::AttributeType;

use crate::error::Error;
use crate::onnx::constant::{Constant, Values};
use crate::onnx::wire::{self, AttributeProto, NodeProto};

/// One operator of the graph.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) op: String,
    /// Empty names stand for optional inputs that are absent.
    pub(crate) inputs: Vec<String>,
    /// Names of one output or more; empty ones stand for outputs that nobody reads.
    pub(crate) outputs: Vec<String>,
    /// Version of the operator set that defines it.
    pub(crate) opset: i64,
    attributes: Attributes,
}

/// Attributes by their names.
pub(super) type Attributes = HashMap<String, Attribute>;

/// The value of an attribute.
#[derive(Clone, Debug)]
pub(super) enum Attribute {
    Float(f32),
    Floats(Vec<f32>),
    Graph(Rc<Branch>),
    Int(i64),
    Ints(Vec<i64>),
    Tensor(Constant),
    Text(String),
    /// A value of a type that no supported operator takes.
    Unsupported,
}

/// A graph inside of a node, which may read what is computed around it.
#[derive(Debug, Default)]
pub(crate) struct Branch {
    pub(crate) nodes: Vec<Node>,
    pub(crate) constants: Vec<(String, Constant)>,
    pub(crate) outputs: Vec<String>,
}

// === impl Branch ===

impl Branch {
    /// The names that the branch reads and does not define.
    fn reads(&self) -> impl Iterator<Item = &str> {
        let mut defined: HashSet<&str> = HashSet::new();
        defined.extend(self.constants.iter().map(|(name, _)| name.as_str()));
        defined.extend(self.nodes.iter().flat_map(|node| &node.outputs).map(String::as_str));
        let read = self.nodes.iter().flat_map(|node| node.reads());
        read.chain(self.outputs.iter().map(String::as_str))
            .filter(move |name| !defined.contains(name))
            .collect::<Vec<_>>()
            .into_iter()
    }
}

// === impl Node ===

impl Node {
    /// A node of the default operators, or of another domain, whose name then stands in front.
    pub(super) fn new(
        name: String,
        proto: NodeProto,
        opset: i64,
        attributes: Attributes,
    ) -> Result<Self, Error> {
        let op = match wire::is_default(&proto.domain) {
            true => proto.op_type,
            false => format!("{}.{}", proto.domain, proto.op_type),
        };
        let node = Self { name, op, inputs: proto.input, outputs: proto.output, opset, attributes };
        if node.outputs.iter().all(String::is_empty) {
            return Err(node.error("it has no output".into()));
        }
        Ok(node)
    }

    /// A node of this one's making, by the definitions of the newest operator set.
    pub(crate) fn made(&self, op: &str, inputs: &[&str], output: &str) -> Self {
        Self {
            name: self.name.clone(),
            op: op.into(),
            inputs: inputs.iter().map(|&name| name.into()).collect(),
            outputs: vec![output.into()],
            opset: *OPSETS.end(),
            attributes: HashMap::new(),
        }
    }

    /// The node with an integer for an attribute.
    pub(crate) fn with_int(mut self, name: &str, value: i64) -> Self {
        self.attributes.insert(name.into(), Attribute::Int(value));
        self
    }

    /// The node with a float for an attribute.
    pub(crate) fn with_float(mut self, name: &str, value: f32) -> Self {
        self.attributes.insert(name.into(), Attribute::Float(value));
        self
    }

    /// The node with a text for an attribute.
    pub(crate) fn with_text(mut self, name: &str, text: &str) -> Self {
        self.attributes.insert(name.into(), Attribute::Text(text.into()));
        self
    }

    /// The node with integers for an attribute.
    pub(crate) fn with_ints(mut self, name: &str, values: &[i64]) -> Self {
        self.attributes.insert(name.into(), Attribute::Ints(values.to_vec()));
        self
    }

    /// This node with other attributes left away.
    pub(crate) fn with_only(mut self, known: &[&str]) -> Self {
        self.attributes.retain(|name, _| known.contains(&name.as_str()));
        self
    }

    /// The same operator, with its attributes, on another first input.
    pub(crate) fn on(&self, op: &str, input: &str, output: &str) -> Self {
        let mut inputs = self.inputs.clone();
        if let Some(first) = inputs.first_mut() {
            *first = input.into();
        }
        let attributes = self.attributes.clone();
        let (name, op, outputs) = (self.name.clone(), op.into(), vec![output.into()]);
        Self { name, op, inputs, outputs, opset: self.opset, attributes }
    }

    /// Every name that has to be computed before the node: its inputs, and what its branches read.
    pub(crate) fn reads(&self) -> impl Iterator<Item = &str> {
        let branches = self.attributes.values().filter_map(|attribute| match attribute {
            Attribute::Graph(branch) => Some(branch),
            _ => None,
        });
        let inputs = self.inputs.iter().map(String::as_str);
        inputs.chain(branches.flat_map(|branch| branch.reads())).filter(|name| !name.is_empty())
    }

    /// The graph that an attribute holds.
    pub(crate) fn branch(&self, name: &str) -> Result<Rc<Branch>, Error> {
        match self.attributes.get(name) {
            Some(Attribute::Graph(branch)) => Ok(Rc::clone(branch)),
            _ => Err(self.error(format!("attribute {name:?} is no graph"))),
        }
    }

    /// An operator without attributes in place of this one.
    pub(crate) fn replaced_by(&self, op: &str, input: &str) -> Self {
        Self {
            name: self.name.clone(),
            op: op.into(),
            inputs: vec![input.into()],
            outputs: self.outputs.clone(),
            opset: self.opset,
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
        let between = |index: usize| format!("{MADE}{} after {index}", self.outputs[0]);
        let pairs = std::iter::once((first.clone(), second))
            .chain(rest.iter().enumerate().map(|(index, next)| (between(index), next)));
        let last = rest.len();
        let node = |(index, (left, right)): (usize, (String, &String))| Self {
            name: self.name.clone(),
            op: self.op.clone(),
            inputs: vec![left, right.clone()],
            outputs: vec![if index == last { self.outputs[0].clone() } else { between(index) }],
            opset: self.opset,
            attributes: HashMap::new(),
        };
        Some(pairs.enumerate().map(node).collect())
    }

    /// An error that names this node.
    pub(crate) fn error(&self, mut reason: String) -> Error {
        // Of lists as long as a file can hold, the start says what is wrong.
        if let Some((end, _)) = reason.char_indices().nth(MAX_REASON) {
            reason.truncate(end);
            reason.push_str(" ...");
        }
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

    pub(crate) fn floats(&self, name: &str) -> Result<Option<&[f32]>, Error> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Floats(values)) => Ok(Some(values)),
            Some(other) => Err(self.mistyped(name, "floats", other)),
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
    /// Any value but a graph's.
    pub(super) fn decode(proto: &AttributeProto<'_>) -> Result<Self, String> {
        Ok(match AttributeType::try_from(proto.r#type) {
            Ok(AttributeType::Float) => Self::Float(proto.f),
            Ok(AttributeType::Floats) => Self::Floats(proto.floats.clone()),
            Ok(AttributeType::Int) => Self::Int(proto.i),
            Ok(AttributeType::Ints) => Self::Ints(proto.ints.clone()),
            Ok(AttributeType::String) => match std::str::from_utf8(proto.s) {
                Ok(text) => Self::Text(text.to_owned()),
                Err(_) => return Err(format!("a string of {} bytes is not UTF-8", proto.s.len())),
            },
            Ok(AttributeType::Tensor) => match &proto.t {
                Some(tensor) => Self::Tensor(Constant::decode(tensor)?),
                None => return Err("a tensor attribute without its tensor".into()),
            },
            Ok(_) => Self::Unsupported,
            Err(_) => return Err(format!("unknown type {}", proto.r#type)),
        })
    }
}

/// Operator sets whose definitions the lowerings follow.
pub(crate) const OPSETS: std::ops::RangeInclusive<i64> = 7..=26;

/// Operators that give the values that they get, in another shape or type.
pub(super) const PASSES_ON: &[&str] =
    &["Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// Begins the names of tensors that the file knows nothing of.
pub(crate) const MADE: char = '\0';

/// Characters of an error about a node.
const MAX_REASON: usize = 1 << 12;
