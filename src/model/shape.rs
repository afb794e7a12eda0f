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

/// ONNX `Pad` with a constant along axes that are not the batch.
#[derive(Debug)]
pub(crate) struct Pad {
    /// Axis, values before, values after; negative counts drop values.
    pub(crate) axes: Vec<(usize, isize, isize)>,
    pub(crate) value: f32,
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
            y = resize(&y, axis, before, after, self.value)?;
        }
        Ok(y)
    }

    fn vjp(
        &self,
        _inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut gradient = cotangent.clone();
        for &(axis, before, after) in &self.axes {
            gradient = resize(&gradient, axis, -before, -after, 0.0)?;
        }
        Ok(vec![Some(gradient.contiguous()?)])
    }
}

/// Adds `value`s, or drops what is there, before and after along an axis.
fn resize(x: &Tensor, axis: usize, before: isize, after: isize, value: f32) -> Result<Tensor> {
    let added = |count: isize| -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        shape[axis] = count.max(0).unsigned_abs();
        Tensor::full(value, shape, x.device())
    };
    let dropped = |count: isize| count.min(0).unsigned_abs();
    let x = match (before > 0, after > 0) {
        (false, false) => x.clone(),
        (true, false) => Tensor::cat(&[&added(before)?, x], axis)?,
        (false, true) => Tensor::cat(&[x, &added(after)?], axis)?,
        (true, true) => Tensor::cat(&[&added(before)?, x, &added(after)?], axis)?,
    };
    let len = x.dim(axis)? - dropped(before) - dropped(after);
    x.narrow(axis, dropped(before), len)
}
