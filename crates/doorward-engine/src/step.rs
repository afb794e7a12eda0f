//! One step of a program.

use crate::error::Error;
use crate::operators::Operator;

/// An operator with the slots that it reads and the one that it writes.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) operator: Box<dyn Operator>,
    pub(crate) inputs: Vec<usize>,
    pub(crate) output: usize,
    /// Slots that no later step reads.
    pub(crate) last_uses: Vec<usize>,
}

// === impl Step ===

impl Step {
    /// An error that names the step.
    pub(crate) fn failed(&self, error: &candle_core::Error) -> Error {
        let (node, op) = (self.name.clone(), self.operator.name().into());
        Error::Node { node, op, reason: error.to_string() }
    }
}
