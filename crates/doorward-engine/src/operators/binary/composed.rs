//! Functions of two values by candle's operators.

use candle_core::{DType, Result, Tensor};

use super::{Arithmetic, Binary, Side, Term};
use crate::composition::{Kept, sum_to};
use crate::kernels::activation::Activation;
use crate::operators::{Backward, Fusible, Kernel, Operator, Saves};

impl Binary {
    fn composed(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (a, b) = Term::both([&self.left, &self.right], inputs)?;
        self.activation.compose(&self.function.compose(&a, &b)?)
    }

    fn composed_gradients(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let dy = self.activation.composed_gate(output, cotangent)?;
        let terms = [(Side::Left, &self.left), (Side::Right, &self.right)];
        let mut gradients = Vec::with_capacity(2);
        for (side, term) in terms {
            let Term::Input(row) = term else { continue };
            let share = match (self.function, side) {
                (Arithmetic::Add, _) | (Arithmetic::Sub, Side::Left) => dy.clone(),
                (Arithmetic::Sub, Side::Right) => dy.neg()?,
                _ => {
                    let (a, b) = Term::both([&self.left, &self.right], inputs)?;
                    dy.broadcast_mul(&self.function.composed_derivative(side, &a, &b)?)?
                }
            };
            gradients.push(Some(sum_to(&share, &[&[dy.dim(0)?], row.as_slice()].concat())?));
        }
        Ok(gradients)
    }
}

impl Arithmetic {
    fn compose(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self {
            Self::Add => a.broadcast_add(b),
            Self::Div => a.broadcast_div(b),
            Self::Equal => a.broadcast_eq(b)?.to_dtype(DType::F32),
            Self::Greater => a.broadcast_gt(b)?.to_dtype(DType::F32),
            Self::GreaterOrEqual => a.broadcast_ge(b)?.to_dtype(DType::F32),
            Self::Max => a.broadcast_maximum(b),
            Self::Min => a.broadcast_minimum(b),
            Self::Mul => a.broadcast_mul(b),
            Self::Pow => power(a, b),
            Self::Sub => a.broadcast_sub(b),
        }
    }

    /// The factor of the cotangent, in a shape that is repeated to its own.
    fn composed_derivative(self, side: Side, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        // One where it wins, a half where both are equal.
        let share = |wins: Tensor, holds: Tensor| -> Result<Tensor> {
            (wins.to_dtype(DType::F32)? + holds.to_dtype(DType::F32)?)? * 0.5
        };
        match (self, side) {
            (Self::Add, _) | (Self::Sub, Side::Left) => a.ones_like(),
            (Self::Sub, Side::Right) => b.ones_like()?.neg(),
            (Self::Equal | Self::Greater | Self::GreaterOrEqual, _) => a.zeros_like(),
            (Self::Div, Side::Left) => b.recip(),
            (Self::Div, Side::Right) => a.broadcast_div(&b.sqr()?)?.neg(),
            (Self::Max, Side::Left) | (Self::Min, Side::Right) => {
                share(a.broadcast_gt(b)?, a.broadcast_ge(b)?)
            }
            (Self::Max, Side::Right) | (Self::Min, Side::Left) => {
                share(a.broadcast_lt(b)?, a.broadcast_le(b)?)
            }
            (Self::Mul, Side::Left) => Ok(b.clone()),
            (Self::Mul, Side::Right) => Ok(a.clone()),
            (Self::Pow, Side::Left) => {
                let slope = power(a, &(b - 1.0)?)?.broadcast_mul(b)?;
                zero_where(&b.eq(0f32)?, &slope)
            }
            (Self::Pow, Side::Right) => {
                let slope = power(a, b)?.broadcast_mul(&a.log()?)?;
                zero_where(&a.eq(0f32)?, &slope)
            }
        }
    }
}

/// `values` but for zeros where `condition`, repeated to their shape, holds.
fn zero_where(condition: &Tensor, values: &Tensor) -> Result<Tensor> {
    let condition = condition.broadcast_as(values.shape())?.contiguous()?;
    condition.where_cond(&values.zeros_like()?, values)
}

/// `a^b`: candle's own knows no negative `a`.
fn power(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let shape = a.shape().broadcast_shape_binary_op(b.shape(), "Pow")?;
    let a = a.broadcast_as(&shape)?.contiguous()?;
    let b = b.broadcast_as(&shape)?.contiguous()?;
    let magnitude = (a.abs()?.log()? * &b)?.exp()?;
    // Also of zero, whose logarithm has no product with zero.
    let magnitude = b.eq(0f32)?.where_cond(&magnitude.ones_like()?, &magnitude)?;
    let whole = b.eq(&b.floor()?)?;
    let half = (&b * 0.5)?;
    let even = half.eq(&half.floor()?)?;
    let none = Tensor::full(f32::NAN, &shape, a.device())?;
    let of_negative = even.where_cond(&magnitude, &magnitude.neg()?)?;
    let of_negative = whole.where_cond(&of_negative, &none)?;
    a.lt(0f32)?.where_cond(&of_negative, &magnitude)
}

impl Operator for Binary {
    fn name(&self) -> &'static str {
        match self.function {
            Arithmetic::Add => "Add",
            Arithmetic::Div => "Div",
            Arithmetic::Equal => "Equal",
            Arithmetic::Greater => "Greater",
            Arithmetic::GreaterOrEqual => "GreaterOrEqual",
            Arithmetic::Max => "Max",
            Arithmetic::Min => "Min",
            Arithmetic::Mul => "Mul",
            Arithmetic::Pow => "Pow",
            Arithmetic::Sub => "Sub",
        }
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        self.composed(inputs)
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, output, cotangent } = *at;
        self.composed_gradients(inputs, output, cotangent)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: !self.function.is_sum(), output: self.activation != Activation::Identity }
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }

    fn fusible(&self) -> Option<Fusible<'_>> {
        match (self.function, self.activation) {
            (Arithmetic::Add, Activation::Identity) => Some(Fusible::Bias(self.last_dimension()?)),
            _ => None,
        }
    }

    fn followed_by(&self, next: &Fusible<'_>) -> Option<Box<dyn Operator>> {
        match next {
            Fusible::Affine(next) if self.activation == Activation::Identity && next.is_unit() => {
                let (left, right) = (self.left.clone(), self.right.clone());
                let (row, activation) = (self.row.clone(), next.activation);
                Some(Box::new(Self { left, right, row, activation, ..*self }))
            }
            _ => None,
        }
    }
}
