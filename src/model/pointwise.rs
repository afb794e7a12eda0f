//! Elementwise operators.

use candle_core::{D, Result, Shape, Tensor};

use super::correlate::Activation;
use super::kernel;
use super::operator::{ChannelAffine, Operator, relu, relu_gate};

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unary {
    /// `min(max(x, low), high)`; the derivative at a bound is 1, as PyTorch's.
    Clip { low: f32, high: f32 },
    /// `x` above zero, `slope * x` below.
    LeakyRelu { slope: f32 },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
}

/// A function of two values, operands broadcast as NumPy does.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) function: Arithmetic,
    /// The constant operand, if one is constant.
    pub(crate) constant: Option<(Side, Tensor)>,
    pub(crate) relu: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Div,
    Mul,
    Sub,
}

/// Where the constant operand stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

// === impl Unary ===

impl Unary {
    fn value(self, x: f32) -> f32 {
        match self {
            Self::Clip { low, high } => x.max(low).min(high),
            Self::LeakyRelu { slope } => {
                if x > 0.0 {
                    x
                } else {
                    slope * x
                }
            }
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
        }
    }

    fn derivative(self, x: f32) -> f32 {
        match self {
            Self::Clip { low, high } => f32::from(u8::from((low..=high).contains(&x))),
            Self::LeakyRelu { slope } => {
                if x > 0.0 {
                    1.0
                } else {
                    slope
                }
            }
            Self::Sigmoid => {
                let y = self.value(x);
                y * (1.0 - y)
            }
            Self::Tanh => 1.0 - x.tanh().powi(2),
        }
    }
}

impl Operator for Unary {
    fn name(&self) -> &'static str {
        match self {
            Self::Clip { .. } => "Clip",
            Self::LeakyRelu { .. } => "LeakyRelu",
            Self::Sigmoid => "Sigmoid",
            Self::Tanh => "Tanh",
        }
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        kernel::map(self.name(), &inputs[0], inputs[0].shape(), |x, out| {
            for (out, x) in out.iter_mut().zip(x) {
                *out = self.value(*x);
            }
        })
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let x = &inputs[0];
        let gradient = kernel::zip(self.name(), x, cotangent, x.shape(), |x, dy, out| {
            for ((out, dy), x) in out.iter_mut().zip(dy).zip(x) {
                *out = dy * self.derivative(*x);
            }
        })?;
        Ok(vec![Some(gradient)])
    }
}

// === impl Binary ===

impl Binary {
    fn operands<'a>(&'a self, inputs: &'a [Tensor]) -> (&'a Tensor, &'a Tensor) {
        match &self.constant {
            None => (&inputs[0], &inputs[1]),
            Some((Side::Left, constant)) => (constant, &inputs[0]),
            Some((Side::Right, constant)) => (&inputs[0], constant),
        }
    }
}

impl Binary {
    /// On this thread: candle's own operators would wake its thread pool.
    fn on_equal_shapes(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        kernel::zip(self.name(), a, b, a.shape(), |a, b, out| {
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out = match self.function {
                    Arithmetic::Add => a + b,
                    Arithmetic::Div => a / b,
                    Arithmetic::Mul => a * b,
                    Arithmetic::Sub => a - b,
                };
            }
        })
    }
}

impl Operator for Binary {
    fn name(&self) -> &'static str {
        match self.function {
            Arithmetic::Add => "Add",
            Arithmetic::Div => "Div",
            Arithmetic::Mul => "Mul",
            Arithmetic::Sub => "Sub",
        }
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (a, b) = self.operands(inputs);
        if a.dims() == b.dims() {
            let y = self.on_equal_shapes(a, b)?;
            return if self.relu { relu(&y) } else { Ok(y) };
        }
        let y = match self.function {
            Arithmetic::Add => a.broadcast_add(b),
            Arithmetic::Div => a.broadcast_div(b),
            Arithmetic::Mul => a.broadcast_mul(b),
            Arithmetic::Sub => a.broadcast_sub(b),
        }?;
        if self.relu { relu(&y) } else { Ok(y) }
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let (a, b) = self.operands(inputs);
        let dy = if self.relu { relu_gate(output, cotangent)? } else { cotangent.clone() };
        let left = || match self.function {
            Arithmetic::Add | Arithmetic::Sub => sum_to(&dy, a.shape()),
            Arithmetic::Div => sum_to(&dy.broadcast_div(b)?, a.shape()),
            Arithmetic::Mul => sum_to(&dy.broadcast_mul(b)?, a.shape()),
        };
        let right = || match self.function {
            Arithmetic::Add => sum_to(&dy, b.shape()),
            Arithmetic::Sub => sum_to(&dy.neg()?, b.shape()),
            Arithmetic::Div => sum_to(&dy.mul(output)?.broadcast_div(b)?.neg()?, b.shape()),
            Arithmetic::Mul => sum_to(&dy.broadcast_mul(a)?, b.shape()),
        };
        match &self.constant {
            None => Ok(vec![Some(left()?), Some(right()?)]),
            Some((Side::Left, _)) => Ok(vec![Some(right()?)]),
            Some((Side::Right, _)) => Ok(vec![Some(left()?)]),
        }
    }

    fn absorb_after(&self, next: &ChannelAffine) -> Option<Box<dyn Operator>> {
        let only_relu = next.is_unit() && next.activation == Activation::Relu;
        // A fused ReLU would hide the quotient that the gradient of a division needs.
        if self.relu || !only_relu || self.function == Arithmetic::Div {
            return None;
        }
        let constant = self.constant.clone();
        Some(Box::new(Self { function: self.function, constant, relu: true }))
    }
}

/// Sums what broadcasting repeated.
fn sum_to(gradient: &Tensor, shape: &Shape) -> Result<Tensor> {
    let dims = shape.dims();
    let extra = gradient.rank() - dims.len();
    let mut out = gradient.clone();
    for axis in 0..gradient.rank() {
        if axis < extra || (dims[axis - extra] == 1 && out.dim(axis)? != 1) {
            out = out.sum_keepdim(axis)?;
        }
    }
    out.reshape(dims)
}

/// ONNX `Softmax` and `LogSoftmax` over the last axis.
///
/// Composed, as candle's fused softmax over the last axis would be as well: the reverse pass is
/// written out here either way.
#[derive(Debug)]
pub(crate) struct Softmax {
    pub(crate) log: bool,
}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "LogSoftmax" } else { "Softmax" }
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        if self.log {
            candle_nn::ops::log_softmax(&inputs[0], D::Minus1)
        } else {
            candle_nn::ops::softmax(&inputs[0], D::Minus1)
        }
    }

    fn vjp(
        &self,
        _inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let gradient = if self.log {
            // dy - softmax(x) <dy, 1>
            let sum = cotangent.sum_keepdim(D::Minus1)?;
            cotangent.sub(&output.exp()?.broadcast_mul(&sum)?)?
        } else {
            // y (dy - <dy, y>)
            let sum = cotangent.mul(output)?.sum_keepdim(D::Minus1)?;
            cotangent.broadcast_sub(&sum)?.mul(output)?
        };
        Ok(vec![Some(gradient)])
    }
}
