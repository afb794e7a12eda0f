//! What a lowering sees of its node, and what it gives.

use candle_core::{Device, Tensor};

use crate::model::conv::Window;
use crate::model::graph::{Constant, Node};
use crate::model::operator::Operator;
use crate::model::{Error, Row};

/// An input of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand<'a> {
    Absent,
    /// Depends on the model's input; its shape without the batch.
    Activation(&'a [usize]),
    Constant(&'a Constant),
}

/// What a node becomes.
#[derive(Debug)]
pub(crate) enum Lowered {
    Constant(Constant),
    /// The first input, unchanged.
    Same,
    /// An operator on the activations among the inputs, in their order, and its output's shape.
    Step(Box<dyn Operator>, Vec<usize>),
}

/// What a lowering sees.
pub(crate) struct Context<'a> {
    pub(crate) node: &'a Node,
    pub(crate) operands: &'a [Operand<'a>],
    pub(crate) opset: i64,
    pub(crate) device: &'a Device,
}

// === impl Context ===

impl<'a> Context<'a> {
    pub(super) fn operand(&self, index: usize) -> Operand<'a> {
        self.operands.get(index).copied().unwrap_or(Operand::Absent)
    }

    pub(super) fn activation(&self, index: usize) -> Result<&'a [usize], Error> {
        match self.operand(index) {
            Operand::Activation(shape) => Ok(shape),
            other => {
                Err(self.error(format!("input {index} is {}, expected an activation", kind(other))))
            }
        }
    }

    pub(super) fn image(&self, index: usize) -> Result<[usize; 3], Error> {
        let shape = self.activation(index)?;
        <[usize; 3]>::try_from(shape).map_err(|_| {
            self.error(format!("input {index} has shape {}, expected an image", Row(shape)))
        })
    }

    pub(super) fn floats(&self, index: usize) -> Result<(&'a [usize], &'a [f32]), Error> {
        match self.operand(index) {
            Operand::Constant(constant) => match constant.floats() {
                Some(values) => Ok((&constant.dims, values)),
                None => Err(self.error(format!("input {index} holds integers, expected floats"))),
            },
            other => {
                Err(self.error(format!("input {index} is {}, expected a constant", kind(other))))
            }
        }
    }

    pub(super) fn optional_floats(&self, index: usize) -> Result<Option<&'a [f32]>, Error> {
        match self.operand(index) {
            Operand::Absent => Ok(None),
            _ => Ok(Some(self.floats(index)?.1)),
        }
    }

    pub(super) fn integers(&self, index: usize) -> Result<&'a [i64], Error> {
        match self.operand(index) {
            Operand::Constant(constant) => constant.integers().ok_or_else(|| {
                self.error(format!("input {index} holds floats, expected integers"))
            }),
            other => {
                Err(self.error(format!("input {index} is {}, expected a constant", kind(other))))
            }
        }
    }

    pub(super) fn error(&self, reason: String) -> Error {
        self.node.error(reason)
    }

    pub(super) fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<Tensor, Error> {
        Ok(Tensor::from_slice(values, shape, self.device)?)
    }

    /// Kernel, strides, dilations and pads of a two-dimensional window.
    pub(super) fn window(&self, kernel: [usize; 2], image: [usize; 3]) -> Result<Window, Error> {
        let pair = |name: &str| -> Result<[usize; 2], Error> {
            match self.node.ints(name)? {
                None => Ok([1, 1]),
                Some(&[a, b]) if (1..=MAX_PAD).contains(&a) && (1..=MAX_PAD).contains(&b) => {
                    Ok([a as usize, b as usize])
                }
                Some(other) => Err(self.error(format!(
                    "attribute {name:?} is {other:?}, expected two integers from 1 to {MAX_PAD}"
                ))),
            }
        };
        let (stride, dilation) = (pair("strides")?, pair("dilations")?);
        let auto = self.node.text("auto_pad")?.unwrap_or("NOTSET");
        let mut window = Window { kernel, stride, dilation, pad_begin: [0; 2], pad_end: [0; 2] };
        match (auto, self.node.ints("pads")?) {
            ("NOTSET", None) | ("VALID", _) => {}
            ("NOTSET", Some(&[top, left, bottom, right]))
                if [top, left, bottom, right].iter().all(|pad| (0..=MAX_PAD).contains(pad)) =>
            {
                window.pad_begin = [top as usize, left as usize];
                window.pad_end = [bottom as usize, right as usize];
            }
            ("NOTSET", Some(other)) => {
                return Err(self.error(format!(
                    "attribute \"pads\" is {other:?}, expected four integers from 0 to {MAX_PAD}"
                )));
            }
            ("SAME_UPPER" | "SAME_LOWER", _) => {
                for axis in [0, 1] {
                    let outputs = image[1 + axis].div_ceil(stride[axis]);
                    let reach = dilation[axis] * (kernel[axis] - 1) + 1;
                    let total =
                        ((outputs - 1) * stride[axis] + reach).saturating_sub(image[1 + axis]);
                    let small = total / 2;
                    let begin = if auto == "SAME_UPPER" { small } else { total - small };
                    window.pad_begin[axis] = begin;
                    window.pad_end[axis] = total - begin;
                }
            }
            (other, _) => {
                return Err(self.error(format!("attribute \"auto_pad\" is {other:?}")));
            }
        }
        Ok(window)
    }

    pub(super) fn kernel_shape(&self) -> Result<[usize; 2], Error> {
        match self.node.ints("kernel_shape")? {
            Some(&[height, width])
                if (1..=MAX_PAD).contains(&height) && (1..=MAX_PAD).contains(&width) =>
            {
                Ok([height as usize, width as usize])
            }
            other => Err(self.error(format!(
                "attribute \"kernel_shape\" is {other:?}, expected two integers from 1 to {MAX_PAD}"
            ))),
        }
    }

    /// An axis as an index into a shape without the batch.
    pub(super) fn axis(&self, axis: i64, shape: &[usize]) -> Result<usize, Error> {
        let rank = shape.len() as i64 + 1;
        let positive = if axis < 0 { axis + rank } else { axis };
        if !(1..rank).contains(&positive) {
            return Err(self.error(format!("axis {axis} is the batch, or outside of rank {rank}")));
        }
        Ok(positive as usize - 1)
    }
}

pub(super) fn kind(operand: Operand<'_>) -> &'static str {
    match operand {
        Operand::Absent => "absent",
        Operand::Activation(_) => "an activation",
        Operand::Constant(_) => "a constant",
    }
}

pub(super) fn step(operator: impl Operator + 'static, shape: &[usize]) -> Result<Lowered, Error> {
    Ok(Lowered::Step(Box::new(operator), shape.to_vec()))
}

/// Windows, strides, dilations and pads larger than any image need no support.
pub(super) const MAX_PAD: i64 = 4096;
