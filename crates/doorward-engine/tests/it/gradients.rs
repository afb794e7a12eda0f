//! Gradients against central differences, and what they are where there is no derivative.

use candle_core::{Device, Tensor};
use doorward_engine::Program;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::engine::{golden, load, references};
use super::support::onnx::{Graph, float, int, ints};

fn compile(graph: Graph) -> Program {
    Program::compile(&graph.encode(), &Device::Cpu).expect("a model")
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn gradient(model: &Program, x: &Tensor, cotangent: &Tensor) -> Tensor {
    let part = |rows: std::ops::Range<usize>| cotangent.narrow(0, rows.start, rows.len());
    model.vjp(x, &|rows, _| part(rows)).unwrap().1
}

/// The gradient of the sum of all outputs at one row.
fn gradient_of_sum(model: &Program, row: &[f32]) -> Vec<f32> {
    let shape = [&[1], model.input_shape()].concat();
    let ones = vec![1.0; model.output_shape().iter().product()];
    let ones = tensor(&ones, &[&[1], model.output_shape()].concat());
    values(&gradient(model, &tensor(row, &shape), &ones))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Sum of magnitudes of products: what rounding errors of a sum are relative to.
fn magnitude(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from((a * b).abs())).sum()
}

/// Differences of `sum(cotangent * f(x))` along single coordinates.
struct Differences<'a> {
    model: &'a Program,
    row: &'a [f32],
    cotangent: &'a [f32],
    /// Value at `row`, and what its rounding error may be.
    centre: f64,
    rounding: f64,
}

impl<'a> Differences<'a> {
    fn new(model: &'a Program, row: &'a [f32], cotangent: &'a [f32]) -> Self {
        let shape = [&[1], model.input_shape()].concat();
        let logits = values(&model.forward(&tensor(row, &shape)).unwrap());
        let rounding = 4.0 * f64::from(f32::EPSILON) * magnitude(&logits, cotangent);
        Self { model, row, cotangent, centre: dot(&logits, cotangent), rounding }
    }

    /// Slope and its tolerance for every coordinate; `None` near a kink.
    ///
    /// A kink lies within the step, where a ReLU or a pooling window switches, if the slopes to
    /// both sides, over the step and half of it, differ by more than rounding and curvature. A
    /// smaller step is tried then, which makes rounding count more, until it would count too much.
    fn slopes(&self, coordinates: &[usize]) -> Vec<Option<(f64, f64)>> {
        let mut found = vec![None; coordinates.len()];
        for step in [1e-2f32, 5e-3, 2e-3, 1e-3, 5e-4] {
            let open: Vec<usize> = (0..found.len()).filter(|&i| found[i].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let mut rows = Vec::with_capacity(4 * open.len() * self.row.len());
            for &i in &open {
                for share in SHARES {
                    rows.extend_from_slice(self.row);
                    let at = rows.len() - self.row.len() + coordinates[i];
                    rows[at] += share * step;
                }
            }
            let shape = [&[4 * open.len()], self.model.input_shape()].concat();
            let logits = values(&self.model.forward(&tensor(&rows, &shape)).unwrap());
            let sums: Vec<f64> = logits
                .chunks(self.cotangent.len())
                .map(|logits| dot(logits, self.cotangent))
                .collect();
            for (&i, sums) in open.iter().zip(sums.chunks(4)) {
                let x = self.row[coordinates[i]];
                // Divided by the step that rounding left.
                let slopes: Vec<f64> = SHARES
                    .iter()
                    .zip(sums)
                    .map(|(share, sum)| (sum - self.centre) / f64::from(x + share * step - x))
                    .collect();
                let slope = f64::midpoint(slopes[0], slopes[1]);
                let rounding = 2.0 * self.rounding / f64::from(step);
                let kinked = |other: &f64| (other - slope).abs() > rounding + 1e-2 * slope.abs();
                if !slopes.iter().any(kinked) {
                    found[i] = Some((slope, rounding));
                }
            }
        }
        found
    }
}

/// Places where slopes are taken, in steps.
const SHARES: [f32; 4] = [1.0, -1.0, 0.5, -0.5];

#[test]
fn golden_gradients_agree_with_central_differences() {
    let mut rng = StdRng::seed_from_u64(1);
    for (name, path) in golden() {
        if name.ends_with("-ties") {
            // Only kinks; the conventions below have them.
            continue;
        }
        let (model, stored) = (load(&path), references(&path.with_extension("safetensors")));
        let first = |name: &str| values(&stored[name].narrow(0, 0, 1).unwrap());
        let (row, cotangent) = (first("input"), first("cotangent"));
        let shape = |shape: &[usize]| [&[1], shape].concat();
        let got = values(&gradient(
            &model,
            &tensor(&row, &shape(model.input_shape())),
            &tensor(&cotangent, &shape(model.output_shape())),
        ));
        let count = row.len().min(128);
        let coordinates = rand::seq::index::sample(&mut rng, row.len(), count).into_vec();
        let scale = got.iter().fold(0f32, |max, value| max.max(value.abs()));
        let slopes = Differences::new(&model, &row, &cotangent).slopes(&coordinates);
        let mut checked = 0;
        for (&coordinate, slope) in coordinates.iter().zip(slopes) {
            let Some((slope, rounding)) = slope else { continue };
            // Curvature of sigmoids and products over a step of 0.01; rounding of f32 sums, and
            // what the slopes may differ by before it counts as a kink.
            let tolerance = 2e-3 * f64::from(scale) + 2.0 * rounding + 1e-2 * slope.abs();
            let error = (slope - f64::from(got[coordinate])).abs();
            assert!(
                error <= tolerance,
                "{name}: coordinate {coordinate} has gradient {}, slope {slope} +- {tolerance}",
                got[coordinate]
            );
            checked += 1;
        }
        println!("{name}: {checked} of {count} coordinates");
        assert!(2 * checked >= count, "{name}: only {checked} of {count} coordinates are smooth");
    }
}

#[test]
fn relu_has_no_slope_at_zero() {
    let alone = compile(Graph::new(&[1, 1, 4]).node("Relu", &["x"], "y", vec![]));
    assert_eq!(gradient_of_sum(&alone, &[0.0, -0.0, 1.0, -1.0]), [0.0, 0.0, 1.0, 0.0]);

    // Fused into a convolution: the outputs are 2 x - 1.
    let conv = Graph::new(&[1, 1, 4])
        .floats("w", &[1, 1, 1, 1], &[2.0])
        .floats("b", &[1], &[-1.0])
        .node("Conv", &["x", "w", "b"], "c", vec![])
        .node("Relu", &["c"], "y", vec![]);
    assert_eq!(gradient_of_sum(&compile(conv), &[0.5, 0.25, 1.0, 0.0]), [0.0, 0.0, 2.0, 0.0]);

    // Fused into a sum, and into a fully connected layer.
    let sum = Graph::new(&[1, 1, 3]).node("Add", &["x", "x"], "s", vec![]).node(
        "Relu",
        &["s"],
        "y",
        vec![],
    );
    assert_eq!(gradient_of_sum(&compile(sum), &[0.0, 1.0, -1.0]), [0.0, 2.0, 0.0]);
    let dense = Graph::new(&[2])
        .floats("w", &[2, 2], &[1.0, 0.0, 0.0, 1.0])
        .node("MatMul", &["x", "w"], "m", vec![])
        .node("Relu", &["m"], "y", vec![]);
    assert_eq!(gradient_of_sum(&compile(dense), &[0.0, 1.0]), [0.0, 1.0]);

    // In front of a convolution, behind a shift: the gate is x - 1 > 0.
    let before = Graph::new(&[1, 1, 3])
        .floats("one", &[], &[1.0])
        .floats("w", &[1, 1, 1, 1], &[3.0])
        .node("Sub", &["x", "one"], "s", vec![])
        .node("Relu", &["s"], "r", vec![])
        .node("Conv", &["r", "w"], "y", vec![]);
    assert_eq!(gradient_of_sum(&compile(before), &[1.0, 2.0, 0.0]), [0.0, 3.0, 0.0]);
}

#[test]
fn clip_and_leaky_relu_have_the_slopes_of_pytorch_at_their_kinks() {
    let clip = Graph::new(&[1, 1, 4]).floats("low", &[], &[0.0]).floats("high", &[], &[1.0]).node(
        "Clip",
        &["x", "low", "high"],
        "y",
        vec![],
    );
    assert_eq!(gradient_of_sum(&compile(clip), &[0.0, 1.0, 0.5, -0.5]), [0.0, 0.0, 1.0, 0.0]);
    let leaky = Graph::new(&[1, 1, 3]).node("LeakyRelu", &["x"], "y", vec![float("alpha", 0.25)]);
    assert_eq!(gradient_of_sum(&compile(leaky), &[0.0, 1.0, -1.0]), [0.25, 1.0, 0.25]);
}

#[test]
fn the_first_of_equal_maxima_takes_the_gradient_of_max_pool() {
    // Whole windows without padding.
    let tiles = compile(Graph::new(&[1, 2, 4]).node(
        "MaxPool",
        &["x"],
        "y",
        vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])],
    ));
    let row = [7.0, 7.0, 1.0, 5.0, 7.0, 7.0, 5.0, 5.0];
    assert_eq!(gradient_of_sum(&tiles, &row), [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);

    // Overlapping windows over a border, all equal: each window's upper left pixel in the image.
    let padded = compile(Graph::new(&[1, 3, 3]).node(
        "MaxPool",
        &["x"],
        "y",
        vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])],
    ));
    let expected = [4.0, 2.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(gradient_of_sum(&padded, &[-1.0; 9]), expected);
    // Padding is no maximum, though zero would be.
    let out = padded.forward(&tensor(&[-1.0; 9], &[1, 1, 3, 3])).unwrap();
    assert_eq!(values(&out), [-1.0; 9]);

    let global = compile(Graph::new(&[1, 2, 2]).node("GlobalMaxPool", &["x"], "y", vec![]));
    assert_eq!(gradient_of_sum(&global, &[1.0, 3.0, 3.0, 3.0]), [0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn average_pool_shares_its_gradient_over_what_it_divides_by() {
    let pool = |include: i64| {
        let attributes = vec![
            ints("kernel_shape", &[3, 3]),
            ints("strides", &[2, 2]),
            ints("pads", &[1, 1, 1, 1]),
            int("count_include_pad", include),
        ];
        compile(Graph::new(&[1, 3, 3]).node("AveragePool", &["x"], "y", attributes))
    };
    // Four windows of four pixels each, one in every corner.
    let got = gradient_of_sum(&pool(0), &[0.0; 9]);
    let quarters = [1.0, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0, 2.0, 1.0].map(|share| share / 4.0);
    assert_eq!(got, quarters);
    let got = gradient_of_sum(&pool(1), &[0.0; 9]);
    for (got, quarter) in got.iter().zip(quarters) {
        assert!((got - quarter * 4.0 / 9.0).abs() < 1e-6);
    }
}

#[derive(Clone, Debug)]
struct Case {
    groups: usize,
    /// Per group.
    ins: usize,
    /// Per group.
    outs: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    /// Top, left, bottom, right.
    pads: [usize; 4],
    batch: usize,
    seed: u64,
}

prop_compose! {
    fn cases()(
        groups in 1..=3usize,
        ins in 1..=4usize,
        outs in 1..=14usize,
        extra in [0..=11usize, 0..=19usize],
        kernel in [1..=5usize, 1..=5usize],
        stride in [1..=3usize, 1..=3usize],
        dilation in [1..=2usize, 1..=2usize],
        pads in [0..=3usize, 0..=3usize, 0..=3usize, 0..=3usize],
        batch in 1..=5usize,
        seed: u64,
    ) -> Case {
        // As small as the kernel allows, and up.
        let size = [0, 1].map(|axis: usize| {
            let reach = dilation[axis] * (kernel[axis] - 1) + 1;
            reach.saturating_sub(pads[axis] + pads[axis + 2]).max(1) + extra[axis]
        });
        Case { groups, ins, outs, size, kernel, stride, dilation, pads, batch, seed }
    }
}

impl Case {
    fn model(&self, weight: &[f32]) -> Program {
        let pair = |values: [usize; 2]| values.map(|value| value as i64);
        let dims = [self.groups * self.outs, self.ins, self.kernel[0], self.kernel[1]];
        let attributes = vec![
            ints("strides", &pair(self.stride)),
            ints("dilations", &pair(self.dilation)),
            ints("pads", &self.pads.map(|pad| pad as i64)),
            int("group", self.groups as i64),
        ];
        compile(
            Graph::new(&[self.groups * self.ins, self.size[0], self.size[1]])
                .floats("w", &dims.map(|dim| dim as i64), weight)
                .node("Conv", &["x", "w"], "y", attributes),
        )
    }

    fn out_size(&self) -> [usize; 2] {
        [0, 1].map(|axis: usize| {
            let padded = self.size[axis] + self.pads[axis] + self.pads[axis + 2];
            (padded - self.dilation[axis] * (self.kernel[axis] - 1) - 1) / self.stride[axis] + 1
        })
    }

    /// Calls `visit` with the flat positions of every product `y += w * x`.
    fn products(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let [height, width] = self.size;
        let [out_height, out_width] = self.out_size();
        let (channels, out_channels) = (self.groups * self.ins, self.groups * self.outs);
        for image in 0..self.batch {
            for out in 0..out_channels {
                for oy in 0..out_height {
                    for ox in 0..out_width {
                        let y = ((image * out_channels + out) * out_height + oy) * out_width + ox;
                        for channel in 0..self.ins {
                            let from = out / self.outs * self.ins + channel;
                            for ky in 0..self.kernel[0] {
                                for kx in 0..self.kernel[1] {
                                    let iy = oy * self.stride[0] + ky * self.dilation[0];
                                    let ix = ox * self.stride[1] + kx * self.dilation[1];
                                    let (Some(iy), Some(ix)) = (
                                        iy.checked_sub(self.pads[0]),
                                        ix.checked_sub(self.pads[1]),
                                    ) else {
                                        continue;
                                    };
                                    if iy < height && ix < width {
                                        let x =
                                            ((image * channels + from) * height + iy) * width + ix;
                                        let w = ((out * self.ins + channel) * self.kernel[0] + ky)
                                            * self.kernel[1]
                                            + kx;
                                        visit(y, w, x);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(20),
        ..ProptestConfig::default()
    })]

    #[test]
    fn convolutions_and_their_gradients_agree_with_sums_in_double_precision(case in cases()) {
        let mut rng = StdRng::seed_from_u64(case.seed);
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count).map(|_| rng.random_range(-1.0..1.0f32)).collect()
        };
        let weight = draw(case.groups * case.outs * case.ins * case.kernel[0] * case.kernel[1]);
        let model = case.model(&weight);
        let [out_height, out_width] = case.out_size();
        prop_assert_eq!(model.output_shape(), [case.groups * case.outs, out_height, out_width]);
        let in_shape = [&[case.batch], model.input_shape()].concat();
        let out_shape = [&[case.batch], model.output_shape()].concat();
        let (x, dy) = (draw(in_shape.iter().product()), draw(out_shape.iter().product()));
        let y = values(&model.forward(&tensor(&x, &in_shape)).unwrap());
        let dx = values(&gradient(&model, &tensor(&x, &in_shape), &tensor(&dy, &out_shape)));

        let (mut expected_y, mut expected_dx) = (vec![0f64; y.len()], vec![0f64; x.len()]);
        case.products(|at_y, at_w, at_x| {
            let weight = f64::from(weight[at_w]);
            expected_y[at_y] += weight * f64::from(x[at_x]);
            expected_dx[at_x] += weight * f64::from(dy[at_y]);
        });
        // At most 4 * 25 products below 1 in an output, 14 * 25 in a gradient, each rounded.
        for (got, expected) in y.iter().zip(&expected_y) {
            prop_assert!((f64::from(*got) - expected).abs() < 1e-5, "{} {}", got, expected);
        }
        for (got, expected) in dx.iter().zip(&expected_dx) {
            prop_assert!((f64::from(*got) - expected).abs() < 3e-5, "{} {}", got, expected);
        }
        let difference = (dot(&dx, &x) - dot(&dy, &y)).abs();
        prop_assert!(difference <= 1e-5 * magnitude(&dy, &y).max(1.0), "{}", difference);
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for (name, path) in golden() {
        let (model, stored) = (load(&path), references(&path.with_extension("safetensors")));
        let (few, cotangent) = (&stored["input"], &stored["cotangent"]);
        let index: Vec<u32> = (0..37).map(|row| row % few.dim(0).unwrap() as u32).collect();
        let index = Tensor::new(index, &Device::Cpu).unwrap();
        let rows = few.index_select(&index, 0).unwrap();
        // So that no two rows are the same.
        let factors: Vec<f32> = (0..37).map(|row| 1.0 - row as f32 / 64.0).collect();
        let rank = rows.rank();
        let factors = tensor(&factors, &[&[37], vec![1; rank - 1].as_slice()].concat());
        let rows = rows.broadcast_mul(&factors).unwrap();
        let cotangent = cotangent.index_select(&index, 0).unwrap();
        let together = (model.forward(&rows).unwrap(), gradient(&model, &rows, &cotangent));
        for row in 0..37 {
            let alone = rows.narrow(0, row, 1).unwrap();
            let own = cotangent.narrow(0, row, 1).unwrap();
            let pairs = [
                (&together.0, model.forward(&alone).unwrap()),
                (&together.1, gradient(&model, &alone, &own)),
            ];
            for (together, alone) in pairs {
                let together = values(&together.narrow(0, row, 1).unwrap());
                let alone = values(&alone);
                let scale = alone.iter().fold(1f32, |max, value| max.max(value.abs()));
                for (a, b) in together.iter().zip(&alone) {
                    // Matrix products may sum in another order for another number of rows.
                    assert!((a - b).abs() <= 1e-6 * scale, "{name}: row {row}: {a} and {b}");
                }
            }
        }
    }
}
