//! Fully connected layers: ONNX `Gemm` and `MatMul` with constant weights.

use candle_core::{Result, Tensor};

use super::correlate::Activation;
use super::kernel;
use super::operator::{ChannelAffine, Operator, Saves, relu, relu_gate};

/// `activation(x W + b)` for every run of the last dimension.
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

    /// `x W` for `[..., in]`, as one product of two matrices.
    fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (mut shape, (inner, outer)) = (x.dims().to_vec(), weight.dims2()?);
        if let Some(last) = shape.last_mut() {
            *last = outer;
        }
        x.reshape(((), inner))?.matmul(weight)?.reshape(shape)
    }
}

impl Operator for Linear {
    fn name(&self) -> &'static str {
        "Gemm"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let y = Self::product(&inputs[0], &self.weight)?;
        // Below this bound everything is cut: no branch in the loop.
        let least = match self.activation {
            Activation::Identity => f32::NEG_INFINITY,
            Activation::Relu => 0.0,
        };
        match &self.bias {
            None if self.activation == Activation::Identity => Ok(y),
            None => relu(&y),
            Some(bias) => kernel::zip(self.name(), &y, bias, y.shape(), |y, bias, out| {
                let rows = y.chunks_exact(bias.len()).zip(out.chunks_exact_mut(bias.len()));
                for (y, out) in rows {
                    for ((out, y), bias) in out.iter_mut().zip(y).zip(bias) {
                        *out = (y + bias).max(least);
                    }
                }
            }),
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
        Ok(vec![Some(Self::product(&cotangent, &self.weight.t()?)?)])
    }

    fn saves(&self) -> Saves {
        Saves { inputs: false, output: self.activation == Activation::Relu }
    }

    fn absorb_bias(&self, bias: &[f32]) -> Option<Box<dyn Operator>> {
        if self.activation != Activation::Identity || bias.len() != self.weight.dims()[1] {
            return None;
        }
        let more = Tensor::new(bias, self.weight.device()).ok()?;
        let bias = match &self.bias {
            None => more,
            Some(own) => (own + more).ok()?,
        };
        Some(Box::new(Self::new(self.weight.clone(), Some(bias))))
    }

    fn absorb_after(&self, next: &ChannelAffine) -> Option<Box<dyn Operator>> {
        if self.activation != Activation::Identity || !next.is_unit() {
            return None;
        }
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        Some(Box::new(Self { weight, bias, activation: next.activation }))
    }
}
