//! `inspect`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::offline::{advised, load_model};
use super::progress::Progress;
use super::report::{self, Inspected, ReportRequest};
use crate::config::Config;
use doorward_detection::InspectionSummary;
use doorward_detection::inspect::{
    Diverging, Inspection, Reversed, data_inspection, neural_cleanse,
};
use doorward_detection::prepare::{self, Stage};
use doorward_engine::{Classifier, Model, rows};
use doorward_images::Images;

/// Baselines that are run as well.
pub(super) struct Baselines {
    pub(super) data_inspection: bool,
    pub(super) neural_cleanse: bool,
}

/// Inspects the model.
pub(super) fn inspect(
    config: &Config,
    request: Option<&ReportRequest>,
    baselines: &Baselines,
    as_json: bool,
) -> Result<ExitCode> {
    if let Some(request) = request {
        report::prepare(config, request)?;
    }
    let model = load_model(config)?;
    if config.detection.calibration.training_images.is_empty() {
        bail!(
            "calibration.training_images is not set: without training images there is no confidence to split by, and the verdict rests on the perturbations alone"
        );
    }
    let material = prepare::material(&config.detection, model.domain().shape)
        .map_err(|error| advised(error, config))?;
    let seed = config.detection.calibration.seed.unwrap_or_else(|| rand::rng().random());
    let (progress, start) = (Progress::new(), Instant::now());
    let mut rng = StdRng::seed_from_u64(seed);
    let update = |stage, share| progress.update(stage, share);
    let (learned, _) = prepare::learn(&*model, &config.detection, &material, &mut rng, &update)?;
    let seconds = start.elapsed().as_secs_f64();
    let reversed = match baselines.neural_cleanse {
        false => None,
        true => {
            let settings = &config.detection.inspection;
            let clean = learned.clean().first(BASELINE_IMAGES)?;
            let (steps, batch) = (settings.steps.get(), settings.batch.get());
            let tell = |share| update(Stage::NeuralCleanse, share);
            Some(neural_cleanse(&*model, &clean, steps, batch, &mut rng, &tell)?)
        }
    };
    progress.finish();
    let (Some(inspection), Some(images)) = (learned.inspection, material.training) else {
        bail!("the training images were not inspected");
    };
    let diverging = match baselines.data_inspection {
        false => None,
        true => Some(diverging(&model, config, &inspection, &images)?),
    };
    let summary = inspection.summary();
    let infected = !summary.infected.is_empty();
    if as_json {
        let report = json!({
            "verdict": verdict(&summary),
            "infected_labels": summary.infected,
            "labels": summary.labels,
            "neural_cleanse": reversed.as_deref().map(reversed_json),
            "data_inspection": diverging.as_deref().map(diverging_json),
            "images": images.len(),
            "seed": seed,
            "seconds": seconds,
        });
        println!("{report}");
    } else {
        print_labels(&summary);
        println!(
            "{}, from {} training images, seed {seed}, {seconds:.1} s",
            verdict(&summary),
            images.len()
        );
        reversed.as_deref().inspect(|reversed| print_reversed(reversed));
        diverging.as_deref().inspect(|diverging| print_diverging(diverging));
    }
    if let Some(request) = request {
        let inspected = Inspected { inspection: &inspection, images: &images, seed, seconds };
        let path = report::write(config, &model, &inspected, request)?;
        if !as_json {
            println!("report  {}", path.display());
        }
    }
    Ok(if infected { ExitCode::from(INFECTED) } else { ExitCode::SUCCESS })
}

fn verdict(summary: &InspectionSummary) -> &'static str {
    if summary.infected.is_empty() { "clean" } else { "infected" }
}

fn print_labels(summary: &InspectionSummary) {
    println!(
        "label  transfer ratio  anomaly index  top-K changed  mask |M|_1  survivors  excess  anomaly index  of top-K  shift  anomaly index"
    );
    for label in &summary.labels {
        let mark = if summary.infected.contains(&label.label) { "  infected" } else { "" };
        println!(
            "{:>5} {:>15.3} {:>14.2} {:>14.3} {:>11.1} {:>10.3} {:>7.3} {:>14.2} {:>9.3} {:>6.3} {:>14.2}{mark}",
            label.label,
            label.transfer_ratio,
            label.anomaly_index,
            label.top_k_changed,
            label.mask_l1,
            label.survival,
            label.survival_excess,
            label.survival_anomaly_index,
            label.top_k_survival,
            label.shift,
            label.shift_anomaly_index
        );
    }
}

fn print_reversed(reversed: &[Reversed]) {
    println!("Neural Cleanse\nlabel  mask |M|_1  anomaly index  reached");
    for label in reversed {
        let mark = if label.infected() { "  infected" } else { "" };
        println!(
            "{:>5} {:>11.1} {:>14.2} {:>8.3}{mark}",
            label.label, label.mask_l1, label.anomaly_index, label.reached
        );
    }
}

fn reversed_json(reversed: &[Reversed]) -> Value {
    let label = |found: &Reversed| {
        json!({
            "label": found.label,
            "mask_l1": found.mask_l1,
            "anomaly_index": found.anomaly_index,
            "reached": found.reached,
            "infected": found.infected(),
        })
    };
    reversed.iter().map(label).collect()
}

fn diverging(
    model: &Model,
    config: &Config,
    inspection: &Inspection,
    training: &Images,
) -> Result<Vec<Diverging>> {
    let pixels = (0..training.len()).map(|index| training.image(index));
    let training = rows(model.domain(), pixels, model.device())?;
    let splits = inspection.labels.iter();
    let splits =
        splits.map(|label| (label.figures.label, label.top.as_slice(), label.bottom.as_slice()));
    let threshold = config.detection.inspection.anomaly_threshold.into();
    match data_inspection(model, &training, splits, threshold)? {
        Some(found) => Ok(found),
        None => bail!(
            "--data-inspection: the model does not end in a fully connected layer, whose input it compares"
        ),
    }
}

fn print_diverging(diverging: &[Diverging]) {
    println!("Data inspection\nlabel  divergence  anomaly index");
    for label in diverging {
        let mark = if label.infected { "  infected" } else { "" };
        println!(
            "{:>5} {:>11.4} {:>14.2}{mark}",
            label.label, label.divergence, label.anomaly_index
        );
    }
}

fn diverging_json(diverging: &[Diverging]) -> Value {
    let label = |found: &Diverging| {
        json!({
            "label": found.label,
            "divergence": found.divergence,
            "anomaly_index": found.anomaly_index,
            "infected": found.infected,
        })
    };
    diverging.iter().map(label).collect()
}

/// Exit status of an inspection that names a label.
const INFECTED: u8 = 3;

/// Clean images that Neural Cleanse reverses triggers with.
const BASELINE_IMAGES: usize = 200;
