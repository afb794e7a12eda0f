//! A graph as an ordered list of steps over candle tensors, and its evaluation.

use std::collections::HashMap;
use std::rc::Rc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::fold::{fold, folds};
use super::graph::{Constant, Graph, row_values};
use super::lower::{Context, Lowered, Operand, lower};
use super::operator::{Operator, add};
use super::{Cotangent, Error, Row};

/// A compiled model.
///
/// A batch is cut into parts of a few rows, and every part runs through all steps on one thread:
/// its activations stay in that core's cache, and no step has to be parallel itself.
#[derive(Debug)]
pub struct Program {
    input_name: String,
    output_name: String,
    steps: Vec<Step>,
    slots: usize,
    output: usize,
    input_shape: Vec<usize>,
    output_shape: Vec<usize>,
    rows_per_part: usize,
    device: Device,
}

#[derive(Debug)]
struct Step {
    name: String,
    operator: Box<dyn Operator>,
    inputs: Vec<usize>,
    output: usize,
    /// Slots that no later step reads.
    last_uses: Vec<usize>,
}

/// Where a name of the graph is while compiling.
#[derive(Clone)]
enum Value {
    Constant(Rc<Constant>),
    Slot(usize),
}

// === impl Program ===

impl Program {
    /// Compiles an ONNX file, which keeps all of its data in itself, for `device`.
    pub fn compile(bytes: &[u8], device: &Device) -> Result<Self, Error> {
        Self::assemble(Graph::decode(bytes, None)?, device)
    }

    /// Compiles a graph for `device`.
    pub(super) fn assemble(graph: Graph, device: &Device) -> Result<Self, Error> {
        let input_shape = graph.input_shape.clone();
        // Every constant can be computed from once, and shapes and pads are small.
        let stored: usize = graph.constants.values().map(|constant| constant.values.len()).sum();
        let mut foldable = stored + FOLDED_VALUES;
        let mut values: HashMap<String, Value> = graph
            .constants
            .into_iter()
            .map(|(name, constant)| (name, Value::Constant(Rc::new(constant))))
            .collect();
        values.insert(graph.input.clone(), Value::Slot(0));
        let mut shapes = vec![graph.input_shape];
        let mut steps: Vec<Step> = Vec::new();
        for node in &graph.nodes {
            if folds(&node.op)
                && let Some(inputs) = constants(&node.inputs, &values)
            {
                if let Some(folded) = fold(node, &inputs, &mut foldable)?.into_iter().next() {
                    values.insert(node.output.clone(), Value::Constant(Rc::new(folded)));
                }
                continue;
            }
            let undefined = |name: &&String| !name.is_empty() && !values.contains_key(*name);
            if let Some(name) = node.inputs.iter().find(undefined) {
                return Err(node.error(format!("input {name:?} is an output that is not computed")));
            }
            let operands: Vec<Operand<'_>> = node
                .inputs
                .iter()
                .map(|name| match values.get(name) {
                    None => Operand::Absent,
                    Some(Value::Constant(constant)) => Operand::Constant(constant),
                    Some(Value::Slot(slot)) => Operand::Activation(&shapes[*slot]),
                })
                .collect();
            let context = Context { node, operands: &operands, opset: graph.opset, device };
            let value = match lower(&context)? {
                Lowered::Constant(constant) => Value::Constant(Rc::new(constant)),
                Lowered::Same => match node.inputs.first().and_then(|name| values.get(name)) {
                    Some(value) => value.clone(),
                    None => return Err(node.error("its input is absent".into())),
                },
                Lowered::Step(operator, shape) => {
                    if row_values(&shape).is_none() {
                        return Err(node.error(format!(
                            "its output {} has no values, or too many",
                            Row(&shape)
                        )));
                    }
                    let inputs = node
                        .inputs
                        .iter()
                        .filter_map(|name| match values.get(name) {
                            Some(Value::Slot(slot)) => Some(*slot),
                            _ => None,
                        })
                        .collect();
                    let output = shapes.len();
                    shapes.push(shape);
                    steps.push(Step {
                        name: node.name.clone(),
                        operator,
                        inputs,
                        output,
                        last_uses: Vec::new(),
                    });
                    Value::Slot(output)
                }
            };
            values.insert(node.output.clone(), value);
        }
        let Some(Value::Slot(mut output)) = values.get(&graph.output).cloned() else {
            return Err(Error::Outputs { names: vec![graph.output] });
        };
        // Margins are taken of logits; the softmax that turned them into probabilities, which
        // keeps their order, is left away.
        if let Some(last) = steps.last()
            && matches!(last.operator.name(), "LogSoftmax" | "Softmax")
            && last.output == output
        {
            output = last.inputs[0];
            steps.pop();
        }
        let largest = shapes.iter().map(|shape| shape.iter().product::<usize>()).max().unwrap_or(1);
        let mut program = Self {
            input_name: graph.input,
            output_name: graph.output,
            steps,
            slots: shapes.len(),
            output,
            input_shape,
            output_shape: shapes[output].clone(),
            rows_per_part: (PART_VALUES / largest.max(1)).clamp(1, MAX_PART_ROWS),
            device: device.clone(),
        };
        program.drop_unused();
        program.fuse();
        program.plan_liveness();
        Ok(program)
    }

    /// Of one row.
    pub fn input_shape(&self) -> &[usize] {
        &self.input_shape
    }

    /// Of one row.
    pub fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    /// Name of the graph's input.
    pub fn input_name(&self) -> &str {
        &self.input_name
    }

    /// Name of the graph's output.
    pub fn output_name(&self) -> &str {
        &self.output_name
    }

    /// Where the program runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The operators in order, after fusion.
    pub fn operators(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| step.operator.name())
    }

    /// `[n, C, H, W] -> [n, labels]`, or what else the graph maps.
    pub fn forward(&self, batch: &Tensor) -> Result<Tensor, Error> {
        let parts = self.parts(batch.dim(0)?);
        if parts.len() == 1 {
            return self.run(batch, false)?.pop_output(self.output);
        }
        let logits = parts
            .into_par_iter()
            .map(|(start, len)| {
                self.run(&batch.narrow(0, start, len)?, false)?.pop_output(self.output)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Tensor::cat(&logits, 0)?)
    }

    /// Logits, and the gradient to the input of `sum(logits * cotangent)`.
    pub fn vjp(
        &self,
        batch: &Tensor,
        cotangent: &Cotangent<'_>,
    ) -> Result<(Tensor, Tensor), Error> {
        let parts = self.parts(batch.dim(0)?);
        let (logits, gradients): (Vec<_>, Vec<_>) = parts
            .into_par_iter()
            .map(|(start, len)| {
                let part = batch.narrow(0, start, len)?;
                let slots = self.run(&part, true)?;
                let logits = slots.get(self.output)?.clone();
                let cotangent = cotangent(start..start + len, &logits)?;
                let gradient = self.reverse(&slots, cotangent, &part)?;
                Ok((logits, gradient))
            })
            .collect::<Result<Vec<_>, Error>>()?
            .into_iter()
            .unzip();
        Ok((Tensor::cat(&logits, 0)?, Tensor::cat(&gradients, 0)?))
    }

    fn parts(&self, rows: usize) -> Vec<(usize, usize)> {
        let size = match self.device {
            Device::Cpu => {
                let share = rows.div_ceil(rayon::current_num_threads());
                share.clamp(1, self.rows_per_part)
            }
            _ => DEVICE_PART_ROWS,
        };
        (0..rows).step_by(size).map(|start| (start, size.min(rows - start))).collect()
    }

    fn run(&self, batch: &Tensor, keep: bool) -> Result<Slots, Error> {
        let mut slots = Slots(vec![None; self.slots]);
        slots.0[0] = Some(batch.contiguous()?);
        for step in &self.steps {
            let inputs = slots.inputs(step)?;
            let output = step.operator.forward(&inputs)?;
            slots.0[step.output] = Some(output);
            if !keep {
                for &slot in &step.last_uses {
                    slots.0[slot] = None;
                }
            }
        }
        Ok(slots)
    }

    fn reverse(&self, slots: &Slots, cotangent: Tensor, input: &Tensor) -> Result<Tensor, Error> {
        let mut gradients: Vec<Option<Tensor>> = vec![None; self.slots];
        gradients[self.output] = Some(cotangent);
        for step in self.steps.iter().rev() {
            let Some(cotangent) = gradients[step.output].take() else {
                continue;
            };
            let inputs = slots.inputs(step)?;
            let output = slots.get(step.output)?;
            let own = step.operator.vjp(&inputs, output, &cotangent.contiguous()?)?;
            for (&slot, gradient) in step.inputs.iter().zip(own) {
                let Some(gradient) = gradient else { continue };
                gradients[slot] = Some(match gradients[slot].take() {
                    None => gradient,
                    Some(sum) => add(&sum, &gradient)?,
                });
            }
        }
        match gradients[0].take() {
            Some(gradient) => Ok(gradient),
            // A model whose logits do not depend on its input.
            None => Ok(input.zeros_like()?),
        }
    }

    /// Steps whose output nobody needs.
    fn drop_unused(&mut self) {
        let mut needed = vec![false; self.slots];
        needed[self.output] = true;
        for step in self.steps.iter().rev() {
            if needed[step.output] {
                step.inputs.iter().for_each(|&slot| needed[slot] = true);
            }
        }
        self.steps.retain(|step| needed[step.output]);
    }

    /// Joins per-channel affines and activations with the step before, or else after them.
    fn fuse(&mut self) {
        while (0..self.steps.len())
            .any(|index| self.fuse_into_producer(index) || self.fuse_into_consumer(index))
        {}
    }

    fn fuse_into_producer(&mut self, index: usize) -> bool {
        let step = &self.steps[index];
        let (Some(affine), &[slot]) = (step.operator.as_channel_affine(), step.inputs.as_slice())
        else {
            return false;
        };
        let output = step.output;
        let Some(producer) = self.steps[..index].iter().position(|step| step.output == slot) else {
            return false;
        };
        if self.readers(slot) != 1 || self.output == slot {
            return false;
        }
        let Some(fused) = self.steps[producer].operator.absorb_after(&affine) else {
            return false;
        };
        let producer = &mut self.steps[producer];
        producer.operator = fused;
        producer.output = output;
        self.steps.remove(index);
        true
    }

    fn fuse_into_consumer(&mut self, index: usize) -> bool {
        let step = &self.steps[index];
        let (Some(affine), &[slot]) = (step.operator.as_channel_affine(), step.inputs.as_slice())
        else {
            return false;
        };
        let output = step.output;
        if self.readers(output) != 1 || self.output == output {
            return false;
        }
        let later = self.steps[index + 1..].iter().position(|step| step.inputs == [output]);
        let Some(consumer) = later.map(|offset| index + 1 + offset) else {
            return false;
        };
        // A neighbour that this affine can still be joined with comes first.
        if let Some(next) = self.steps[consumer].operator.as_channel_affine()
            && self.steps[index].operator.absorb_after(&next).is_some()
        {
            return false;
        }
        let Some(fused) = self.steps[consumer].operator.absorb_before(&affine) else {
            return false;
        };
        let consumer = &mut self.steps[consumer];
        consumer.operator = fused;
        consumer.inputs = vec![slot];
        self.steps.remove(index);
        true
    }

    fn readers(&self, slot: usize) -> usize {
        self.steps.iter().flat_map(|step| &step.inputs).filter(|&&input| input == slot).count()
    }

    fn plan_liveness(&mut self) {
        let mut seen = vec![false; self.slots];
        seen[self.output] = true;
        for step in self.steps.iter_mut().rev() {
            for &slot in &step.inputs {
                if !std::mem::replace(&mut seen[slot], true) {
                    step.last_uses.push(slot);
                }
            }
        }
    }
}

/// The inputs, `None` where one is absent, if all that are there are constants.
fn constants<'a>(
    names: &'a [String],
    values: &'a HashMap<String, Value>,
) -> Option<Vec<Option<&'a Constant>>> {
    names
        .iter()
        .map(|name| match values.get(name) {
            _ if name.is_empty() => Some(None),
            Some(Value::Constant(constant)) => Some(Some(&**constant)),
            _ => None,
        })
        .collect()
}

/// The values of one part.
struct Slots(Vec<Option<Tensor>>);

impl Slots {
    fn get(&self, slot: usize) -> Result<&Tensor, Error> {
        match &self.0[slot] {
            Some(tensor) => Ok(tensor),
            None => Err(candle_core::Error::Msg(format!("slot {slot} is empty")).into()),
        }
    }

    fn inputs(&self, step: &Step) -> Result<Vec<Tensor>, Error> {
        step.inputs
            .iter()
            .map(|&slot| Ok(self.get(slot)?.clone()))
            .collect::<Result<_, Error>>()
            .map_err(|_| Error::Node {
                node: step.name.clone(),
                op: step.operator.name().into(),
                reason: "an input was freed too early".into(),
            })
    }

    fn pop_output(mut self, output: usize) -> Result<Tensor, Error> {
        match self.0[output].take() {
            Some(tensor) => Ok(tensor),
            None => Err(candle_core::Error::Msg("the output was not computed".into()).into()),
        }
    }
}

/// A part's largest activation has about this many values: 1 MiB, half of a core's L2 cache.
const PART_VALUES: usize = 1 << 18;

/// More rows bring nothing on small models but cost balance between threads.
const MAX_PART_ROWS: usize = 16;

/// Rows that an accelerator takes at once.
const DEVICE_PART_ROWS: usize = 256;

/// Values that nodes on constants may compute beyond what the file stores.
const FOLDED_VALUES: usize = 1 << 20;
