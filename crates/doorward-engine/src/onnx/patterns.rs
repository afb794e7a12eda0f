//! Activations that exporters write out as several nodes, put together again.
//!
//! One pass over memory in place of up to five, and one derivative. What is replaced stays in the
//! graph for others that read it; the program drops it when nobody does.

use std::collections::HashMap;

use crate::onnx::constant::Constant;
use crate::onnx::graph::{Graph, Node};

/// Replaces the last node of every pattern.
pub(crate) fn rewrite(graph: &mut Graph) {
    let index = Index::new(graph);
    let activations: Vec<(usize, Node)> = graph
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.op == "Mul" && node.inputs.len() == 2)
        .filter_map(|(at, node)| Some((at, index.activation(node)?)))
        .collect();
    for (at, node) in activations {
        graph.nodes[at] = node;
    }
}

/// Nodes and scalars by the name of what they give.
struct Index<'a> {
    nodes: HashMap<&'a str, &'a Node>,
    scalars: HashMap<&'a str, f32>,
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
        Self { nodes, scalars }
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
