//! Fully connected layers: ONNX `Gemm` and `MatMul` with constant weights.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::composition::Kept;
use crate::kernels::activation::Activation;
use crate::kernels::loops;
use crate::kernels::matrix::{HEIGHT, Matrix};
use crate::operators::{Backward, Fusible, Kernel, Operator, Saves};

/// `activation(x W + b)` for rows `x`, the last dimension of the input.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[in, out]`
    weight: Tensor,
    /// `[out]`
    bias: Option<Tensor>,
    activation: Activation,
    /// `weight` and `bias` where the program runs on the CPU, packed on first use.
    packed: OnceLock<(Matrix, Option<Vec<f32>>)>,
    /// `weight` transposed.
    transposed: OnceLock<Matrix>,
}

impl Linear {
    /// `weight` is `[in, out]`, `bias` `[out]`.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::with_activation(weight, bias, Activation::Identity)
    }

    fn with_activation(weight: Tensor, bias: Option<Tensor>, activation: Activation) -> Self {
        let (packed, transposed) = (OnceLock::new(), OnceLock::new());
        Self { weight, bias, activation, packed, transposed }
    }

    fn packed(&self) -> Result<&(Matrix, Option<Vec<f32>>)> {
        if let Some(ready) = self.packed.get() {
            return Ok(ready);
        }
        let (ins, outs) = self.weight.dims2()?;
        let values: Vec<f32> = self.weight.flatten_all()?.to_vec1()?;
        let bias = self.bias.as_ref().map(|bias| bias.flatten_all()?.to_vec1()).transpose()?;
        let built = Matrix::new(ins, outs, |row, column| values[row * outs + column]);
        Ok(self.packed.get_or_init(|| (built, bias)))
    }

    fn transposed(&self) -> Result<&Matrix> {
        if let Some(ready) = self.transposed.get() {
            return Ok(ready);
        }
        let (ins, outs) = self.weight.dims2()?;
        let values: Vec<f32> = self.weight.flatten_all()?.to_vec1()?;
        let built = Matrix::new(outs, ins, |row, column| values[column * outs + row]);
        Ok(self.transposed.get_or_init(|| built))
    }
}

/// `shape` with another last dimension.
fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(dim) = shape.last_mut() {
        *dim = last;
    }
    shape
}

impl Operator for Linear {
    fn name(&self) -> &'static str {
        "Gemm"
    }

    fn compose(&self, inputs: &[Tensor], _kept: &Kept) -> Result<Tensor> {
        let shape = with_last(inputs[0].dims(), self.weight.dim(1)?);
        let mut y = inputs[0].reshape(((), self.weight.dim(0)?))?.matmul(&self.weight)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        self.activation.compose(&y.reshape(shape)?)
    }

    fn compose_vjp(&self, at: &Backward<'_>, _kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { output, cotangent, .. } = *at;
        let cotangent = self.activation.composed_gate(output, cotangent)?;
        let shape = with_last(cotangent.dims(), self.weight.dim(0)?);
        let rows = cotangent.reshape(((), self.weight.dim(1)?))?;
        Ok(vec![Some(rows.matmul(&self.weight.t()?)?.reshape(shape)?)])
    }

    fn saves(&self) -> Saves {
        Saves { inputs: false, output: self.activation != Activation::Identity }
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }

    fn followed_by(&self, next: &Fusible<'_>) -> Option<Box<dyn Operator>> {
        if self.activation != Activation::Identity {
            return None;
        }
        match next {
            Fusible::Bias(bias) if bias.len() == self.weight.dims()[1] => {
                let more = Tensor::new(bias.as_slice(), self.weight.device()).ok()?;
                let bias = match &self.bias {
                    None => more,
                    Some(own) => (own + more).ok()?,
                };
                Some(Box::new(Self::new(self.weight.clone(), Some(bias))))
            }
            Fusible::Affine(next) if next.is_unit() => {
                let (weight, bias) = (self.weight.clone(), self.bias.clone());
                Some(Box::new(Self::with_activation(weight, bias, next.activation)))
            }
            _ => None,
        }
    }
}

impl Kernel for Linear {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let x = &inputs[0];
        let shape = with_last(x.dims(), self.weight.dim(1)?);
        let (matrix, bias) = self.packed()?;
        loops::apply(self.name(), x, shape, |x, out| {
            matrix.apply(x, bias.as_deref(), self.activation, out);
        })
    }

    fn products(&self, row: &[usize]) -> usize {
        row.iter().copied().fold(self.weight.dims()[1], usize::saturating_mul)
    }

    fn forward_shared(&self, inputs: &[Tensor], shares: usize) -> Result<Tensor> {
        let x = &inputs[0];
        let (ins, outs) = self.weight.dims2()?;
        let (matrix, bias) = self.packed()?;
        // Rows that a share takes together read the weights once.
        let rows = (x.elem_count() / ins.max(1)).div_ceil(HEIGHT).div_ceil(shares) * HEIGHT;
        loops::apply(self.name(), x, with_last(x.dims(), outs), |x, out| {
            let shares = x.par_chunks(rows * ins).zip(out.par_chunks_mut(rows * outs));
            shares.for_each(|(x, out)| matrix.apply(x, bias.as_deref(), self.activation, out));
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { output, cotangent, .. } = *at;
        let cotangent = self.activation.gate(output, cotangent)?;
        let shape = with_last(cotangent.dims(), self.weight.dim(0)?);
        let matrix = self.transposed()?;
        let gradient = loops::apply(self.name(), &cotangent, shape, |dy, out| {
            matrix.apply(dy, None, Activation::Identity, out);
        })?;
        Ok(vec![Some(gradient)])
    }
}
