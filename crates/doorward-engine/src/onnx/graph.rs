//! The ONNX file as a checked graph: nodes in order, constants decoded, inputs, one output.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use candle_onnx::onnx::tensor_proto::DataType;

use crate::error::{Error, FileKind, MAX_SHOWN};
use crate::onnx::calls::{Reader, Scope, narrow};
use crate::onnx::constant::Constant;
use crate::onnx::external::{Digests, External};
use crate::onnx::input::Input;
use crate::onnx::node::{Node, OPSETS};
use crate::onnx::outputs;
use crate::onnx::wire::{self, Fields, ModelProto, TensorProto};

/// A graph that can be lowered node by node.
#[derive(Debug)]
pub(crate) struct Graph {
    /// The nodes that the output needs, in the order of evaluation.
    pub(crate) nodes: Vec<Node>,
    pub(crate) constants: HashMap<String, Constant>,
    /// Types of the constants that hold integers of fewer than 32 bits.
    pub(crate) narrow: HashMap<String, DataType>,
    /// Inputs that no initializer fills.
    pub(crate) inputs: Vec<Input>,
    /// The output as the file names it.
    pub(crate) output: String,
    /// What is computed: the output, or what comes before it.
    pub(crate) target: String,
    /// Digests of the other files that constants were read from.
    pub(crate) external: Digests,
}

// === impl Graph ===

impl Graph {
    /// Reads an ONNX model, and what it keeps in other files of `folder` if there is one.
    ///
    /// `output` names the output that is wanted; without it the one that can be meant is.
    pub(crate) fn decode(
        bytes: &[u8],
        folder: Option<&Path>,
        output: Option<&str>,
    ) -> Result<Self, Error> {
        let model = ModelProto::read(bytes).map_err(|reason| foreign(bytes, reason))?;
        let (Some(opset), Some(graph)) = (model.opset, model.graph) else {
            return Err(foreign(bytes, "no graph, or no operator set".into()));
        };
        if !OPSETS.contains(&opset) {
            return Err(Error::Opset { got: opset, expected: OPSETS });
        }
        let mut reader = Reader::new(&model.functions)?;
        let scope = Scope::graph(opset);
        let (mut constants, mut nodes) = (Constants::default(), Vec::new());
        let (mut external, mut inputs, mut outputs) = (External::default(), vec![], vec![]);
        for field in Fields::of("GraphProto", graph) {
            match field.map_err(Error::not_onnx)? {
                (1, node) => {
                    reader.read(node.bytes().map_err(Error::not_onnx)?, &scope, &mut nodes)?;
                }
                (5, tensor) => {
                    let bytes = tensor.bytes().map_err(Error::not_onnx)?;
                    constants.read(bytes, folder.is_some().then_some(&mut external))?;
                }
                (11, input) => inputs.push(input.bytes().map_err(Error::not_onnx)?),
                (12, output) => {
                    if outputs.len() == MAX_OUTPUTS {
                        let reason = format!("it has more than {MAX_OUTPUTS} outputs");
                        return Err(Error::not_onnx(reason));
                    }
                    outputs.push(Input::decode(output.bytes().map_err(Error::not_onnx)?)?);
                }
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
        let Constants { values: constants, mut narrow, .. } = constants;
        narrow.extend(reader.narrow);
        let mut free = Vec::new();
        for bytes in inputs {
            if !constants.contains_key(named(bytes)?) {
                free.push(Input::decode(bytes)?);
            }
        }
        let given = constants.keys().map(String::as_str);
        let given: HashSet<&str> = given.chain(free.iter().map(|own| own.name.as_str())).collect();
        let order = Order::new(&nodes, &given)?;
        let chosen = outputs::choose(&nodes, &outputs, output)?;
        let order = order.of(&chosen.target)?;
        let mut all: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
        Ok(Self {
            nodes: order.into_iter().filter_map(|index| all[index].take()).collect(),
            constants,
            narrow,
            inputs: free,
            output: chosen.output,
            target: chosen.target,
            external,
        })
    }
}

/// The nodes of a graph by what they give.
struct Order<'a> {
    nodes: &'a [Node],
    given: &'a HashSet<&'a str>,
    givers: HashMap<&'a str, usize>,
}

// === impl Order ===

impl<'a> Order<'a> {
    fn new(nodes: &'a [Node], given: &'a HashSet<&'a str>) -> Result<Self, Error> {
        let mut givers = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for name in node.outputs.iter().filter(|name| !name.is_empty()) {
                if given.contains(name.as_str()) || givers.insert(name.as_str(), index).is_some() {
                    return Err(node.error(format!("output {name:?} is defined twice")));
                }
            }
        }
        Ok(Self { nodes, given, givers })
    }

    /// The nodes that `target` needs, each behind those that it reads; in the order of the file
    /// where that is so already, as it should be and not always is.
    fn of(&self, target: &str) -> Result<Vec<usize>, Error> {
        let needed = self.behind(target)?;
        let (mut order, mut done) = (Vec::new(), vec![false; self.nodes.len()]);
        for first in (0..self.nodes.len()).filter(|&index| needed[index]) {
            // Nodes that are waited for, and the places of those that wait.
            let mut waiting = vec![first];
            let mut waits = vec![false; self.nodes.len()];
            while let Some(&index) = waiting.last() {
                let node = &self.nodes[index];
                let open = |name: &str| self.givers.get(name).copied().filter(|&at| !done[at]);
                match node.reads().find_map(open) {
                    _ if done[index] => {
                        waiting.pop();
                    }
                    None => {
                        done[index] = true;
                        order.push(index);
                        waiting.pop();
                    }
                    Some(before) if waits[before] || before == index => {
                        return Err(node.error("it needs its own result".into()));
                    }
                    Some(before) => {
                        waits[index] = true;
                        waiting.push(before);
                    }
                }
            }
        }
        Ok(order)
    }

    /// Marks the nodes that a name is computed by.
    fn behind(&self, target: &str) -> Result<Vec<bool>, Error> {
        let mut needed = vec![false; self.nodes.len()];
        let Some(&last) = self.givers.get(target) else {
            return Err(Error::Outputs { names: vec![target.into()] });
        };
        let mut open = vec![last];
        while let Some(index) = open.pop() {
            if std::mem::replace(&mut needed[index], true) {
                continue;
            }
            let node = &self.nodes[index];
            for name in node.reads() {
                match self.givers.get(name) {
                    Some(&giver) => open.push(giver),
                    None if self.given.contains(name) => {}
                    None => {
                        return Err(
                            node.error(format!("input {name:?} is not defined by any other node"))
                        );
                    }
                }
            }
        }
        Ok(needed)
    }
}

impl Graph {
    /// The input, if there is one only.
    pub(crate) fn only_input(&self) -> Result<&Input, Error> {
        match self.inputs.as_slice() {
            [input] => Ok(input),
            inputs => Err(Error::Inputs {
                got: inputs.len(),
                names: inputs.iter().take(MAX_SHOWN).map(Input::name).collect(),
            }),
        }
    }

    /// True if the input is an image with its channels last: few values in the last dimension, many
    /// in the first, and a transposition that moves the last to the front.
    pub(crate) fn moves_channels(&self, row: &[usize]) -> bool {
        let to_front = |node: &Node| {
            node.op == "Transpose" && matches!(node.ints("perm"), Ok(Some([0, 3, 1, 2])))
        };
        matches!(row, &[height, _, 1..=4] if height > 4) && self.nodes.iter().any(to_front)
    }

    /// The same of an image, which may as well be reshaped for one channel, or to a list: nothing
    /// that takes its channels first may read it then.
    pub(crate) fn channels_last(&self, input: &str, image: [usize; 3]) -> bool {
        let last = matches!(image, [height, width, 1 | 3] if height > 4 && width > 4);
        self.moves_channels(&image) || last && !self.reads_channels_first(input)
    }

    /// True if an operator that takes channels first reads a tensor, or what is computed from its
    /// values one by one.
    fn reads_channels_first(&self, input: &str) -> bool {
        let (mut open, mut seen) = (vec![input], HashSet::from([input]));
        while let Some(name) = open.pop() {
            for node in self.nodes.iter().filter(|node| node.reads().any(|read| read == name)) {
                let op = node.op.rsplit('.').next().unwrap_or_default();
                if CHANNELS_FIRST.contains(&op) {
                    return true;
                }
                if VALUE_BY_VALUE.contains(&op) {
                    let outputs = node.outputs.iter().map(String::as_str);
                    open.extend(outputs.filter(|output| seen.insert(output)));
                }
            }
        }
        false
    }
}

fn named(bytes: &[u8]) -> Result<&str, Error> {
    wire::value_name(bytes).map_err(Error::not_onnx)
}

/// The error about bytes that are no ONNX model.
fn foreign(bytes: &[u8], reason: String) -> Error {
    match FileKind::of(bytes) {
        Some(kind) => Error::Foreign { kind },
        None => Error::not_onnx(reason),
    }
}

/// The initializers.
#[derive(Default)]
struct Constants {
    values: HashMap<String, Constant>,
    /// Names of all, also of those whose values are elsewhere.
    names: HashSet<String>,
    narrow: HashMap<String, DataType>,
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
        if let Some(kind) = narrow(tensor.data_type) {
            self.narrow.insert(tensor.name.into(), kind);
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

/// A transformer that gives every layer's states and attentions has a hundred.
const MAX_OUTPUTS: usize = 1 << 10;

/// Operators that take images with their channels first.
const CHANNELS_FIRST: &[&str] = &[
    "AveragePool",
    "BatchNormalization",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "DepthToSpace",
    "FusedConv",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "MaxPool",
    "PRelu",
    "QLinearConv",
    "SpaceToDepth",
];

/// Operators that exporters put between an image and what takes it.
const VALUE_BY_VALUE: &[&str] = &[
    "Add",
    "Cast",
    "Clip",
    "DequantizeLinear",
    "Div",
    "DynamicQuantizeLinear",
    "Identity",
    "Mul",
    "Neg",
    "Pad",
    "QuantizeLinear",
    "Relu",
    "Sub",
];
