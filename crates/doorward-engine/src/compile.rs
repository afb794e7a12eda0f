//! From a checked graph to the steps of a program: constants folded, shapes inferred, nodes
//! lowered.

use std::collections::HashMap;
use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use candle_onnx::onnx::tensor_proto::DataType;

use crate::error::Error;
use crate::fold::{fold, folds};
use crate::layout::{Layout, row_values};
use crate::lower::{Context, Known, Lowered, Operand, expand, lower};
use crate::onnx::constant::{Constant, Values};
use crate::onnx::ending;
use crate::onnx::graph::Graph;
use crate::onnx::node::Node;
use crate::operators::Operator;
use crate::operators::shape::{Concat, Reshape, Transpose};
use crate::size::Size;
use crate::step::{Mode, Step};

/// A graph lowered, its output not yet looked for.
pub(crate) struct Compiler<'a> {
    device: &'a Device,
    /// The batch that the graph was written for, if it was fixed.
    fixed_batch: Option<i64>,
    /// Types of constants that hold integers of fewer than 32 bits.
    narrow: HashMap<String, DataType>,
    values: HashMap<String, Value>,
    layouts: Vec<Layout>,
    steps: Vec<Step>,
    computed: Vec<Computed>,
    /// True inside of a branch, whose names the file does not know outside.
    in_branch: bool,
    /// Values that nodes on constants may still compute.
    foldable: usize,
}

/// The place of a name of the graph while compiling.
#[derive(Clone)]
enum Value {
    Constant(Rc<Constant>),
    Slot(usize),
}

/// The parts that a program is made of.
pub(crate) struct Compiled {
    pub(crate) steps: Vec<Step>,
    pub(crate) layouts: Vec<Layout>,
    pub(crate) output: usize,
    pub(crate) computed: Vec<Computed>,
}

/// A value of the graph that varies.
pub(crate) struct Computed {
    /// As the graph names it.
    pub(crate) name: String,
    pub(crate) slot: usize,
    /// True if it is what a layer gives to the next.
    pub(crate) ends_layer: bool,
}

// === impl Compiled ===

impl Compiled {
    /// The shape of a row of the output.
    pub(crate) fn row(&self) -> Vec<usize> {
        self.layouts[self.output].row()
    }

    /// Leaves a log-softmax over the whole row at the end away: it has the margins of its input.
    pub(crate) fn drop_log_softmax(&mut self) {
        let (mut reader, mut slot) = (None, self.output);
        while let Some(at) = self.steps.iter().rposition(|step| step.output == slot) {
            let &[input] = self.steps[at].inputs.as_slice() else { return };
            match self.steps[at].operator.name() {
                "Reshape" => (reader, slot) = (Some(at), input),
                "LogSoftmax" => {
                    let row = self.layouts[slot].row();
                    // Along any other axis it is zero, and nothing is a label's.
                    if row.iter().product::<usize>() != row.iter().copied().max().unwrap_or(1) {
                        return;
                    }
                    match reader {
                        None => self.output = input,
                        Some(reader) => self.steps[reader].inputs = vec![input],
                    }
                    slot = input;
                }
                _ => return,
            }
        }
    }

    /// The file's name for the output, in the same shape or another.
    pub(crate) fn logits_name(&self) -> Option<&str> {
        let mut slot = self.output;
        loop {
            let named = |value: &&Computed| value.slot == slot && !ending::is_made(&value.name);
            if let Some(value) = self.computed.iter().find(named) {
                return Some(&value.name);
            }
            let step = self.steps.iter().rfind(|step| step.output == slot)?;
            match (step.operator.name(), step.inputs.as_slice()) {
                ("Reshape", &[input]) => slot = input,
                _ => return None,
            }
        }
    }

    /// The only value of a row behind a zero: the logits of two labels.
    pub(crate) fn set_beside_zero(&mut self, device: &Device) -> Result<(), Error> {
        self.flatten();
        let zero = Tensor::zeros((1, 1), DType::F32, device)?;
        let both = Concat { dim: 1, parts: vec![Some(zero), None], sizes: vec![1, 1] };
        self.push(both, &[2]);
        Ok(())
    }

    /// The output's row as one list.
    pub(crate) fn flatten(&mut self) {
        let row = self.row();
        let list = [row.iter().product()];
        self.push(Reshape { rows: [row, list.to_vec()] }, &list);
    }

    fn push(&mut self, operator: impl Operator + 'static, row: &[usize]) {
        let output = self.layouts.len();
        self.steps.push(Step::new("output", Box::new(operator), vec![self.output], output));
        self.layouts.push(Layout::batch_first(row));
        self.output = output;
    }
}

// === impl Compiler ===

impl<'a> Compiler<'a> {
    pub(crate) fn new(graph: &mut Graph, device: &'a Device) -> Self {
        let constants = std::mem::take(&mut graph.constants);
        // Every constant can be computed from once, and shapes and pads are small.
        let stored: usize = constants.values().map(|constant| constant.values.len()).sum();
        let values = constants
            .into_iter()
            .map(|(name, constant)| (name, Value::Constant(Rc::new(constant))))
            .collect();
        Self {
            device,
            fixed_batch: graph.inputs.iter().find_map(|input| input.fixed_batch()),
            narrow: std::mem::take(&mut graph.narrow),
            values,
            layouts: Vec::new(),
            steps: Vec::new(),
            computed: Vec::new(),
            in_branch: false,
            foldable: stored + FOLDED_VALUES,
        }
    }

    /// An input that varies; slots are given in the order of the calls.
    pub(crate) fn input(&mut self, name: &str, layout: Layout) {
        self.values.insert(name.into(), Value::Slot(self.layouts.len()));
        self.layouts.push(layout);
    }

    /// An input that does not.
    pub(crate) fn constant(&mut self, name: &str, constant: Constant) {
        self.values.insert(name.into(), Value::Constant(Rc::new(constant)));
    }

    /// An image whose graph wants its channels last: the program's row has them first.
    pub(crate) fn channels_last_input(
        &mut self,
        name: &str,
        [height, width, channels]: [usize; 3],
    ) {
        let input = self.layouts.len();
        self.layouts.push(Layout::batch_first(&[channels, height, width]));
        let (layout, order) = self.layouts[input].transposed(&[0, 2, 3, 1]);
        let output = self.step(name, Box::new(Transpose { order }), vec![input], layout);
        self.values.insert(name.into(), Value::Slot(output));
    }

    /// Every node of the graph.
    pub(crate) fn lower(mut self, graph: &Graph) -> Result<Compiled, Error> {
        for node in &graph.nodes {
            self.whole(node)?;
        }
        match self.values.get(&graph.target) {
            Some(&Value::Slot(output)) => {
                let Self { steps, layouts, computed, .. } = self;
                Ok(Compiled { steps, layouts, output, computed })
            }
            _ => Err(Error::Outputs { names: vec![graph.output.clone()] }),
        }
    }

    /// A node, or the nodes that it stands for.
    fn whole(&mut self, node: &Node) -> Result<(), Error> {
        if let Some(pairs) = node.in_pairs() {
            return pairs.iter().try_for_each(|node| self.node(node));
        }
        if node.op == "If" {
            return self.branch(node);
        }
        let operand = |name: &str| self.operand(name);
        let known = Known { operand: &operand, narrow: &self.narrow };
        let Some(expansion) = expand(node, &known)? else { return self.node(node) };
        for (name, constant) in expansion.constants {
            self.constant(&name, constant);
        }
        expansion.nodes.iter().try_for_each(|node| self.whole(node))
    }

    /// The branch of an `If` that its condition, which has to be a constant, chooses.
    fn branch(&mut self, node: &Node) -> Result<(), Error> {
        let chosen = match self.constants(node).as_deref() {
            Some([Some(condition)]) => match condition.integers() {
                Some(&[0]) => "else_branch",
                Some(&[_]) => "then_branch",
                _ => return Err(node.error("its condition is no truth value".into())),
            },
            _ => return Err(node.error("its condition depends on the input".into())),
        };
        let branch = node.branch(chosen)?;
        for (name, constant) in &branch.constants {
            self.constant(name, constant.clone());
        }
        let around = std::mem::replace(&mut self.in_branch, true);
        branch.nodes.iter().try_for_each(|node| self.whole(node))?;
        self.in_branch = around;
        for (index, name) in branch.outputs.iter().enumerate() {
            match self.values.get(name).cloned() {
                Some(value) => self.define(node, index, value),
                None => return Err(node.error(format!("its output {name:?} is not computed"))),
            }
        }
        Ok(())
    }

    fn operand(&self, name: &str) -> Operand<'_> {
        match self.values.get(name) {
            None => Operand::Absent,
            Some(Value::Constant(constant)) => Operand::Constant(constant),
            Some(Value::Slot(slot)) => Operand::Activation(&self.layouts[*slot]),
        }
    }

    fn node(&mut self, node: &Node) -> Result<(), Error> {
        if folds(&node.op)
            && let Some(mut inputs) = self.constants(node)
        {
            let row = without_batch(node, &inputs);
            if let Some((index, row)) = &row {
                inputs[*index] = Some(row);
            }
            let mut budget = self.foldable;
            for (index, folded) in fold(node, &inputs, &mut budget)?.into_iter().enumerate() {
                self.define(node, index, Value::Constant(Rc::new(folded)));
            }
            self.foldable = budget;
            return Ok(());
        }
        let undefined = |name: &&String| !name.is_empty() && !self.values.contains_key(*name);
        if let Some(name) = node.inputs.iter().find(undefined) {
            return Err(node.error(format!("input {name:?} is an output that is not computed")));
        }
        if self.constants(node).is_some()
            && let Some(constant) = self.computed(node)?
        {
            self.define(node, 0, Value::Constant(Rc::new(constant)));
            return Ok(());
        }
        let operands: Vec<Operand<'_>> =
            node.inputs.iter().map(|name| self.operand(name)).collect();
        let context = Context {
            node,
            operands: &operands,
            fixed_batch: self.fixed_batch,
            device: self.device,
        };
        let lowered = lower(&context)?;
        let inputs: Vec<usize> = node
            .inputs
            .iter()
            .filter_map(|name| match self.values.get(name) {
                Some(Value::Slot(slot)) => Some(*slot),
                _ => None,
            })
            .collect();
        match lowered {
            Lowered::Constant(constant) => {
                self.define(node, 0, Value::Constant(Rc::new(constant)));
            }
            Lowered::Same => match node.inputs.first().and_then(|name| self.values.get(name)) {
                Some(value) => {
                    let value = value.clone();
                    self.define(node, 0, value);
                }
                None => return Err(node.error("its input is absent".into())),
            },
            Lowered::Step(operator, layout) => {
                let output = self.push(node, operator, inputs, layout)?;
                self.define(node, 0, Value::Slot(output));
            }
            Lowered::Chain(steps) => {
                let mut inputs = inputs;
                for (operator, layout) in steps {
                    inputs = vec![self.push(node, operator, inputs, layout)?];
                }
                if let &[output] = inputs.as_slice() {
                    self.define(node, 0, Value::Slot(output));
                }
            }
            Lowered::Steps(steps) => {
                for (index, (operator, layout)) in steps.into_iter().enumerate() {
                    let output = self.push(node, operator, inputs.clone(), layout)?;
                    self.define(node, index, Value::Slot(output));
                }
            }
        }
        Ok(())
    }

    /// The result of an operator that is lowered on constants alone, its first one taken for a
    /// batch: position encodings that a graph computes by convolutions.
    fn computed(&mut self, node: &Node) -> Result<Option<Constant>, Error> {
        let constants = self.constants(node).unwrap_or_default();
        let Some(&[rows, ref row @ ..]) =
            constants.first().and_then(|first| first.as_ref()).map(|first| first.dims.as_slice())
        else {
            return Ok(None);
        };
        if rows == 0 || row_values(row).is_none() {
            return Ok(None);
        }
        let layout = Layout::batch_first(row);
        let mut operands: Vec<Operand<'_>> = constants
            .iter()
            .map(|constant| constant.map_or(Operand::Absent, Operand::Constant))
            .collect();
        operands[0] = Operand::Activation(&layout);
        let device = self.device;
        let context = Context { node, operands: &operands, fixed_batch: None, device };
        let (Some(x), Ok(lowered)) = (constants[0].and_then(Constant::floats), lower(&context))
        else {
            return Ok(None);
        };
        let chain = match lowered {
            Lowered::Step(operator, out) => vec![(operator, out)],
            Lowered::Chain(chain) => chain,
            _ => return Ok(None),
        };
        let sizes: Option<Vec<usize>> =
            chain.iter().map(|(_, out)| out.as_batch_first().and_then(row_values)).collect();
        let Some(values) = sizes.map(|sizes| sizes.iter().sum::<usize>()) else {
            return Ok(None);
        };
        // Every result may be a sum over as many products as the other constants have values.
        let others: usize = constants[1..].iter().flatten().map(|other| other.values.len()).sum();
        let work = values.saturating_mul(rows).saturating_mul(1 + others / PRODUCTS_PER_VALUE);
        let remaining = self.foldable.checked_sub(work);
        let remaining =
            remaining.ok_or_else(|| node.error("it takes too much work on constants".into()))?;
        let x = Tensor::from_slice(x, [&[rows], row].concat(), device)?;
        let mut y = x;
        for (operator, _) in chain {
            y = Step::new(&node.name, operator, vec![0], 1).forward(&[y], 1, Mode::of(device))?;
        }
        let constant = Constant::from_tensor(&y)?;
        self.foldable = remaining;
        Ok(Some(constant))
    }

    fn define(&mut self, node: &Node, index: usize, value: Value) {
        if let Some(name) = node.outputs.get(index).filter(|name| !name.is_empty()) {
            if let Value::Slot(slot) = value {
                let ends_layer = ENDS_LAYER.contains(&node.op.as_str());
                let name = match self.in_branch {
                    true => ending::made(name),
                    false => name.clone(),
                };
                self.computed.push(Computed { name, slot, ends_layer });
            }
            self.values.insert(name.clone(), value);
        }
    }

    fn push(
        &mut self,
        node: &Node,
        operator: Box<dyn Operator>,
        inputs: Vec<usize>,
        layout: Layout,
    ) -> Result<usize, Error> {
        if row_values(&layout.row()).is_none() {
            return Err(node.error(format!("its output {layout} has no values, or too many")));
        }
        Ok(self.step(&node.name, operator, inputs, layout))
    }

    fn step(
        &mut self,
        name: &str,
        operator: Box<dyn Operator>,
        inputs: Vec<usize>,
        layout: Layout,
    ) -> usize {
        let output = self.layouts.len();
        self.layouts.push(layout);
        self.steps.push(Step::new(name, operator, inputs, output));
        output
    }

    /// The inputs, `None` where one is absent, if all that are there are constants.
    fn constants(&self, node: &Node) -> Option<Vec<Option<&Constant>>> {
        node.inputs
            .iter()
            .map(|name| match self.values.get(name) {
                _ if name.is_empty() => Some(None),
                Some(Value::Constant(constant)) => Some(Some(&**constant)),
                _ => None,
            })
            .collect()
    }
}

/// An input with one in place of the batch: a shape that a constant is repeated to, or the end of a
/// range over the batch. The result is the first row's, and what reads it repeats it.
fn without_batch(node: &Node, inputs: &[Option<&Constant>]) -> Option<(usize, Constant)> {
    let index = match node.op.as_str() {
        "ConstantOfShape" => 0,
        "Expand" | "Range" | "Reshape" | "Tile" => 1,
        _ => return None,
    };
    let shape = (*inputs.get(index)?)?;
    let dims = shape.integers()?;
    let is_batch = |&dim: &i64| Size::of_integer(dim).batches().is_some();
    if !dims.iter().any(is_batch) {
        return None;
    }
    let ones = dims.iter().map(|dim| if is_batch(dim) { 1 } else { *dim }).collect();
    Some((index, Constant { dims: shape.dims.clone(), values: Values::I64(ones) }))
}

/// Operators that end a layer: nonlinear functions, and what joins branches.
const ENDS_LAYER: &[&str] = &[
    "Add",
    "Celu",
    "Clip",
    "Concat",
    "Elu",
    "Gelu",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "Mul",
    "PRelu",
    "Relu",
    "Selu",
    "Sum",
    "Swish",
];

/// Products that take about as long as a value that another node computes.
const PRODUCTS_PER_VALUE: usize = 1 << 10;

/// Values that nodes on constants may compute beyond what the file stores.
///
/// The masks and position biases of a full-size Swin take some twenty million.
const FOLDED_VALUES: usize = 1 << 25;
