//! The ONNX file as a checked graph: nodes in order, constants decoded, inputs, one output.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use candle_onnx::onnx::attribute_proto::AttributeType;

use crate::error::Error;
use crate::onnx::constant::{Constant, Values};
use crate::onnx::external::{Digests, External};
use crate::onnx::input::Input;
use crate::onnx::wire::{self, AttributeProto, Fields, ModelProto, NodeProto, TensorProto};

/// A graph that can be lowered node by node.
#[derive(Debug)]
pub(crate) struct Graph {
    /// Nodes in the order of evaluation.
    pub(crate) nodes: Vec<Node>,
    pub(crate) constants: HashMap<String, Constant>,
    /// Inputs that no initializer fills.
    pub(crate) inputs: Vec<Input>,
    pub(crate) output: String,
    /// Version of the default operator set.
    pub(crate) opset: i64,
    /// Digests of the other files that constants were read from.
    pub(crate) external: Digests,
}

/// One operator of the graph.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) op: String,
    /// Empty names stand for optional inputs that are absent.
    pub(crate) inputs: Vec<String>,
    /// Names of one output or more; empty ones stand for outputs that nobody reads.
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
    /// A value of a type that no supported operator takes.
    Unsupported,
}

// === impl Graph ===

impl Graph {
    /// Reads an ONNX model, and what it keeps in other files of `folder` if there is one.
    pub(crate) fn decode(bytes: &[u8], folder: Option<&Path>) -> Result<Self, Error> {
        let model = ModelProto::read(bytes).map_err(Error::not_onnx)?;
        let (Some(opset), Some(graph)) = (model.opset, model.graph) else {
            return Err(Error::not_onnx("no graph, or no operator set".into()));
        };
        if !OPSETS.contains(&opset) {
            return Err(Error::Opset { got: opset, expected: OPSETS });
        }
        if let Some(name) = model.replaced {
            return Err(Error::not_onnx(format!(
                "a function of its own replaces operator {name:?}"
            )));
        }
        Self::check(graph, opset, folder)
    }

    fn check(graph: &[u8], opset: i64, folder: Option<&Path>) -> Result<Self, Error> {
        let mut constants = Constants::default();
        let (mut external, mut inputs, mut outputs) = (External::default(), vec![], vec![]);
        for field in Fields::of("GraphProto", graph) {
            match field.map_err(Error::not_onnx)? {
                (5, tensor) => {
                    let bytes = tensor.bytes().map_err(Error::not_onnx)?;
                    constants.read(bytes, folder.is_some().then_some(&mut external))?;
                }
                (11, input) => inputs.push(input.bytes().map_err(Error::not_onnx)?),
                (12, output) => outputs.push(output.bytes().map_err(Error::not_onnx)?),
                (15, _) => {
                    return Err(Error::not_onnx("sparse_initializer is not supported".into()));
                }
                _ => {}
            }
        }
        let external = match folder {
            Some(folder) => external.read(folder, &mut constants.values)?,
            None => Vec::new(),
        };
        let constants = constants.values;
        let mut free = Vec::new();
        for bytes in inputs {
            if !constants.contains_key(named(bytes)?) {
                free.push(Input::decode(bytes)?);
            }
        }
        let inputs = free;
        let &[output] = outputs.as_slice() else {
            return Err(Error::Outputs { names: names(&outputs)? });
        };
        let output = named(output)?.to_owned();
        let mut defined: HashSet<String> = constants.keys().cloned().collect();
        defined.extend(inputs.iter().map(|input| input.name.clone()));
        defined.insert(String::new());
        let mut nodes = Vec::new();
        for field in Fields::of("GraphProto", graph) {
            let (1, node) = field.map_err(Error::not_onnx)? else { continue };
            if nodes.len() == MAX_NODES {
                return Err(Error::not_onnx(format!("it has more than {MAX_NODES} nodes")));
            }
            let (proto, attributes) =
                node.bytes().and_then(NodeProto::read).map_err(Error::not_onnx)?;
            let node = Node::check(&proto, &attributes, nodes.len())?;
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
        Ok(Self { nodes, constants, inputs, output, opset, external })
    }
}

impl Graph {
    /// True if the input is an image with its channels last: few values in the last dimension, many
    /// in the first, and a transposition that moves the last to the front.
    pub(crate) fn channels_last(&self, row: &[usize]) -> bool {
        let to_front = |node: &Node| {
            node.op == "Transpose" && matches!(node.ints("perm"), Ok(Some([0, 3, 1, 2])))
        };
        matches!(row, &[height, _, 1..=4] if height > 4) && self.nodes.iter().any(to_front)
    }

    /// The input of the last softmax on the way to the output.
    pub(crate) fn before_softmax(&self) -> Option<&str> {
        let mut name = &self.output;
        for node in self.nodes.iter().rev() {
            if node.outputs.first() != Some(name) {
                continue;
            }
            name = node.inputs.first()?;
            if matches!(node.op.as_str(), "LogSoftmax" | "Softmax") {
                return Some(name);
            }
        }
        None
    }
}

fn named(bytes: &[u8]) -> Result<&str, Error> {
    wire::value_name(bytes).map_err(Error::not_onnx)
}

/// The first of these values' names.
fn names(values: &[&[u8]]) -> Result<Vec<String>, Error> {
    values.iter().take(MAX_SHOWN).map(|bytes| Ok(named(bytes)?.to_owned())).collect()
}

/// The initializers.
#[derive(Default)]
struct Constants {
    values: HashMap<String, Constant>,
    /// Names of all, also of those whose values are elsewhere.
    names: HashSet<String>,
}

// === impl Constants ===

impl Constants {
    /// Decodes an initializer, or notes it if its values are elsewhere.
    fn read<'a>(
        &mut self,
        bytes: &'a [u8],
        external: Option<&mut External<'a>>,
    ) -> Result<(), Error> {
        let tensor = TensorProto::read(bytes).map_err(Error::not_onnx)?;
        let wrong = |reason| Error::Constant { name: tensor.name.into(), reason };
        if !self.names.insert(tensor.name.into()) {
            return Err(wrong("defined twice".into()));
        }
        match external {
            Some(external) if tensor.external => external.add(&tensor).map_err(wrong),
            _ => {
                let constant = Constant::decode(&tensor).map_err(wrong)?;
                self.values.insert(tensor.name.into(), constant);
                Ok(())
            }
        }
    }
}

// === impl Node ===

impl Node {
    fn check(proto: &NodeProto, attributes: &[&[u8]], index: usize) -> Result<Self, Error> {
        let name = if proto.name.is_empty() { format!("#{index}") } else { proto.name.clone() };
        if !wire::is_default(&proto.domain) {
            let op = format!("{}.{}", proto.domain, proto.op_type);
            return Err(Error::Operator { node: name, op });
        }
        let wrong = |reason| Error::Node { node: name.clone(), op: proto.op_type.clone(), reason };
        let mut decoded = HashMap::new();
        for bytes in attributes {
            let attribute = AttributeProto::read(bytes).map_err(wrong)?;
            let own = attribute.name.to_owned();
            let value = Attribute::decode(&attribute)
                .map_err(|reason| wrong(format!("attribute {own:?}: {reason}")))?;
            if decoded.contains_key(&own) {
                return Err(wrong(format!("attribute {own:?} is given twice")));
            }
            decoded.insert(own, value);
        }
        let node = Self {
            name,
            op: proto.op_type.clone(),
            inputs: proto.input.clone(),
            outputs: proto.output.clone(),
            attributes: decoded,
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
    fn decode(proto: &AttributeProto<'_>) -> Result<Self, String> {
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
pub(crate) const OPSETS: std::ops::RangeInclusive<i64> = 9..=21;

/// The deepest classifiers have a few thousand, and compiling takes longer the more there are.
const MAX_NODES: usize = 1 << 16;

/// Characters of an error about a node.
const MAX_REASON: usize = 1 << 12;

/// Names in an error.
pub(crate) const MAX_SHOWN: usize = 8;
