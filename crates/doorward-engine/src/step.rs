//! One step of a program, and how it runs.

use candle_core::{Device, Result, Tensor};

use crate::composition::Kept;
use crate::error::Error;
use crate::kernels::loops;
use crate::operators::{Backward, Operator};

/// An operator with the slots that it reads and the one that it writes.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) operator: Box<dyn Operator>,
    pub(crate) inputs: Vec<usize>,
    pub(crate) output: usize,
    /// Slots that no later step reads.
    pub(crate) last_uses: Vec<usize>,
    /// Constants of the operator's composition.
    kept: Kept,
}

/// The way in which the steps of a program run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Steps run by candle's operators alone, as on every accelerator.
    Composed,
    /// Steps run by loops where an operator has them, as on the CPU.
    Loops,
}

// === impl Step ===

impl Step {
    pub(crate) fn new(
        name: &str,
        operator: Box<dyn Operator>,
        inputs: Vec<usize>,
        output: usize,
    ) -> Self {
        let (name, last_uses, kept) = (name.into(), Vec::new(), Kept::default());
        Self { name, operator, inputs, output, last_uses, kept }
    }

    /// The output for these inputs, in about as many shares where it can be shared.
    pub(crate) fn forward(&self, inputs: &[Tensor], shares: usize, mode: Mode) -> Result<Tensor> {
        match (mode, self.operator.kernel()) {
            (Mode::Composed, _) => {
                let inputs = contiguous(inputs)?;
                loops::refused(|| self.operator.compose(&inputs, &self.kept))?.contiguous()
            }
            (Mode::Loops, None) => self.operator.compose(inputs, &self.kept),
            (Mode::Loops, Some(kernel)) if shares > 1 => kernel.forward_shared(inputs, shares),
            (Mode::Loops, Some(kernel)) => kernel.forward(inputs),
        }
    }

    /// The gradient with respect to each input; `None` where the output does not depend on it.
    pub(crate) fn vjp(&self, at: &Backward<'_>, mode: Mode) -> Result<Vec<Option<Tensor>>> {
        match (mode, self.operator.kernel()) {
            (Mode::Composed, _) => {
                let (inputs, cotangent) = (contiguous(at.inputs)?, at.cotangent.contiguous()?);
                let at = Backward { inputs: &inputs, cotangent: &cotangent, ..*at };
                loops::refused(|| self.operator.compose_vjp(&at, &self.kept))
            }
            (Mode::Loops, None) => self.operator.compose_vjp(at, &self.kept),
            (Mode::Loops, Some(kernel)) => kernel.vjp(at),
        }
    }

    /// Multiply-adds that can be shared of a row of this shape.
    pub(crate) fn products(&self, row: &[usize]) -> usize {
        self.operator.kernel().map_or(0, |kernel| kernel.products(row))
    }

    /// An error that names the step.
    pub(crate) fn failed(&self, error: &candle_core::Error) -> Error {
        let (node, op) = (self.name.clone(), self.operator.name().into());
        Error::Node { node, op, reason: error.to_string() }
    }
}

/// Some of candle's kernels take nothing but contiguous tensors.
fn contiguous(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    tensors.iter().map(Tensor::contiguous).collect()
}

// === impl Mode ===

impl Mode {
    pub(crate) fn of(device: &Device) -> Self {
        if device.is_cpu() { Self::Loops } else { Self::Composed }
    }
}
