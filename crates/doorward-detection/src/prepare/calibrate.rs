//! Everything that is learned before the first request, in one artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use candle_core::Tensor;
use doorward_engine::{Batch, Bounds, Classifier, Model, labels};
use doorward_images::Images;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index::sample;

use super::accuracy::{explain, measure};
use super::activations;
use super::digests::settings_digest;
use super::error::Error;
use super::layers;
use super::learn::{Learned, learn};
use super::material::{Material, tensor};
use super::ranges;
use super::stage::{Seconds, Stage};
use super::weights::infected_weights;
use crate::artifact::{
    Artifact, FORMAT, ImageCounts, Manifest, PerturbationSummary, StripReference,
};
use crate::baselines::{Baselines, Specific, strip};
use crate::batches::score;
use crate::conformal::fit;
use crate::inspect::Inspection;
use crate::join::{Join, LINES, Line, Weights};
use crate::open::used_patches;
use crate::patch::Patch;
use crate::row::{Joined, RowSignals};
use crate::rule::{Needs, Rule};
use crate::scorer::{Parts, Scorer};
use crate::settings::Settings;
use crate::signal::{PerSignal, Signal};

/// Learns and calibrates everything. Fails where the model does, and where it is right on clean images
/// far more often with another preprocessing.
pub fn calibrate(
    model: &Arc<Model>,
    settings: &Settings,
    material: &Material,
    seed: u64,
    progress: &dyn Fn(Stage, f64),
) -> Result<(Artifact, Seconds), Error> {
    let classifier: Arc<dyn Classifier> = model.clone();
    let domain = classifier.domain();
    let accuracy = measure(&*classifier, &material.holdout)?;
    let mut better = None;
    if let Some(accuracy) = accuracy
        && let Some(fits) = explain(&*classifier, &material.holdout, accuracy)?
    {
        if fits.is_certain(accuracy) {
            return Err(Error::Mistaken { accuracy, fits });
        }
        better = Some(fits.to_string());
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let (learned, mut seconds) = learn(&*classifier, settings, material, &mut rng, progress)?;
    let Learned { universal, perturbations, class_conditional, representations, .. } = learned;
    let Learned { inspection, suspects, fitted: clean, .. } = learned;

    let start = Instant::now();
    let summary = inspection.as_ref().map(Inspection::summary);
    let infected: BTreeSet<usize> =
        summary.iter().flat_map(|summary| &summary.infected).copied().collect();
    let all_patches: BTreeMap<usize, Patch> = inspection
        .iter()
        .flat_map(|inspection| &inspection.labels)
        .map(|inspected| (inspected.figures.label, inspected.patch.clone()))
        .collect();
    let known: Vec<&[u8]> = [&material.fit, &material.reference]
        .into_iter()
        .flat_map(|images| (0..images.len()).map(|index| images.image(index)))
        .collect();
    let read = activations::read(&*classifier, &known, &mut rng, &|share| {
        progress(Stage::Layers, share);
    })?;
    let layers = layers::fit(&read, classifier.labels())?;
    let ranges = ranges::fit(&read, classifier.labels());
    let mut told: Vec<RowSignals> = read.predicted.into_iter().map(RowSignals::new).collect();
    for (row, [own, gap]) in told.iter_mut().zip(layers.iter().flat_map(|of| &of.scores)) {
        row.scores[Signal::Own] = Some(*own);
        row.scores[Signal::Gap] = Some(*gap);
    }
    for (row, range) in told.iter_mut().zip(ranges.iter().flat_map(|of| &of.scores)) {
        row.scores[Signal::Range] = Some(*range);
    }
    let learned = Parts {
        universal: perturbations.clone(),
        class_conditional: class_conditional.clone(),
        patches: used_patches(&all_patches, summary.as_ref()),
        representations: representations.clone(),
        layers: layers.as_ref().map(|fitted| fitted.layers.clone()),
        ranges: ranges.as_ref().map(|fitted| fitted.ranges.clone()),
        join: Join::default(),
        baselines: Baselines::new(Specific::new(&*classifier, universal.epsilon, seed)?, None),
    };
    let scorer = Scorer::new(classifier.clone(), learned)?;
    let weights = match &inspection {
        Some(inspection) => infected_weights(&scorer, material, inspection, &suspects)?,
        None => Weights::new(),
    };
    let everywhere = 0..material.reference.len();
    let mut reference = score(&scorer, &material.reference, everywhere, Needs::ALL, &|_| ())?;
    if reference.len() < MIN_UNSEEN {
        // Better those that the perturbations know than none.
        reference.extend(scorer.score(&clean.rows, Needs::ALL)?);
    }
    let join = Join { lines: lines(classifier.labels(), &reference, &told), weights };
    let held_out = 0..material.holdout.len();
    let progress_of_scoring = |share| progress(Stage::Holdout, share);
    let held_out = score(&scorer, &material.holdout, held_out, Needs::ALL, &progress_of_scoring)?;
    let holdout: Vec<Joined> = held_out.iter().filter_map(|row| join.joined(row)).collect();
    if holdout.len() < material.holdout.len()
        || holdout
            .iter()
            .any(|row| !row.evidence.is_finite() || row.weighed.is_some_and(f32::is_nan))
    {
        return Err(crate::Error::Undefined.into());
    }
    let thresholds = fit(classifier.labels(), &holdout, &infected, settings.policy.budget());
    let labels = holdout.iter().map(|row| row.label).collect();
    let held_out = Batch { rows: tensor(&*classifier, &material.holdout)?, labels };
    let strip = match settings.policy.rule {
        Rule::Strip => {
            Some(strip_reference(&*classifier, &clean, &held_out.rows, &mut rng, &|p| {
                progress(Stage::Strip, p);
            })?)
        }
        _ => None,
    };
    let epsilon = universal.epsilon;
    let perturbation = fooled(&*classifier, &held_out, &perturbations, epsilon)?;
    seconds.calibration = start.elapsed().as_secs_f64();

    let manifest = Manifest {
        format: FORMAT,
        doorward: env!("CARGO_PKG_VERSION").to_owned(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model_digest: model.digest().to_owned(),
        data_digest: material.data_digest.clone(),
        settings_digest: settings_digest(settings),
        seed,
        input_shape: domain.shape,
        labels: classifier.labels(),
        images: ImageCounts {
            fit: material.fit.len(),
            reference: material.reference.len(),
            holdout: material.holdout.len(),
            probe: material.probe.len(),
            training: material.training.as_ref().map_or(0, Images::len),
        },
        accuracy,
        better,
        perturbation,
        inspection: summary,
        thresholds,
    };
    let artifact = Artifact {
        manifest,
        universal: perturbations,
        class_conditional,
        patches: all_patches,
        representations,
        layers: layers.map(|fitted| fitted.layers),
        ranges: ranges.map(|fitted| fitted.ranges),
        join,
        holdout,
        strip,
    };
    Ok((artifact, seconds))
}

/// The lines of evidence: margins by images that fitted no perturbation, what a pass itself tells by
/// `told`, in which every image is scored by the others.
fn lines(labels: usize, reference: &[RowSignals], told: &[RowSignals]) -> PerSignal<Option<Line>> {
    let mut lines = PerSignal::default();
    for (signal, _) in LINES {
        let rows = match signal {
            Signal::Own | Signal::Gap | Signal::Range => told,
            _ => reference,
        };
        let scores = rows.iter().filter_map(|row| Some((row.label, row.scores[signal]?)));
        lines[signal] = Line::new(labels, &scores.collect::<Vec<_>>());
    }
    lines
}

/// Measures the universal perturbations on images that they were not fitted on.
fn fooled(
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

/// Fewer images that fitted no perturbation are no distribution of margins.
const MIN_UNSEEN: usize = 50;
