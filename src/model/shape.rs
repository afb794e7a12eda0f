//! Operators that move values without computing.

use candle_core::{Result, Tensor};

use super::operator::Operator;

/// ONNX `Concat` along an axis that is not the batch.
#[derive(Debug)]
pub(crate) struct Concat {
    pub(crate) axis: usize,
}

/// ONNX `Flatten` and `Reshape` that keep the batch in front.
#[derive(Debug)]
pub(crate) struct Reshape {
    /// Without the batch.
    pub(crate) shape: Vec<usize>,
}

/// ONNX `Pad` with zeros along axes that are not the batch.
#[derive(Debug)]
pub(crate) struct Pad {
    /// Axis, values before, values after.
    pub(crate) axes: Vec<(usize, usize, usize)>,
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        Tensor::cat(inputs, self.axis)
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut start = 0;
        let mut gradients = Vec::with_capacity(inputs.len());
        for input in inputs {
            let len = input.dim(self.axis)?;
            gradients.push(Some(cotangent.narrow(self.axis, start, len)?.contiguous()?));
            start += len;
        }
        Ok(gradients)
    }
}

impl Operator for Reshape {
    fn name(&self) -> &'static str {
        "Reshape"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let mut shape = vec![inputs[0].dim(0)?];
        shape.extend(&self.shape);
        inputs[0].reshape(shape)
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cotangent.reshape(inputs[0].shape())?)])
    }
}

impl Operator for Pad {
    fn name(&self) -> &'static str {
        "Pad"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let mut y = inputs[0].clone();
        for &(axis, before, after) in &self.axes {
            y = y.pad_with_zeros(axis, before, after)?;
        }
        Ok(y)
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut gradient = cotangent.clone();
        for &(axis, before, _) in &self.axes {
            gradient = gradient.narrow(axis, before, inputs[0].dim(axis)?)?;
        }
        Ok(vec![Some(gradient.contiguous()?)])
    }
}
