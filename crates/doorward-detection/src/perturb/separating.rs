//! A perturbation that moves a label's clean images away and spares what carries its trigger.

use candle_core::Tensor;
use rand::rngs::StdRng;

use super::uap::{HINGE, draw, margin_gradient, step_against, survives};
use doorward_engine::{Batch, Bounds};
use doorward_engine::{Classifier, Error};

use super::settings::Perturbation;

/// Fits a perturbation `[1, C, H, W]` under which the rows of `moved` lose the label that they
/// share with the rows of `spared`, and those keep it.
///
/// The radius is `WIDER` times `epsilon` or the search's largest: what spares the trigger may be
/// larger than what must not know it.
pub fn separating(
    model: &dyn Classifier,
    moved: &Batch,
    spared: &Batch,
    epsilon: f32,
    search: &Perturbation,
    rng: &mut StdRng,
) -> Result<Tensor, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let epsilon = (epsilon * WIDER).min(search.max_epsilon);
    let half = (search.batch.get() / 2).max(1);
    let sides = [(0..moved.len()).collect::<Vec<_>>(), (0..spared.len()).collect()];
    let mut eta = moved.rows.narrow(0, 0, 1)?.zeros_like()?;
    for step in 0..search.steps.get() {
        let away = moved.select(&draw(&sides[0], half, rng))?;
        let keep = spared.select(&draw(&sides[1], half, rng))?;
        let fall = margin_gradient(model, &away, &bounds, &eta, survives)?.sum_keepdim(0)?;
        let rise = margin_gradient(model, &keep, &bounds, &eta, lost)?.sum_keepdim(0)?;
        let gradient = (fall - (rise * SPARED)?)?;
        eta = step_against(&bounds, &eta, &gradient, epsilon, step, search.steps.get())?;
    }
    Ok(eta)
}

/// The weight of a margin that is to rise until the label holds by a hinge.
fn lost(margin: f32) -> f32 {
    if margin < HINGE { 1.0 } else { 0.0 }
}

/// The radius, as a multiple of the universal perturbation's.
const WIDER: f32 = 2.5;

/// Weight of a spared row beside a moved one.
const SPARED: f64 = 0.5;
