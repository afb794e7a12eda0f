//! Nodes as the file has them, calls of its own functions replaced by what these consist of.

use std::collections::HashMap;
use std::rc::Rc;

use candle_onnx::onnx::attribute_proto::AttributeType;
use candle_onnx::onnx::tensor_proto::DataType;

use crate::error::Error;
use crate::onnx::constant::Constant;
use crate::onnx::node::{Attribute, Attributes, Branch, MADE, Node, OPSETS};
use crate::onnx::wire::{self, AttributeProto, Fields, FunctionProto, NodeProto, TensorProto};

/// Reads nodes.
pub(super) struct Reader<'a> {
    functions: HashMap<[&'a str; 3], &'a FunctionProto<'a>>,
    /// Nodes read so far.
    nodes: usize,
    /// Calls replaced so far.
    calls: usize,
    /// Bytes of functions that may still be read.
    function_bytes: usize,
    /// Types of constants that hold integers of fewer than 32 bits.
    pub(super) narrow: HashMap<String, DataType>,
}

/// The place that a node stands in: the graph, or the body of a function.
pub(super) struct Scope<'s> {
    opset: i64,
    /// Stands before every name that the place itself defines.
    prefix: String,
    /// Inputs and outputs of the function by the names of the calling node.
    names: HashMap<&'s str, String>,
    /// What attributes that refer to the calling node's stand for.
    attributes: Attributes,
    /// Functions and branches around the place.
    depth: usize,
}

// === impl Scope ===

impl Scope<'_> {
    /// The graph of a model.
    pub(super) fn graph(opset: i64) -> Self {
        let (prefix, depth) = (String::new(), 0);
        Self { opset, prefix, names: HashMap::new(), attributes: HashMap::new(), depth }
    }

    fn inner(&self, name: &str) -> String {
        match self.names.get(name) {
            _ if name.is_empty() => String::new(),
            Some(outer) => outer.clone(),
            None => format!("{}{name}", self.prefix),
        }
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) fn new(functions: &'a [FunctionProto<'a>]) -> Result<Self, Error> {
        if let Some(function) = functions.iter().find(|function| wire::is_default(function.domain))
        {
            let name = function.name;
            let reason = format!("a function of its own replaces operator {name:?}");
            return Err(Error::not_onnx(reason));
        }
        let key = |function: &'a FunctionProto<'a>| {
            ([function.domain, function.name, function.overload], function)
        };
        let functions = functions.iter().map(key).collect();
        Ok(Self {
            functions,
            nodes: 0,
            calls: 0,
            function_bytes: MAX_FUNCTION_BYTES,
            narrow: HashMap::new(),
        })
    }

    /// Reads one node of the file: none, one, or the nodes of the function that it calls.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        scope: &Scope<'_>,
        nodes: &mut Vec<Node>,
    ) -> Result<(), Error> {
        if self.nodes == MAX_NODES {
            return Err(Error::not_onnx(format!("it has more than {MAX_NODES} nodes")));
        }
        let (mut proto, attributes) = NodeProto::read(bytes).map_err(Error::not_onnx)?;
        let name = match proto.name.is_empty() {
            true => format!("#{}", self.nodes),
            false => std::mem::take(&mut proto.name),
        };
        self.nodes += 1;
        let wrong = |reason| Error::Node { node: name.clone(), op: proto.op_type.clone(), reason };
        let mut narrow_value = None;
        let mut decoded = HashMap::new();
        for bytes in attributes {
            let attribute = AttributeProto::read(bytes).map_err(wrong)?;
            narrow_value = attribute.t.as_ref().and_then(|tensor| narrow(tensor.data_type));
            let value = match (attribute.reference, attribute.g) {
                ("", Some(graph)) if is_graph(&attribute) => {
                    Some(Attribute::Graph(Rc::new(self.branch(graph, scope)?)))
                }
                ("", _) => Some(Attribute::decode(&attribute).map_err(|reason| {
                    wrong(format!("attribute {:?}: {reason}", attribute.name))
                })?),
                (reference, _) => scope.attributes.get(reference).cloned(),
            };
            if decoded.contains_key(attribute.name) {
                return Err(wrong(format!("attribute {:?} is given twice", attribute.name)));
            }
            // An attribute that the caller does not give has its operator's default.
            if let Some(value) = value {
                decoded.insert(attribute.name.to_owned(), value);
            }
        }
        for name in proto.input.iter_mut().chain(&mut proto.output) {
            *name = scope.inner(name);
        }
        if let Some(kind) = narrow_value
            && let Some(output) = proto.output.first()
        {
            self.narrow.insert(output.clone(), kind);
        }
        let key = [proto.domain.as_str(), proto.op_type.as_str(), proto.overload.as_str()];
        match self.functions.get(&key) {
            Some(&function) => self.call(function, &name, &proto, decoded, scope.depth, nodes),
            None => {
                nodes.push(Node::new(name, proto, scope.opset, decoded)?);
                Ok(())
            }
        }
    }

    /// The nodes of a function in place of a call of it.
    fn call(
        &mut self,
        function: &'a FunctionProto<'a>,
        caller: &str,
        proto: &NodeProto,
        given: Attributes,
        depth: usize,
        nodes: &mut Vec<Node>,
    ) -> Result<(), Error> {
        let FunctionProto { name, domain, .. } = function;
        let wrong =
            |reason| Error::Node { node: caller.into(), op: format!("{domain}.{name}"), reason };
        if depth == MAX_DEPTH {
            return Err(wrong(format!("functions call each other more than {MAX_DEPTH} deep")));
        }
        let bytes: usize = function.nodes.iter().map(|node| node.len()).sum();
        self.function_bytes = self
            .function_bytes
            .checked_sub(bytes)
            .ok_or_else(|| wrong("functions are called too often".into()))?;
        let mut attributes = HashMap::new();
        for bytes in &function.attributes {
            let attribute = AttributeProto::read(bytes).map_err(wrong)?;
            let value = Attribute::decode(&attribute).map_err(wrong)?;
            attributes.insert(attribute.name.to_owned(), value);
        }
        attributes.extend(given);
        self.calls += 1;
        // Names that only the function itself knows.
        let prefix = format!("{MADE}{}:", self.calls);
        let mut names = HashMap::new();
        for (index, &input) in function.input.iter().enumerate() {
            names.insert(input, proto.input.get(index).cloned().unwrap_or_default());
        }
        let mut passed_on = Vec::new();
        for (&inner, outer) in function.output.iter().zip(&proto.output) {
            match names.get(inner) {
                _ if outer.is_empty() => {}
                // An output that is an input, or another output as well.
                Some(input) => passed_on.push((input.clone(), outer.clone())),
                None => {
                    names.insert(inner, outer.clone());
                }
            }
        }
        let opset = function.opset.unwrap_or(*OPSETS.end());
        if !OPSETS.contains(&opset) {
            return Err(Error::Opset { got: opset, expected: OPSETS });
        }
        let scope = Scope { opset, prefix, names, attributes, depth: depth + 1 };
        for bytes in &function.nodes {
            self.read(bytes, &scope, nodes)?;
        }
        for (input, output) in passed_on {
            let identity = NodeProto {
                op_type: "Identity".into(),
                input: vec![input],
                output: vec![output],
                ..NodeProto::default()
            };
            nodes.push(Node::new(caller.into(), identity, opset, HashMap::new())?);
        }
        Ok(())
    }

    /// A graph that an attribute holds.
    fn branch(&mut self, graph: &[u8], scope: &Scope<'_>) -> Result<Branch, Error> {
        if scope.depth == MAX_DEPTH {
            return Err(Error::not_onnx(format!("graphs are more than {MAX_DEPTH} deep")));
        }
        let inside = Scope {
            opset: scope.opset,
            prefix: scope.prefix.clone(),
            names: scope.names.clone(),
            attributes: scope.attributes.clone(),
            depth: scope.depth + 1,
        };
        let mut branch = Branch::default();
        for field in Fields::of("GraphProto", graph) {
            match field.map_err(Error::not_onnx)? {
                (1, node) => {
                    self.read(node.bytes().map_err(Error::not_onnx)?, &inside, &mut branch.nodes)?;
                }
                (5, tensor) => {
                    let tensor = tensor.bytes().and_then(TensorProto::read);
                    let tensor = tensor.map_err(Error::not_onnx)?;
                    let wrong = |reason| Error::Constant { name: tensor.name.into(), reason };
                    let constant = Constant::decode(&tensor).map_err(wrong)?;
                    branch.constants.push((inside.inner(tensor.name), constant));
                }
                (12, output) => {
                    let name = output.bytes().and_then(wire::value_name);
                    branch.outputs.push(inside.inner(name.map_err(Error::not_onnx)?));
                }
                _ => {}
            }
        }
        Ok(branch)
    }
}

fn is_graph(attribute: &AttributeProto<'_>) -> bool {
    attribute.r#type == AttributeType::Graph as i32
}

/// The type of integers of fewer than 32 bits.
pub(super) fn narrow(data_type: i32) -> Option<DataType> {
    let narrow = [DataType::Int8, DataType::Uint8, DataType::Int16, DataType::Uint16];
    narrow.into_iter().find(|&kind| kind as i32 == data_type)
}

/// The deepest classifiers have a few thousand, and compiling takes longer the more there are.
const MAX_NODES: usize = 1 << 16;

/// Functions of exporters are some four deep: a model, a layer, a block, an operator.
const MAX_DEPTH: usize = 16;

/// Bytes of functions that are read, once for each call: weights are not among them.
const MAX_FUNCTION_BYTES: usize = 1 << 26;
