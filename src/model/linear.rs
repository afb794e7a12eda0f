//! Fully connected layers: ONNX `Gemm` and `MatMul` with constant weights.

use candle_core::{Result, Tensor};

use super::correlate::Activation;
use super::operator::{ChannelAffine, Operator, relu, relu_gate};

/// `activation(x W + b)` for rows `x`.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[in, out]`
    weight: Tensor,
    /// `[out]`
    bias: Option<Tensor>,
    activation: Activation,
}

impl Linear {
    /// `weight` is `[in, out]`, `bias` `[out]`.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, activation: Activation::Identity }
    }
}

impl Operator for Linear {
    fn name(&self) -> &'static str {
        "Gemm"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let mut y = inputs[0].matmul(&self.weight)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        match self.activation {
            Activation::Identity => Ok(y),
            Activation::Relu => relu(&y),
        }
    }

    fn vjp(
        &self,
        _inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let cotangent = match self.activation {
            Activation::Identity => cotangent.clone(),
            Activation::Relu => relu_gate(output, cotangent)?,
        };
        Ok(vec![Some(cotangent.matmul(&self.weight.t()?)?)])
    }

    fn absorb_after(&self, next: &ChannelAffine) -> Option<Box<dyn Operator>> {
        if self.activation != Activation::Identity || !next.is_unit() {
            return None;
        }
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        Some(Box::new(Self { weight, bias, activation: next.activation }))
    }
}
