//! An ordered list of steps over candle tensors, and its evaluation.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::classifier::{Cotangent, Trace};
use crate::compile::{Compiled, Compiler};
use crate::composition::with_rows;
use crate::error::Error;
use crate::fuse;
use crate::kernels::loops;
use crate::layout::Layout;
use crate::onnx::constant::Constant;
use crate::onnx::ending::{self, OutputKind};
use crate::onnx::graph::Graph;
use crate::onnx::input::Input;
use crate::onnx::patterns;
use crate::operators::Backward;
use crate::operators::unary::Unary;
use crate::step::{Mode, Step};
use crate::taps::{self, Tap};

/// A compiled graph: steps over tensors, forward and backward.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use doorward_engine::Program;
///
/// let program = Program::compile(&std::fs::read("tests/golden/net-cnn6.onnx")?, &Device::Cpu)?;
/// let shape = [&[2], program.input_shape()].concat();
/// let batch = Tensor::full(0.5f32, shape, program.device())?;
/// let (logits, gradient) = program.vjp(&batch, &|_, logits| logits.ones_like())?;
/// assert_eq!(logits.dims(), program.forward(&batch)?.dims());
/// assert_eq!(gradient.dims(), batch.dims());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A batch is cut into parts of a few rows, and every part runs through all steps on one thread:
/// its activations stay in that core's cache, and no step has to be parallel itself. Only where a
/// forward pass has fewer parts than there are threads, large steps are.
#[derive(Debug)]
pub struct Program {
    input_name: String,
    output_name: String,
    logits_name: Option<String>,
    steps: Vec<Step>,
    slots: usize,
    /// True for the slots that a reverse pass needs.
    saved: Vec<bool>,
    output: usize,
    /// Inputs are the first slots.
    inputs: usize,
    /// Shape of every slot without the batch.
    rows: Vec<Vec<usize>>,
    channels_last: bool,
    fp32: bool,
    bytes: bool,
    rows_per_part: usize,
    /// Most shares that the work of a row is worth cutting into, by step.
    shares: Vec<usize>,
    /// The slot that the fully connected layer at the end takes, if there is one.
    features: Option<usize>,
    #[cfg(feature = "ort")]
    features_name: Option<String>,
    /// The activations that a trace reads, in the order of the steps.
    taps: Vec<Tap>,
    /// Stands for what was not kept for a reverse pass.
    empty: Tensor,
    mode: Mode,
    device: Device,
}

// === impl Program ===

impl Program {
    /// Compiles an ONNX file of one input, the batch in front, which keeps all of its data in
    /// itself, for `device`: to what its output is, where [`Model`][crate::Model] gives logits.
    ///
    /// An image whose graph wants its channels last is given with them first all the same.
    ///
    /// Fails if the bytes are no ONNX model, or name what is not supported.
    pub fn compile(bytes: &[u8], device: &Device) -> Result<Self, Error> {
        let mut graph = Graph::decode(bytes, None, None)?;
        patterns::rewrite(&mut graph);
        let input = graph.only_input()?;
        let (name, row) = (input.name(), input.row(true)?);
        let channels_last = graph.moves_channels(&row);
        let mut compiler = Compiler::new(&mut graph, device);
        match *row.as_slice() {
            [height, width, channels] if channels_last => {
                compiler.channels_last_input(&name, [height, width, channels]);
            }
            _ => compiler.input(&name, Layout::batch_first(&row)),
        }
        let compiled = compiler.lower(&graph)?;
        Ok(Self { channels_last, ..Self::new(graph, compiled, 1, device)? })
    }

    /// Compiles a graph of one input that ends in scores of labels, for `device`: to logits,
    /// whatever these are turned into at its end. Returns what the graph's output holds as well.
    ///
    /// One score is that of the second of two labels, which is compared with zero. `input_shape`
    /// is that of a row, where the graph leaves it open.
    pub(super) fn of_logits(
        mut graph: Graph,
        input_shape: Option<&[usize]>,
        device: &Device,
    ) -> Result<(Self, OutputKind), Error> {
        let input = graph.only_input()?;
        let (name, image) = (input.name(), input.image(input_shape)?);
        let channels_last = graph.channels_last(&name, image);
        patterns::rewrite(&mut graph);
        if let Some(op) = ending::decides(&graph) {
            return Err(Error::Decisions { output: graph.output.clone(), op: op.into() });
        }
        let scores = ending::take_back(&mut graph);
        let mut compiler = Compiler::new(&mut graph, device);
        match channels_last {
            true => compiler.channels_last_input(&name, image),
            false => compiler.input(&name, Layout::batch_first(&image)),
        }
        let mut compiled = compiler.lower(&graph)?;
        compiled.drop_log_softmax();
        let shape = compiled.row();
        let single = shape.iter().product::<usize>() == 1;
        let logits_name = compiled.logits_name().filter(|_| !single).map(str::to_owned);
        match scores {
            // The softmax of one value is one, and so is the index of the highest.
            OutputKind::Logits | OutputKind::IndependentProbabilities if single => {
                compiled.set_beside_zero(device)?;
            }
            // As many axes of one as a graph leaves behind its labels.
            _ if !single
                && shape.len() > 1
                && shape.iter().filter(|&&size| size > 1).count() == 1 =>
            {
                compiled.flatten();
            }
            _ => {}
        }
        let program = Self::new(graph, compiled, 1, device)?;
        Ok((Self { logits_name, channels_last, ..program }, scores))
    }

    /// Compiles a graph that knows of no batch: a row of the program is one evaluation of it.
    ///
    /// Inputs in `constants` are those tensors, the others vary; their tensors are `[n, ...shape]`
    /// for the shape that the graph declares.
    ///
    /// Fails as [`Program::compile`] does.
    pub fn compile_rows(
        bytes: &[u8],
        constants: &HashMap<String, Tensor>,
        device: &Device,
    ) -> Result<Self, Error> {
        let mut graph = Graph::decode(bytes, None, None)?;
        let mut compiler = Compiler::new(&mut graph, device);
        let mut inputs = 0;
        for input in &graph.inputs {
            match constants.get(&input.name) {
                Some(tensor) => compiler.constant(&input.name, Constant::from_tensor(tensor)?),
                None => {
                    compiler.input(&input.name, Layout::row_only(&input.row(false)?));
                    inputs += 1;
                }
            }
        }
        let compiled = compiler.lower(&graph)?;
        Self::new(graph, compiled, inputs, device)
    }

    fn new(
        graph: Graph,
        compiled: Compiled,
        inputs: usize,
        device: &Device,
    ) -> Result<Self, Error> {
        let Compiled { mut steps, layouts, mut output, computed } = compiled;
        let slots = layouts.len();
        fuse::drop_unused(&mut steps, slots, output);
        let mut steps = fuse::fuse(steps, slots, output);
        fuse::drop_identities(&mut steps, slots, &mut output);
        let mut steps = fuse::fuse(steps, slots, output);
        fuse::plan_liveness(&mut steps, slots, output);
        let mode = Mode::of(device);
        let features = features(&steps, output, inputs);
        let rows: Vec<Vec<usize>> = layouts.iter().map(Layout::row).collect();
        let shares = |step: &Step| {
            let row = step.inputs.first().map_or(&[][..], |&slot| &rows[slot]);
            match mode {
                Mode::Composed => 0,
                Mode::Loops => step.products(row) / SHARE_PRODUCTS,
            }
        };
        let in_front: Vec<Option<&[usize]>> = layouts.iter().map(Layout::as_batch_first).collect();
        let largest = rows.iter().map(|row| row.iter().product::<usize>()).max().unwrap_or(1);
        Ok(Self {
            fp32: graph.inputs.first().is_some_and(Input::is_fp32),
            bytes: graph.inputs.first().is_some_and(Input::is_bytes),
            input_name: graph.inputs.first().map(Input::name).unwrap_or_default(),
            output_name: graph.output,
            logits_name: None,
            saved: fuse::plan_saved(&steps, slots, output),
            features,
            #[cfg(feature = "ort")]
            features_name: computed
                .iter()
                .find(|value| Some(value.slot) == features)
                .map(|value| value.name.clone()),
            taps: taps::choose(&computed, &steps, &in_front, output),
            shares: steps.iter().map(shares).collect(),
            steps,
            slots,
            output,
            inputs,
            rows,
            channels_last: false,
            rows_per_part: (PART_VALUES / largest.max(1)).clamp(1, MAX_PART_ROWS),
            empty: Tensor::zeros(0, DType::F32, device)?,
            mode,
            device: device.clone(),
        })
    }

    /// Shape of one row of the first input.
    pub fn input_shape(&self) -> &[usize] {
        self.rows.first().map_or(&[], Vec::as_slice)
    }

    /// True if the graph takes images with their channels last; the program has them first.
    pub fn channels_last(&self) -> bool {
        self.channels_last
    }

    /// True if the graph declares its first input as FLOAT.
    pub fn takes_fp32(&self) -> bool {
        self.fp32
    }

    /// True if the graph declares its first input as UINT8.
    pub(crate) fn takes_bytes(&self) -> bool {
        self.bytes
    }

    /// Shape of one row of the output.
    pub fn output_shape(&self) -> &[usize] {
        &self.rows[self.output]
    }

    /// Name of the graph's first input.
    pub fn input_name(&self) -> &str {
        &self.input_name
    }

    /// Name of the graph's output.
    pub fn output_name(&self) -> &str {
        &self.output_name
    }

    /// The file's name for the logits that a [`Model`][crate::Model]'s program gives, if they have
    /// one there.
    pub fn logits_name(&self) -> Option<&str> {
        self.logits_name.as_deref()
    }

    /// The device that the program runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The operators in order, after fusion.
    pub fn operators(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| step.operator.name())
    }

    /// The output of a batch: `[n, C, H, W] -> [n, labels]`, or what else the graph maps.
    ///
    /// Fails if the rows have another shape, or if the device fails.
    pub fn forward(&self, batch: &Tensor) -> Result<Tensor, Error> {
        let run = |part: Tensor, shares: usize| {
            self.output_of(&self.run(&[part], shares, |_| true, |_, _| Ok(()))?)
        };
        Ok(Tensor::cat(&self.in_parts(batch, run)?, 0)?)
    }

    /// The output with all that is read on the way to it.
    ///
    /// Fails as [`Program::forward`] does.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use doorward_engine::Program;
    ///
    /// let program = Program::compile(&std::fs::read("tests/golden/net-cnn6.onnx")?, &Device::Cpu)?;
    /// let shape = [&[2], program.input_shape()].concat();
    /// let batch = Tensor::full(0.5f32, shape, program.device())?;
    /// let trace = program.trace(&batch)?;
    /// let statistics: usize = program.taps().map(|(_, statistics)| statistics).sum();
    /// assert_eq!(trace.statistics.expect("activations").dims(), [2, statistics]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn trace(&self, batch: &Tensor) -> Result<Trace, Error> {
        let run = |part: Tensor, shares: usize| {
            let rows = part.dim(0)?;
            let mut taps = self.taps.iter().peekable();
            let mut read = Vec::with_capacity(self.taps.len());
            let slots = self.run(
                &[part],
                shares,
                |slot| Some(slot) != self.features,
                |step, activation| {
                    if let Some(tap) = taps.next_if(|tap| tap.step == step) {
                        read.push(tap.read(activation, self.mode)?);
                    }
                    Ok(())
                },
            )?;
            let statistics = match read.as_slice() {
                [] => None,
                read => Some(Tensor::cat(read, 1)?),
            };
            let features = self.features.and_then(|slot| slots[slot].as_ref());
            let features = features.map(|features| features.reshape((rows, ()))).transpose()?;
            Ok(Trace { logits: self.output_of(&slots)?, features, statistics })
        };
        Trace::join(&self.in_parts(batch, run)?)
    }

    /// The activations that a trace reads: their names in the graph, and how many statistics it has
    /// of each.
    pub fn taps(&self) -> impl Iterator<Item = (&str, usize)> {
        self.taps.iter().map(|tap| (tap.name.as_str(), tap.len()))
    }

    #[cfg(feature = "ort")]
    pub(crate) fn tapped(&self) -> &[Tap] {
        &self.taps
    }

    /// The graph's name for what the fully connected layer at the end takes.
    #[cfg(feature = "ort")]
    pub(crate) fn features_name(&self) -> Option<&str> {
        self.features_name.as_deref()
    }

    /// The results of `run` for the parts of a batch; it is told how many threads it may use.
    fn in_parts<T: Send>(
        &self,
        batch: &Tensor,
        run: impl Fn(Tensor, usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let parts = self.parts(batch.dim(0)?);
        let shares = rayon::current_num_threads() / parts.len().max(1);
        if parts.len() == 1 {
            // On a thread of the pool: from outside, every shared step would have to be handed to
            // it.
            let whole = match shares > 1 && self.shares.iter().any(|&most| most > 1) {
                true => rayon::scope(|_| run(batch.clone(), shares)),
                false => run(batch.clone(), shares),
            };
            return Ok(vec![whole?]);
        }
        let run = |(start, len)| run(batch.narrow(0, start, len)?, shares);
        parts.into_par_iter().map(run).collect()
    }

    /// The input of the fully connected layer at the end, `[n, features]`; `None` without such a
    /// layer.
    ///
    /// Fails as [`Program::forward`] does.
    pub fn features(&self, batch: &Tensor) -> Result<Option<Tensor>, Error> {
        let Some(slot) = self.features else { return Ok(None) };
        let parts = self.parts(batch.dim(0)?);
        let features = parts
            .into_par_iter()
            .map(|(start, len)| {
                let part = [batch.narrow(0, start, len)?];
                let slots = self.run(&part, 1, |other| other != slot, |_, _| Ok(()))?;
                let taken = slots[slot].as_ref().unwrap_or(&self.empty);
                Ok(taken.reshape((len, ()))?)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Some(Tensor::cat(&features, 0)?))
    }

    /// The program followed by the logarithm of its output, which is no smaller than that of the
    /// smallest normal number.
    pub(crate) fn with_logarithm(mut self) -> Self {
        let bound = Unary::Clip { low: f32::MIN_POSITIVE, high: f32::INFINITY };
        for operator in [bound, Unary::Log] {
            let (from, to) = (self.output, self.slots);
            let mut step = Step::new("output", Box::new(operator), vec![from], to);
            step.last_uses.push(from);
            self.saved[from] = true;
            self.saved.push(true);
            self.rows.push(self.rows[from].clone());
            self.shares.push(0);
            self.steps.push(step);
            (self.slots, self.output) = (to + 1, to);
        }
        self.logits_name = None;
        self
    }

    /// Logits, and the gradient to the input of `sum(logits * cotangent)`.
    ///
    /// Fails as [`Program::forward`] does, if an operator has no gradient, or if `cotangent` fails.
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
                let wanted = |logits: &Tensor| cotangent(start..start + len, logits);
                let (logits, mut gradients) =
                    self.evaluate_vjp(std::slice::from_ref(&part), &wanted)?;
                Ok((logits, gradients.swap_remove(0)))
            })
            .collect::<Result<Vec<_>, Error>>()?
            .into_iter()
            .unzip();
        Ok((Tensor::cat(&logits, 0)?, Tensor::cat(&gradients, 0)?))
    }

    /// The output for inputs `[n, ...shape]` in the graph's order, on this thread.
    ///
    /// Fails as [`Program::forward`] does.
    pub fn evaluate(&self, inputs: &[Tensor]) -> Result<Tensor, Error> {
        self.output_of(&self.run(inputs, 1, |_| true, |_, _| Ok(()))?)
    }

    /// The output, and the gradient of `sum(output * cotangent(output))` to every input.
    ///
    /// Fails as [`Program::vjp`] does.
    pub fn evaluate_vjp(
        &self,
        inputs: &[Tensor],
        cotangent: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<(Tensor, Vec<Tensor>), Error> {
        let mut slots = self.run(inputs, 1, |slot| !self.saved[slot], |_, _| Ok(()))?;
        let output = self.output_of(&slots)?;
        let gradients = self.reverse(&mut slots, cotangent(&output)?)?;
        let gradients = gradients
            .into_iter()
            .zip(inputs)
            .map(|(gradient, input)| match gradient {
                Some(gradient) => Ok(gradient.reshape(input.shape())?),
                // An output that does not depend on this input.
                None => Ok(input.zeros_like()?),
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok((output, gradients))
    }

    fn parts(&self, rows: usize) -> Vec<(usize, usize)> {
        let size = match self.device {
            Device::Cpu => {
                let share = rows.div_ceil(rayon::current_num_threads());
                share.clamp(1, self.rows_per_part)
            }
            _ => DEVICE_PART_ROWS,
        };
        // As equal as can be: a part of few rows costs nearly what a whole one does.
        let size = rows.div_ceil(rows.div_ceil(size).max(1)).max(1);
        (0..rows).step_by(size).map(|start| (start, size.min(rows - start))).collect()
    }

    /// All steps, each in as many shares as there may be and as are worth it; `computed` is shown
    /// every step's output.
    fn run(
        &self,
        inputs: &[Tensor],
        shares: usize,
        freed: impl Fn(usize) -> bool,
        mut computed: impl FnMut(usize, &Tensor) -> candle_core::Result<()>,
    ) -> Result<Slots, Error> {
        let mut slots: Slots = vec![None; self.slots];
        for (slot, (input, shape)) in inputs.iter().zip(&self.rows).enumerate() {
            if input.rank() == 0 || input.dims()[1..] != *shape {
                let (got, expected) = (input.dims(), shape);
                return Err(candle_core::Error::Msg(format!(
                    "input {slot} is {got:?}, expected rows of {expected:?}"
                ))
                .into());
            }
            slots[slot] = Some(input.contiguous()?);
        }
        for (index, (step, &most)) in self.steps.iter().zip(&self.shares).enumerate() {
            let inputs = self.inputs_of(step, &slots);
            let output = step.forward(&inputs, shares.min(most), self.mode);
            let output = output.map_err(|e| step.failed(&e))?;
            computed(index, &output).map_err(|e| step.failed(&e))?;
            slots[step.output] = Some(output);
            for &slot in step.last_uses.iter().filter(|&&slot| freed(slot)) {
                slots[slot] = None;
            }
        }
        Ok(slots)
    }

    /// Gradients to the inputs; empties the slots on its way back.
    fn reverse(&self, slots: &mut Slots, cotangent: Tensor) -> Result<Vec<Option<Tensor>>, Error> {
        let mut gradients: Vec<Option<Tensor>> = vec![None; self.slots];
        gradients[self.output] = Some(cotangent);
        for step in self.steps.iter().rev() {
            let output = slots[step.output].take();
            let Some(cotangent) = gradients[step.output].take() else {
                continue;
            };
            let inputs = self.inputs_of(step, slots);
            let output = output.unwrap_or_else(|| self.empty.clone());
            // A gradient may come back with dimensions of one added or left away.
            let shape = with_rows(cotangent.dim(0)?, &self.rows[step.output]);
            let cotangent = cotangent.reshape(shape)?.contiguous()?;
            let at = Backward { inputs: &inputs, output: &output, cotangent: &cotangent };
            let to_inputs = step.vjp(&at, self.mode).map_err(|e| step.failed(&e))?;
            for (&slot, gradient) in step.inputs.iter().zip(to_inputs) {
                let Some(gradient) = gradient else { continue };
                gradients[slot] = Some(match gradients[slot].take() {
                    None => gradient,
                    Some(sum) => self.sum(&sum, &gradient)?,
                });
            }
        }
        gradients.truncate(self.inputs);
        Ok(gradients)
    }

    /// `x + y` for equal shapes; on the CPU on this thread, where candle's own would wake its
    /// thread pool.
    fn sum(&self, x: &Tensor, y: &Tensor) -> candle_core::Result<Tensor> {
        match self.mode {
            Mode::Composed => x + y,
            Mode::Loops => loops::zip("add", x, y, x.shape(), |x, y, out| {
                for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
                    *out = x + y;
                }
            }),
        }
    }

    fn inputs_of(&self, step: &Step, slots: &Slots) -> Vec<Tensor> {
        let input = |&slot: &usize| slots[slot].as_ref().unwrap_or(&self.empty).clone();
        step.inputs.iter().map(input).collect()
    }

    fn output_of(&self, slots: &Slots) -> Result<Tensor, Error> {
        match &slots[self.output] {
            Some(tensor) => Ok(tensor.clone()),
            None => Err(candle_core::Error::Msg("the output was not computed".into()).into()),
        }
    }
}

/// The slot that the step behind `output` reads, where that is a fully connected layer on something
/// computed; a constant may be set beside its result.
fn features(steps: &[Step], mut output: usize, inputs: usize) -> Option<usize> {
    loop {
        let last = steps.iter().rfind(|step| step.output == output)?;
        let &[slot] = last.inputs.as_slice() else { return None };
        match last.operator.name() {
            "Gemm" if slot >= inputs => return Some(slot),
            "Concat" => output = slot,
            _ => return None,
        }
    }
}

/// The values of one part.
type Slots = Vec<Option<Tensor>>;

/// A part's largest activation has about this many values: 1 MiB, half of a core's L2 cache.
const PART_VALUES: usize = 1 << 18;

/// More rows bring nothing on small models but cost balance between threads.
const MAX_PART_ROWS: usize = 16;

/// Multiply-adds that are worth handing to another thread: some 20 microseconds.
const SHARE_PRODUCTS: usize = 1 << 20;

/// Rows that an accelerator takes at once.
const DEVICE_PART_ROWS: usize = 256;

#[cfg(test)]
mod tests;
