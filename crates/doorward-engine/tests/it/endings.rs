//! Whatever a graph makes of its logits at its end, logits are judged.

use candle_core::{Device, Tensor};
use candle_onnx::onnx::TensorProto;
use doorward_engine::{Classifier, Error, Model, OutputKind, label, margin, margin_cotangent};

use super::support::models_cannot_be_loaded;
use super::support::onnx::{Graph, float, int, ints};

/// Four pixels, and `logits` of three labels that are large enough to saturate 32 bits.
fn three() -> Graph {
    let weights = [90.0, -40.0, 3.0, 7.0, 5.0, -60.0, -80.0, 20.0, 1.0, 0.5, 2.0, 70.0];
    scored("logits", &[4, 3], &weights)
}

/// Four pixels, and one number, `logit`.
fn one() -> Graph {
    scored("logit", &[4, 1], &[90.0, -70.0, 40.0, -60.0])
}

fn scored(name: &str, shape: &[i64], weights: &[f32]) -> Graph {
    Graph::new(&[1, 2, 2]).floats("w", shape, weights).node("Flatten", &["x"], "flat", vec![]).node(
        "MatMul",
        &["flat", "w"],
        name,
        vec![],
    )
}

fn load(graph: Graph, output: &str) -> Result<Model, Error> {
    Model::decode(&Graph { output: output.into(), ..graph }.encode(), &[0.0], &[1.0], &Device::Cpu)
}

fn images() -> Tensor {
    let pixels: Vec<f32> = (0..64).map(|i| (i * 37 % 64) as f32 / 63.0).collect();
    Tensor::from_vec(pixels, (16, 1, 2, 2), &Device::Cpu).unwrap()
}

fn logits(model: &Model) -> Vec<Vec<f32>> {
    model.logits(&images()).unwrap().to_vec2().unwrap()
}

/// The margins, and their gradients, are those of `expected`.
#[track_caller]
fn same(model: &Model, expected: &Model, scores: OutputKind) {
    assert_eq!(model.output_kind(), scores);
    assert_eq!(model.labels(), expected.labels());
    for (got, expected) in logits(model).iter().zip(logits(expected)) {
        assert_eq!(label(got), label(&expected));
        for label in 0..expected.len() {
            let (got, expected) = (margin(got, label), margin(&expected, label));
            assert!((got - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{got} {expected}");
        }
    }
    let gradient = |model: &Model| -> Vec<f32> {
        let cotangent = |rows: std::ops::Range<usize>, logits: &Tensor| {
            margin_cotangent(logits, &vec![1; rows.len()], |_| 1.0)
        };
        let (_, gradient) = model.logits_and_gradient(&images(), &cotangent).unwrap();
        gradient.flatten_all().unwrap().to_vec1().unwrap()
    };
    for (got, expected) in gradient(model).into_iter().zip(gradient(expected)) {
        assert!((got - expected).abs() <= 1e-3 * expected.abs().max(1.0), "{got} {expected}");
    }
}

fn softmax(graph: Graph) -> Graph {
    graph.node("Softmax", &["logits"], "p", vec![int("axis", -1)])
}

fn sum(of: &str) -> impl Fn(Graph) -> Graph {
    let of = of.to_owned();
    move |graph| {
        let graph = graph.integers("one", &[1], &[1]);
        graph.node("ReduceSum", &[&of, "one"], "sum", vec![int("keepdims", 1)])
    }
}

#[test]
fn margins_are_those_of_the_logits_that_a_softmax_takes() {
    if models_cannot_be_loaded() {
        return;
    }
    let expected = load(three(), "logits").unwrap();
    assert_eq!(expected.output_kind(), OutputKind::Logits);
    let bounds = |graph: Graph| graph.floats("lo", &[], &[1e-7]).floats("hi", &[], &[1.0]);
    let shifted = |graph: Graph| {
        graph
            .node("ReduceMax", &["logits"], "most", vec![ints("axes", &[1])])
            .node("Sub", &["logits", "most"], "shifted", vec![])
            .node("Exp", &["shifted"], "e", vec![])
    };
    let exp = |graph: Graph| graph.node("Exp", &["logits"], "e", vec![]);
    let endings: Vec<(Graph, &str)> = vec![
        (softmax(three()), "p"),
        (bounds(softmax(three())).node("Clip", &["p", "lo", "hi"], "y", vec![]), "y"),
        (softmax(three()).node("Cast", &["p"], "y", vec![int("to", 10)]), "y"),
        (softmax(three()).node("Identity", &["p"], "y", vec![]), "y"),
        (bounds(softmax(three())).node("Add", &["p", "lo"], "y", vec![]), "y"),
        (bounds(softmax(three())).node("Max", &["lo", "p"], "y", vec![]), "y"),
        (
            softmax(three()).floats("hundred", &[1], &[100.0]).node(
                "Mul",
                &["p", "hundred"],
                "y",
                vec![],
            ),
            "y",
        ),
        (
            three()
                .integers("axes", &[2], &[2, 3])
                .node("Unsqueeze", &["logits", "axes"], "map", vec![])
                .node("Softmax", &["map"], "p", vec![int("axis", 1)])
                .node("Flatten", &["p"], "y", vec![]),
            "y",
        ),
        (
            softmax(three())
                .integers("shape", &[3], &[-1, 1, 3])
                .integers("axes", &[1], &[1])
                .node("Reshape", &["p", "shape"], "r", vec![])
                .node("Squeeze", &["r", "axes"], "y", vec![]),
            "y",
        ),
        (sum("e")(exp(three())).node("Div", &["e", "sum"], "y", vec![]), "y"),
        (sum("e")(shifted(three())).node("Div", &["e", "sum"], "y", vec![]), "y"),
        (
            sum("e")(shifted(three())).node("Reciprocal", &["sum"], "by", vec![]).node(
                "Mul",
                &["by", "e"],
                "y",
                vec![],
            ),
            "y",
        ),
        (
            softmax(three())
                .floats("step", &[], &[1.0 / 255.0])
                .tensor(
                    "zero",
                    &[],
                    TensorProto { data_type: 2, int32_data: vec![0], ..<_>::default() },
                )
                .node("QuantizeLinear", &["p", "step", "zero"], "q", vec![])
                .node("DequantizeLinear", &["q", "step", "zero"], "y", vec![]),
            "y",
        ),
        (softmax(three()).node("LpNormalization", &["p"], "y", vec![int("p", 1)]), "y"),
        (
            softmax(three())
                .floats("lo", &[], &[1e-6])
                .node("Add", &["p", "lo"], "a", vec![])
                .node("ReduceL1", &["a"], "s", vec![ints("axes", &[1])])
                .node("Div", &["a", "s"], "y", vec![]),
            "y",
        ),
        // Labels of labels, one for one.
        (
            softmax(three())
                .floats("same", &[3, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
                .node("MatMul", &["p", "same"], "y", vec![]),
            "y",
        ),
        // Probabilities of probabilities.
        (softmax(three()).node("Softmax", &["p"], "y", vec![int("axis", 1)]), "y"),
    ];
    for (index, (graph, output)) in endings.into_iter().enumerate() {
        println!("ending {index}");
        same(&load(graph, output).unwrap(), &expected, OutputKind::Probabilities);
    }
}

#[test]
fn margins_are_those_of_the_logits_of_log_probabilities() {
    if models_cannot_be_loaded() {
        return;
    }
    let expected = load(three(), "logits").unwrap();
    let exp = |graph: Graph| graph.node("Exp", &["logits"], "e", vec![]);
    let endings =
        vec![
            three().node("LogSoftmax", &["logits"], "y", vec![int("axis", 1)]),
            softmax(three()).node("Log", &["p"], "y", vec![]),
            softmax(three())
                .floats("lo", &[], &[1e-9])
                .node("Clip", &["p", "lo"], "c", vec![])
                .node("Log", &["c"], "y", vec![]),
            sum("e")(exp(three())).node("Log", &["sum"], "log", vec![]).node(
                "Sub",
                &["logits", "log"],
                "y",
                vec![],
            ),
            softmax(three()).node("LogSoftmax", &["p"], "y", vec![int("axis", 1)]),
        ];
    for (index, graph) in endings.into_iter().enumerate() {
        println!("ending {index}");
        same(&load(graph, "y").unwrap(), &expected, OutputKind::LogProbabilities);
    }
}

#[test]
fn margins_are_those_of_the_logits_that_a_sigmoid_takes() {
    if models_cannot_be_loaded() {
        return;
    }
    let expected = load(three(), "logits").unwrap();
    let written = |graph: Graph| {
        graph
            .floats("1", &[], &[1.0])
            .node("Neg", &["logits"], "minus", vec![])
            .node("Exp", &["minus"], "e", vec![])
            .node("Add", &["1", "e"], "below", vec![])
    };
    let endings = vec![
        three().node("Sigmoid", &["logits"], "y", vec![]),
        three().node("HardSigmoid", &["logits"], "y", vec![float("alpha", 0.2)]),
        written(three()).node("Div", &["1", "below"], "y", vec![]),
        written(three()).node("Reciprocal", &["below"], "y", vec![]),
        three().node("Sigmoid", &["logits"], "p", vec![]).floats("lo", &[], &[1e-6]).node(
            "Clip",
            &["p", "lo"],
            "y",
            vec![],
        ),
    ];
    for (index, graph) in endings.into_iter().enumerate() {
        println!("ending {index}");
        same(&load(graph, "y").unwrap(), &expected, OutputKind::IndependentProbabilities);
    }
}

#[test]
fn one_score_is_that_of_the_second_of_two_labels() {
    if models_cannot_be_loaded() {
        return;
    }
    let expected = load(one(), "logit").unwrap();
    assert_eq!(expected.labels(), 2);
    let pixels = images().flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    for (pixels, logits) in pixels.iter().zip(logits(&expected)) {
        let weights = [90.0, -70.0, 40.0, -60.0];
        let logit: f32 = pixels.iter().zip(weights).map(|(pixel, weight)| pixel * weight).sum();
        assert!((margin(&logits, 1) - logit).abs() < 1e-4 * logit.abs().max(1.0));
    }
    let p = || one().node("Sigmoid", &["logit"], "p", vec![]);
    same(&load(p(), "p").unwrap(), &expected, OutputKind::IndependentProbabilities);
    let flat = p().integers("s", &[1], &[-1]).node("Reshape", &["p", "s"], "y", vec![]);
    same(&load(flat, "y").unwrap(), &expected, OutputKind::IndependentProbabilities);
    // p beside 1 - p, in both orders of writing it.
    let both = || {
        let q = p().floats("1", &[1], &[1.0]).node("Sub", &["1", "p"], "q", vec![]);
        q.node("Concat", &["q", "p"], "y", vec![int("axis", 1)])
    };
    same(&load(both(), "y").unwrap(), &expected, OutputKind::Probabilities);
    let clipped = both().floats("lo", &[], &[1e-7]).node("Clip", &["y", "lo"], "c", vec![]);
    same(&load(clipped, "c").unwrap(), &expected, OutputKind::Probabilities);
    let error = load(one().node("Softmax", &["logit"], "y", vec![int("axis", 1)]), "y");
    assert!(matches!(error, Err(Error::Output { .. })), "{error:?}");
}

/// `ln(mean(exp(x)))`, in double precision.
fn log_mean(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + (values.iter().map(|value| (value - most).exp()).sum::<f64>() / values.len() as f64).ln()
}

#[test]
fn averages_of_probabilities_are_judged_by_their_logarithms() {
    if models_cannot_be_loaded() {
        return;
    }
    // The second model of the ensemble turns the image over.
    let two = || {
        softmax(three())
            .integers("back", &[4], &[3, 2, 1, 0])
            .node("Gather", &["flat", "back"], "turned", vec![int("axis", 1)])
            .node("MatMul", &["turned", "w"], "other", vec![])
            .node("Softmax", &["other"], "q", vec![int("axis", 1)])
    };
    let stacked = || {
        two()
            .integers("axes", &[1], &[1])
            .node("Unsqueeze", &["p", "axes"], "p1", vec![])
            .node("Unsqueeze", &["q", "axes"], "q1", vec![])
            .node("Concat", &["p1", "q1"], "both", vec![int("axis", 1)])
    };
    let half = |graph: Graph| graph.floats("half", &[], &[0.5]).floats("two", &[], &[2.0]);
    let endings = vec![
        half(two()).node("Add", &["p", "q"], "s", vec![]).node("Mul", &["s", "half"], "y", vec![]),
        half(two()).node("Sum", &["p", "q"], "s", vec![]).node("Div", &["s", "two"], "y", vec![]),
        stacked().node("ReduceMean", &["both"], "y", vec![ints("axes", &[1]), int("keepdims", 0)]),
        stacked()
            .node("ReduceSum", &["both", "axes"], "s", vec![int("keepdims", 0)])
            .floats("half", &[], &[0.5])
            .node("Mul", &["s", "half"], "y", vec![]),
    ];
    let scores = |output: &str| logits(&load(two(), output).unwrap());
    let (first, second) = (scores("logits"), scores("other"));
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let row: Vec<f64> = row.iter().map(|&value| value.into()).collect();
        let sum = log_mean(&row) + (row.len() as f64).ln();
        row.iter().map(|value| value - sum).collect()
    };
    for (index, graph) in endings.into_iter().enumerate() {
        let model = load(graph, "y").unwrap();
        assert_eq!(model.output_kind(), OutputKind::Probabilities, "ending {index}");
        for ((got, a), b) in logits(&model).iter().zip(&first).zip(&second) {
            let (a, b) = (log_softmax(a), log_softmax(b));
            let expected: Vec<f32> =
                a.iter().zip(b).map(|(&a, b)| log_mean(&[a, b]) as f32).collect();
            for label in 0..3 {
                let (got, expected) = (margin(got, label), margin(&expected, label));
                let off = (got - expected).abs();
                assert!(off <= 1e-4 * expected.abs().max(1.0), "ending {index}: {got} {expected}");
            }
        }
    }
}

/// Two labels that are groups of the three.
#[test]
fn labels_of_groups_are_judged_by_the_sum_of_their_probabilities() {
    if models_cannot_be_loaded() {
        return;
    }
    let groups = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0];
    let graph =
        softmax(three()).floats("m", &[3, 2], &groups).node("MatMul", &["p", "m"], "y", vec![]);
    let model = load(graph, "y").unwrap();
    let expected = logits(&load(three(), "logits").unwrap());
    for (got, row) in logits(&model).iter().zip(expected) {
        let [a, b, c] = [row[0], row[1], row[2]].map(f64::from);
        let expected = (a - log_mean(&[b, c]) - 2f64.ln()) as f32;
        assert!((margin(got, 0) - expected).abs() <= 1e-4 * expected.abs().max(1.0));
    }
}

/// An ending that the graph does not show: squares that are made to sum to one.
#[test]
fn rows_that_sum_to_one_are_probabilities_whatever_made_them() {
    if models_cannot_be_loaded() {
        return;
    }
    let graph = three()
        .node("Abs", &["logits"], "a", vec![])
        .integers("one", &[1], &[1])
        .node("ReduceSum", &["a", "one"], "s", vec![int("keepdims", 1)])
        .node("Div", &["a", "s"], "y", vec![]);
    let model = load(graph, "y").unwrap();
    assert_eq!(model.output_kind(), OutputKind::Probabilities);
    let expected = logits(&load(three(), "logits").unwrap());
    for (got, expected) in logits(&model).iter().zip(expected) {
        let (a, b) = (expected[0].abs().ln(), expected[1].abs().ln());
        assert!((got[0] - got[1] - (a - b)).abs() < 1e-3, "{got:?} {expected:?}");
    }
}

#[test]
fn labels_are_judged_by_the_logits_that_they_are_chosen_by() {
    if models_cannot_be_loaded() {
        return;
    }
    let expected = load(three(), "logits").unwrap();
    let arg_max = || three().node("ArgMax", &["logits"], "y", vec![int("axis", 1)]);
    same(&load(arg_max(), "y").unwrap(), &expected, OutputKind::Chosen);
    let of_softmax = softmax(three()).node("ArgMax", &["p"], "y", vec![int("axis", 1)]);
    same(&load(of_softmax, "y").unwrap(), &expected, OutputKind::Chosen);
    let mut highest = three().integers("k", &[1], &[2]).node("TopK", &["logits", "k"], "y", vec![]);
    if let Some(node) = highest.nodes.last_mut() {
        node.output.push("places".into());
    }
    same(&load(highest, "y").unwrap(), &expected, OutputKind::Chosen);
    let half = |op: &str| {
        let p = one().node("Sigmoid", &["logit"], "p", vec![]).floats("half", &[], &[0.5]);
        let decided = p.node(op, &["p", "half"], "d", vec![]);
        decided.node("Cast", &["d"], "y", vec![int("to", 1)])
    };
    let error = load(half("Greater"), "y").unwrap_err();
    assert!(matches!(&error, Error::Decisions { op, .. } if op == "Greater"), "{error}");
    let rounded =
        three().node("Sigmoid", &["logits"], "p", vec![]).node("Round", &["p"], "y", vec![]);
    assert!(matches!(load(rounded, "y"), Err(Error::Decisions { .. })));
}

/// Nothing that merely has a softmax, a sigmoid or an exponential in it is a probability.
#[test]
fn logits_stay_as_they_are() {
    if models_cannot_be_loaded() {
        return;
    }
    let gated = three().node("Sigmoid", &["logits"], "gate", vec![]).node(
        "Mul",
        &["logits", "gate"],
        "y",
        vec![],
    );
    let scaled = three().floats("s", &[], &[0.5]).node("Mul", &["logits", "s"], "y", vec![]);
    let head = softmax(three())
        .floats("v", &[3, 3], &[1.0, -2.0, 3.0, 0.5, 4.0, -1.0, 2.0, 7.0, 1.0])
        .node("MatMul", &["p", "v"], "y", vec![]);
    for graph in [gated, scaled, head] {
        let bytes = Graph { output: "y".into(), ..graph.clone() }.encode();
        let model = load(graph, "y").unwrap();
        assert_eq!(model.output_kind(), OutputKind::Logits);
        let whole = doorward_engine::Program::compile(&bytes, &Device::Cpu).unwrap();
        let expected = whole.forward(&images()).unwrap().to_vec2::<f32>().unwrap();
        for (got, expected) in logits(&model).iter().flatten().zip(expected.iter().flatten()) {
            assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{got} {expected}");
        }
    }
}
