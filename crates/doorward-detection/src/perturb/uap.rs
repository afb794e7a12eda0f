//! Universal adversarial perturbations by stochastic sign steps on the margin.
//!
//! "Detecting Backdoor in Deep Neural Networks via Intentional Adversarial Perturbations", section
//! III-B, equation 1: the perturbation of the smallest l-infinity norm that changes the label of
//! clean images. The paper solves it with DeepFool, image by image; here every step takes a batch
//! and moves against the mean gradient of the margins that are still positive, which reaches the
//! same fooling rate in a fraction of the passes.

use candle_core::{Result as CandleResult, Tensor};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::index::sample;

use super::effect::fooling_rate;
use doorward_engine::{Batch, Bounds, margin_cotangent, margins};
use doorward_engine::{Classifier, Error};

use super::settings::Perturbation;

/// A universal perturbation and what it reached on the images it was fitted on.
#[derive(Clone, Debug)]
pub struct Universal {
    /// `[1, C, H, W]`
    pub eta: Tensor,
    /// Its l-infinity radius.
    pub epsilon: f32,
    /// Share of the images whose label it changes.
    pub fooling_rate: f64,
}

/// Fits one perturbation for all images of `clean`.
///
/// The radius grows by a quarter a rung from one grey level or so until the target is met, and the
/// perturbation of one rung starts the next. `progress` is told the share of the work done.
pub fn universal(
    model: &dyn Classifier,
    clean: &Batch,
    search: &Perturbation,
    rng: &mut StdRng,
    progress: &dyn Fn(f64),
) -> Result<Universal, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let mut eta = clean.rows.narrow(0, 0, 1)?.zeros_like()?;
    let rungs = ladder(search.max_epsilon);
    let mut reached = rungs.len() - 1;
    for (rung, &epsilon) in rungs.iter().enumerate() {
        let steps = search.steps.get().div_ceil(STEPS_PER_RUNG);
        eta = descend(model, clean, &bounds, eta, epsilon, steps, search.batch.get(), rng)?;
        progress(0.5 * (rung + 1) as f64 / rungs.len() as f64);
        if fooling_rate(model, clean, &eta)? >= search.fooling_rate.value() {
            reached = rung;
            break;
        }
    }
    let epsilon = rungs[reached];
    progress(0.5);
    eta =
        descend(model, clean, &bounds, eta, epsilon, search.steps.get(), search.batch.get(), rng)?;
    progress(1.0);
    Ok(Universal { fooling_rate: fooling_rate(model, clean, &eta)?, eta, epsilon })
}

/// `count` perturbations of one radius, `[count, C, H, W]`: `first`, and further ones, each fitted
/// on the images of `clean` that keep their labels under all before it. Fewer where none does.
pub fn several(
    model: &dyn Classifier,
    clean: &Batch,
    first: &Universal,
    count: usize,
    search: &Perturbation,
    rng: &mut StdRng,
) -> Result<Tensor, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let mut all = vec![first.eta.clone()];
    let mut left = clean.clone();
    while all.len() < count {
        let moved = bounds.moved(&left.rows, &all[all.len() - 1])?;
        let kept = margins(&model.logits(&moved)?, &left.labels)?;
        let kept: Vec<usize> = (0..left.len()).filter(|&row| kept[row] > 0.0).collect();
        if kept.is_empty() {
            break;
        }
        left = left.select(&kept)?;
        let start = first.eta.zeros_like()?;
        let (epsilon, steps, batch) = (first.epsilon, search.steps.get(), search.batch.get());
        all.push(descend(model, &left, &bounds, start, epsilon, steps, batch, rng)?);
    }
    Ok(Tensor::cat(&all, 0)?)
}

/// Fits one perturbation per label on the clean images predicted as that label, all labels in one
/// batch a step; `[labels, C, H, W]`. A label without images gets `fallback`, `[1, C, H, W]`.
pub fn class_conditional(
    model: &dyn Classifier,
    clean: &Batch,
    fallback: &Tensor,
    epsilon: f32,
    search: &Perturbation,
    rng: &mut StdRng,
    progress: &dyn Fn(f64),
) -> Result<Tensor, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let mut members = vec![Vec::new(); model.labels()];
    for (index, &label) in clean.labels.iter().enumerate() {
        members[label].push(index);
    }
    let fitted: Vec<usize> =
        (0..model.labels()).filter(|&label| !members[label].is_empty()).collect();
    let images = search.batch.get().div_ceil(fitted.len()).max(IMAGES_PER_LABEL);
    let [channels, height, width] = model.domain().shape;
    // Not from the universal one: where that has the attacker's label as its sink, it starts this
    // label's own on the wrong side.
    let repeated = vec![fallback.zeros_like()?; fitted.len()];
    let mut eta = Tensor::cat(&repeated, 0)?;
    for step in 0..search.steps.get() {
        let indices: Vec<usize> =
            fitted.iter().flat_map(|&label| draw(&members[label], images, rng)).collect();
        let batch = clean.select(&indices)?;
        let spread = eta
            .unsqueeze(1)?
            .broadcast_as((fitted.len(), images, channels, height, width))?
            .reshape(batch.rows.shape())?;
        let gradient = margin_gradient(model, &batch, &bounds, &spread, survives)?
            .reshape((fitted.len(), images, channels, height, width))?
            .sum(1)?;
        eta = step_against(&bounds, &eta, &gradient, epsilon, step, search.steps.get())?;
        progress((step + 1) as f64 / search.steps.get() as f64);
    }
    let mut all = vec![fallback.clone(); model.labels()];
    for (index, &label) in fitted.iter().enumerate() {
        all[label] = eta.narrow(0, index, 1)?;
    }
    Ok(Tensor::cat(&all, 0)?)
}

#[expect(clippy::too_many_arguments, reason = "one call site's loop, named for reading")]
fn descend(
    model: &dyn Classifier,
    clean: &Batch,
    bounds: &Bounds,
    mut eta: Tensor,
    epsilon: f32,
    steps: usize,
    batch: usize,
    rng: &mut StdRng,
) -> Result<Tensor, Error> {
    for step in 0..steps {
        let indices = sample(rng, clean.len(), batch.min(clean.len())).into_vec();
        let batch = clean.select(&indices)?;
        let gradient = margin_gradient(model, &batch, bounds, &eta, survives)?.sum_keepdim(0)?;
        eta = step_against(bounds, &eta, &gradient, epsilon, step, steps)?;
    }
    Ok(eta)
}

/// The gradient with respect to each row's perturbation of its weighted margin, where the perturbed
/// pixel is inside the domain.
pub(super) fn margin_gradient(
    model: &dyn Classifier,
    batch: &Batch,
    bounds: &Bounds,
    eta: &Tensor,
    weight: impl Fn(f32) -> f32 + Sync,
) -> Result<Tensor, Error> {
    let moved = batch.rows.broadcast_add(eta)?;
    let clipped = bounds.clip(&moved)?;
    let (_, gradient) = model.logits_and_gradient(&clipped, &|rows, logits| {
        margin_cotangent(logits, &batch.labels[rows], &weight)
    })?;
    let inside = moved.eq(&clipped)?.to_dtype(gradient.dtype())?;
    Ok((gradient * inside)?)
}

/// The weight of a margin that is to fall until the label has changed by a hinge.
pub(super) fn survives(margin: f32) -> f32 {
    if margin > -HINGE { 1.0 } else { 0.0 }
}

/// A sign step whose length falls from a quarter to a fortieth of the radius.
pub(super) fn step_against(
    bounds: &Bounds,
    eta: &Tensor,
    gradient: &Tensor,
    epsilon: f32,
    step: usize,
    steps: usize,
) -> CandleResult<Tensor> {
    let left = 1.0 - step as f64 / steps as f64;
    let length = f64::from(epsilon) * (0.025 + 0.225 * left);
    let moved = gradient.sign()?.broadcast_mul(&(&bounds.range * length)?)?;
    bounds.project(&eta.sub(&moved)?, epsilon)
}

/// `count` members, all of them where there are that many, the rest with repetition.
pub(super) fn draw(members: &[usize], count: usize, rng: &mut StdRng) -> Vec<usize> {
    if members.len() >= count {
        return sample(rng, members.len(), count).into_iter().map(|i| members[i]).collect();
    }
    (0..count).map(|_| members[rng.random_range(0..members.len())]).collect()
}

/// Radii from about one grey level to `max`, each a quarter larger.
pub(super) fn ladder(max: f32) -> Vec<f32> {
    let mut rungs = vec![max];
    while rungs[rungs.len() - 1] > FIRST_EPSILON * 1.25 {
        rungs.push(rungs[rungs.len() - 1] / 1.25);
    }
    rungs.reverse();
    rungs
}

/// Images whose label has changed by this margin pull no more: the others need the step.
pub(super) const HINGE: f32 = 2.0;

/// A rung takes this share of the final radius's steps.
const STEPS_PER_RUNG: usize = 6;

/// Two grey levels; below, no victim's label moves.
const FIRST_EPSILON: f32 = 2.0 / 255.0;

/// Fewer images a step make a label's gradient too noisy.
const IMAGES_PER_LABEL: usize = 8;
