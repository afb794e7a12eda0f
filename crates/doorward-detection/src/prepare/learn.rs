//! The parts of the offline flow before the thresholds: perturbations and inspection.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::Tensor;
use rand::rngs::StdRng;

use super::material::{Material, tensor};
use super::stage::{Seconds, Stage};
use crate::inspect::{Inspection, Probe, Space, Suspects, inspect};
use crate::perturb::{
    Algorithm, Perturbation, Universal, class_conditional, separating, several, universal,
    universal_by_deepfool,
};
use crate::representation::Representation;
use crate::settings::Settings;
use doorward_engine::{Batch, Classifier, Error, gather};

/// All that is learned before the thresholds.
#[derive(Clone, Debug)]
pub struct Learned {
    /// The first universal perturbation.
    pub universal: Universal,
    /// All of them, `[perturbations, C, H, W]`.
    pub perturbations: Tensor,
    /// The labels' own perturbations, `[labels, C, H, W]`.
    pub class_conditional: Tensor,
    /// The findings on the training images, where there are any.
    pub inspection: Option<Inspection>,
    /// The training images that carry a trigger, by infected label.
    pub suspects: BTreeMap<usize, Suspects>,
    /// The representations of infected labels whose suspects are told apart, by label.
    pub representations: BTreeMap<usize, Representation>,
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
    settings: &Settings,
    material: &Material,
    rng: &mut StdRng,
    progress: &dyn Fn(Stage, f64),
) -> Result<(Learned, Seconds), Error> {
    let mut seconds = Seconds::default();
    let start = Instant::now();
    let clean = Batch::predict(model, tensor(model, &material.fit)?)?;
    let search = &settings.perturbation;
    let search_universal = match search.algorithm {
        Algorithm::DeepFool => universal_by_deepfool,
        Algorithm::Gradient => universal,
    };
    let found = search_universal(model, &clean, search, rng, &|p| progress(Stage::Universal, p))?;
    let mut own = class_conditional(model, &clean, &found.eta, found.epsilon, search, rng, &|p| {
        progress(Stage::ClassConditional, p);
    })?;
    let count = search.count.get();
    let perturbations = several(model, &clean, &found, count, search, rng)?;
    seconds.uap = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let (mut inspection, mut suspects) = (None, BTreeMap::new());
    let mut representations = BTreeMap::new();
    if let Some(images) = &material.training {
        let training = tensor(model, images)?;
        let probe = Batch::predict(model, tensor(model, &material.probe)?)?;
        let space = Space::new(model, &clean)?;
        let probe = Probe {
            universal: &found.eta,
            class_conditional: &own,
            clean: &probe,
            fitted: &clean,
            space: space.as_ref(),
        };
        let inspected = inspect(model, &training, &probe, &settings.inspection, rng, &|p| {
            progress(Stage::Inspection, p);
        })?;
        let mut all: Vec<Tensor> = own.chunk(own.dim(0)?, 0)?;
        for inspected in inspected.infected() {
            let label = inspected.figures.label;
            let clean = clean.of_label(label)?;
            let found_here =
                Suspects::find(model, space.as_ref(), &clean.rows, &training, inspected)?;
            if let Some(eta) =
                sharpened(model, &clean, &training, &found_here, found.epsilon, search, rng)?
            {
                all[label] = eta;
            }
            let taught = gather(&training, &found_here.taught())?;
            if let Some(space) = &space
                && let Some(found) = Representation::learn(model, space, &clean.rows, &taught)?
            {
                representations.insert(label, found);
            }
            suspects.insert(label, found_here);
        }
        own = Tensor::cat(&all, 0)?;
        inspection = Some(inspected);
    }
    seconds.inspection = start.elapsed().as_secs_f64();
    let (universal, class_conditional) = (found, own);
    let learned = Learned {
        universal,
        perturbations,
        class_conditional,
        inspection,
        suspects,
        representations,
        fitted: clean,
    };
    Ok((learned, seconds))
}

/// The perturbation of an infected label fitted anew: it moves what is taken to be clean and spares
/// what is taken to carry the trigger. `None` where there is nothing to move or to spare.
fn sharpened(
    model: &dyn Classifier,
    clean: &Batch,
    training: &Tensor,
    suspects: &Suspects,
    epsilon: f32,
    search: &Perturbation,
    rng: &mut StdRng,
) -> Result<Option<Tensor>, Error> {
    let (taught, Some(&label)) = (suspects.taught(), clean.labels.first()) else { return Ok(None) };
    if taught.is_empty() {
        return Ok(None);
    }
    let of_label = |rows: Tensor| -> Result<Batch, Error> {
        Ok(Batch { labels: vec![label; rows.dim(0)?], rows })
    };
    let also = gather(training, &suspects.clean)?;
    let moved = of_label(Tensor::cat(&[&clean.rows, &also], 0)?)?;
    let kept = of_label(gather(training, &taught)?)?;
    Ok(Some(separating(model, &moved, &kept, epsilon, search, rng)?))
}
