//! Activations that exporters write out as several nodes, put together again.
//!
//! One pass over memory in place of up to five, and one derivative. What is replaced stays in the
//! graph for others that read it; the program drops it when nobody does.

use std::collections::HashMap;

use crate::onnx::constant::Constant;
use crate::onnx::graph::Graph;
use crate::onnx::node::Node;

/// Replaces the last node of every pattern, those first that others are made of.
pub(crate) fn rewrite(graph: &mut Graph) {
    replace(graph, |index, node| match node.op.as_str() {
        "Div" | "Reciprocal" => index.softmax(node).or_else(|| index.sigmoid(node)),
        "Mul" => index.softmax(node),
        "Sub" => index.log_softmax(node),
        _ => None,
    });
    replace(graph, |index, node| match node.op.as_str() {
        "Mul" if node.inputs.len() == 2 => index.activation(node),
        _ => None,
    });
}

fn replace(graph: &mut Graph, by: impl Fn(&Index<'_>, &Node) -> Option<Node>) {
    let index = Index::new(graph);
    let nodes = graph.nodes.iter().enumerate();
    let replaced: Vec<(usize, Node)> =
        nodes.filter_map(|(at, node)| Some((at, by(&index, node)?))).collect();
    for (at, node) in replaced {
        graph.nodes[at] = node;
    }
}

/// Nodes and scalars by the name of what they give.
struct Index<'a> {
    nodes: HashMap<&'a str, &'a Node>,
    scalars: HashMap<&'a str, f32>,
    constants: &'a HashMap<String, Constant>,
}

impl<'a> Index<'a> {
    fn new(graph: &'a Graph) -> Self {
        let mut nodes = HashMap::new();
        let mut scalars = HashMap::new();
        let value = |constant: &Constant| match constant.floats() {
            Some(&[value]) => Some(value),
            _ => None,
        };
        for (name, constant) in &graph.constants {
            if let Some(value) = value(constant) {
                scalars.insert(name.as_str(), value);
            }
        }
        for node in &graph.nodes {
            let Some(output) = node.outputs.first() else { continue };
            if node.op == "Constant"
                && let Some(value) = node.constant().ok().as_ref().and_then(value)
            {
                scalars.insert(output, value);
            }
            nodes.insert(output.as_str(), node);
        }
        Self { nodes, scalars, constants: &graph.constants }
    }

    /// The operator that computes `name`, if it is `op`.
    fn node(&self, name: &str, op: &str) -> Option<&'a Node> {
        self.nodes.get(name).copied().filter(|node| node.op == op)
    }

    fn is(&self, name: &str, value: f32) -> bool {
        self.scalars.get(name).is_some_and(|own| (own - value).abs() <= 1e-3 * value.abs())
    }

    /// The inputs of a node of two, either one first.
    fn either(node: &Node) -> [(&str, &str); 2] {
        match node.inputs.as_slice() {
            [a, b] => [(a, b), (b, a)],
            _ => [("", ""); 2],
        }
    }

    /// The only axis of a reduction that keeps it.
    fn axis(&self, node: &Node) -> Option<i64> {
        let axes = match (node.ints("axes").ok()?, node.inputs.get(1)) {
            (Some(axes), _) => axes.to_vec(),
            (None, Some(name)) => self.integers(name)?,
            (None, None) => return None,
        };
        match axes.as_slice() {
            &[axis] if node.int("keepdims", 1).is_ok_and(|keep| keep != 0) => Some(axis),
            _ => None,
        }
    }

    fn integers(&self, name: &str) -> Option<Vec<i64>> {
        match self.constants.get(name) {
            Some(constant) => constant.integers().map(<[i64]>::to_vec),
            None => self.node(name, "Constant")?.constant().ok()?.integers().map(<[i64]>::to_vec),
        }
    }

    /// `exp(x) / sum(exp(x))`, with or without the largest value subtracted from `x`.
    fn softmax(&self, node: &Node) -> Option<Node> {
        let pairs = match node.op.as_str() {
            "Div" => vec![Self::either(node)[0]],
            "Mul" => Self::either(node).to_vec(),
            _ => return None,
        };
        let (exp, axis) = pairs.into_iter().find_map(|(exp, by)| {
            let sum = match node.op.as_str() {
                "Div" => by,
                _ => self.node(by, "Reciprocal")?.inputs.first()?,
            };
            let sum = self.node(sum, "ReduceSum")?;
            (sum.inputs.first()? == exp).then_some((exp, self.axis(sum)?))
        })?;
        let x = self.node(exp, "Exp")?.inputs.first()?;
        Some(
            node.made("Softmax", &[self.shifted(x, axis)], &node.outputs[0]).with_int("axis", axis),
        )
    }

    /// `x - log(sum(exp(x)))`, with or without the largest value subtracted from `x`.
    fn log_softmax(&self, node: &Node) -> Option<Node> {
        let (x, log) = Self::either(node)[0];
        let sum = match self.node(log, "Log") {
            Some(log) => self.node(log.inputs.first()?, "ReduceSum")?,
            None => self.node(log, "ReduceLogSumExp")?,
        };
        let summed = sum.inputs.first()?;
        let inner = match sum.op.as_str() {
            "ReduceSum" => self.node(summed, "Exp")?.inputs.first()?,
            _ => summed,
        };
        let axis = self.axis(sum)?;
        let made = || node.made("LogSoftmax", &[self.shifted(x, axis)], &node.outputs[0]);
        (inner == x).then(|| made().with_int("axis", axis))
    }

    /// `x`, if a tensor is `x` less its largest value along an axis.
    fn shifted<'n>(&self, name: &'n str, axis: i64) -> &'n str
    where
        'a: 'n,
    {
        let Some(sub) = self.node(name, "Sub") else { return name };
        match sub.inputs.as_slice() {
            [x, most]
                if self.node(most, "ReduceMax").is_some_and(|most| {
                    most.inputs.first() == Some(x) && self.axis(most) == Some(axis)
                }) =>
            {
                x
            }
            _ => name,
        }
    }

    /// `1 / (1 + exp(-x))`
    fn sigmoid(&self, node: &Node) -> Option<Node> {
        let below = match (node.op.as_str(), node.inputs.as_slice()) {
            ("Div", [one, below]) if self.is(one, 1.0) => below,
            ("Reciprocal", [below]) => below,
            _ => return None,
        };
        let exp = Self::either(self.node(below, "Add")?)
            .into_iter()
            .find_map(|(exp, one)| self.node(exp, "Exp").filter(|_| self.is(one, 1.0)))?;
        let negative = self.nodes.get(exp.inputs.first()?.as_str())?;
        let x = match (negative.op.as_str(), negative.inputs.as_slice()) {
            ("Neg", [x]) => x,
            ("Mul", _) => {
                let minus = Self::either(negative).into_iter();
                minus.filter(|(_, minus)| self.is(minus, -1.0)).map(|(x, _)| x).next()?
            }
            _ => return None,
        };
        Some(node.made("Sigmoid", &[x], &node.outputs[0]))
    }

    /// The activation of one input that a product is; `None` if it is none.
    fn activation(&self, node: &Node) -> Option<Node> {
        Self::either(node).into_iter().find_map(|(x, gate)| {
            if let Some(sigmoid) = self.node(gate, "Sigmoid")
                && sigmoid.inputs == [x]
            {
                return Some(node.replaced_by("Swish", x));
            }
            if let Some(hard) = self.node(gate, "HardSigmoid")
                && hard.inputs == [x]
                && hard.float("alpha", 0.2).is_ok_and(|alpha| (alpha - 1.0 / 6.0).abs() < 1e-4)
                && hard.float("beta", 0.5).is_ok_and(|beta| beta == 0.5)
            {
                return Some(node.replaced_by("HardSwish", x));
            }
            self.gelu(node)
        })
    }

    /// `x * (1 + erf(x / sqrt(2))) * 0.5`, its three factors in any order.
    fn gelu(&self, node: &Node) -> Option<Node> {
        let mut factors: Vec<&str> = Vec::new();
        for name in &node.inputs {
            match self.node(name, "Mul") {
                Some(product) if factors.len() < 2 => {
                    factors.extend(product.inputs.iter().map(String::as_str));
                }
                _ => factors.push(name),
            }
        }
        let half = factors.iter().position(|name| self.is(name, 0.5))?;
        factors.swap_remove(half);
        let &[a, b] = factors.as_slice() else {
            return None;
        };
        [(a, b), (b, a)].into_iter().find_map(|(x, one_and_erf)| {
            let sum = self.node(one_and_erf, "Add")?;
            let erf = Self::either(sum)
                .into_iter()
                .find_map(|(erf, one)| self.node(erf, "Erf").filter(|_| self.is(one, 1.0)))?;
            let scaled = self.nodes.get(erf.inputs.first()?.as_str())?;
            let sqrt_2 = std::f32::consts::SQRT_2;
            let fits = match (scaled.op.as_str(), scaled.inputs.as_slice()) {
                ("Div", [own, by]) => own == x && self.is(by, sqrt_2),
                ("Mul", _) => Self::either(scaled)
                    .into_iter()
                    .any(|(own, by)| own == x && self.is(by, 1.0 / sqrt_2)),
                _ => false,
            };
            fits.then(|| node.replaced_by("Gelu", x))
        })
    }
}
