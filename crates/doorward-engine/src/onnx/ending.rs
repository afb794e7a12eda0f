//! The ending of a graph that makes probabilities of logits, taken back.
//!
//! Probabilities that are near one are all alike in 32 bits, so margins are taken of logits. Where
//! the graph ends in probabilities, whoever computes them and whatever stands behind (reshapes,
//! clips, averages over crops or models, `p` beside `1 - p`), its target becomes their logarithm,
//! or the logit of probabilities that are independent of each other. Both are computed from what
//! the softmax or the sigmoid takes, never from the probabilities, so nothing is lost to rounding.

use std::collections::{HashMap, HashSet};

use crate::onnx::constant::{Constant, Values};
use crate::onnx::graph::Graph;
use crate::onnx::node::{MADE, Node, PASSES_ON};

/// What the output of a model file holds.
///
/// ```
/// use candle_core::Device;
/// use doorward_engine::{Classifier, Model, OutputKind};
///
/// # if cfg!(feature = "ort") { return Ok(()); } // It needs a library.
/// let path = "tests/golden/softmax.onnx".as_ref();
/// let model = Model::load(path, &[0.0], &[1.0], &Device::Cpu)?;
/// assert_eq!(model.output_kind(), OutputKind::Probabilities);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputKind {
    /// Labels, or the highest few scores; the logits that they are chosen by are judged.
    Chosen,
    /// A probability for each label by itself, as of a sigmoid; their logits are judged.
    IndependentProbabilities,
    /// Logarithms of probabilities that sum to one, which have the margins of their logits.
    LogProbabilities,
    /// Logits.
    Logits,
    /// Probabilities that sum to one, as of a softmax; their logits are judged.
    Probabilities,
}

impl std::fmt::Display for OutputKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Chosen => "labels, or the highest scores alone",
            Self::IndependentProbabilities => "independent probabilities, as of a sigmoid",
            Self::LogProbabilities => "log-probabilities",
            Self::Logits => "logits",
            Self::Probabilities => "probabilities, as of a softmax",
        })
    }
}

/// Makes logits, or log-probabilities, the target of a graph; returns what the target was before.
pub(crate) fn take_back(graph: &mut Graph) -> OutputKind {
    let mut ending = Ending::new(graph);
    let (mut target, mut scores) = (graph.target.clone(), OutputKind::Logits);
    // A softmax of probabilities is as saturated as these are.
    for _ in 0..MOST_ENDINGS {
        let Some((before, kind)) = ending.before(&target) else { break };
        if scores == OutputKind::Logits {
            scores = kind;
        }
        target = before;
    }
    let Ending { mut made, constants, .. } = ending;
    // Others were made on ways that lead nowhere.
    let mut needed = HashSet::from([target.clone()]);
    for node in made.iter().rev() {
        if needed.contains(&node.outputs[0]) {
            needed.extend(node.inputs.iter().cloned());
        }
    }
    made.retain(|node| needed.contains(&node.outputs[0]));
    if graph.target != graph.output {
        scores = OutputKind::Chosen;
    }
    graph.target = target;
    graph.nodes.extend(made);
    graph.constants.extend(constants);
    scores
}

/// The operator that leaves decisions alone of the scores, which nothing brings back.
pub(crate) fn decides(graph: &Graph) -> Option<&str> {
    let givers = Ending::new(graph).givers;
    let mut name = graph.target.as_str();
    for _ in 0..MAX_DEPTH {
        let node = givers.get(name)?;
        match node.op.as_str() {
            op if DECIDES.contains(&op) => return Some(&node.op),
            op if PASSES_ON.contains(&op) => name = node.inputs.first()?,
            _ => return None,
        }
    }
    None
}

/// A name that is none of the file's.
pub(crate) fn made(what: &str) -> String {
    format!("{MADE}{what}")
}

/// True if a name is none of the file's.
pub(crate) fn is_made(name: &str) -> bool {
    name.starts_with(MADE)
}

/// The nodes of a graph, and those that take its ending back.
struct Ending<'a> {
    givers: HashMap<&'a str, &'a Node>,
    given: &'a HashMap<String, Constant>,
    made: Vec<Node>,
    constants: Vec<(String, Constant)>,
    known: HashMap<(Wanted, String), Option<String>>,
    depth: usize,
}

/// A function of a tensor of probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wanted {
    /// `ln(p)`
    Log,
    /// `ln(1 - p)`
    LogComplement,
    /// `ln(p) - ln(1 - p)`
    Logit,
}

// === impl Ending ===

impl<'a> Ending<'a> {
    fn new(graph: &'a Graph) -> Self {
        let outputs = |node: &'a Node| node.outputs.first().map(|name| (name.as_str(), node));
        Self {
            givers: graph.nodes.iter().filter_map(outputs).collect(),
            given: &graph.constants,
            made: Vec::new(),
            constants: Vec::new(),
            known: HashMap::new(),
            depth: 0,
        }
    }

    /// What probabilities are made of, or their logarithms are, and which of both `name` is; `None`
    /// if it is neither.
    fn before(&mut self, name: &str) -> Option<(String, OutputKind)> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let before = self.before_here(name);
        self.depth -= 1;
        before
    }

    fn before_here(&mut self, name: &str) -> Option<(String, OutputKind)> {
        let top = self.top(name);
        if let Some(softmax) = self.log_softmax(&top) {
            // Taken back before, or the file's own.
            let input = softmax.inputs.first()?.clone();
            return match self.before(&input) {
                Some((before, _)) => Some((before, OutputKind::LogProbabilities)),
                None if is_made(&top) => None,
                None => Some((top, OutputKind::LogProbabilities)),
            };
        }
        if let Some(node) = self.giver(&top, &["Log"]) {
            let probabilities = self.top(node.inputs.first()?);
            let (before, _) = self.before(&probabilities)?;
            return Some((before, OutputKind::LogProbabilities));
        }
        if !self.are_complements(&top)
            && let Some(logit) = self.get(Wanted::Logit, &top)
        {
            return Some((logit, OutputKind::IndependentProbabilities));
        }
        let log = self.get(Wanted::Log, &top)?;
        Some((log, OutputKind::Probabilities))
    }

    /// The tensor before operators that keep the order of its values, clips and factors.
    fn top(&self, name: &str) -> String {
        let mut name = name.to_owned();
        for _ in 0..MAX_DEPTH {
            let Some(node) = self.givers.get(name.as_str()) else { break };
            let next = match node.op.as_str() {
                "Cast" | "Clip" | "Identity" => node.inputs.first(),
                "Mul" | "Max" | "Min" | "Add" => self.beside_scalar(node),
                "Div" if self.scalar(node, 1).is_some_and(|by| by > 0.0) => node.inputs.first(),
                "DequantizeLinear" => self.quantized(node),
                // By the sum of what has no negative value: the same for all labels.
                "LpNormalization" if matches!(node.int("p", 2), Ok(1)) => node.inputs.first(),
                _ => None,
            };
            match next {
                Some(next) => name.clone_from(next),
                None => break,
            }
        }
        name
    }

    /// The operand beside a scalar that scales, bounds or lifts probabilities without another end.
    fn beside_scalar<'n>(&self, node: &'n Node) -> Option<&'n String> {
        let [first, second] = node.inputs.as_slice() else { return None };
        let fits = |value: f32| match node.op.as_str() {
            "Add" => (0.0..=MOST_EPSILON).contains(&value),
            "Max" => value <= MOST_EPSILON,
            "Min" => value >= 1.0 - MOST_EPSILON,
            _ => value > 0.0,
        };
        match (self.scalar(node, 0), self.scalar(node, 1)) {
            (None, Some(value)) if fits(value) => Some(first),
            (Some(value), None) if fits(value) => Some(second),
            _ => None,
        }
    }

    /// What is quantised right before a node takes it back to floats.
    fn quantized(&self, node: &Node) -> Option<&'a String> {
        self.giver(node.inputs.first()?, &["QuantizeLinear"])?.inputs.first()
    }

    /// The floats that a function on integers takes, if its result becomes floats here.
    fn on_integers(&mut self, node: &Node, op: &str) -> Option<String> {
        let function = self.giver(node.inputs.first()?, &[op])?;
        let mut inputs = function.inputs.iter().take(3).map(String::as_str);
        let inputs = [inputs.next()?, inputs.next()?, inputs.next()?];
        Some(self.one(function, "DequantizeLinear", &inputs))
    }

    /// The log-softmax that gives a tensor, through reshapes.
    fn log_softmax(&self, name: &str) -> Option<&Node> {
        let mut name = name;
        for _ in 0..MAX_DEPTH {
            let node = self.node(name)?;
            match node.op.as_str() {
                "LogSoftmax" => return Some(node),
                op if PASSES_ON.contains(&op) => name = node.inputs.first()?,
                _ => return None,
            }
        }
        None
    }

    /// True if `name` is `p` beside `1 - p`.
    fn are_complements(&self, name: &str) -> bool {
        let mut name = name;
        for _ in 0..MAX_DEPTH {
            let Some(node) = self.givers.get(name) else { return false };
            match (node.op.as_str(), node.inputs.as_slice()) {
                ("Concat", [a, b]) => {
                    let complement = |one: &str, other: &str| {
                        let sub = self.givers.get(self.moved(one));
                        sub.filter(|sub| sub.op == "Sub" && self.scalar(sub, 0) == Some(1.0))
                            .and_then(|sub| sub.inputs.get(1))
                            .is_some_and(|p| self.moved(p) == self.moved(other))
                    };
                    return complement(a, b) || complement(b, a);
                }
                (op, [input, ..]) if PASSES_ON.contains(&op) => name = input,
                _ => return false,
            }
        }
        false
    }

    /// The tensor before operators that move its values or bound them.
    fn moved<'n>(&'n self, name: &'n str) -> &'n str {
        let mut name = name;
        for _ in 0..MAX_DEPTH {
            let moves = |op: &str| op == "Clip" || PASSES_ON.contains(&op);
            let node = self.givers.get(name).filter(|node| moves(&node.op));
            match node.and_then(|node| node.inputs.first()) {
                Some(input) => name = input,
                None => break,
            }
        }
        name
    }

    /// The name of a function of the tensor `name`; `None` if that is no tensor of probabilities.
    fn get(&mut self, wanted: Wanted, name: &str) -> Option<String> {
        let key = (wanted, name.to_owned());
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        if self.depth == MAX_DEPTH || self.made.len() > MAX_MADE {
            return None;
        }
        self.depth += 1;
        let made = match wanted {
            Wanted::Log => self.log(name),
            Wanted::LogComplement => self.log_complement(name),
            Wanted::Logit => self.logit(name),
        };
        self.depth -= 1;
        self.known.insert(key, made.clone());
        made
    }

    fn log(&mut self, name: &str) -> Option<String> {
        if let Some(constant) = self.constant(name) {
            return self.log_of_constant(&constant);
        }
        let node = *self.givers.get(name)?;
        let x = node.inputs.first()?;
        match node.op.as_str() {
            "Softmax" => Some(self.make(node.on("LogSoftmax", x, ""))),
            "Sigmoid" => {
                let negative = self.one(node, "Neg", &[x]);
                self.minus_softplus(node, &negative)
            }
            "DequantizeLinear" => {
                if let Some(floats) = self.on_integers(node, "com.microsoft.QLinearSigmoid") {
                    let negative = self.one(node, "Neg", &[&floats]);
                    return self.minus_softplus(node, &negative);
                }
                if let Some(floats) = self.on_integers(node, "com.microsoft.QLinearSoftmax") {
                    let softmax = self.giver(x, &["com.microsoft.QLinearSoftmax"])?;
                    let axis = softmax.int("axis", -1).ok()?;
                    let made = node.made("LogSoftmax", &[&floats], "").with_int("axis", axis);
                    return Some(self.make(made));
                }
                self.moved_function(node, Wanted::Log)
            }
            "Exp" => Some(x.clone()),
            "MatMul" => self.log_of_product(node),
            "Sub" if self.scalar(node, 0) == Some(1.0) => {
                self.get(Wanted::LogComplement, node.inputs.get(1)?)
            }
            "Mul" | "Div" => {
                let (a, b) = (self.get(Wanted::Log, x)?, node.inputs.get(1)?.clone());
                let b = self.get(Wanted::Log, &b)?;
                let op = if node.op == "Mul" { "Add" } else { "Sub" };
                Some(self.one(node, op, &[&a, &b]))
            }
            "Add" | "Max" | "Min" if self.beside_scalar(node).is_some() => {
                let inner = self.beside_scalar(node)?.clone();
                self.get(Wanted::Log, &inner)
            }
            "Add" | "Mean" | "Sum" => self.log_of_sum(node, Wanted::Log),
            "ReduceL1" | "ReduceMean" | "ReduceSum" => self.log_of_reduced(node, Wanted::Log),
            _ => self.moved_function(node, Wanted::Log),
        }
    }

    fn log_complement(&mut self, name: &str) -> Option<String> {
        let node = *self.givers.get(name)?;
        let x = node.inputs.first()?;
        match node.op.as_str() {
            "Sigmoid" => self.minus_softplus(node, x),
            "DequantizeLinear" => match self.on_integers(node, "com.microsoft.QLinearSigmoid") {
                Some(floats) => self.minus_softplus(node, &floats),
                None => self.moved_function(node, Wanted::LogComplement),
            },
            "Sub" if self.scalar(node, 0) == Some(1.0) => {
                self.get(Wanted::Log, node.inputs.get(1)?)
            }
            "Mean" => self.log_of_sum(node, Wanted::LogComplement),
            "ReduceMean" => self.log_of_reduced(node, Wanted::LogComplement),
            // A sum divided by the number of its terms.
            "Div" | "Mul" => {
                let sum = [x, node.inputs.get(1)?]
                    .into_iter()
                    .find_map(|name| self.giver(name, &["Add", "Sum"]))?;
                let other = usize::from(sum.outputs.first() == Some(x));
                let factor = self.scalar(node, other)?;
                let terms = self.terms(sum)?;
                let share = if node.op == "Mul" { factor } else { 1.0 / factor };
                if (share * terms.len() as f32 - 1.0).abs() > 1e-3 {
                    return None;
                }
                self.log_mean(node, &terms, Wanted::LogComplement)
            }
            _ => self.moved_function(node, Wanted::LogComplement),
        }
    }

    fn logit(&mut self, name: &str) -> Option<String> {
        let node = *self.givers.get(name)?;
        match node.op.as_str() {
            "HardSigmoid" | "Sigmoid" => node.inputs.first().cloned(),
            "DequantizeLinear" => match self.on_integers(node, "com.microsoft.QLinearSigmoid") {
                Some(floats) => Some(floats),
                None => self.moved_function(node, Wanted::Logit),
            },
            op if PASSES_ON.contains(&op) || matches!(op, "Clip" | "Concat" | "Slice") => {
                self.moved_function(node, Wanted::Logit)
            }
            _ => {
                let log = self.get(Wanted::Log, name)?;
                let complement = self.get(Wanted::LogComplement, name)?;
                Some(self.one(node, "Sub", &[&log, &complement]))
            }
        }
    }

    /// The function of what a node moves, joins or bounds, moved in the same way.
    fn moved_function(&mut self, node: &'a Node, wanted: Wanted) -> Option<String> {
        let x = node.inputs.first()?;
        match node.op.as_str() {
            "Clip" => self.get(wanted, x),
            "DequantizeLinear" => {
                let x = self.quantized(node)?;
                self.get(wanted, x)
            }
            "Concat" => {
                let inputs: Option<Vec<String>> =
                    node.inputs.iter().map(|input| self.get(wanted, input)).collect();
                let mut joined = node.on("Concat", x, "");
                joined.inputs = inputs?;
                Some(self.make(joined))
            }
            op if PASSES_ON.contains(&op) || matches!(op, "Gather" | "Slice") => {
                let inner = self.get(wanted, x)?;
                Some(self.make(node.on(op, &inner, "")))
            }
            _ => None,
        }
    }

    /// `-ln(1 + exp(x))`
    fn minus_softplus(&mut self, node: &Node, x: &str) -> Option<String> {
        let softplus = self.one(node, "Softplus", &[x]);
        Some(self.one(node, "Neg", &[&softplus]))
    }

    /// The terms of a sum that is written as one node or as several.
    fn terms(&self, sum: &Node) -> Option<Vec<String>> {
        let (mut terms, mut open) = (Vec::new(), sum.inputs.clone());
        open.reverse();
        while let Some(name) = open.pop() {
            match self.giver(&name, &["Add", "Sum"]) {
                Some(inner) => open.extend(inner.inputs.iter().rev().cloned()),
                None => terms.push(name),
            }
            if terms.len() + open.len() > MOST_TERMS {
                return None;
            }
        }
        Some(terms)
    }

    fn log_of_sum(&mut self, node: &'a Node, wanted: Wanted) -> Option<String> {
        match node.op.as_str() {
            "Mean" => self.log_mean(node, &node.inputs, wanted),
            _ => {
                let terms = self.terms(node)?;
                self.log_sum(node, &terms, wanted)
            }
        }
    }

    fn log_mean(&mut self, node: &'a Node, terms: &[String], wanted: Wanted) -> Option<String> {
        let sum = self.log_sum(node, terms, wanted)?;
        let count = (terms.len() as f32).ln();
        let count = self.keep(Constant { dims: vec![], values: Values::F32(vec![count]) });
        Some(self.one(node, "Sub", &[&sum, &count]))
    }

    /// `ln(exp(a) + exp(b) + ...)`, which is `max(a, b) + softplus(-|a - b|)` for two.
    fn log_sum(&mut self, node: &'a Node, terms: &[String], wanted: Wanted) -> Option<String> {
        let mut sum: Option<String> = None;
        for term in terms.iter().take(MOST_TERMS) {
            let term = self.get(wanted, term)?;
            sum = Some(match sum {
                None => term,
                Some(sum) => {
                    let most = self.one(node, "Max", &[&sum, &term]);
                    let difference = self.one(node, "Sub", &[&sum, &term]);
                    let distance = self.one(node, "Abs", &[&difference]);
                    let closeness = self.one(node, "Neg", &[&distance]);
                    let lift = self.one(node, "Softplus", &[&closeness]);
                    self.one(node, "Add", &[&most, &lift])
                }
            });
        }
        sum
    }

    fn log_of_reduced(&mut self, node: &'a Node, wanted: Wanted) -> Option<String> {
        let x = node.inputs.first()?;
        let log = self.get(wanted, x)?;
        let sum = self.make(node.on("ReduceLogSumExp", &log, ""));
        if node.op != "ReduceMean" {
            return Some(sum);
        }
        // The logarithm of how many are averaged: a sum of as many ones.
        let zeros = self.one(node, "Sub", &[&log, &log]);
        let count = self.make(node.on("ReduceLogSumExp", &zeros, ""));
        Some(self.one(node, "Sub", &[&sum, &count]))
    }

    /// `ln(p @ M)` of a constant matrix without a negative value: labels that are groups of others.
    fn log_of_product(&mut self, node: &'a Node) -> Option<String> {
        let matrix = self.constant(node.inputs.get(1)?)?;
        let (&[from, to], values) = (matrix.dims.as_slice(), matrix.floats()?) else {
            return None;
        };
        let fits = values.iter().all(|value| *value >= 0.0 && value.is_finite());
        if !fits || from.checked_mul(to)? > MOST_PAIRS {
            return None;
        }
        let log = self.get(Wanted::Log, node.inputs.first()?)?;
        let values = values.iter().map(|&value| if value > 0.0 { value.ln() } else { NEVER });
        let values = Values::F32(values.collect());
        let weights = self.keep(Constant { dims: matrix.dims.clone(), values });
        let axes = Constant { dims: vec![1], values: Values::I64(vec![-1]) };
        let axes = self.keep(axes);
        let column = self.one(node, "Unsqueeze", &[&log, &axes]);
        let terms = self.one(node, "Add", &[&column, &weights]);
        let sum = node.made("ReduceLogSumExp", &[&terms], "").with_ints("axes", &[-2]);
        Some(self.make(sum.with_int("keepdims", 0)))
    }

    fn log_of_constant(&mut self, constant: &Constant) -> Option<String> {
        let values = constant.floats()?;
        if values.is_empty() || values.iter().any(|value| *value <= 0.0 || !value.is_finite()) {
            return None;
        }
        let values = Values::F32(values.iter().map(|value| value.ln()).collect());
        Some(self.keep(Constant { dims: constant.dims.clone(), values }))
    }

    fn keep(&mut self, constant: Constant) -> String {
        let name = format!("{MADE}constant {}", self.constants.len());
        self.constants.push((name.clone(), constant));
        name
    }

    /// A new node on these inputs; returns its output's name.
    fn one(&mut self, node: &Node, op: &str, inputs: &[&str]) -> String {
        self.make(node.made(op, inputs, ""))
    }

    fn make(&mut self, mut node: Node) -> String {
        let name = format!("{MADE}{} {}", node.op, self.made.len());
        node.outputs = vec![name.clone()];
        self.made.push(node);
        name
    }

    fn node(&self, name: &str) -> Option<&Node> {
        let made = || self.made.iter().find(|node| node.outputs[0] == name);
        self.givers.get(name).copied().or_else(made)
    }

    fn giver(&self, name: &str, ops: &[&str]) -> Option<&'a Node> {
        self.givers.get(name).copied().filter(|node| ops.contains(&node.op.as_str()))
    }

    fn constant(&self, name: &str) -> Option<Constant> {
        match self.given.get(name) {
            Some(constant) => Some(constant.clone()),
            None => self.giver(name, &["Constant"])?.constant().ok(),
        }
    }

    /// The input of a node, if it is a constant of one value.
    fn scalar(&self, node: &Node, index: usize) -> Option<f32> {
        match self.constant(node.inputs.get(index)?)?.floats()? {
            &[value] => Some(value),
            _ => None,
        }
    }
}

/// Operators that give a few values only, whatever they take.
const DECIDES: &[&str] = &[
    "ArgMax",
    "ArgMin",
    "Ceil",
    "Equal",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Hardmax",
    "Less",
    "LessOrEqual",
    "Not",
    "OneHot",
    "Round",
    "Sign",
];

/// Endings that stand behind each other: probabilities of probabilities are a mistake seen in the
/// wild, more are none.
const MOST_ENDINGS: usize = 3;

/// Operators on the way from a softmax to the output.
const MAX_DEPTH: usize = 64;

/// Nodes made for one ending.
const MAX_MADE: usize = 1 << 10;

/// Models of an ensemble, or crops of an image, that are added up one by one.
const MOST_TERMS: usize = 64;

/// Entries of a matrix that takes labels to others.
const MOST_PAIRS: usize = 1 << 22;

/// Stands for the logarithm of zero beside others, of which it is finitely far.
const NEVER: f32 = -1e30;

/// Largest bound, or addend, that only keeps probabilities from zero.
const MOST_EPSILON: f32 = 1e-2;
