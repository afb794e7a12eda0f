//! Operators as devices other than the CPU run them: composed of candle's, which have kernels for
//! every device.

use candle_core::{Device, Result, Tensor};

use super::{Operator, Saves};
use crate::composition::Kept;

/// `operator` as it runs on `device`.
pub(crate) fn on(device: &Device, operator: Box<dyn Operator>) -> Box<dyn Operator> {
    match device {
        Device::Cpu => operator,
        _ => Box::new(Composed::new(operator)),
    }
}

/// An operator without its loops: those run on the CPU alone.
#[derive(Debug)]
pub(crate) struct Composed {
    operator: Box<dyn Operator>,
    kept: Kept,
}

// === impl Composed ===

impl Composed {
    pub(crate) fn new(operator: Box<dyn Operator>) -> Self {
        Self { operator, kept: Kept::default() }
    }
}

/// Some of candle's kernels take nothing but contiguous tensors.
fn contiguous(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    tensors.iter().map(Tensor::contiguous).collect()
}

impl Operator for Composed {
    fn name(&self) -> &'static str {
        self.operator.name()
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        self.operator.compose(&contiguous(inputs)?, &self.kept)?.contiguous()
    }

    fn compose_vjp(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
        _kept: &Kept,
    ) -> Result<Vec<Option<Tensor>>> {
        let inputs = contiguous(inputs)?;
        self.operator.compose_vjp(&inputs, output, &cotangent.contiguous()?, &self.kept)
    }

    fn saves(&self) -> Saves {
        self.operator.saves()
    }
}

#[cfg(test)]
mod tests;
