//! Reductions over dimensions that follow each other.

use candle_core::{DType, Result, Tensor};

use crate::composition::{Kept, only_where, with_rows};
use crate::kernels::loops;
use crate::operators::norm::lanes_sum;
use crate::operators::{Backward, Kernel, Operator, Saves};

/// ONNX `ReduceMean` and the like.
#[derive(Debug)]
pub(crate) struct Reduce {
    pub(crate) kind: Reduction,
    /// Values that one result is made of, and values of the dimensions behind them.
    pub(crate) len: usize,
    pub(crate) inner: usize,
    /// Shape of the output's row.
    pub(crate) row: Vec<usize>,
    /// Shape of the input's row.
    pub(crate) in_row: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduction {
    /// Sum of absolute values.
    L1,
    /// Euclidean norm.
    L2,
    LogSumExp,
    Max,
    Mean,
    Min,
    Sum,
    SumSquare,
}

impl Reduction {
    fn name(self) -> &'static str {
        match self {
            Self::L1 => "ReduceL1",
            Self::L2 => "ReduceL2",
            Self::LogSumExp => "ReduceLogSumExp",
            Self::Max => "ReduceMax",
            Self::Mean => "ReduceMean",
            Self::Min => "ReduceMin",
            Self::Sum => "ReduceSum",
            Self::SumSquare => "ReduceSumSquare",
        }
    }
}

impl Reduction {
    /// True if reducing some dimensions after others gives the same.
    pub(crate) fn in_stages(self) -> bool {
        matches!(self, Self::L1 | Self::LogSumExp | Self::Max | Self::Mean | Self::Min | Self::Sum)
    }
}

impl Reduce {
    /// `out[j]` over `x[i * inner + j]`, whole rows at a time.
    fn block(&self, x: &[f32], out: &mut [f32]) {
        if self.inner == 1 && self.is_linear() {
            out[0] = lanes_sum(x, |x| x) * self.derivative(0.0, 0.0, 1.0);
            return;
        }
        let rows = || x.chunks_exact(self.inner);
        let fold = |out: &mut [f32], start: f32, f: fn(f32, f32) -> f32| {
            out.fill(start);
            for row in rows() {
                out.iter_mut().zip(row).for_each(|(out, &x)| *out = f(*out, x));
            }
        };
        match self.kind {
            Reduction::L1 => fold(out, 0.0, |sum, x| sum + x.abs()),
            Reduction::L2 => {
                fold(out, 0.0, |sum, x| sum + x * x);
                out.iter_mut().for_each(|out| *out = out.sqrt());
            }
            Reduction::LogSumExp => {
                fold(out, f32::NEG_INFINITY, f32::max);
                let largest = out.to_vec();
                out.fill(0.0);
                for row in rows() {
                    for ((out, x), max) in out.iter_mut().zip(row).zip(&largest) {
                        *out += (x - max).exp();
                    }
                }
                out.iter_mut().zip(&largest).for_each(|(out, max)| *out = out.ln() + max);
            }
            Reduction::Max => fold(out, f32::NEG_INFINITY, f32::max),
            Reduction::Mean => {
                fold(out, 0.0, |sum, x| sum + x);
                out.iter_mut().for_each(|out| *out /= self.len as f32);
            }
            Reduction::Min => fold(out, f32::INFINITY, f32::min),
            Reduction::Sum => fold(out, 0.0, |sum, x| sum + x),
            Reduction::SumSquare => fold(out, 0.0, |sum, x| sum + x * x),
        }
    }

    /// The derivative of the result `y` at `x`, where `ties` values equal it.
    fn derivative(&self, x: f32, y: f32, ties: f32) -> f32 {
        match self.kind {
            Reduction::L1 => f32::from(u8::from(x > 0.0)) - f32::from(u8::from(x < 0.0)),
            Reduction::L2 => {
                if y > 0.0 {
                    x / y
                } else {
                    0.0
                }
            }
            Reduction::LogSumExp => (x - y).exp(),
            Reduction::Max | Reduction::Min => {
                if x == y {
                    1.0 / ties
                } else {
                    0.0
                }
            }
            Reduction::Mean => 1.0 / self.len as f32,
            Reduction::Sum => 1.0,
            Reduction::SumSquare => 2.0 * x,
        }
    }

    fn is_linear(&self) -> bool {
        matches!(self.kind, Reduction::Mean | Reduction::Sum)
    }
}

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        let x = inputs[0].reshape(((), self.len, self.inner))?;
        let y = match self.kind {
            Reduction::L1 => x.abs()?.sum(1)?,
            Reduction::L2 => x.sqr()?.sum(1)?.sqrt()?,
            Reduction::LogSumExp => {
                let largest = x.max_keepdim(1)?;
                let sum = x.broadcast_sub(&largest)?.exp()?.sum_keepdim(1)?;
                (sum.log()? + largest)?
            }
            Reduction::Max => x.max(1)?,
            Reduction::Mean => x.mean(1)?,
            Reduction::Min => x.min(1)?,
            Reduction::Sum => x.sum(1)?,
            Reduction::SumSquare => x.sqr()?.sum(1)?,
        };
        y.reshape(with_rows(inputs[0].dim(0)?, &self.row))
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, output, cotangent } = *at;
        let shape = with_rows(cotangent.dim(0)?, &self.in_row);
        let one = |tensor: &Tensor| tensor.reshape(((), 1, self.inner));
        let dy = one(cotangent)?;
        if self.is_linear() {
            let share = (dy * f64::from(self.derivative(0.0, 0.0, 1.0)))?;
            let all = share.broadcast_as((share.dim(0)?, self.len, self.inner))?;
            return Ok(vec![Some(all.contiguous()?.reshape(shape)?)]);
        }
        let x = inputs[0].reshape(((), self.len, self.inner))?;
        let y = one(output)?;
        let derivative = match self.kind {
            Reduction::L1 => x.sign()?,
            Reduction::L2 => {
                let ratio = x.broadcast_div(&y)?;
                only_where(&y.gt(0f32)?.broadcast_as(x.shape())?.contiguous()?, &ratio)?
            }
            Reduction::LogSumExp => x.broadcast_sub(&y)?.exp()?,
            Reduction::Max | Reduction::Min => {
                let ties = x.broadcast_eq(&y)?.to_dtype(DType::F32)?;
                ties.broadcast_div(&ties.sum_keepdim(1)?)?
            }
            Reduction::SumSquare => (&x * 2.0)?,
            Reduction::Mean | Reduction::Sum => x.ones_like()?,
        };
        Ok(vec![Some(derivative.broadcast_mul(&dy)?.reshape(shape)?)])
    }

    fn saves(&self) -> Saves {
        Saves { inputs: !self.is_linear(), output: !self.is_linear() }
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}

impl Kernel for Reduce {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let shape = with_rows(inputs[0].dim(0)?, &self.row);
        loops::map(self.name(), &inputs[0], shape, |x, out| {
            let blocks = x.chunks_exact(self.len * self.inner);
            for (x, out) in blocks.zip(out.chunks_exact_mut(self.inner)) {
                self.block(x, out);
            }
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, output, cotangent } = *at;
        let shape = with_rows(cotangent.dim(0)?, &self.in_row);
        let block = self.len * self.inner;
        if self.is_linear() {
            let share = self.derivative(0.0, 0.0, 1.0);
            let gradient = loops::map(self.name(), cotangent, shape, |dy, out| {
                for (dy, out) in dy.chunks_exact(self.inner).zip(out.chunks_exact_mut(block)) {
                    for out in out.chunks_exact_mut(self.inner) {
                        out.iter_mut().zip(dy).for_each(|(out, dy)| *out = dy * share);
                    }
                }
            })?;
            return Ok(vec![Some(gradient)]);
        }
        let x = &inputs[0];
        let gradient = loops::zip3(self.name(), x, output, cotangent, shape, |x, y, dy, out| {
            let results = y.chunks_exact(self.inner).zip(dy.chunks_exact(self.inner));
            let blocks = x.chunks_exact(block).zip(out.chunks_exact_mut(block));
            for ((x, out), (y, dy)) in blocks.zip(results) {
                for j in 0..self.inner {
                    let values = x[j..].iter().step_by(self.inner);
                    let ties = values.clone().filter(|&&value| value == y[j]).count() as f32;
                    for (out, &x) in out[j..].iter_mut().step_by(self.inner).zip(values) {
                        *out = dy[j] * self.derivative(x, y[j], ties);
                    }
                }
            }
        })?;
        Ok(vec![Some(gradient)])
    }
}
