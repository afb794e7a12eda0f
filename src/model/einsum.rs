//! ONNX `Einsum` of two operands as one batched matrix product.

use candle_core::{Result, Tensor};

use super::binary::Term;
use super::operator::{Operator, Saves, with_rows};
use super::shape::Transpose;

/// Both operands brought into an order, multiplied as `[products, m, k] @ [products, k, n]`, and
/// the result brought into its own.
#[derive(Debug)]
pub(crate) struct Einsum {
    pub(crate) left: Term,
    pub(crate) right: Term,
    /// Orders of the operands' and the product's dimensions, the batch's first.
    pub(crate) orders: [Vec<usize>; 3],
    /// `m`, `k` and `n`.
    pub(crate) sizes: [usize; 3],
    /// Rows of the ordered operands and of the product before it is ordered.
    pub(crate) rows: [Vec<usize>; 3],
}

impl Einsum {
    fn operands(&self, inputs: &[Tensor]) -> Result<(Tensor, Tensor)> {
        let (left, right) = Term::both([&self.left, &self.right], inputs)?;
        let [m, k, n] = self.sizes;
        let left = Transpose::permuted(&left, &self.orders[0])?.reshape(((), m, k))?;
        let right = Transpose::permuted(&right, &self.orders[1])?.reshape(((), k, n))?;
        Ok((left, right))
    }

    /// The gradient of an ordered operand as that of the operand.
    fn unordered(&self, gradient: &Tensor, n: usize, which: usize) -> Result<Option<Tensor>> {
        let ordered = gradient.reshape(with_rows(n, &self.rows[which]))?;
        Ok(Some(Transpose::unpermuted(&ordered, &self.orders[which])?))
    }
}

impl Operator for Einsum {
    fn name(&self) -> &'static str {
        "Einsum"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (a, b) = self.operands(inputs)?;
        let product = product(&a, &b)?;
        let product = product.reshape(with_rows(inputs[0].dim(0)?, &self.rows[2]))?;
        Transpose::permuted(&product, &self.orders[2])
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let (a, b) = self.operands(inputs)?;
        let ([m, _, columns], n) = (self.sizes, cotangent.dim(0)?);
        let dy = Transpose::unpermuted(cotangent, &self.orders[2])?;
        let dy = dy.reshape(((), m, columns))?;
        let mut gradients = Vec::with_capacity(2);
        if matches!(self.left, Term::Input(_)) {
            gradients.push(self.unordered(&product(&dy, &b.t()?)?, n, 0)?);
        }
        if matches!(self.right, Term::Input(_)) {
            gradients.push(self.unordered(&product(&a.t()?, &dy)?, n, 1)?);
        }
        Ok(gradients)
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }
}

/// A constant operand serves every row.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let count = a.dim(0)?.max(b.dim(0)?);
    let repeated = |x: &Tensor| -> Result<Tensor> {
        let (own, rows, columns) = x.dims3()?;
        if own == count {
            return Ok(x.clone());
        }
        let all = x.unsqueeze(0)?.broadcast_as((count / own, own, rows, columns))?;
        all.contiguous()?.reshape((count, rows, columns))
    };
    repeated(a)?.matmul(&repeated(b)?)
}
