//! The offline flow: from a model and images to an artifact.

mod learn;
mod policy;
mod settings;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use candle_core::Tensor;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index::sample;

use crate::artifact::{
    Artifact, Expected, FORMAT, ImageCounts, InspectionSummary, LabelInspection, Manifest,
    PerturbationSummary, SIGNALS, StripReference,
};
use crate::detect::strip;
use crate::detect::thresholds::{fit, images_needed, scales};
use crate::detect::{Needed, Signals, Specific};
use crate::inspect::{Inspection, Patch};
use crate::perturb::{Batch, Bounds, labels, rows};
use crate::settings::{Rule, Settings as Config};
use doorward_engine::{Classifier, Model};
use doorward_images::{Frame, Images, Misfit};
use policy::{budget, used_patches};
use settings::{data_digest, settings_digest};
use weights::infected_weights;

pub use learn::{Learned, learn};
pub use policy::{detector, own_thresholds, signals, thresholds};
pub use settings::inspection_settings;

/// The images of the offline flow; no image serves two parts.
#[derive(Clone, Debug)]
pub struct Material {
    /// Fit the perturbations.
    pub fit: Images,
    /// Fit the thresholds.
    pub holdout: Images,
    /// Are what an inspection compares training images with; none without training images.
    pub probe: Images,
    /// Are inspected.
    pub training: Option<Images>,
    /// Of the files they came from.
    pub data_digest: String,
}

/// A part of the offline flow that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The universal perturbation.
    Universal,
    /// The labels' own perturbations.
    ClassConditional,
    /// DTInspector's patches.
    Inspection,
    /// Neural Cleanse's patches.
    NeuralCleanse,
    /// Scores of the held-out images.
    Holdout,
    /// STRIP's entropies of held-out images.
    Strip,
}

/// Seconds that the parts took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Both kinds of perturbation.
    pub uap: f64,
    /// The inspection.
    pub inspection: f64,
    /// Scoring and thresholds.
    pub calibration: f64,
}

/// Why there is no artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The artifact cannot be written or read.
    #[error(transparent)]
    Artifact(#[from] crate::artifact::Error),
    /// The detection failed.
    #[error(transparent)]
    Detect(#[from] crate::detect::Error),
    /// The images cannot be read.
    #[error("cannot use {key}")]
    Images {
        /// The setting that names them.
        key: &'static str,
        /// Why.
        source: doorward_images::Error,
    },
    /// `preprocess` cannot bring pictures into the model's shape.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The model cannot be evaluated.
    #[error(transparent)]
    Model(#[from] doorward_engine::Error),
    /// There are not enough clean images.
    #[error(
        "calibration.clean_images holds {got} images, expected at least {expected}: {fit} to fit the perturbations and {holdout} held out, without which a false-rejection rate of {rate} cannot be kept"
    )]
    TooFewImages {
        /// Images found.
        got: usize,
        /// Images needed.
        expected: usize,
        /// Of those, for the perturbations.
        fit: usize,
        /// Of those, held out.
        holdout: usize,
        /// The budget.
        rate: f64,
    },
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

/// Reads the images that a configuration names.
pub fn material(config: &Config, shape: [usize; 3]) -> Result<Material, Error> {
    let settings = &config.calibration;
    let clean = Images::read_all(&settings.clean_images, frame(config, shape)?)
        .map_err(|source| Error::Images { key: "calibration.clean_images", source })?;
    let fit = settings.fit_images.get();
    let rate = config.policy.max_false_rejection_rate.value();
    let holdout = images_needed(rate).min(settings.holdout_images.get());
    if clean.len() < fit + holdout {
        let expected = fit + holdout;
        return Err(Error::TooFewImages { got: clean.len(), expected, fit, holdout, rate });
    }
    let end = clean.len().min(fit + settings.holdout_images.get());
    let training = match settings.training_images.as_slice() {
        [] => None,
        _ => Some(training_images(config, shape)?),
    };
    // Thresholds keep what they need.
    let probe = match training {
        None => 0,
        Some(_) => ((end - fit) / PROBE_PART).min(MAX_PROBE).min(end - fit - holdout),
    };
    Ok(Material {
        fit: clean.slice(0..fit),
        holdout: clean.slice(fit..end - probe),
        probe: clean.slice(end - probe..end),
        training,
        data_digest: data_digest(config)?.unwrap_or_default(),
    })
}

/// Reads the training images that a configuration names.
pub fn training_images(config: &Config, shape: [usize; 3]) -> Result<Images, Error> {
    let key = "calibration.training_images";
    Images::read_all(&config.calibration.training_images, frame(config, shape)?)
        .map_err(|source| Error::Images { key, source })
}

/// How pictures come into the model's shape.
pub fn frame(config: &Config, shape: [usize; 3]) -> Result<Frame, Misfit> {
    Frame::new(shape, config.preprocess.pictures)
}

/// What an artifact for this configuration and model must have been made for.
pub fn expected(
    config: &Config,
    model: &Model,
    artifact_digest: Option<String>,
) -> Result<Expected, Error> {
    Ok(Expected {
        artifact_digest,
        model_digest: model.digest().to_owned(),
        settings_digest: settings_digest(config),
        data_digest: data_digest(config)?,
    })
}

/// Images as a batch of the model's input.
fn tensor(model: &dyn Classifier, images: &Images) -> Result<Tensor, Error> {
    let pixels = (0..images.len()).map(|index| images.image(index));
    Ok(rows(model.domain(), pixels, model.device())?)
}

/// Learns and calibrates everything.
pub fn calibrate(
    model: &Arc<Model>,
    config: &Config,
    material: &Material,
    seed: u64,
    progress: &dyn Fn(Stage, f64),
) -> Result<(Artifact, Seconds), Error> {
    let classifier: Arc<dyn Classifier> = model.clone();
    let domain = classifier.domain();
    let mut rng = StdRng::seed_from_u64(seed);
    let (learned, mut seconds) = learn(&*classifier, config, material, &mut rng, progress)?;
    let Learned { universal: found, perturbations, representations, .. } = learned;
    let Learned { class_conditional: own, inspection, suspects, fitted: clean, .. } = learned;

    let start = Instant::now();
    let inspected = inspection.as_ref().map(inspection_summary).transpose()?;
    let infected: BTreeSet<usize> =
        inspected.iter().flat_map(|found| found.infected.clone()).collect();
    let all_patches: BTreeMap<usize, Patch> = inspection
        .iter()
        .flat_map(|found| &found.labels)
        .map(|inspected| (inspected.label, inspected.patch.clone()))
        .collect();
    let patches = used_patches(&all_patches, inspected.as_ref());
    let specific = Specific::new(&*classifier, found.epsilon, seed)?;
    let signals =
        Signals::new(classifier.clone(), perturbations.clone(), own.clone(), patches, specific)?
            .with_representations(representations.clone());
    let weights = match &inspection {
        Some(inspection) => infected_weights(&signals, material, inspection, &suspects)?,
        None => BTreeMap::new(),
    };
    let fit_scores = joined(&signals, &clean.rows, &weights)?;
    let held_out = tensor(&*classifier, &material.holdout)?;
    let mut holdout = Vec::with_capacity(material.holdout.len());
    let count = material.holdout.len();
    for first in (0..count).step_by(SCORED_AT_ONCE) {
        let some = SCORED_AT_ONCE.min(count - first);
        holdout.extend(joined(&signals, &held_out.narrow(0, first, some)?, &weights)?);
        progress(Stage::Holdout, (first + some) as f64 / count as f64);
    }
    let scales = scales(classifier.labels(), &fit_scores);
    let thresholds = fit(&scales, &holdout, &infected, weights, budget(&config.policy));
    let labels = holdout.iter().map(|(label, _)| *label).collect();
    let held_out = Batch { rows: held_out, labels };
    let strip = match config.policy.rule {
        Rule::Strip => {
            Some(strip_reference(&*classifier, &clean, &held_out.rows, &mut rng, &|p| {
                progress(Stage::Strip, p);
            })?)
        }
        _ => None,
    };
    let perturbation = summary(&*classifier, &held_out, &perturbations, found.epsilon)?;
    seconds.calibration = start.elapsed().as_secs_f64();

    let manifest = Manifest {
        format: FORMAT,
        doorward: env!("CARGO_PKG_VERSION").to_owned(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model_digest: model.digest().to_owned(),
        data_digest: material.data_digest.clone(),
        settings_digest: settings_digest(config),
        seed,
        input_shape: domain.shape,
        labels: classifier.labels(),
        images: ImageCounts {
            fit: material.fit.len(),
            holdout: material.holdout.len(),
            probe: material.probe.len(),
            training: material.training.as_ref().map_or(0, Images::len),
        },
        perturbation,
        inspection: inspected,
        thresholds,
    };
    let artifact = Artifact {
        manifest,
        universal: perturbations,
        class_conditional: own,
        patches: all_patches,
        representations,
        holdout,
        strip,
    };
    Ok((artifact, seconds))
}

fn joined(
    signals: &Signals,
    rows: &Tensor,
    weights: &BTreeMap<usize, [f32; SIGNALS]>,
) -> Result<Vec<(usize, f32)>, Error> {
    let scored = signals.score(rows, Needed::All)?;
    Ok(scored.iter().map(|row| (row.label, row.joined(weights))).collect())
}

/// What an inspection found, for people and files.
pub fn inspection_summary(inspection: &Inspection) -> Result<InspectionSummary, Error> {
    let labels = inspection
        .labels
        .iter()
        .map(|inspected| {
            Ok(LabelInspection {
                label: inspected.label,
                transfer_ratio: inspected.transfer_ratio,
                anomaly_index: inspected.anomaly_index,
                top_k_changed: inspected.top_k_changed,
                mask_l1: inspected.patch.mask_l1()?,
                top_k_survival: inspected.top_k_survival,
                survival: inspected.survival.share,
                survival_excess: inspected.survival.excess,
                survival_anomaly_index: inspected.survival.anomaly_index,
                shift: inspected.shift.auroc,
                shift_anomaly_index: inspected.shift.anomaly_index,
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok(InspectionSummary { labels, infected: inspection.infected.clone() })
}

/// What the universal perturbations do to images they were not fitted on.
fn summary(
    model: &dyn Classifier,
    clean: &Batch,
    universal: &Tensor,
    epsilon: f32,
) -> Result<PerturbationSummary, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let mut counts = vec![0usize; model.labels()];
    let mut kept = vec![true; clean.len()];
    for (number, eta) in universal.chunk(universal.dim(0)?, 0)?.iter().enumerate() {
        let moved = labels(&model.logits(&bounds.moved(&clean.rows, eta)?)?)?;
        for (row, (&label, original)) in moved.iter().zip(&clean.labels).enumerate() {
            kept[row] &= label == *original;
            counts[label] += usize::from(number == 0);
        }
    }
    let kept = kept.into_iter().filter(|&kept| kept).count();
    let sink = (0..counts.len()).max_by_key(|&label| counts[label]).unwrap_or(0);
    let share = universal.narrow(0, 0, 1)?.broadcast_div(&bounds.range)?;
    let l2 = share.sqr()?.sum_all()?.to_scalar::<f32>()?;
    Ok(PerturbationSummary {
        epsilon,
        fooling_rate: 1.0 - kept as f64 / clean.len() as f64,
        l2: f64::from(l2).sqrt(),
        sink,
        sink_share: counts[sink] as f64 / clean.len() as f64,
    })
}

/// Overlays from the fit images, and what entropy held-out ones keep under them.
fn strip_reference(
    model: &dyn Classifier,
    fit: &Batch,
    held_out: &Tensor,
    rng: &mut StdRng,
    progress: &dyn Fn(f64),
) -> Result<StripReference, Error> {
    let overlays =
        fit.select(&sample(rng, fit.len(), strip::OVERLAYS.min(fit.len())).into_vec())?;
    let count = strip::SCORED.min(held_out.dim(0)?);
    let mut entropies = Vec::with_capacity(count);
    for row in 0..count {
        let row = held_out.narrow(0, row, 1)?;
        entropies.extend(strip::entropies(model, &overlays.rows, &row)?);
        progress(entropies.len() as f64 / count as f64);
    }
    Ok(StripReference { overlays: overlays.rows, entropies })
}

/// One in so many of the held-out images is a probe of the inspection instead...
const PROBE_PART: usize = 5;

/// ...up to this many.
const MAX_PROBE: usize = 400;

/// Rows scored between two progress reports.
const SCORED_AT_ONCE: usize = 256;
