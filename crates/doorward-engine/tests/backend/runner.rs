//! One of ONNX's backend tests on the engine: values, independence of rows, gradients.
//!
//! `make.py` writes the cases. A case's inputs are one row: the program is compiled once for every
//! choice of what varies (all floating inputs, each of them alone, none) and all that compiles has
//! to be right. Two rows are run together, the second with the first's values in reverse order.

use std::collections::HashMap;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_onnx::onnx::attribute_proto::AttributeType;
use candle_onnx::onnx::tensor_proto::DataType;
use candle_onnx::onnx::tensor_shape_proto::{Dimension, dimension};
use candle_onnx::onnx::{
    AttributeProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use doorward_engine::{Error as Refusal, Program};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A model, what goes in and what has to come out.
pub(crate) struct Case {
    pub(crate) name: String,
    /// The operator under test.
    pub(crate) op: String,
    rtol: f64,
    atol: f64,
    model: ModelProto,
    inputs: Vec<(String, Values)>,
    outputs: Vec<Values>,
}

/// Compiles a model to a program of rows, given what does not vary.
pub(crate) type Compile<'a> =
    dyn Fn(&[u8], &HashMap<String, Tensor>) -> Result<Program, Refusal> + 'a;

/// The outcome of a case.
#[derive(Debug)]
pub(crate) enum Outcome {
    Failed(String),
    Passed(Passed),
    Unsupported(String),
}

/// The evidence of a case that passed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    /// With something that varies from row to row.
    pub(crate) rows: bool,
    /// With constants alone.
    pub(crate) constants: bool,
    /// Its gradient, against differences.
    pub(crate) gradient: bool,
}

#[derive(Clone, Debug)]
struct Values {
    dims: Vec<usize>,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

// === impl Case ===

impl Case {
    /// Reads a folder; the inner error says why the engine can have no such case.
    pub(crate) fn load(folder: &Path) -> Result<Result<Self, String>, Box<dyn Error>> {
        let about: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("data.json"))?)?;
        let mut model = ModelProto::decode(std::fs::read(folder.join("model.onnx"))?.as_slice())?;
        fill(&mut model);
        let graph = model.graph.as_ref().ok_or("no graph")?;
        let stored = |name: &String| graph.initializer.iter().any(|tensor| tensor.name == *name);
        let names = graph.input.iter().map(|input| &input.name).filter(|name| !stored(name));
        let number = |key: &str| about[key].as_f64().ok_or(format!("data.json has no {key}"));
        let op = about["op"].as_str().unwrap_or_default().to_owned();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (inputs, outputs) = (tensors(folder, "input")?, tensors(folder, "output")?);
        let case = || {
            let inputs = inputs.iter().map(Values::decode).collect::<Result<Vec<_>, _>>()?;
            let outputs = outputs.iter().map(Values::decode).collect::<Result<Vec<_>, _>>()?;
            Ok((names.cloned().zip(inputs).collect(), outputs))
        };
        let (rtol, atol) = (number("rtol")?, number("atol")?);
        Ok(case().map(|(inputs, outputs)| Self {
            name,
            op,
            rtol,
            atol,
            model: model.clone(),
            inputs,
            outputs,
        }))
    }

    /// All outputs, one after the other: a program has one.
    pub(crate) fn run(&self, compile: &Compile<'_>) -> Outcome {
        let mut all = Passed::default();
        for index in 0..self.outputs.len() {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.run_output(index, compile)))
                .unwrap_or_else(|_| Outcome::Failed("it panics".into()));
            match outcome {
                Outcome::Passed(passed) => {
                    all.rows |= passed.rows;
                    all.constants |= passed.constants;
                    all.gradient |= passed.gradient;
                }
                other => return other,
            }
        }
        Outcome::Passed(all)
    }

    fn run_output(&self, index: usize, compile: &Compile<'_>) -> Outcome {
        let floats: Vec<usize> =
            (0..self.inputs.len()).filter(|&i| self.inputs[i].1.floats().is_some()).collect();
        let mut choices = vec![floats.clone()];
        if floats.len() > 1 {
            choices.extend(floats.iter().map(|&input| vec![input]));
        }
        if !floats.is_empty() {
            choices.push(Vec::new());
        }
        let mut passed = Passed::default();
        let mut refusals = Vec::new();
        for varying in choices {
            match self.run_choice(index, &varying, compile) {
                Ok(Ok(gradient)) => {
                    *(if varying.is_empty() { &mut passed.constants } else { &mut passed.rows }) =
                        true;
                    passed.gradient |= gradient;
                }
                Ok(Err(refusal)) => refusals.push(reason(&refusal)),
                Err(reason) => {
                    let names: Vec<&str> =
                        varying.iter().map(|&i| self.inputs[i].0.as_str()).collect();
                    return Outcome::Failed(format!("varying {names:?}: {reason}"));
                }
            }
        }
        if passed.rows || passed.constants {
            return Outcome::Passed(passed);
        }
        // With the first input alone: what a classifier would ask for.
        Outcome::Unsupported(refusals.swap_remove(usize::from(floats.len() > 1)))
    }

    /// True if the gradient was checked too; the inner error is the engine's refusal to compile.
    fn run_choice(
        &self,
        index: usize,
        varying: &[usize],
        compile: &Compile<'_>,
    ) -> Result<Result<bool, Refusal>, String> {
        let expected = &self.outputs[index];
        let wrapped = varying.is_empty() || expected.floats().is_none();
        let model = self.single_output(index, wrapped);
        let mut constants = HashMap::new();
        for (i, (name, values)) in self.inputs.iter().enumerate() {
            if !varying.contains(&i) {
                constants.insert(name.clone(), values.tensor().map_err(|e| e.to_string())?);
            }
        }
        let program = match compile(&model.encode_to_vec(), &constants) {
            Ok(program) => program,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut row: Vec<Values> = varying.iter().map(|&i| self.inputs[i].1.clone()).collect();
        if wrapped {
            row.push(Values { dims: expected.dims.clone(), data: zeros(expected) });
        }
        let other: Vec<Values> = row.iter().map(Values::reversed).collect();
        let both = evaluate(&program, &[&row, &other])?;
        self.compare(&both[0], expected)?;
        let alone = evaluate(&program, &[&other])?;
        let scale = alone[0].iter().fold(1f32, |max, value| max.max(value.abs()));
        for (a, b) in both[1].iter().zip(&alone[0]) {
            // Sums may have another order for another number of rows.
            let same = (a - b).abs() <= 1e-5 * scale || a.is_nan() && b.is_nan() || a == b;
            if !same {
                return Err(format!("a second row gives {a}, the same row alone {b}"));
            }
        }
        // The made-up weights of a whole classifier are all the same: its gradient cancels out.
        let smooth = !wrapped && self.op != "classifier" && !JUMPS.contains(&self.op.as_str());
        let gradient =
            smooth && Gradient { program: &program, row: &row, seed: seed(&self.name) }.check()?;
        Ok(Ok(gradient))
    }

    /// The model with this output alone, as a floating number plus an input of zeros if `wrapped`.
    fn single_output(&self, index: usize, wrapped: bool) -> ModelProto {
        let mut model = self.model.clone();
        let graph = model.graph.as_mut().expect("it was there when the case was read");
        let output = graph.output.swap_remove(index);
        graph.output = vec![output.clone()];
        if wrapped {
            let node = |op: &str, inputs: [&str; 2], output: &str, attribute| NodeProto {
                op_type: op.into(),
                name: format!("wrap-{op}"),
                input: inputs.into_iter().filter(|s| !s.is_empty()).map(Into::into).collect(),
                output: vec![output.into()],
                attribute,
                ..NodeProto::default()
            };
            let to_float = AttributeProto {
                name: "to".into(),
                r#type: AttributeType::Int.into(),
                i: DataType::Float as i64,
                ..AttributeProto::default()
            };
            graph.node.push(node("Cast", [&output.name, ""], "wrap-float", vec![to_float]));
            graph.node.push(node("Add", ["wrap-float", "wrap-zero"], "wrap-sum", vec![]));
            let dims = &self.outputs[index].dims;
            graph.input.push(info("wrap-zero", dims));
            graph.output = vec![info("wrap-sum", dims)];
        }
        model
    }

    /// As numpy.testing.assert_allclose does.
    fn compare(&self, got: &[f32], expected: &Values) -> Result<(), String> {
        let expected: Vec<f64> = match &expected.data {
            Data::Floats(values) => values.iter().map(|&value| value.into()).collect(),
            Data::Integers(values) => values.iter().map(|&value| value as f64).collect(),
        };
        if got.len() != expected.len() {
            return Err(format!("{} values, expected {}", got.len(), expected.len()));
        }
        for (position, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
            let got = f64::from(got);
            let close = got == expected
                || got.is_nan() && expected.is_nan()
                || (got - expected).abs() <= self.atol + self.rtol * expected.abs();
            if !close {
                return Err(format!("value {position} is {got}, expected {expected}"));
            }
        }
        Ok(())
    }
}

/// Stores the weights that ONNX's `light` classifiers make with `ConstantOfShape`: as many values
/// as no shape needs, which the engine refuses.
fn fill(model: &mut ModelProto) {
    let Some(graph) = &mut model.graph else { return };
    for node in std::mem::take(&mut graph.node) {
        let shape =
            graph.initializer.iter().find(|tensor| node.input.first() == Some(&tensor.name));
        let value = node.attribute.first().and_then(|attribute| attribute.t.as_ref());
        let (Some(shape), Some(value)) = (shape, value) else {
            graph.node.push(node);
            continue;
        };
        match (node.op_type.as_str(), Values::decode(shape), Values::decode(value)) {
            (
                "ConstantOfShape",
                Ok(Values { data: Data::Integers(dims), .. }),
                Ok(Values { data: Data::Floats(value), .. }),
            ) if value.len() == 1 => {
                let count: i64 = dims.iter().product();
                let tensor = TensorProto {
                    name: node.output[0].clone(),
                    dims,
                    data_type: DataType::Float.into(),
                    raw_data: value[0].to_le_bytes().repeat(count as usize),
                    ..TensorProto::default()
                };
                graph.initializer.push(tensor);
            }
            _ => graph.node.push(node),
        }
    }
}

/// Output of a program for each row, flat.
fn evaluate(program: &Program, rows: &[&Vec<Values>]) -> Result<Vec<Vec<f32>>, String> {
    let run = || -> Result<_, Box<dyn Error>> {
        let output = program.evaluate(&batch(rows, program.device())?)?;
        let shape = [&[rows.len()], program.output_shape()].concat();
        if output.dims() != shape {
            return Err(format!("shape {:?}, promised {shape:?}", output.dims()).into());
        }
        let output: Vec<Vec<f32>> = output.reshape((rows.len(), ()))?.to_vec2()?;
        Ok(output)
    };
    run().map_err(|error| format!("it compiles, but: {error}"))
}

/// The tensors `[n, ...]` of some rows.
fn batch(rows: &[&Vec<Values>], device: &Device) -> candle_core::Result<Vec<Tensor>> {
    (0..rows[0].len())
        .map(|input| {
            let parts = rows.iter().map(|row| row[input].tensor());
            Tensor::stack(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?.to_device(device)
        })
        .collect()
}

// === impl Values ===

impl Values {
    fn decode(tensor: &TensorProto) -> Result<Self, String> {
        let raw = tensor.raw_data.as_slice();
        let data = match DataType::try_from(tensor.data_type) {
            Ok(DataType::Float) if raw.is_empty() => Data::Floats(tensor.float_data.clone()),
            Ok(DataType::Float) => Data::Floats(read(raw, f32::from_le_bytes)),
            Ok(DataType::Double) if raw.is_empty() => {
                Data::Floats(tensor.double_data.iter().map(|&value| value as f32).collect())
            }
            Ok(DataType::Double) => {
                Data::Floats(read(raw, |bytes| f64::from_le_bytes(bytes) as f32))
            }
            Ok(DataType::Int64) if raw.is_empty() => Data::Integers(tensor.int64_data.clone()),
            Ok(DataType::Int64) => Data::Integers(read(raw, i64::from_le_bytes)),
            Ok(DataType::Int32) if !raw.is_empty() => {
                Data::Integers(read(raw, |bytes| i32::from_le_bytes(bytes).into()))
            }
            Ok(DataType::Bool) if !raw.is_empty() => {
                Data::Integers(read(raw, |[byte]| byte.into()))
            }
            Ok(DataType::Bool | DataType::Int32) => {
                Data::Integers(tensor.int32_data.iter().map(|&value| value.into()).collect())
            }
            Ok(other) => return Err(format!("element type {}", other.as_str_name())),
            Err(_) => return Err(format!("element type {}", tensor.data_type)),
        };
        let dims = tensor.dims.iter().map(|&dim| dim as usize).collect();
        Ok(Self { dims, data })
    }

    fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Floats(values) => Some(values),
            Data::Integers(_) => None,
        }
    }

    fn tensor(&self) -> candle_core::Result<Tensor> {
        match &self.data {
            Data::Floats(values) => Tensor::from_slice(values, self.dims.as_slice(), &Device::Cpu),
            Data::Integers(values) => {
                Tensor::from_slice(values, self.dims.as_slice(), &Device::Cpu)
            }
        }
    }

    fn reversed(&self) -> Self {
        let data = match &self.data {
            Data::Floats(values) => Data::Floats(values.iter().rev().copied().collect()),
            Data::Integers(values) => Data::Integers(values.iter().rev().copied().collect()),
        };
        Self { dims: self.dims.clone(), data }
    }
}

fn zeros(like: &Values) -> Data {
    Data::Floats(vec![0.0; like.dims.iter().product()])
}

fn read<const N: usize, T>(raw: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    raw.as_chunks::<N>().0.iter().map(|bytes| convert(*bytes)).collect()
}

fn tensors(folder: &Path, kind: &str) -> Result<Vec<TensorProto>, Box<dyn Error>> {
    let mut found = Vec::new();
    loop {
        let path = folder.join(format!("test_data_set_0/{kind}_{}.pb", found.len()));
        if !path.exists() {
            return Ok(found);
        }
        found.push(TensorProto::decode(std::fs::read(path)?.as_slice())?);
    }
}

fn info(name: &str, dims: &[usize]) -> ValueInfoProto {
    let dim = |&dim: &usize| Dimension {
        value: Some(dimension::Value::DimValue(dim as i64)),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float.into(),
        shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// A refusal without the names of nodes, to be counted.
fn reason(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Node { op, reason, .. } => format!("{op}: {reason}"),
        Refusal::Operator { op, .. } => format!("{op}: not supported"),
        Refusal::InputType { got, .. } => format!("input is {got}"),
        other => other.to_string(),
    }
}

fn seed(name: &str) -> u64 {
    // FNV-1a.
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The gradient of `sum(cotangent * f(x))` against differences along random directions.
struct Gradient<'a> {
    program: &'a Program,
    row: &'a [Values],
    seed: u64,
}

// === impl Gradient ===

impl Gradient<'_> {
    /// Many cases sit on kinks and ties, which the engine resolves as PyTorch does: they are left
    /// by a random step. A kink can still be close, so one point where all directions agree is
    /// enough; a wrong gradient has none.
    fn check(&self) -> Result<bool, String> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut last = String::new();
        for distance in [0.02, 0.05, 0.1, 0.2, 0.01, 0.0] {
            let scales: Vec<f32> = self.row.iter().map(scale).collect();
            let at = moved(self.row, &scales, || distance * rng.random_range(-1.0..1.0));
            let tensors =
                batch(&[&at], self.program.device()).map_err(|error| error.to_string())?;
            let shape = [&[1], self.program.output_shape()].concat();
            let count: usize = shape.iter().product();
            let weights: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
            let cotangent = Tensor::from_slice(&weights, shape, self.program.device());
            let (output, gradients) = cotangent
                .map_err(Refusal::from)
                .and_then(|cotangent| {
                    self.program.evaluate_vjp(&tensors, &|_| Ok(cotangent.clone()))
                })
                .map_err(|error| format!("its gradient: {error}"))?;
            let output = flat(&output)?;
            let mut own = Vec::new();
            for (gradient, values) in gradients.iter().zip(&at) {
                if gradient.elem_count() != values.dims.iter().product::<usize>() {
                    return Err(format!("a gradient of shape {:?}", gradient.dims()));
                }
                own.extend(flat(gradient)?);
            }
            if output.iter().any(|value| !value.is_finite()) {
                continue;
            }
            if own.iter().any(|value| !value.is_finite()) {
                last = "its gradient is not finite where its value is".into();
                continue;
            }
            let magnitude: f64 =
                output.iter().zip(&weights).map(|(y, w)| f64::from((y * w).abs())).sum();
            for step in [1e-2f32, 3e-3, 1e-3, 1e-1] {
                let noise = 4.0 * f64::from(f32::EPSILON) * magnitude / f64::from(step);
                let mut agree = true;
                for _ in 0..DIRECTIONS {
                    let direction: Vec<f32> =
                        (0..own.len()).map(|_| if rng.random() { 1.0 } else { -1.0 }).collect();
                    let value = |sign: f32| -> Result<(f64, Vec<Values>), String> {
                        let mut rest = direction.iter();
                        let there =
                            moved(&at, &scales, || sign * step * rest.next().unwrap_or(&0.0));
                        let output = evaluate(self.program, &[&there])?;
                        Ok((dot(&output[0], &weights), there))
                    };
                    let ((above, high), (below, low)) = (value(1.0)?, value(-1.0)?);
                    // The steps that rounding left.
                    let along: Vec<f64> = own
                        .iter()
                        .zip(every(&high).zip(every(&low)))
                        .map(|(g, (high, low))| f64::from(*g) * (f64::from(high) - f64::from(low)))
                        .collect();
                    let expected: f64 = along.iter().sum();
                    let size = along.iter().map(|part| part * part).sum::<f64>().sqrt();
                    let noise = noise * 2.0 * f64::from(step);
                    let difference = above - below;
                    let tolerance = 1e-2 * expected.abs() + 5e-3 * size + noise;
                    if (difference - expected).abs() > tolerance || difference.is_nan() {
                        agree = false;
                        last = format!(
                            "its gradient gives {expected:e} along a direction, differences give {difference:e}"
                        );
                        break;
                    }
                }
                if agree {
                    return Ok(true);
                }
            }
        }
        // Values beyond the operator's domain, or beyond f32, have no differences.
        if last.is_empty() { Ok(false) } else { Err(last) }
    }
}

/// Every value moved by a share of its tensor's scale.
fn moved(row: &[Values], scales: &[f32], mut by: impl FnMut() -> f32) -> Vec<Values> {
    row.iter()
        .zip(scales)
        .map(|(values, scale)| {
            let floats = values.floats().unwrap_or_default();
            let data = floats.iter().map(|&value| value + scale * by()).collect();
            Values { dims: values.dims.clone(), data: Data::Floats(data) }
        })
        .collect()
}

/// Mean magnitude of a tensor, one for zeros.
fn scale(values: &Values) -> f32 {
    let floats = values.floats().unwrap_or_default();
    let finite = floats.iter().filter(|value| value.is_finite());
    let mean = finite.map(|value| value.abs()).sum::<f32>() / floats.len().max(1) as f32;
    if mean > 0.0 { mean } else { 1.0 }
}

fn every(row: &[Values]) -> impl Iterator<Item = f32> {
    row.iter().flat_map(|values| values.floats().unwrap_or_default()).copied()
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>, String> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).map_err(|error| error.to_string())
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

const DIRECTIONS: usize = 3;

/// Operators whose values jump: differences say nothing, and the engine may refuse a gradient.
const JUMPS: &[&str] = &[
    "And",
    "ArgMax",
    "ArgMin",
    "Ceil",
    "Equal",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Hardmax",
    "Less",
    "LessOrEqual",
    "Not",
    "Or",
    "Round",
    "Shape",
    "Sign",
    "Size",
    "Xor",
];
