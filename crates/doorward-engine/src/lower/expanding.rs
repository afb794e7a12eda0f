//! A node while others are written in its place.

use std::collections::HashMap;

use candle_onnx::onnx::tensor_proto::DataType;

use super::context::Operand;
use crate::error::Error;
use crate::onnx::constant::{Constant, Values};
use crate::onnx::node::{MADE, Node};
use crate::size::Size;

/// Nodes, and the constants that they read.
#[derive(Debug, Default)]
pub(crate) struct Expansion {
    pub(crate) nodes: Vec<Node>,
    pub(crate) constants: Vec<(String, Constant)>,
}

/// What is known of the tensors that a node reads.
pub(crate) struct Known<'a> {
    pub(crate) operand: &'a dyn Fn(&str) -> Operand<'a>,
    /// Types of constants that hold integers of fewer than 32 bits.
    pub(crate) narrow: &'a HashMap<String, DataType>,
}

/// A node while it is expanded.
pub(super) struct Expanding<'a> {
    pub(super) node: &'a Node,
    known: &'a Known<'a>,
    made: Expansion,
}

// === impl Expanding ===

impl<'a> Expanding<'a> {
    pub(super) fn new(node: &'a Node, known: &'a Known<'a>) -> Self {
        Self { node, known, made: Expansion::default() }
    }

    pub(super) fn finish(self) -> Expansion {
        self.made
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        self.node.error(reason.into())
    }

    pub(super) fn has(&self, index: usize) -> bool {
        self.node.inputs.get(index).is_some_and(|name| !name.is_empty())
    }

    pub(super) fn input(&self, index: usize) -> Result<&'a str, Error> {
        match self.node.inputs.get(index) {
            Some(name) if !name.is_empty() => Ok(name),
            _ => Err(self.error(format!("input {index} is absent"))),
        }
    }

    pub(super) fn operand(&self, index: usize) -> Result<Operand<'a>, Error> {
        Ok((self.known.operand)(self.input(index)?))
    }

    pub(super) fn is_constant(&self, index: usize) -> Result<bool, Error> {
        Ok(matches!(self.operand(index)?, Operand::Constant(_)))
    }

    pub(super) fn constant(&self, index: usize) -> Result<&'a Constant, Error> {
        match self.operand(index)? {
            Operand::Constant(constant) => Ok(constant),
            _ => Err(self.error(format!("input {index} is no constant"))),
        }
    }

    /// The values of a constant, as floats.
    pub(super) fn floats(&self, index: usize) -> Result<(&'a [usize], Vec<f32>), Error> {
        let constant = self.constant(index)?;
        let values = match &constant.values {
            Values::F32(values) => values.clone(),
            Values::I64(values) => values.iter().map(|&value| value as f32).collect(),
        };
        Ok((&constant.dims, values))
    }

    /// The type of a constant of integers of fewer than 32 bits.
    pub(super) fn narrow(&self, index: usize) -> Option<DataType> {
        self.known.narrow.get(self.node.inputs.get(index)?).copied()
    }

    /// The sizes of an input's axes.
    pub(super) fn sizes(&self, index: usize) -> Result<Vec<Size>, Error> {
        match self.operand(index)? {
            Operand::Activation(layout) => Ok(layout.sizes()),
            Operand::Constant(constant) => {
                Ok(constant.dims.iter().map(|&dim| Size::Fixed(dim as i64)).collect())
            }
            Operand::Absent => Err(self.error(format!("input {index} is absent"))),
        }
    }

    /// The size of an axis that the batch is not part of.
    pub(super) fn size(&self, index: usize, axis: usize) -> Result<usize, Error> {
        match self.sizes(index)?.get(axis) {
            Some(&Size::Fixed(size)) => Ok(size as usize),
            _ => Err(self.error(format!("input {index} has no axis {axis}, or it is the batch"))),
        }
    }

    fn name(&self, what: &str) -> String {
        let made = self.made.nodes.len() + self.made.constants.len();
        format!("{MADE}{what} {made} of {}", self.node.outputs[0])
    }

    pub(super) fn keep(&mut self, dims: &[usize], values: Values) -> String {
        let name = self.name("constant");
        self.made.constants.push((name.clone(), Constant { dims: dims.to_vec(), values }));
        name
    }

    pub(super) fn keep_floats(&mut self, dims: &[usize], values: Vec<f32>) -> String {
        self.keep(dims, Values::F32(values))
    }

    pub(super) fn scalar(&mut self, value: f32) -> String {
        self.keep_floats(&[], vec![value])
    }

    pub(super) fn integers(&mut self, values: &[i64]) -> String {
        self.keep(&[values.len()], Values::I64(values.to_vec()))
    }

    /// Appends an operator without attributes; returns its output.
    pub(super) fn one(&mut self, op: &str, inputs: &[&str]) -> String {
        self.node(self.node.made(op, inputs, ""))
    }

    /// Appends a node; returns its output.
    pub(super) fn node(&mut self, mut node: Node) -> String {
        let name = self.name(&node.op);
        node.outputs = vec![name.clone()];
        self.made.nodes.push(node);
        name
    }

    /// Appends a node with outputs of its own.
    pub(super) fn nodes_of(&mut self, node: Node) {
        self.made.nodes.push(node);
    }

    /// The operator of these attributes of this node's.
    pub(super) fn with_attributes(&self, op: &str, known: &[&str], inputs: &[&str]) -> Node {
        let mut node = self.node.on(op, "", "").with_only(known);
        node.inputs = inputs.iter().map(|&name| name.into()).collect();
        node
    }

    /// Gives the last node the first output of the whole, which has no other that is computed.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        if let Some(last) = self.made.nodes.last_mut() {
            last.outputs = vec![self.node.outputs[0].clone()];
        }
        Ok(())
    }

    pub(super) fn renamed(&mut self, op: &str, known: &[&str]) -> Result<(), Error> {
        let inputs: Vec<&str> = self.node.inputs.iter().map(String::as_str).collect();
        self.node(self.with_attributes(op, known, &inputs));
        self.end()
    }

    pub(super) fn swapped(&mut self, op: &str) -> Result<(), Error> {
        if self.is_constant(0)? && self.is_constant(1)? {
            return Ok(());
        }
        let (a, b) = (self.input(0)?, self.input(1)?);
        self.one(op, &[b, a]);
        self.end()
    }

    /// A function of two truth values as one of ones and zeros.
    pub(super) fn as_floats(&mut self, op: &str) -> Result<(), Error> {
        if self.is_constant(0)? && self.is_constant(1)? {
            return Ok(());
        }
        let mut inputs = Vec::new();
        for index in [0, 1] {
            inputs.push(match self.operand(index)? {
                Operand::Constant(_) => {
                    let (dims, values) = self.floats(index)?;
                    self.keep_floats(dims, values)
                }
                _ => self.input(index)?.to_owned(),
            });
        }
        self.one(op, &[&inputs[0], &inputs[1]]);
        self.end()
    }
}
