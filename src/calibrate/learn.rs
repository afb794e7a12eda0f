//! The parts of the offline flow before the thresholds: perturbations and inspection.

use std::time::Instant;

use candle_core::Tensor;
use rand::rngs::StdRng;

use super::settings::{inspection_settings, search};
use super::{Error, Material, Seconds, Stage, tensor};
use crate::config::{Algorithm, Config};
use crate::inspect::{Inspection, Probe, inspect};
use crate::model::Classifier;
use crate::perturb::{
    Batch, Search, Universal, class_conditional, separating, universal, universal_by_deepfool,
};

/// What the parts before the thresholds learned.
#[derive(Clone, Debug)]
pub struct Learned {
    /// The universal perturbation.
    pub universal: Universal,
    /// The labels' own perturbations, `[labels, C, H, W]`.
    pub class_conditional: Tensor,
    /// What the training images say of the labels, where there are any.
    pub inspection: Option<Inspection>,
    /// The images that the perturbations were fitted on.
    pub(super) fitted: Batch,
}

impl Learned {
    /// The images that the perturbations were fitted on, with their predicted labels.
    pub fn clean(&self) -> &Batch {
        &self.fitted
    }
}

/// Fits the perturbations and inspects the model.
pub fn learn(
    model: &dyn Classifier,
    config: &Config,
    material: &Material,
    rng: &mut StdRng,
    progress: &dyn Fn(Stage, f64),
) -> Result<(Learned, Seconds), Error> {
    let mut seconds = Seconds::default();
    let start = Instant::now();
    let clean = Batch::predict(model, tensor(model, &material.fit)?)?;
    let search = search(config);
    let search_universal = match config.perturbation.algorithm {
        Algorithm::DeepFool => universal_by_deepfool,
        Algorithm::Gradient => universal,
    };
    let found = search_universal(model, &clean, &search, rng, &|p| progress(Stage::Universal, p))?;
    let mut own =
        class_conditional(model, &clean, &found.eta, found.epsilon, &search, rng, &|p| {
            progress(Stage::ClassConditional, p);
        })?;
    seconds.uap = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let mut inspection = None;
    if let Some(images) = &material.training {
        let training = tensor(model, images)?;
        let probe = Batch::predict(model, tensor(model, &material.probe)?)?;
        let probe = Probe { universal: &found.eta, class_conditional: &own, clean: &probe };
        let settings = inspection_settings(config);
        let inspected = inspect(model, &training, &probe, &settings, rng, &|p| {
            progress(Stage::Inspection, p);
        })?;
        own = sharpened(model, &own, &clean, &training, &inspected, found.epsilon, &search, rng)?;
        inspection = Some(inspected);
    }
    seconds.inspection = start.elapsed().as_secs_f64();
    let learned = Learned { universal: found, class_conditional: own, inspection, fitted: clean };
    Ok((learned, seconds))
}

/// The labels' own perturbations, those of infected labels fitted anew: they spare what survived.
#[expect(clippy::too_many_arguments, reason = "one call site's loop, named for reading")]
fn sharpened(
    model: &dyn Classifier,
    own: &Tensor,
    clean: &Batch,
    training: &Tensor,
    inspection: &Inspection,
    epsilon: f32,
    search: &Search,
    rng: &mut StdRng,
) -> Result<Tensor, Error> {
    let mut all: Vec<Tensor> = own.chunk(own.dim(0)?, 0)?;
    for inspected in &inspection.labels {
        let label = inspected.label;
        let members: Vec<usize> =
            (0..clean.len()).filter(|&row| clean.labels[row] == label).collect();
        let survivors: Vec<usize> = inspected.survival.spared().copied().collect();
        if !inspection.infected.contains(&label) || members.is_empty() || survivors.is_empty() {
            continue;
        }
        let training = Batch { rows: training.clone(), labels: vec![label; training.dim(0)?] };
        let (moved, kept) = (clean.select(&members)?, training.select(&survivors)?);
        all[label] = separating(model, &moved, &kept, epsilon, search, rng)?;
    }
    Ok(Tensor::cat(&all, 0)?)
}
