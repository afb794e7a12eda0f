//! ONNX `Einsum` of two operands as one batched matrix product.

use candle_core::{Result, Tensor};

use crate::composition::{Kept, with_rows};
use crate::operators::binary::Term;
use crate::operators::shape::{Transpose, composed_permuted, inverse};
use crate::operators::{Backward, Kernel, Operator, Saves};

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

/// Brings the dimensions of a tensor into an order.
type Permuted = fn(&Tensor, &[usize]) -> Result<Tensor>;

impl Einsum {
    fn operands(&self, inputs: &[Tensor], permuted: Permuted) -> Result<(Tensor, Tensor)> {
        let (left, right) = Term::both([&self.left, &self.right], inputs)?;
        let [m, k, n] = self.sizes;
        let left = permuted(&left, &self.orders[0])?.reshape(((), m, k))?;
        let right = permuted(&right, &self.orders[1])?.reshape(((), k, n))?;
        Ok((left, right))
    }

    fn product(&self, inputs: &[Tensor], permuted: Permuted) -> Result<Tensor> {
        let (a, b) = self.operands(inputs, permuted)?;
        let product = product(&a, &b)?.reshape(with_rows(inputs[0].dim(0)?, &self.rows[2]))?;
        permuted(&product, &self.orders[2])
    }

    fn gradients(
        &self,
        inputs: &[Tensor],
        cotangent: &Tensor,
        permuted: Permuted,
    ) -> Result<Vec<Option<Tensor>>> {
        let (a, b) = self.operands(inputs, permuted)?;
        let ([m, _, columns], n) = (self.sizes, cotangent.dim(0)?);
        let dy = permuted(cotangent, &inverse(&self.orders[2]))?.reshape(((), m, columns))?;
        // The gradient of an ordered operand as that of the operand.
        let unordered = |gradient: Tensor, which: usize| {
            let ordered = gradient.reshape(with_rows(n, &self.rows[which]))?;
            permuted(&ordered, &inverse(&self.orders[which])).map(Some)
        };
        let mut gradients = Vec::with_capacity(2);
        if matches!(self.left, Term::Input(_)) {
            gradients.push(unordered(product(&dy, &b.t()?)?, 0)?);
        }
        if matches!(self.right, Term::Input(_)) {
            gradients.push(unordered(product(&a.t()?, &dy)?, 1)?);
        }
        Ok(gradients)
    }
}

impl Operator for Einsum {
    fn name(&self) -> &'static str {
        "Einsum"
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        self.product(inputs, composed_permuted)
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        self.gradients(inputs, cotangent, composed_permuted)
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}

impl Kernel for Einsum {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        self.product(inputs, Transpose::permuted)
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        self.gradients(inputs, cotangent, Transpose::permuted)
    }
}

/// A constant operand serves every row.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let count = a.dim(0)?.max(b.dim(0)?);
    let repeated = |x: &Tensor| -> Result<Tensor> {
        let (products, rows, columns) = x.dims3()?;
        if products == count {
            return Ok(x.clone());
        }
        let all = x.unsqueeze(0)?.broadcast_as((count / products, products, rows, columns))?;
        all.contiguous()?.reshape((count, rows, columns))
    };
    repeated(a)?.matmul(&repeated(b)?)
}
