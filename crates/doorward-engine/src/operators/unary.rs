//! Functions of one value.

mod composed;

use candle_core::{Result, Tensor};

use crate::kernels::{loops, math};
use crate::operators::{Backward, Kernel, Operator};

/// A function of one value, with PyTorch's derivative where it has a kink.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unary {
    Abs,
    Ceil,
    Celu {
        alpha: f32,
    },
    /// `min(max(x, low), high)`; the derivative at a bound is 0.
    Clip {
        low: f32,
        high: f32,
    },
    Elu {
        alpha: f32,
    },
    Erf,
    Exp,
    Floor,
    /// `x Phi(x)`
    Gelu,
    /// The same with `Phi` by a hyperbolic tangent.
    GeluTanh,
    HardSigmoid {
        alpha: f32,
        beta: f32,
    },
    HardSwish,
    /// `x` above zero, `slope * x` below.
    LeakyRelu {
        slope: f32,
    },
    Log,
    Mish,
    Neg,
    Power {
        exponent: f32,
    },
    Reciprocal,
    /// To the nearest integer, to the even one of two.
    Round,
    /// The same of `x / scale`, with the derivative of what is not rounded: quantisation.
    RoundedSteps {
        scale: f32,
    },
    Selu {
        alpha: f32,
        gamma: f32,
    },
    Sigmoid,
    Sign,
    /// `x sigmoid(x)`
    Silu,
    Softplus,
    Softsign,
    Sqrt,
    Square,
    Tanh,
    /// `x` above `alpha`, zero below.
    ThresholdedRelu {
        alpha: f32,
    },
}

/// Runs `$body` with `$f` bound to the function as a constant of the match arm: the loop in it is
/// compiled for each function, and vectorised.
macro_rules! specialised {
    ($function:expr, $f:ident, $body:expr) => {
        specialised!(@ $function, $f, $body,
            Abs, Ceil, Erf, Exp, Floor, Gelu, GeluTanh, HardSwish, Log, Mish, Neg, Reciprocal, Round,
            Sigmoid, Sign, Silu, Softplus, Softsign, Sqrt, Square, Tanh;
            Celu { alpha }, Clip { low, high }, Elu { alpha }, HardSigmoid { alpha, beta },
            LeakyRelu { slope }, Power { exponent }, RoundedSteps { scale }, Selu { alpha, gamma }, ThresholdedRelu { alpha })
    };
    (@ $function:expr, $f:ident, $body:expr, $($plain:ident),*; $($with:ident { $($field:ident),* }),*) => {
        match $function {
            $(Unary::$plain => { let $f = Unary::$plain; $body })*
            $(Unary::$with { $($field),* } => { let $f = Unary::$with { $($field),* }; $body })*
        }
    };
}

impl Unary {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        match self {
            Self::Abs => x.abs(),
            Self::Ceil => x.ceil(),
            Self::Celu { alpha } => x.max(0.0) + (alpha * (math::exp(x / alpha) - 1.0)).min(0.0),
            Self::Clip { low, high } => x.max(low).min(high),
            Self::Elu { alpha } => {
                if x > 0.0 {
                    x
                } else {
                    alpha * (math::exp(x) - 1.0)
                }
            }
            Self::Erf => math::erf(x),
            Self::Exp => math::exp(x),
            Self::Floor => x.floor(),
            Self::Gelu => 0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2)),
            Self::GeluTanh => 0.5 * x * (1.0 + math::tanh(GELU * (x + GELU_CUBIC * x * x * x))),
            Self::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
            Self::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Self::LeakyRelu { slope } => {
                if x > 0.0 {
                    x
                } else {
                    slope * x
                }
            }
            Self::Log => x.ln(),
            Self::Mish => x * math::tanh(softplus(x)),
            Self::Neg => -x,
            Self::Power { exponent } => x.powf(exponent),
            Self::Reciprocal => 1.0 / x,
            Self::Round => x.round_ties_even(),
            Self::RoundedSteps { scale } => (x / scale).round_ties_even(),
            Self::Selu { alpha, gamma } => {
                gamma * if x > 0.0 { x } else { alpha * (math::exp(x) - 1.0) }
            }
            Self::Sigmoid => math::sigmoid(x),
            Self::Sign => f32::from(i8::from(x > 0.0) - i8::from(x < 0.0)),
            Self::Silu => x * math::sigmoid(x),
            Self::Softplus => softplus(x),
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Sqrt => x.sqrt(),
            Self::Square => x * x,
            Self::Tanh => math::tanh(x),
            Self::ThresholdedRelu { alpha } => {
                if x > alpha {
                    x
                } else {
                    0.0
                }
            }
        }
    }

    #[inline(always)]
    fn derivative(self, x: f32) -> f32 {
        let step = |holds: bool| f32::from(u8::from(holds));
        match self {
            Self::Abs => step(x > 0.0) - step(x < 0.0),
            Self::Celu { alpha } => {
                if x > 0.0 {
                    1.0
                } else {
                    math::exp(x / alpha)
                }
            }
            Self::Clip { low, high } => step(low < x && x < high),
            Self::Elu { alpha } => {
                if x > 0.0 {
                    1.0
                } else {
                    alpha * math::exp(x)
                }
            }
            Self::Erf => std::f32::consts::FRAC_2_SQRT_PI * math::exp(-x * x),
            Self::Exp => math::exp(x),
            Self::Gelu => {
                let phi = 0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
                phi + x * INV_SQRT_2_PI * math::exp(-0.5 * x * x)
            }
            Self::GeluTanh => {
                let t = math::tanh(GELU * (x + GELU_CUBIC * x * x * x));
                let inner = GELU * (1.0 + 3.0 * GELU_CUBIC * x * x);
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
            }
            Self::HardSigmoid { alpha, beta } => {
                let y = alpha * x + beta;
                alpha * step(0.0 < y && y < 1.0)
            }
            Self::HardSwish => {
                let inside = x / 3.0 + 0.5;
                if x <= -3.0 {
                    0.0
                } else if x < 3.0 {
                    inside
                } else {
                    1.0
                }
            }
            Self::LeakyRelu { slope } => {
                if x > 0.0 {
                    1.0
                } else {
                    slope
                }
            }
            Self::Log => 1.0 / x,
            Self::Mish => {
                let t = math::tanh(softplus(x));
                t + x * (1.0 - t * t) * math::sigmoid(x)
            }
            Self::Neg => -1.0,
            Self::Ceil | Self::Floor | Self::Round | Self::Sign => 0.0,
            Self::RoundedSteps { scale } => 1.0 / scale,
            Self::Power { exponent } => exponent * x.powf(exponent - 1.0),
            Self::Reciprocal => -1.0 / (x * x),
            Self::Selu { alpha, gamma } => gamma * if x > 0.0 { 1.0 } else { alpha * math::exp(x) },
            Self::Sigmoid => {
                let y = math::sigmoid(x);
                y * (1.0 - y)
            }
            Self::Silu => {
                let s = math::sigmoid(x);
                s * (1.0 + x * (1.0 - s))
            }
            Self::Softplus => math::sigmoid(x),
            Self::Softsign => 1.0 / (1.0 + x.abs()).powi(2),
            Self::Sqrt => 0.5 / x.sqrt(),
            Self::Square => 2.0 * x,
            Self::Tanh => {
                let y = math::tanh(x);
                1.0 - y * y
            }
            Self::ThresholdedRelu { alpha } => step(x > alpha),
        }
    }
}

impl Kernel for Unary {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        loops::map(self.name(), &inputs[0], inputs[0].shape(), |x, out| {
            specialised!(*self, f, out.iter_mut().zip(x).for_each(|(out, x)| *out = f.value(*x)));
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        let x = &inputs[0];
        let gradient = loops::zip(self.name(), x, cotangent, x.shape(), |x, dy, out| {
            specialised!(*self, f, {
                for ((out, dy), x) in out.iter_mut().zip(dy).zip(x) {
                    *out = dy * f.derivative(*x);
                }
            });
        })?;
        Ok(vec![Some(gradient)])
    }
}

#[inline(always)]
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (1.0 + math::exp(-x.abs())).ln()
}

/// `sqrt(2 / pi)`
const GELU: f32 = 0.797_884_6;

const GELU_CUBIC: f32 = 0.044_715;

/// `1 / sqrt(2 pi)`
const INV_SQRT_2_PI: f32 = 0.398_942_3;
