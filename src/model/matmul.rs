//! Matrix products of which both sides may depend on the input: attention.

use candle_core::{Result, Tensor};

use super::binary::Term;
use super::operator::{Operator, Saves, with_rows};

/// `left @ right` over the last two dimensions; the dimensions before them repeat as NumPy's do.
#[derive(Debug)]
pub(crate) struct MatMul {
    pub(crate) left: Term,
    pub(crate) right: Term,
    /// Of the output.
    pub(crate) row: Vec<usize>,
}

impl MatMul {
    fn operands(&self, inputs: &[Tensor]) -> Result<(Tensor, Tensor)> {
        let mut inputs = inputs.iter();
        let left = match &self.left {
            Term::Constant(constant) => constant.clone(),
            term => term.tensor(&mut inputs)?,
        };
        Ok((left, self.right.tensor(&mut inputs)?))
    }

    fn gradient(&self, term: &Term, product: Tensor) -> Result<Option<Tensor>> {
        let Term::Input(row) = term else {
            return Ok(None);
        };
        let shape = with_rows(product.dim(0)?, row);
        let mut gradient = product;
        for (dim, &size) in shape.iter().enumerate() {
            if size == 1 && gradient.dim(dim)? != 1 {
                gradient = gradient.sum_keepdim(dim)?;
            }
        }
        Ok(Some(gradient))
    }
}

impl Operator for MatMul {
    fn name(&self) -> &'static str {
        "MatMul"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (a, b) = self.operands(inputs)?;
        a.broadcast_matmul(&b)?.reshape(with_rows(inputs[0].dim(0)?, &self.row))
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let (a, b) = self.operands(inputs)?;
        let (rank, mut dims) = (a.rank(), cotangent.dims()[..1].to_vec());
        dims.extend(
            a.dims()[1..rank - 2].iter().zip(&b.dims()[1..rank - 2]).map(|(a, b)| a.max(b)),
        );
        dims.extend([a.dims()[rank - 2], b.dims()[rank - 1]]);
        let dy = cotangent.reshape(dims)?;
        let mut gradients = Vec::with_capacity(2);
        if matches!(self.left, Term::Input(_)) {
            gradients.push(self.gradient(&self.left, dy.broadcast_matmul(&b.t()?)?)?);
        }
        if matches!(self.right, Term::Input(_)) {
            gradients.push(self.gradient(&self.right, a.t()?.broadcast_matmul(&dy)?)?);
        }
        Ok(gradients)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: true, output: false }
    }
}
