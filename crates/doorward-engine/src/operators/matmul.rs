//! Matrix products of which both sides may depend on the input: attention.

use candle_core::{Result, Tensor};

use crate::composition::{Kept, sum_to, with_rows};
use crate::operators::binary::Term;
use crate::operators::{Backward, Operator, Saves};

/// `left @ right` over the last two dimensions; the dimensions before them repeat as NumPy's do.
#[derive(Debug)]
pub(crate) struct MatMul {
    pub(crate) left: Term,
    pub(crate) right: Term,
    /// Shape of the output's row.
    pub(crate) row: Vec<usize>,
}

impl MatMul {
    /// Both as `[products, rows, columns]`, repeated where one of them is.
    fn flat(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor, Vec<usize>)> {
        let rank = a.rank();
        let front: Vec<usize> = a.dims()[..rank - 2]
            .iter()
            .zip(&b.dims()[..rank - 2])
            .map(|(&a, &b)| a.max(b))
            .collect();
        let flat = |x: &Tensor| {
            let matrix = &x.dims()[rank - 2..];
            let count: usize = front.iter().product();
            let whole = [front.as_slice(), matrix].concat();
            let x = if x.dims() == whole { x.clone() } else { x.broadcast_as(whole)? };
            x.contiguous()?.reshape((count, matrix[0], matrix[1]))
        };
        Ok((flat(a)?, flat(b)?, front))
    }
}

/// Sums over what was repeated, and gives the shape of `term`.
fn unrepeated(term: &Term, gradient: &Tensor, front: &[usize]) -> Result<Option<Tensor>> {
    let Term::Input(row) = term else {
        return Ok(None);
    };
    let (n, (_, rows, columns)) = (front[0], gradient.dims3()?);
    let gradient = gradient.reshape([front, &[rows, columns]].concat())?;
    Ok(Some(sum_to(&gradient, &with_rows(n, row))?))
}

impl Operator for MatMul {
    fn name(&self) -> &'static str {
        "MatMul"
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        let (a, b) = Term::both([&self.left, &self.right], inputs)?;
        let (a, b, _) = Self::flat(&a, &b)?;
        a.matmul(&b)?.reshape(with_rows(inputs[0].dim(0)?, &self.row))
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        let (a, b) = Term::both([&self.left, &self.right], inputs)?;
        let (a, b, front) = Self::flat(&a, &b)?;
        let dy = cotangent.reshape((a.dim(0)?, a.dim(1)?, b.dim(2)?))?;
        let mut gradients = Vec::with_capacity(2);
        if matches!(self.left, Term::Input(_)) {
            gradients.push(unrepeated(&self.left, &dy.matmul(&b.t()?)?, &front)?);
        }
        if matches!(self.right, Term::Input(_)) {
            gradients.push(unrepeated(&self.right, &a.t()?.matmul(&dy)?, &front)?);
        }
        Ok(gradients)
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }
}
