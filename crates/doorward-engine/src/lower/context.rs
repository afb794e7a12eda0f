//! What a lowering sees of its node, and what it gives.

use std::borrow::Cow;

use candle_core::{Device, Tensor};

use crate::error::Error;
use crate::kernels::window::Window;
use crate::layout::Layout;
use crate::onnx::constant::Constant;
use crate::onnx::node::Node;
use crate::operators::Operator;
use crate::operators::folded::Folded;

/// An input of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand<'a> {
    Absent,
    /// Depends on the model's input.
    Activation(&'a Layout),
    Constant(&'a Constant),
}

/// The operators, or the constant, that a node becomes.
#[derive(Debug)]
pub(crate) enum Lowered {
    Constant(Constant),
    /// The first input, unchanged.
    Same,
    /// An operator on the activations among the inputs, in their order, and its output's layout.
    Step(Box<dyn Operator>, Layout),
    /// Each on the output of the one before.
    Chain(Vec<(Box<dyn Operator>, Layout)>),
    /// One for each output of the node.
    Steps(Vec<(Box<dyn Operator>, Layout)>),
}

/// A node and its operands, as a lowering sees them.
pub(crate) struct Context<'a> {
    pub(crate) node: &'a Node,
    pub(crate) operands: &'a [Operand<'a>],
    /// The batch that the graph was written for, if it was fixed.
    pub(crate) fixed_batch: Option<i64>,
    pub(crate) device: &'a Device,
}

// === impl Context ===

impl<'a> Context<'a> {
    pub(super) fn operand(&self, index: usize) -> Operand<'a> {
        self.operands.get(index).copied().unwrap_or(Operand::Absent)
    }

    pub(super) fn activation(&self, index: usize) -> Result<&'a Layout, Error> {
        match self.operand(index) {
            Operand::Activation(layout) => Ok(layout),
            other => {
                Err(self.error(format!("input {index} is {}, expected an activation", kind(other))))
            }
        }
    }

    /// Images, and how many a row holds; `[batch, C, L]` is images of one row.
    pub(super) fn images(&self, index: usize) -> Result<(usize, [usize; 3]), Error> {
        let layout = self.activation(index)?;
        layout.images().ok_or_else(|| {
            self.error(format!("input {index} has shape {layout}, expected [batch, C, H, W]"))
        })
    }

    /// `operator`, of `[n, C, H, W]`, on the images of input 0, for images of another size.
    pub(super) fn on_images(
        &self,
        operator: impl Operator + 'static,
        size: [usize; 3],
    ) -> Result<Lowered, Error> {
        let (count, from) = self.images(0)?;
        let layout = self.activation(0)?;
        let sizes = match layout.rank() {
            3 => vec![(1, size[0]), (2, size[2])],
            _ => vec![(1, size[0]), (2, size[1]), (3, size[2])],
        };
        let out = layout.resized(&sizes);
        let operator = Box::new(operator);
        if count == 1 && layout.rank() == 4 && layout.as_batch_first().is_some() {
            return Ok(Lowered::Step(operator, out));
        }
        let folded = Folded { operator, images: [from, size], row: out.row() };
        Ok(Lowered::Step(Box::new(folded), out))
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

    /// The values of a constant of any type, as floats.
    pub(super) fn numbers(&self, index: usize) -> Result<(&'a [usize], Cow<'a, [f32]>), Error> {
        if let Operand::Constant(constant) = self.operand(index)
            && let Some(values) = constant.integers()
        {
            let values = values.iter().map(|&value| value as f32).collect();
            return Ok((&constant.dims, Cow::Owned(values)));
        }
        let (dims, values) = self.floats(index)?;
        Ok((dims, Cow::Borrowed(values)))
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
        // Along one dimension: images of one row.
        let one = self.activation(0)?.rank() == 3;
        let pair = |name: &str| -> Result<[usize; 2], Error> {
            match self.node.ints(name)? {
                None => Ok([1, 1]),
                Some(&[a, b]) if (1..=MAX_PAD).contains(&a) && (1..=MAX_PAD).contains(&b) => {
                    Ok([a as usize, b as usize])
                }
                Some(&[b]) if one && (1..=MAX_PAD).contains(&b) => Ok([1, b as usize]),
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
            ("NOTSET", Some(&[left, right]))
                if one && [left, right].iter().all(|pad| (0..=MAX_PAD).contains(pad)) =>
            {
                window.pad_begin = [0, left as usize];
                window.pad_end = [0, right as usize];
            }
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
            Some(&[width]) if self.activation(0)?.rank() == 3 && (1..=MAX_PAD).contains(&width) => {
                Ok([1, width as usize])
            }
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

    /// An axis of input 0 that the batch is not part of.
    pub(super) fn axis(&self, axis: i64) -> Result<usize, Error> {
        let layout = self.activation(0)?;
        let positive = self.node.axis(axis, layout.rank())?;
        if layout.is_batch(positive) {
            return Err(self.error(format!("axis {axis} of {layout} is the batch")));
        }
        Ok(positive)
    }

    /// Integers that opsets have moved from an attribute to an input.
    pub(super) fn moved_integers(
        &self,
        name: &str,
        index: usize,
    ) -> Result<Option<&'a [i64]>, Error> {
        match (self.node.ints(name)?, self.operand(index)) {
            (Some(values), _) => Ok(Some(values)),
            (None, Operand::Absent) => Ok(None),
            (None, _) => Ok(Some(self.integers(index)?)),
        }
    }
}

pub(super) fn kind(operand: Operand<'_>) -> &'static str {
    match operand {
        Operand::Absent => "absent",
        Operand::Activation(_) => "an activation",
        Operand::Constant(_) => "a constant",
    }
}

pub(super) fn step(operator: impl Operator + 'static, layout: Layout) -> Result<Lowered, Error> {
    Ok(Lowered::Step(Box::new(operator), layout))
}

/// Windows, strides, dilations and pads larger than any image need no support.
pub(super) const MAX_PAD: i64 = 4096;
