//! Functions of two values, operands broadcast as NumPy does.

mod composed;

use candle_core::{Result, Tensor};

use crate::composition::with_rows;
use crate::kernels::activation::Activation;
use crate::kernels::loops;
use crate::kernels::strided::{Walk, repeated, row_major};
use crate::operators::{Backward, Kernel, Operator};

/// `activation(function(left, right))`.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) function: Arithmetic,
    pub(crate) left: Term,
    pub(crate) right: Term,
    /// Shape of the output's row.
    pub(crate) row: Vec<usize>,
    pub(crate) activation: Activation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Div,
    Equal,
    Greater,
    GreaterOrEqual,
    Max,
    Min,
    Mul,
    Pow,
    Sub,
}

/// An operand: its row has the output's rank, and one where it repeats.
#[derive(Clone, Debug)]
pub(crate) enum Term {
    Input(Vec<usize>),
    /// `[1, ...row]`
    Constant(Tensor),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

// === impl Term ===

impl Term {
    /// Both operands, each `[n, ...row]`, or `[1, ...row]` for a constant, which takes no input.
    pub(crate) fn both(terms: [&Self; 2], inputs: &[Tensor]) -> Result<(Tensor, Tensor)> {
        let mut inputs = inputs.iter();
        let mut tensor = |term: &Self| match term {
            Self::Constant(constant) => Ok(constant.clone()),
            Self::Input(row) => match inputs.next() {
                Some(input) => input.reshape(with_rows(input.dim(0)?, row)),
                None => candle_core::bail!("an operand is absent"),
            },
        };
        Ok((tensor(terms[0])?, tensor(terms[1])?))
    }
}

// === impl Arithmetic ===

impl Arithmetic {
    #[inline(always)]
    fn value(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Add => a + b,
            Self::Div => a / b,
            Self::Equal => f32::from(u8::from(a == b)),
            Self::Greater => f32::from(u8::from(a > b)),
            Self::GreaterOrEqual => f32::from(u8::from(a >= b)),
            Self::Max => a.max(b),
            Self::Min => a.min(b),
            Self::Mul => a * b,
            Self::Pow => a.powf(b),
            Self::Sub => a - b,
        }
    }

    /// The derivative to the left operand. Equal operands of a maximum share it, as in PyTorch.
    #[inline(always)]
    fn left_derivative(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Add | Self::Sub => 1.0,
            Self::Div => 1.0 / b,
            Self::Equal | Self::Greater | Self::GreaterOrEqual => 0.0,
            Self::Max => share(a > b, a == b),
            Self::Min => share(a < b, a == b),
            Self::Mul => b,
            Self::Pow if b == 0.0 => 0.0,
            Self::Pow => b * a.powf(b - 1.0),
        }
    }

    #[inline(always)]
    fn right_derivative(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Add => 1.0,
            Self::Div => -a / (b * b),
            Self::Equal | Self::Greater | Self::GreaterOrEqual => 0.0,
            Self::Max => share(b > a, a == b),
            Self::Min => share(b < a, a == b),
            Self::Mul => a,
            // As in PyTorch: its limit.
            Self::Pow if a == 0.0 => 0.0,
            Self::Pow => a.powf(b) * a.ln(),
            Self::Sub => -1.0,
        }
    }

    /// True if the derivatives are constants.
    fn is_sum(self) -> bool {
        matches!(self, Self::Add | Self::Sub)
    }
}

#[inline(always)]
fn share(wins: bool, equal: bool) -> f32 {
    if equal { 0.5 } else { f32::from(u8::from(wins)) }
}

/// Runs `$body` with `$f` bound to the function as a constant of the match arm, so that the loop in
/// it is compiled for each.
macro_rules! specialised {
    ($function:expr, $f:ident, $body:expr) => {
        specialised!(
            @ $function, $f, $body,
            Add, Div, Equal, Greater, GreaterOrEqual, Max, Min, Mul, Pow, Sub
        )
    };
    (@ $function:expr, $f:ident, $body:expr, $($name:ident),*) => {
        match $function {
            $(Arithmetic::$name => { let $f = Arithmetic::$name; $body })*
        }
    };
}

// === impl Binary ===

impl Binary {
    fn gradient(&self, side: Side, a: &Tensor, b: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let target = if side == Side::Left { a } else { b };
        let walk = Walk::new(
            dy.dims(),
            [
                &row_major(dy.dims()),
                &repeated(a.dims()),
                &repeated(b.dims()),
                &repeated(target.dims()),
            ],
        );
        loops::zip3(self.name(), dy, a, b, target.shape(), |dy, a, b, out| {
            specialised!(self.function, f, {
                match side {
                    Side::Left => partial(&walk, dy, a, b, out, |a, b| f.left_derivative(a, b)),
                    Side::Right => partial(&walk, dy, a, b, out, |a, b| f.right_derivative(a, b)),
                }
            });
        })
    }

    /// The gradient of a sum: `dy`, summed over what was repeated.
    fn sum_to(&self, dy: &Tensor, row: &[usize], side: Side) -> Result<Tensor> {
        let negative = self.function == Arithmetic::Sub && side == Side::Right;
        let shape = with_rows(dy.dim(0)?, row);
        if !negative && shape == dy.dims() {
            return Ok(dy.clone());
        }
        let sign = if negative { -1.0 } else { 1.0 };
        let walk = Walk::new(dy.dims(), [&row_major(dy.dims()), &repeated(&shape)]);
        loops::map(self.name(), dy, shape, |dy, out| {
            walk.each(|[at, at_out], len| {
                let dy = &dy[at as usize..][..len];
                let out = &mut out[at_out as usize..];
                if walk.inner[1] == 0 {
                    out[0] += sign * dy.iter().sum::<f32>();
                } else {
                    out.iter_mut().zip(dy).for_each(|(out, dy)| *out += sign * dy);
                }
            });
        })
    }

    /// The constant, if it only varies along the last dimension.
    fn last_dimension(&self) -> Option<Vec<f32>> {
        let constant = match (&self.left, &self.right) {
            (Term::Input(_), Term::Constant(constant)) => constant,
            (Term::Constant(constant), Term::Input(_)) => constant,
            _ => return None,
        };
        let (last, rest) = constant.dims().split_last()?;
        let whole = self.row.len() >= 2 && self.row.last() == Some(last);
        match whole && rest.iter().all(|&dim| dim == 1) {
            true => constant.flatten_all().ok()?.to_vec1().ok(),
            false => None,
        }
    }
}

/// `out += dy * derivative(a, b)`, summed where `out` repeats.
#[inline(always)]
fn partial(
    walk: &Walk<4>,
    dy: &[f32],
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
    derivative: impl Fn(f32, f32) -> f32,
) {
    let [_, step_a, step_b, step_out] = walk.inner;
    walk.each(|[at, at_a, at_b, at_out], len| {
        let dy = &dy[at as usize..][..len];
        let a = |i: usize| a[(at_a + i as isize * step_a) as usize];
        let b = |i: usize| b[(at_b + i as isize * step_b) as usize];
        if step_out == 0 {
            out[at_out as usize] +=
                dy.iter().enumerate().map(|(i, dy)| dy * derivative(a(i), b(i))).sum::<f32>();
        } else {
            let out = &mut out[at_out as usize..][..len];
            for (i, (out, dy)) in out.iter_mut().zip(dy).enumerate() {
                *out += dy * derivative(a(i), b(i));
            }
        }
    });
}

#[inline(always)]
fn combine(walk: &Walk<3>, a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    let [_, step_a, step_b] = walk.inner;
    walk.each(|[at, at_a, at_b], len| {
        let out = &mut out[at as usize..][..len];
        let (a, b) = (&a[at_a as usize..], &b[at_b as usize..]);
        match (step_a, step_b) {
            (1, 1) => {
                for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                    *out = f(a, b);
                }
            }
            (_, 1) => {
                let a = a[0];
                out.iter_mut().zip(b).for_each(|(out, &b)| *out = f(a, b));
            }
            (_, _) => {
                let b = b[0];
                out.iter_mut().zip(a).for_each(|(out, &a)| *out = f(a, b));
            }
        }
    });
}

impl Kernel for Binary {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (a, b) = Term::both([&self.left, &self.right], inputs)?;
        let shape = with_rows(a.dim(0)?.max(b.dim(0)?), &self.row);
        let walk =
            Walk::new(&shape, [&row_major(&shape), &repeated(a.dims()), &repeated(b.dims())]);
        let [low, high] = self.activation.bounds();
        loops::zip(self.name(), &a, &b, shape, |a, b, out| match self.activation {
            Activation::Identity => {
                specialised!(self.function, f, combine(&walk, a, b, out, |a, b| f.value(a, b)));
            }
            _ => specialised!(
                self.function,
                f,
                combine(&walk, a, b, out, |a, b| f.value(a, b).max(low).min(high))
            ),
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, output, cotangent } = *at;
        let dy = self.activation.gate(output, cotangent)?;
        let terms = [(Side::Left, &self.left), (Side::Right, &self.right)];
        let varying = terms.into_iter().filter(|(_, term)| matches!(term, Term::Input(_)));
        if self.function.is_sum() {
            let gradient = |(side, term): (Side, &Term)| match term {
                Term::Input(row) => Some(self.sum_to(&dy, row, side)).transpose(),
                Term::Constant(_) => Ok(None),
            };
            return varying.map(gradient).collect();
        }
        let (a, b) = Term::both([&self.left, &self.right], inputs)?;
        varying.map(|(side, _)| self.gradient(side, &a, &b, &dy).map(Some)).collect()
    }
}
