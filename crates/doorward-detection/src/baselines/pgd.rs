//! Projected gradient descent (Madry et al. 2018), l-infinity, untargeted.
//!
//! Sign steps that raise the cross entropy against the label a row has, from a random start inside
//! the ball. Steps are 2.5 radii long together, the authors' advice.

use candle_core::{Result as CandleResult, Tensor};
use rand::Rng;
use rand::rngs::StdRng;

use doorward_engine::{Batch, Bounds, Classifier, Error};

/// The bounds of a search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pgd {
    /// Radius of the ball, share of the pixel range.
    pub epsilon: f32,
    /// Gradient steps.
    pub steps: usize,
}

/// A perturbation drawn uniformly from the ball of radius `epsilon`, `[1, C, H, W]`.
pub fn random_start(
    model: &dyn Classifier,
    epsilon: f32,
    rng: &mut StdRng,
) -> Result<Tensor, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let [channels, height, width] = model.domain().shape;
    let values: Vec<f32> =
        (0..model.domain().len()).map(|_| epsilon * rng.random_range(-1.0..=1.0f32)).collect();
    let unit = Tensor::from_vec(values, (1, channels, height, width), model.device())?;
    Ok(unit.broadcast_mul(&bounds.range)?)
}

/// The rows moved away from their labels, inside the ball and the input domain.
///
/// `start` is a perturbation that broadcasts over the rows: with one for all of them a row's result
/// does not depend on the batch it is in.
pub fn pgd(
    model: &dyn Classifier,
    batch: &Batch,
    start: &Tensor,
    settings: &Pgd,
) -> Result<Tensor, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let length = f64::from(settings.epsilon) * 2.5 / settings.steps as f64;
    let into = |moved: &Tensor| -> CandleResult<Tensor> {
        let inside = bounds.project(&(moved - &batch.rows)?, settings.epsilon)?;
        bounds.clip(&(&batch.rows + inside)?)
    };
    let mut moved = into(&batch.rows.broadcast_add(start)?)?;
    for _ in 0..settings.steps {
        let (_, gradient) = model.logits_and_gradient(&moved, &|rows, logits| {
            cross_entropy_cotangent(logits, &batch.labels[rows])
        })?;
        let step = gradient.sign()?.broadcast_mul(&(&bounds.range * length)?)?;
        moved = into(&(moved + step)?)?;
    }
    Ok(moved)
}

/// The gradient of the cross entropy against `labels` with respect to each row of logits.
fn cross_entropy_cotangent(logits: &Tensor, labels: &[usize]) -> CandleResult<Tensor> {
    let rows = logits.to_vec2::<f32>()?;
    let mut cotangent = Vec::with_capacity(logits.elem_count());
    for (row, &label) in rows.iter().zip(labels) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponentials: Vec<f32> = row.iter().map(|logit| (logit - top).exp()).collect();
        let sum: f32 = exponentials.iter().sum();
        // The others' shares, not one less its own: that rounds to zero where the row is certain.
        let others: f32 =
            exponentials.iter().enumerate().filter(|(k, _)| *k != label).map(|(_, e)| e).sum();
        cotangent.extend(
            exponentials
                .iter()
                .enumerate()
                .map(|(k, e)| if k == label { -others / sum } else { e / sum }),
        );
    }
    Tensor::from_vec(cotangent, logits.shape(), logits.device())
}
