//! Which of a graph's outputs holds a score for each label.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, MAX_SHOWN};
use crate::onnx::input::{Dim, Input};
use crate::onnx::node::{Node, PASSES_ON};

/// An output, and the tensor of scores that it is made of.
pub(super) struct Chosen {
    pub(super) output: String,
    pub(super) target: String,
}

/// The output of the name `wanted` or, without it, the only one that can be meant.
///
/// Labels, the highest few scores and dictionaries of them stand for the scores that they are made
/// of. What another output is made of (features, hidden states) is not meant, and of scores and
/// their softmax the scores are. Fails if this leaves several, or none.
pub(super) fn choose(
    nodes: &[Node],
    outputs: &[Input],
    wanted: Option<&str>,
) -> Result<Chosen, Error> {
    let givers = Givers::new(nodes);
    let candidate = |output: &Input| Candidate {
        target: givers.scores(&output.name).to_owned(),
        output: output.clone(),
    };
    let chosen =
        |candidate: Candidate| Chosen { output: candidate.output.name, target: candidate.target };
    let unclear =
        || Error::Outputs { names: outputs.iter().take(MAX_SHOWN).map(Input::name).collect() };
    if let Some(wanted) = wanted {
        let output = outputs.iter().find(|output| output.name == wanted);
        return output.map(|output| chosen(candidate(output))).ok_or_else(|| Error::NoOutput {
            wanted: wanted.into(),
            names: outputs.iter().take(MAX_SHOWN).map(Input::name).collect(),
        });
    }
    let mut candidates: Vec<Candidate> = outputs.iter().map(candidate).collect();
    // The output that holds the scores themselves stands for all that are made of them.
    candidates.sort_by_key(|candidate| candidate.target != candidate.output.name);
    let mut seen = HashSet::new();
    candidates.retain(|candidate| seen.insert(candidate.target.clone()));
    if let [_] = candidates.as_slice() {
        return candidates.pop().map(chosen).ok_or_else(unclear);
    }
    candidates.retain(|candidate| givers.computes(&candidate.target));
    candidates.retain(|candidate| candidate.target != candidate.output.name || candidate.scores());
    let targets: Vec<String> = candidates.iter().map(|own| own.target.clone()).collect();
    let below: HashSet<&str> = targets.iter().flat_map(|target| givers.below(target)).collect();
    candidates.retain(|candidate| !below.contains(candidate.target.as_str()));
    // Pooled features beside the scores are vectors as well, maps and tokens are not.
    if candidates.len() > 1 && candidates.iter().any(Candidate::is_vector) {
        candidates.retain(Candidate::is_vector);
    }
    let named = |candidate: &Candidate| candidate.output.name.to_lowercase().contains("logits");
    if candidates.len() > 1 && candidates.iter().filter(|own| named(own)).count() == 1 {
        candidates.retain(named);
    }
    match (candidates.pop(), candidates.is_empty()) {
        (Some(last), true) => {
            let mut all = outputs.iter().map(candidate);
            let mut path = givers.path(&last.target).into_iter();
            let earlier = path.find_map(|name| all.find(|other| other.output.name == name));
            Ok(chosen(earlier.unwrap_or(last)))
        }
        _ => Err(unclear()),
    }
}

/// An output that may be meant.
struct Candidate {
    output: Input,
    /// The tensor of scores that it is made of.
    target: String,
}

// === impl Candidate ===

impl Candidate {
    /// True if its type, as far as it is declared, is one of scores.
    fn scores(&self) -> bool {
        self.output.is_float() || self.output.is_untyped()
    }

    /// True if it is declared as one vector for each row.
    fn is_vector(&self) -> bool {
        match self.output.dims.as_deref() {
            Some([_, _, rest @ ..]) => rest.iter().all(|dim| *dim == Dim::Fixed(1)),
            _ => false,
        }
    }
}

/// Nodes by what they give.
struct Givers<'a>(HashMap<&'a str, &'a Node>);

// === impl Givers ===

impl<'a> Givers<'a> {
    fn new(nodes: &'a [Node]) -> Self {
        let outputs = |node: &'a Node| node.outputs.iter().map(move |name| (name.as_str(), node));
        Self(nodes.iter().flat_map(outputs).collect())
    }

    fn computes(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The scores that labels, or the highest few of them, or a dictionary are made of.
    fn scores<'n>(&'n self, output: &'n str) -> &'n str {
        let (mut name, mut scores) = (output, output);
        for _ in 0..MAX_PATH {
            let Some(node) = self.0.get(name) else { break };
            let Some(input) = node.inputs.first() else { break };
            name = input;
            match node.op.as_str() {
                "ArgMax" | "TopK" | "ai.onnx.ml.ZipMap" => scores = name,
                "Cast" | "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" => {}
                _ => break,
            }
        }
        scores
    }

    /// Everything that a tensor is computed from.
    fn below(&self, target: &str) -> HashSet<&'a str> {
        let first = self.0.get(target).copied();
        let (mut below, mut open) = (HashSet::new(), Vec::from_iter(first));
        while let Some(node) = open.pop() {
            let fresh = node.reads().filter(|&name| below.insert(name));
            open.extend(fresh.filter_map(|name| self.0.get(name)));
        }
        below
    }

    /// The tensors before an ending that turns logits into probabilities, the last first.
    fn path(&self, target: &str) -> Vec<&'a str> {
        let (mut path, mut next) = (Vec::new(), self.0.get(target));
        while let Some(node) = next
            && path.len() < MAX_PATH
        {
            let ends = matches!(node.op.as_str(), "LogSoftmax" | "Sigmoid" | "Softmax");
            let (true, Some(input)) =
                (ends || PASSES_ON.contains(&node.op.as_str()), node.inputs.first())
            else {
                break;
            };
            path.push(input.as_str());
            next = self.0.get(input.as_str());
        }
        path
    }
}

/// Nodes between the scores and an output: a few.
const MAX_PATH: usize = 32;
