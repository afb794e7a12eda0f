//! Functions of one value by candle's operators.

use candle_core::{DType, Result, Tensor};

use super::{GELU, GELU_CUBIC, INV_SQRT_2_PI, Unary};
use crate::composition::{Kept, only_where};
use crate::operators::{Backward, Kernel, Operator, Saves};

impl Unary {
    fn composed(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Abs => x.abs(),
            Self::Ceil => x.ceil(),
            Self::Celu { alpha } => {
                let alpha = f64::from(alpha);
                let below = (((x / alpha)?.exp()? - 1.0)? * alpha)?;
                x.relu()? + below.minimum(0f32)?
            }
            Self::Clip { low, high } => x.clamp(low, high),
            Self::Elu { alpha } => x.elu(alpha.into()),
            Self::Erf => x.erf(),
            Self::Exp => x.exp(),
            Self::Floor => x.floor(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::HardSigmoid { alpha, beta } => {
                x.affine(alpha.into(), beta.into())?.clamp(0f32, 1f32)
            }
            Self::HardSwish => x * x.affine(1.0 / 6.0, 0.5)?.clamp(0f32, 1f32)?,
            Self::LeakyRelu { slope } => x.gt(0f32)?.where_cond(x, &(x * f64::from(slope))?),
            Self::Log => x.log(),
            Self::Mish => x * softplus(x)?.tanh()?,
            Self::Neg => x.neg(),
            Self::Power { exponent } => x.powf(exponent.into()),
            Self::Reciprocal => x.recip(),
            Self::Round => round(x),
            Self::RoundedSteps { scale } => {
                round(&x.broadcast_div(&Tensor::new(scale, x.device())?)?)
            }
            Self::Selu { alpha, gamma } => x.elu(alpha.into())? * f64::from(gamma),
            Self::Sigmoid => sigmoid(x),
            Self::Sign => x.sign(),
            Self::Silu => x.silu(),
            Self::Softplus => softplus(x),
            Self::Softsign => x / (x.abs()? + 1.0)?,
            Self::Sqrt => x.sqrt(),
            Self::Square => x.sqr(),
            Self::Tanh => x.tanh(),
            Self::ThresholdedRelu { alpha } => only_where(&x.gt(alpha)?, x),
        }
    }

    fn composed_derivative(self, x: &Tensor) -> Result<Tensor> {
        let one = || x.ones_like();
        let step = |holds: Tensor| holds.to_dtype(DType::F32);
        match self {
            Self::Abs => x.sign(),
            Self::Celu { alpha } => {
                x.gt(0f32)?.where_cond(&one()?, &(x / f64::from(alpha))?.exp()?)
            }
            Self::Clip { low, high } => step(x.gt(low)?)? * step(x.lt(high)?)?,
            Self::Elu { alpha } => x.gt(0f32)?.where_cond(&one()?, &(x.exp()? * f64::from(alpha))?),
            Self::Erf => x.sqr()?.neg()?.exp()? * std::f64::consts::FRAC_2_SQRT_PI,
            Self::Exp => x.exp(),
            Self::Gelu => {
                let phi = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
                let density = ((x.sqr()? * -0.5)?.exp()? * f64::from(INV_SQRT_2_PI))?;
                phi + (x * density)?
            }
            Self::GeluTanh => {
                let (scale, cubic) = (f64::from(GELU), f64::from(GELU_CUBIC));
                let square = x.sqr()?;
                let t = (x * square.affine(scale * cubic, scale)?)?.tanh()?;
                let inner = square.affine(3.0 * scale * cubic, scale)?;
                let curve = (t.sqr()?.affine(-0.5, 0.5)? * inner)?;
                t.affine(0.5, 0.5)? + (x * curve)?
            }
            Self::HardSigmoid { alpha, beta } => {
                let y = x.affine(alpha.into(), beta.into())?;
                (step(y.gt(0f32)?)? * step(y.lt(1f32)?)?)? * f64::from(alpha)
            }
            Self::HardSwish => {
                let inside = x.affine(1.0 / 3.0, 0.5)?;
                let below_three = x.lt(3f32)?.where_cond(&inside, &one()?)?;
                only_where(&x.gt(-3f32)?, &below_three)
            }
            Self::LeakyRelu { slope } => {
                x.gt(0f32)?.where_cond(&one()?, &(one()? * f64::from(slope))?)
            }
            Self::Log => x.recip(),
            Self::Mish => {
                let t = softplus(x)?.tanh()?;
                let curve = (t.sqr()?.affine(-1.0, 1.0)? * sigmoid(x)?)?;
                t + (x * curve)?
            }
            Self::Neg => one()?.neg(),
            Self::Ceil | Self::Floor | Self::Round | Self::Sign => x.zeros_like(),
            Self::RoundedSteps { scale } => one()? / f64::from(scale),
            Self::Power { exponent } => x.powf(f64::from(exponent) - 1.0)? * f64::from(exponent),
            Self::Reciprocal => x.sqr()?.recip()?.neg(),
            Self::Selu { alpha, gamma } => {
                let below = (x.exp()? * f64::from(alpha))?;
                x.gt(0f32)?.where_cond(&one()?, &below)? * f64::from(gamma)
            }
            Self::Sigmoid => {
                let y = sigmoid(x)?;
                &y * y.affine(-1.0, 1.0)?
            }
            Self::Silu => {
                let s = sigmoid(x)?;
                let curve = (x * s.affine(-1.0, 1.0)?)?;
                &s * (curve + 1.0)?
            }
            Self::Softplus => sigmoid(x),
            Self::Softsign => (x.abs()? + 1.0)?.sqr()?.recip(),
            Self::Sqrt => x.sqrt()?.recip()? * 0.5,
            Self::Square => x * 2.0,
            Self::Tanh => x.tanh()?.sqr()?.affine(-1.0, 1.0),
            Self::ThresholdedRelu { alpha } => step(x.gt(alpha)?),
        }
    }
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// To the nearest integer, to the even one of two: candle's own rounds those away from zero.
fn round(x: &Tensor) -> Result<Tensor> {
    let up = (x + 0.5)?.floor()?;
    let tie = (&up - x)?.eq(0.5f32)?.to_dtype(DType::F32)?;
    let odd = (&up - ((&up * 0.5)?.floor()? * 2.0)?)?;
    up - (tie * odd)?
}

fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

impl Operator for Unary {
    fn name(&self) -> &'static str {
        match self {
            Self::Abs => "Abs",
            Self::Ceil => "Ceil",
            Self::Celu { .. } => "Celu",
            Self::Clip { .. } => "Clip",
            Self::Elu { .. } => "Elu",
            Self::Erf => "Erf",
            Self::Exp => "Exp",
            Self::Floor => "Floor",
            Self::Gelu | Self::GeluTanh => "Gelu",
            Self::HardSigmoid { .. } => "HardSigmoid",
            Self::HardSwish => "HardSwish",
            Self::LeakyRelu { .. } => "LeakyRelu",
            Self::Log => "Log",
            Self::Mish => "Mish",
            Self::Neg => "Neg",
            Self::Power { .. } | Self::Square => "Pow",
            Self::Reciprocal => "Reciprocal",
            Self::Round => "Round",
            Self::RoundedSteps { .. } => "QuantizeLinear",
            Self::Selu { .. } => "Selu",
            Self::Sigmoid => "Sigmoid",
            Self::Sign => "Sign",
            Self::Silu => "Silu",
            Self::Softplus => "Softplus",
            Self::Softsign => "Softsign",
            Self::Sqrt => "Sqrt",
            Self::Tanh => "Tanh",
            Self::ThresholdedRelu { .. } => "ThresholdedRelu",
        }
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        self.composed(&inputs[0])
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        Ok(vec![Some((cotangent * self.composed_derivative(&inputs[0])?)?)])
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}
