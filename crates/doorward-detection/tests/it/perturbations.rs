//! The perturbation generators against closed forms, bounds and each other.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use doorward_detection::baselines::{CarliniWagner, Pgd, carlini_wagner, pgd, random_start};
use doorward_detection::perturb::{
    DeepFool, deepfool, fooling_rate, several, universal, universal_by_deepfool,
};
use doorward_engine::{Batch, Classifier, Model, margins, rows};
use doorward_images::Images;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::search;
use super::support::{models_cannot_be_loaded, onnx::Graph};

/// `f(x) = x W`, and W by label. Channels with the statistics `mean` and `std`.
fn linear(labels: usize, mean: &[f32], std: &[f32], rng: &mut StdRng) -> (Model, Vec<Vec<f32>>) {
    let [channels, height, width] = SHAPE;
    let values = channels * height * width;
    let weights: Vec<Vec<f32>> = (0..labels)
        .map(|_| (0..values).map(|_| rng.random_range(-1.0..1.0f32)).collect())
        .collect();
    let columns: Vec<f32> =
        (0..values).flat_map(|value| weights.iter().map(move |row| row[value])).collect();
    let graph = Graph::new(&SHAPE)
        .floats("w", &[values as i64, labels as i64], &columns)
        .node("Flatten", &["x"], "flat", vec![])
        .node("MatMul", &["flat", "w"], "y", vec![]);
    let model = Model::decode(&graph.encode(), mean, std, &Device::Cpu).expect("a model");
    (model, weights)
}

const SHAPE: [usize; 3] = [2, 2, 3];

fn random_rows(model: &Model, count: usize, rng: &mut StdRng) -> Batch {
    let bytes: Vec<u8> = (0..count * 12).map(|_| rng.random_range(60..200)).collect();
    let rows = rows(model.domain(), bytes.chunks(12), &Device::Cpu).expect("rows");
    Batch::predict(model, rows).expect("labels")
}

/// The demo's victim and its first clean images.
fn victim(count: usize) -> (Model, Batch) {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/fashion-mnist");
    let file = |name: &str| -> PathBuf { assets.join(name) };
    let model = Model::load(&file("model.onnx"), &[0.0], &[1.0], &Device::Cpu).expect("a model");
    let images = Images::read(file("fit.bin.gz"), model.domain().shape).expect("images");
    let pixels = (0..count).map(|index| images.image(index));
    let rows = rows(model.domain(), pixels, &Device::Cpu).expect("rows");
    let batch = Batch::predict(&model, rows).expect("labels");
    (model, batch)
}

/// l2 norms of the rows, the channels divided by `ranges`.
fn norms(rows: &Tensor, ranges: &[f32]) -> Vec<f32> {
    let plane = rows.dims()[2] * rows.dims()[3];
    let rows: Vec<Vec<f32>> = rows.flatten_from(1).unwrap().to_vec2().unwrap();
    let square = |(index, value): (usize, &f32)| (value / ranges[index / plane]).powi(2);
    rows.iter().map(|row| row.iter().enumerate().map(square).sum::<f32>().sqrt()).collect()
}

fn labels(model: &Model, rows: &Tensor) -> Vec<usize> {
    doorward_engine::labels(&model.logits(rows).unwrap()).unwrap()
}

#[test]
fn deepfool_takes_one_step_of_the_exact_length_on_a_linear_model() {
    if models_cannot_be_loaded() {
        return;
    }
    let mut rng = StdRng::seed_from_u64(5);
    // Channels of unlike range: distances count pixels, not normalised values.
    let (mean, std) = ([0.5, 0.2], [0.25, 1.0]);
    let ranges = std.map(|std| 1.0 / std);
    let (model, weights) = linear(4, &mean, &std, &mut rng);
    let batch = random_rows(&model, 9, &mut rng);
    let settings = DeepFool::default();
    let found = deepfool(&model, &batch, &settings).unwrap();
    let logits = model.logits(&batch.rows).unwrap().to_vec2::<f32>().unwrap();
    for (row, length) in norms(&found.perturbations, &ranges).into_iter().enumerate() {
        let label = batch.labels[row];
        let distance = |other: usize| {
            let differences = weights[other].iter().zip(&weights[label]).enumerate();
            let norm = differences
                .map(|(index, (a, b))| ((a - b) * ranges[index / 6]).powi(2))
                .sum::<f32>()
                .sqrt();
            (logits[row][label] - logits[row][other]) / norm
        };
        let nearest = (0..4).filter(|&other| other != label).map(distance);
        let expected = nearest.fold(f32::INFINITY, f32::min);
        assert!((length - 1.02 * expected).abs() < 1e-5, "{length} and {expected}");
        assert_eq!(found.steps[row], 1);
    }
    let moved = labels(&model, &(&batch.rows + &found.perturbations).unwrap());
    assert!(moved.iter().zip(&batch.labels).all(|(now, before)| now != before));
}

#[test]
fn deepfool_leaves_alone_what_has_another_label_and_joins_no_rows() {
    if models_cannot_be_loaded() {
        return;
    }
    let (model, mut batch) = victim(4);
    batch.labels[2] = (batch.labels[2] + 1) % 10;
    let settings = DeepFool::default();
    let together = deepfool(&model, &batch, &settings).unwrap();
    assert_eq!(together.steps[2], 0);
    assert_eq!(norms(&together.perturbations, &[1.0])[2], 0.0);
    for row in 0..4 {
        let alone = deepfool(&model, &batch.select(&[row]).unwrap(), &settings).unwrap();
        assert_eq!(alone.steps[0], together.steps[row]);
        let own = together.perturbations.narrow(0, row, 1).unwrap();
        let difference = norms(&(alone.perturbations - &own).unwrap(), &[1.0])[0];
        assert!(difference <= 1e-3 * norms(&own, &[1.0])[0], "row {row}: {difference}");
    }
}

#[test]
fn pgd_stays_in_ball_and_domain_and_lowers_margins() {
    if models_cannot_be_loaded() {
        return;
    }
    let mut rng = StdRng::seed_from_u64(6);
    let (mean, std) = ([0.5, 0.2], [0.25, 1.0]);
    let (model, _) = linear(4, &mean, &std, &mut rng);
    let batch = random_rows(&model, 16, &mut rng);
    let settings = Pgd { epsilon: 0.3, steps: 7 };
    let start = random_start(&model, settings.epsilon, &mut rng).unwrap();
    let moved = pgd(&model, &batch, &start, &settings).unwrap();
    let originals = batch.rows.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    let rows = moved.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    for (row, original) in rows.iter().zip(&originals) {
        for (index, (value, before)) in row.iter().zip(original).enumerate() {
            let (lower, upper) = (model.domain().lower[index / 6], model.domain().upper[index / 6]);
            assert!((lower..=upper).contains(value));
            assert!((value - before).abs() <= 0.3 * (upper - lower) * 1.000_01);
        }
    }
    let margin = |rows: &Tensor| margins(&model.logits(rows).unwrap(), &batch.labels).unwrap();
    let (before, after) = (margin(&batch.rows), margin(&moved));
    assert!(before.iter().zip(&after).all(|(before, after)| after < before));
}

#[test]
fn carlini_wagner_finds_the_plane_of_a_linear_model() {
    if models_cannot_be_loaded() {
        return;
    }
    let mut rng = StdRng::seed_from_u64(7);
    // Two labels: among several the attack follows the likeliest, which need not be the nearest.
    let (model, _) = linear(2, &[0.0], &[1.0], &mut rng);
    let batch = random_rows(&model, 8, &mut rng);
    let settings = CarliniWagner { rounds: 9, steps: 100 };
    let found = carlini_wagner(&model, &batch, &settings).unwrap();
    let straight = DeepFool { overshoot: 0.0, ..DeepFool::default() };
    let exact = deepfool(&model, &batch, &straight).unwrap().perturbations;
    let mut compared = 0;
    for (row, length) in norms(&exact, &[1.0; 2]).into_iter().enumerate() {
        let found = found.distances[row];
        assert!(found >= length * 0.999, "{found} and {length}");
        let landing = (&batch.rows + &exact).unwrap().narrow(0, row, 1).unwrap();
        let landing: Vec<f32> = landing.flatten_all().unwrap().to_vec1().unwrap();
        // Where the straight way leaves the domain there is a longer one inside.
        if landing.iter().all(|value| (0.0..=1.0).contains(value)) {
            assert!(found <= length * 1.1 + 1e-3, "{found} and {length}");
            compared += 1;
        }
    }
    assert!(compared >= 4, "only {compared} rows compared");
}

#[test]
fn carlini_wagner_is_nearer_than_pgd() {
    if models_cannot_be_loaded() {
        return;
    }
    let (model, batch) = victim(3);
    let found = carlini_wagner(&model, &batch, &CarliniWagner::default()).unwrap();
    let moved = labels(&model, &found.rows);
    assert!(moved.iter().zip(&batch.labels).all(|(now, before)| now != before));
    let lengths = norms(&(&found.rows - &batch.rows).unwrap(), &[1.0]);
    let start = random_start(&model, 0.1, &mut StdRng::seed_from_u64(8)).unwrap();
    let settings = Pgd { epsilon: 0.1, steps: 10 };
    let attacked = pgd(&model, &batch, &start, &settings).unwrap();
    let theirs = norms(&(attacked - &batch.rows).unwrap(), &[1.0]);
    for (row, (ours, theirs)) in lengths.iter().zip(&theirs).enumerate() {
        assert!((ours - found.distances[row]).abs() < 1e-3);
        assert!(ours <= theirs, "row {row}: {ours} and {theirs}");
    }
}

#[test]
fn deepfool_reaches_its_fooling_rate_with_one_perturbation() {
    if models_cannot_be_loaded() {
        return;
    }
    let (model, clean) = victim(8);
    let search = search(0.5, 0.2, 1, 1);
    let mut rng = StdRng::seed_from_u64(9);
    let found = universal_by_deepfool(&model, &clean, &search, &mut rng, &|_| {}).unwrap();
    assert!(found.fooling_rate >= 0.5, "{}", found.fooling_rate);
    assert_eq!(fooling_rate(&model, &clean, &found.eta).unwrap(), found.fooling_rate);
    let eta: Vec<f32> = found.eta.flatten_all().unwrap().to_vec1().unwrap();
    assert!(found.epsilon < search.max_epsilon);
    assert!(eta.iter().all(|value| value.abs() <= found.epsilon * 1.000_01));
}

#[test]
fn each_further_perturbation_is_for_what_survives_those_before() {
    if models_cannot_be_loaded() {
        return;
    }
    let (model, clean) = victim(64);
    let search = search(0.7, 0.2, 12, 32);
    let mut rng = StdRng::seed_from_u64(10);
    let first = universal(&model, &clean, &search, &mut rng, &|_| {}).unwrap();
    let one = several(&model, &clean, &first, 1, &search, &mut rng).unwrap();
    let all = several(&model, &clean, &first, 3, &search, &mut rng).unwrap();
    let values = |eta: &Tensor| eta.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&one), values(&first.eta));
    assert_eq!(values(&all.narrow(0, 0, 1).unwrap()), values(&first.eta));
    assert!(values(&all).iter().all(|value| value.abs() <= first.epsilon * 1.000_01));
    let keeps = |left: &Batch, eta: &Tensor| -> Batch {
        let moved = left.rows.broadcast_add(eta).unwrap().clamp(0.0, 1.0).unwrap();
        let moved = labels(&model, &moved);
        let kept: Vec<usize> =
            (0..left.len()).filter(|&row| moved[row] == left.labels[row]).collect();
        left.select(&kept).unwrap()
    };
    let mut left = keeps(&clean, &first.eta);
    for number in 1..all.dim(0).unwrap() {
        let further = keeps(&left, &all.narrow(0, number, 1).unwrap());
        assert!(further.len() < left.len(), "perturbation {number} moves none of {}", left.len());
        left = further;
    }
}
