//! DeepFool (Moosavi-Dezfooli, Fawzi, Frossard 2016), algorithm 2, in l2.
//!
//! Every step takes the classifier for linear at the point reached and moves onto the nearest of
//! the planes where another label would win. Distances count in units of the pixel range, so that a
//! model's normalisation makes no difference. As in the authors' code the labels looked at are
//! those ranked highest at the start, and what is reached overshoots the plane a little, to be
//! beyond it.

use candle_core::{Result as CandleResult, Tensor};

use doorward_engine::{Batch, Bounds, labels};
use doorward_engine::{Classifier, Error};

/// The bounds of a search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeepFool {
    /// Labels looked at, the predicted one included.
    pub candidates: usize,
    /// Share by which the perturbation is lengthened.
    pub overshoot: f64,
    /// Most steps a row.
    pub max_steps: usize,
}

/// The perturbation that DeepFool found for each row.
#[derive(Clone, Debug)]
pub struct Fooling {
    /// `[n, C, H, W]`, overshoot included. A row plus its perturbation may leave the input domain.
    pub perturbations: Tensor,
    /// Steps taken per row; `max_steps` where the label may not have changed.
    pub steps: Vec<usize>,
}

/// Moves every row away from its label in `batch`. A row that has another label stays where it is.
pub fn deepfool(
    model: &dyn Classifier,
    batch: &Batch,
    settings: &DeepFool,
) -> Result<Fooling, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let mut steps = vec![0; batch.len()];
    let mut found: Vec<Tensor> = (0..batch.len())
        .map(|row| batch.rows.narrow(0, row, 1)?.zeros_like())
        .collect::<CandleResult<_>>()?;
    let logits = model.logits(&batch.rows)?;
    let others = likeliest_others(&logits.to_vec2()?, &batch.labels, settings.candidates);
    let mut active = unmoved(&logits, &batch.labels, (0..batch.len()).collect())?;
    for _ in 0..settings.max_steps {
        if active.is_empty() {
            break;
        }
        let originals = batch.select(&active)?;
        let total: Vec<&Tensor> = active.iter().map(|&row| &found[row]).collect();
        let total = Tensor::cat(&total, 0)?;
        let reached = (&originals.rows + &total * (1.0 + settings.overshoot))?;
        let own: Vec<&[usize]> = active.iter().map(|&row| &others[row][..]).collect();
        let step = nearest_plane(model, &bounds, &reached, &originals.labels, &own)?;
        let total = (total + step)?;
        let reached = (&originals.rows + &total * (1.0 + settings.overshoot))?;
        for (index, &row) in active.iter().enumerate() {
            found[row] = total.narrow(0, index, 1)?;
            steps[row] += 1;
        }
        active = unmoved(&model.logits(&reached)?, &originals.labels, active)?;
    }
    let perturbations = (Tensor::cat(&found, 0)? * (1.0 + settings.overshoot))?;
    Ok(Fooling { perturbations, steps })
}

/// From each row to the nearest of its planes, in units of the input.
fn nearest_plane(
    model: &dyn Classifier,
    bounds: &Bounds,
    rows: &Tensor,
    labels: &[usize],
    others: &[&[usize]],
) -> Result<Tensor, Error> {
    // One row for each label looked at, so that one batch has all gradients.
    let count = others[0].len();
    let pairs: Vec<(usize, usize)> = labels
        .iter()
        .zip(others)
        .flat_map(|(&label, others)| others.iter().map(move |&other| (label, other)))
        .collect();
    let repeated: Vec<u32> = (0..pairs.len()).map(|pair| (pair / count) as u32).collect();
    let repeated = Tensor::from_vec(repeated, pairs.len(), rows.device())?;
    let repeated = rows.index_select(&repeated, 0)?;
    let (logits, gradient) = model.logits_and_gradient(&repeated, &|rows, logits| {
        let width = logits.dim(1)?;
        let mut cotangent = vec![0f32; rows.len() * width];
        for (row, &(label, other)) in cotangent.chunks_mut(width).zip(&pairs[rows]) {
            row[label] = -1.0;
            row[other] = 1.0;
        }
        Tensor::from_vec(cotangent, logits.shape(), logits.device())
    })?;
    let gradient = gradient.broadcast_mul(&bounds.range)?;
    let squares = gradient.sqr()?.flatten_from(1)?.sum(1)?.to_vec1::<f32>()?;
    let norms: Vec<f32> = squares.iter().map(|square| square.sqrt().max(LEAST_NORM)).collect();
    let logits = logits.to_vec2::<f32>()?;
    let distance = |pair: usize| {
        let (label, other) = pairs[pair];
        (logits[pair][label] - logits[pair][other]).abs() / norms[pair]
    };
    let nearer = |best, pair| if distance(pair) < distance(best) { pair } else { best };
    let nearest: Vec<usize> = (0..labels.len())
        .map(|row| (row * count..(row + 1) * count).fold(row * count, nearer))
        .collect();
    let lengths: Vec<f32> =
        nearest.iter().map(|&pair| (distance(pair) + LEAST_STEP) / norms[pair]).collect();
    let lengths = Tensor::from_vec(lengths, (labels.len(), 1, 1, 1), rows.device())?;
    let nearest: Vec<u32> = nearest.iter().map(|&pair| pair as u32).collect();
    let nearest = Tensor::from_vec(nearest, labels.len(), rows.device())?;
    let direction = gradient.index_select(&nearest, 0)?.broadcast_mul(&bounds.range)?;
    Ok(direction.broadcast_mul(&lengths)?)
}

/// Picks those of `rows`, which `logits` belong to, that still have their label.
fn unmoved(logits: &Tensor, before: &[usize], rows: Vec<usize>) -> CandleResult<Vec<usize>> {
    let now = labels(logits)?;
    let kept = now.iter().zip(before).map(|(now, before)| now == before);
    Ok(rows.into_iter().zip(kept).filter_map(|(row, kept)| kept.then_some(row)).collect())
}

/// Per row the labels with the largest logits but its own, `candidates - 1` of them or all.
fn likeliest_others(logits: &[Vec<f32>], labels: &[usize], candidates: usize) -> Vec<Vec<usize>> {
    let ranked = |(row, &label): (&Vec<f32>, &usize)| {
        let mut others: Vec<usize> = (0..row.len()).filter(|&other| other != label).collect();
        others.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        others.truncate((candidates - 1).max(1));
        others
    };
    logits.iter().zip(labels).map(ranked).collect()
}

// === impl DeepFool ===

impl Default for DeepFool {
    /// The authors' values.
    fn default() -> Self {
        Self { candidates: 10, overshoot: 0.02, max_steps: 10 }
    }
}

/// Share of the pixel range added to every step: on the plane itself the distance is zero, and no
/// overshoot of it would cross. The authors' 1e-4 grey levels.
const LEAST_STEP: f32 = 1e-4 / 255.0;

/// A gradient that vanished moves nothing, rather than to infinity.
const LEAST_NORM: f32 = 1e-10;
