//! A model file may be anything: it compiles or gives an error, soon and in little memory.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use doorward_engine::Program;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::engine::golden;
use super::support::onnx::{Graph, float, input, int, ints};

/// Compiles and, for models of a moderate size, evaluates: `Err` is an error's text.
pub(crate) fn outcome(bytes: &[u8]) -> Result<(), String> {
    let start = Instant::now();
    let program = Program::compile(bytes, &Device::Cpu).map_err(|error| error.to_string())?;
    if program.input_shape().iter().product::<usize>() <= 1 << 16 {
        let shape = [&[2], program.input_shape()].concat();
        let rows = Tensor::ones(shape, DType::F32, &Device::Cpu).expect("rows");
        let forward = program.forward(&rows).map_err(|error| error.to_string())?;
        let (_, gradient) = program
            .vjp(&rows, &|rows, _| forward.narrow(0, rows.start, rows.len()))
            .map_err(|error| error.to_string())?;
        assert_eq!(gradient.dims(), rows.dims());
    }
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
    Ok(())
}

pub(crate) fn refused(graph: Graph, expected: &str) {
    let error = outcome(&graph.encode()).expect_err("an error");
    assert!(error.contains(expected), "{error}\ndoes not contain\n{expected}");
}

#[test]
fn mutated_models_compile_or_give_an_error() {
    let mut rng = StdRng::seed_from_u64(5);
    let before = peak_memory();
    for wanted in [
        "attention-class-token",
        "batch-norm-shared-conv",
        "max-pool-3x2-stride-2x3",
        "pad-computed-then-conv-5x5",
        "resize-bilinear-align-corners",
        "windows",
    ] {
        let (_, path) = golden().into_iter().find(|(name, _)| name == wanted).expect("a model");
        let original = std::fs::read(path).expect("readable");
        let mut compiled = 0;
        for _ in 0..300 {
            let mut bytes = original.clone();
            match rng.random_range(0..4) {
                0 => bytes.truncate(rng.random_range(0..original.len())),
                kind => {
                    for _ in 0..kind {
                        let at = rng.random_range(0..bytes.len());
                        bytes[at] = rng.random();
                    }
                }
            }
            compiled += usize::from(outcome(&bytes).is_ok());
        }
        println!("{wanted}: {compiled} of 300 still run");
    }
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        // The kernel counts lazily: a peak may even be read as a little lower than before.
        let took = after.saturating_sub(before);
        assert!(took < 2 << 20, "took {took} KiB");
    }
}

/// Most memory that this process has held, KiB.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[test]
fn sizes_that_overflow_are_refused() {
    let huge = usize::MAX >> 1;
    refused(Graph::new(&[huge, huge, huge]).node("Relu", &["x"], "y", vec![]), "input \"x\"");
    refused(Graph::new(&[1 << 20, 1 << 20]).node("Relu", &["x"], "y", vec![]), "input \"x\"");
    refused(Graph::new(&[3, 0, 4]).node("Relu", &["x"], "y", vec![]), "input \"x\"");
    refused(Graph::new(&[]).node("Relu", &["x"], "y", vec![]), "input \"x\"");
    // Doubles 40 times.
    let mut graph = Graph::new(&[4, 1, 1]).node("Identity", &["x"], "d0", vec![]);
    for i in 0..40 {
        let (from, to) = (format!("d{i}"), format!("d{}", i + 1));
        graph = graph.node("Concat", &[&from, &from], &to, vec![int("axis", 1)]);
    }
    refused(graph.node("Relu", &["d40"], "y", vec![]), "or too many");
    let tensor = Graph::new(&[4]).floats("w", &[i64::MAX, i64::MAX], &[1.0]);
    refused(tensor.node("MatMul", &["x", "w"], "y", vec![]), "initializer \"w\"");
    let empty = Graph::new(&[4]).floats("w", &[4, 0], &[]);
    refused(empty.node("MatMul", &["x", "w"], "y", vec![]), "has no values");
    let negative = Graph::new(&[4]).floats("w", &[-4, 4], &[]);
    refused(negative.node("MatMul", &["x", "w"], "y", vec![]), "negative dimension -4");
}

#[test]
fn windows_of_absurd_sizes_are_refused() {
    let image = || Graph::new(&[1, 8, 8]).floats("w", &[1, 1, 3, 3], &[0.5; 9]);
    for (name, values) in [
        ("strides", [0, 1].as_slice()),
        ("strides", &[i64::MAX, 1]),
        ("dilations", &[1, i64::MAX]),
        ("dilations", &[-1, 1]),
        ("strides", &[1, 1, 1]),
        ("pads", &[i64::MAX, 0, 0, 0]),
        ("pads", &[-1, 0, 0, 0]),
        ("kernel_shape", &[3, 4]),
    ] {
        let attribute = vec![ints(name, values)];
        refused(image().node("Conv", &["x", "w"], "y", attribute), &format!("{name:?} is"));
    }
    for (name, values) in [("kernel_shape", [0, 2]), ("kernel_shape", [i64::MAX, 2])] {
        let attribute = vec![ints(name, &values)];
        refused(image().node("MaxPool", &["x"], "y", attribute), &format!("{name:?} is"));
    }
    let too_large = vec![ints("kernel_shape", &[9, 9])];
    refused(image().node("AveragePool", &["x"], "y", too_large), "does not fit an image of 8x8");
    // Both taps fall beside the image.
    let over = vec![
        ints("kernel_shape", &[2, 2]),
        ints("dilations", &[4, 4]),
        ints("pads", &[1, 1, 3, 3]),
    ];
    let small = Graph::new(&[1, 2, 2]).node("AveragePool", &["x"], "y", over);
    refused(small, "does not fit an image of 2x2");
    refused(image().node("Conv", &["x", "w"], "y", vec![int("group", 0)]), "in 0 groups");
    refused(image().node("Conv", &["x", "w"], "y", vec![int("group", i64::MIN)]), "groups");
    let none = Graph::new(&[1, 8, 8]).floats("w", &[0, 1, 3, 3], &[]);
    refused(none.node("Conv", &["x", "w"], "y", vec![]), "does not fit");
}

#[test]
fn a_stride_without_a_second_position_costs_nothing() {
    let graph = Graph::new(&[1, 8, 8]).floats("w", &[1, 1, 3, 3], &[0.5; 9]).node(
        "Conv",
        &["x", "w"],
        "y",
        vec![ints("strides", &[4096, 4096])],
    );
    assert_eq!(outcome(&graph.encode()), Ok(()));
}

#[test]
fn steps_beyond_an_axis_take_its_first_value() {
    let x = Tensor::arange(0f32, 12.0, &Device::Cpu).and_then(|x| x.reshape((1, 3, 4)));
    let x = x.expect("a tensor");
    for (start, step, expected) in
        [(1, i64::MAX, [4.0, 5.0, 6.0, 7.0]), (-1, i64::MIN, [8.0, 9.0, 10.0, 11.0])]
    {
        let graph = Graph::new(&[3, 4])
            .integers("start", &[1], &[start])
            .integers("end", &[1], &[step])
            .integers("axis", &[1], &[1])
            .integers("step", &[1], &[step])
            .node("Slice", &["x", "start", "end", "axis", "step"], "y", vec![]);
        let program = Program::compile(&graph.encode(), &Device::Cpu).expect("a model");
        let y = program.forward(&x).expect("values").flatten_all().expect("a list");
        assert_eq!(y.to_vec1::<f32>().expect("floats"), expected);
    }
    let sizes = [i64::MAX, i64::MAX, 6];
    let graph = Graph::new(&[4]).integers("sizes", &[3], &sizes);
    refused(split(graph), "do not make up 4");
}

/// Into three parts of `sizes`, the first of which goes on.
fn split(graph: Graph) -> Graph {
    let mut model = graph.node("Split", &["x", "sizes"], "y", vec![int("axis", 1)]);
    model.nodes[0].output.extend(["z".into(), "w".into()]);
    model
}

#[test]
fn shapes_that_do_not_keep_the_batch_are_refused() {
    for wanted in [[].as_slice(), &[0], &[5, -1], &[0, -1, -1], &[0, -2], &[0, 7]] {
        let graph = Graph::new(&[1, 4]).integers("s", &[wanted.len() as i64], wanted);
        let error = outcome(&graph.node("Reshape", &["x", "s"], "y", vec![]).encode());
        assert!(error.is_err(), "{wanted:?}");
    }
    let literal_zero = Graph::new(&[1, 4]).integers("s", &[2], &[0, 4]);
    let literal_zero = literal_zero.node("Reshape", &["x", "s"], "y", vec![int("allowzero", 1)]);
    refused(literal_zero, "with every row by itself");
    refused(Graph::new(&[4]).node("Flatten", &["x"], "y", vec![int("axis", i64::MAX)]), "axis");
    refused(Graph::new(&[4]).node("Flatten", &["x"], "y", vec![int("axis", i64::MIN)]), "axis");
    refused(Graph::new(&[4]).node("Concat", &["x"], "y", vec![int("axis", i64::MIN)]), "axis");
    refused(Graph::new(&[4]).node("Concat", &["x"], "y", vec![int("axis", 0)]), "axis 0");
    refused(Graph::new(&[4]).node("Concat", &[], "y", vec![int("axis", 1)]), "absent");
    let pads = Graph::new(&[4]).integers("p", &[4], &[0, -9, 0, 2]);
    refused(pads.node("Pad", &["x", "p"], "y", vec![]), "leave nothing");
    let pads = Graph::new(&[4]).integers("p", &[4], &[0, i64::MIN, 0, 2]);
    refused(pads.node("Pad", &["x", "p"], "y", vec![]), "pads are");
}

#[test]
fn nodes_on_constants_are_checked_like_the_others() {
    let folded = |op: &str, inputs: &[&str], attributes| {
        Graph::new(&[4])
            .floats("f", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
            .integers("i", &[2], &[0, 1])
            .integers("out", &[1], &[7])
            .integers("cube", &[1, 1, 1], &[1])
            .integers("huge", &[2], &[1 << 40, 1 << 40])
            .integers("large", &[2], &[1 << 13, 1 << 13])
            .integers("minus", &[1], &[-1])
            .integers("zero", &[1], &[0])
            .node(op, inputs, "c", attributes)
            .needing("c")
    };
    refused(folded("Gather", &["f", "out"], vec![]), "index 7 is outside of axis 0 of size 2");
    refused(folded("Gather", &["f"], vec![]), "input 1 is absent");
    refused(folded("Gather", &[], vec![]), "input 0 is absent");
    refused(folded("Gather", &["f", "i"], vec![int("axis", 5)]), "axis 5 is outside of rank 2");
    assert_eq!(outcome(&folded("Gather", &["f", "cube"], vec![]).encode()), Ok(()));
    refused(folded("ConstantOfShape", &["huge"], vec![]), "too many values");
    refused(folded("ConstantOfShape", &["large"], vec![]), "too many values");
    refused(folded("ConstantOfShape", &["minus"], vec![]), "shape [-1]");
    refused(folded("ConstantOfShape", &["f"], vec![]), "holds floats");
    refused(folded("ConstantOfShape", &["i"], vec![float("value", 1.0)]), "expected a tensor");
    refused(folded("Reshape", &["f", "huge"], vec![]), "too many values");
    refused(folded("Reshape", &["f", "out"], vec![]), "do not fill a shape of [7]");
    refused(folded("Reshape", &["f", ""], vec![]), "shape is absent");
    refused(folded("Slice", &["f", "zero", "i"], vec![]), "differ in number");
    refused(folded("Slice", &["f", "zero", "out", "zero", "zero"], vec![]), "a step is 0");
    refused(folded("Slice", &["f", "zero", "out", "out"], vec![]), "axis 7 is outside of rank 2");
    refused(folded("Transpose", &["f"], vec![ints("perm", &[0, 0])]), "no permutation");
    refused(folded("Transpose", &["f"], vec![ints("perm", &[0, 1, 1])]), "no permutation");
    refused(folded("Unsqueeze", &["f", "out"], vec![]), "axis 7 is outside of rank 3");
    refused(folded("Unsqueeze", &["f"], vec![ints("axes", &[0, 0])]), "repeat");
    refused(folded("Cast", &["f"], vec![int("to", 8)]), "\"to\" is 8");
    refused(folded("Cast", &["f"], vec![int("to", i64::MAX)]), "\"to\" is");
    refused(folded("Concat", &["f", "i"], vec![int("axis", 0)]), "does not join");
    refused(
        folded("Concat", &["i", "f", "f"], vec![int("axis", 1)]),
        "axis 1 is outside of rank 1",
    );
    refused(folded("Concat", &["zero", ""], vec![int("axis", 0)]), "input 1 is absent");
}

#[test]
fn names_that_lead_nowhere_are_refused() {
    refused(Graph::new(&[4]).node("Relu", &["nothing"], "y", vec![]), "\"nothing\" is not defined");
    refused(Graph::new(&[4]).node("Relu", &["x"], "", vec![]), "it has no output");
    refused(
        Graph::new(&[4]).node("Relu", &["x"], "z", vec![]),
        "expected one output that a node computes",
    );
    refused(Graph::new(&[4]).node("Relu", &["x"], "x", vec![]), "defined twice");
    let mut two = Graph::new(&[4]).node("Add", &["x", "z"], "y", vec![]);
    two.inputs.push(input("z", &[4]));
    refused(two, "the model takes 2 inputs");
    // A second output is named by nobody who computes it.
    let mut mask = Graph::new(&[4]).node("Dropout", &["x"], "d", vec![]);
    mask.nodes[0].output.push("mask".into());
    refused(mask.node("Add", &["d", "mask"], "y", vec![]), "\"mask\" is an output that is not");
}
