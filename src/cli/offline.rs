//! `calibrate`, `inspect`, `evaluate` and `config check`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use doorward_detection::artifact::Accuracy;
use doorward_detection::evaluate::{Evaluation, evaluate as measure};
use doorward_detection::prepare::{self, Preparation, Seconds, Stored};
use doorward_detection::{Rule, open};
use doorward_engine::{Classifier, Error, Model, OutputKind, device};
use doorward_images::Images;
use serde_json::json;

use super::progress::Progress;
use crate::config::{Config, advice};
use crate::storage::Store;

/// The sources that `evaluate` reads.
pub(super) struct EvaluationSources {
    pub(super) clean: Vec<PathBuf>,
    pub(super) triggered: Vec<PathBuf>,
    pub(super) target: Vec<usize>,
    pub(super) rules: Vec<Rule>,
}

pub(super) fn load_model(config: &Config) -> Result<Arc<Model>> {
    let path = &config.server.model.path;
    let model = Model::load_chosen(
        path,
        &config.choice,
        &config.detection.preprocess.mean,
        &config.detection.preprocess.std,
        &device(),
    )
    .map_err(|error| match error {
        Error::Channels { .. } => anyhow!("preprocess.{error}"),
        error => anyhow::Error::from_boxed(advice::of_model(error)),
    })
    .with_context(|| format!("cannot load the model {}", path.display()))?;
    prepare::frame(&config.detection.preprocess, model.domain().shape)?;
    Ok(Arc::new(model))
}

/// The artifact if a valid one is there, else a fresh one, written.
pub(super) fn artifact(config: &Config, model: &Arc<Model>) -> Result<Stored> {
    let (store, progress) = (store(config)?, Progress::new());
    let preparation = preparation(config, model, &store);
    let stored = preparation.read_or_make(&|stage, share| progress.update(stage, share));
    let (stored, made) = stored.map_err(|error| advised(error, config))?;
    match made {
        Some(_) => progress.finish(),
        None => {
            tracing::info!(artifact = %config.artifact.location, sha256 = stored.sha256, "read");
        }
    }
    Ok(stored)
}

/// The sources of an artifact, and the place where it is kept.
pub(super) fn preparation<'a>(
    config: &'a Config,
    model: &'a Arc<Model>,
    store: &'a Store,
) -> Preparation<'a> {
    let pinned = config.artifact.sha256.as_deref();
    Preparation { model, settings: &config.detection, store, pinned }
}

/// The error with the key that it is about.
pub(super) fn advised(error: prepare::Error, config: &Config) -> anyhow::Error {
    anyhow::Error::from_boxed(advice::of_preparation(error, &config.artifact.location))
}

/// The place of the artifact.
pub(super) fn store(config: &Config) -> Result<Store> {
    Ok(Store::open(&config.artifact.location, super::environment())?)
}

pub(super) fn calibrate(config: &Config, rotate: bool, json: bool) -> Result<ExitCode> {
    let model = load_model(config)?;
    let store = store(config)?;
    let preparation = preparation(config, &model, &store);
    if !rotate {
        match preparation.read() {
            Ok(Some(stored)) => {
                let location = &config.artifact.location;
                tracing::info!(artifact = %location, "already valid; --rotate replaces it");
                print_artifact(config, &stored, Seconds::default(), json);
                return Ok(ExitCode::SUCCESS);
            }
            Ok(None) => {}
            Err(prepare::Error::Artifact(error)) => {
                tracing::warn!(%error, "replacing the artifact");
            }
            Err(error) => return Err(advised(error, config)),
        }
    }
    if rotate && config.detection.calibration.seed.is_some() {
        bail!("calibration.seed is set, so that --rotate would make the same artifact again");
    }
    let progress = Progress::new();
    let made = preparation.make(&|stage, share| progress.update(stage, share));
    let (stored, seconds) = made.map_err(|error| advised(error, config))?;
    progress.finish();
    if config.artifact.sha256.is_some() {
        tracing::warn!(stored.sha256, "calibration.artifact_sha256 has to become this");
    }
    print_artifact(config, &stored, seconds, json);
    Ok(ExitCode::SUCCESS)
}

fn print_artifact(config: &Config, stored: &Stored, seconds: Seconds, as_json: bool) {
    let Stored { artifact, sha256 } = stored;
    let manifest = &artifact.manifest;
    let perturbation = &manifest.perturbation;
    if let Some(better) = &manifest.better {
        tracing::warn!("the model is right on {better}: look at [preprocess] and the clean images");
    }
    let aim = config.detection.perturbation.fooling_rate.value();
    if perturbation.fooling_rate < aim / 2.0 {
        tracing::warn!(
            fooling_rate = perturbation.fooling_rate,
            aim,
            "the perturbation changes few labels, so that no margin tells a trigger: look at [preprocess] and [perturbation]"
        );
    }
    let bound = open::thresholds(artifact, &config.detection.policy).false_rejection_rate_bound;
    let layers = artifact.layers.as_ref().map_or(0, |layers| layers.layers.len());
    let features = artifact.ranges.as_ref().map_or(0, |ranges| ranges.low.len() / manifest.labels);
    let location = &config.artifact.location;
    let infected = manifest.inspection.as_ref().map(|inspection| &inspection.infected);
    if as_json {
        let report = json!({
            "artifact": location.to_string(),
            "artifact_sha256": sha256,
            "seconds": {
                "uap": seconds.uap,
                "inspection": seconds.inspection,
                "calibration": seconds.calibration,
            },
            "fooling_rate": perturbation.fooling_rate,
            "epsilon": perturbation.epsilon,
            "images": {
                "fit": manifest.images.fit,
                "reference": manifest.images.reference,
                "holdout": manifest.images.holdout,
                "probe": manifest.images.probe,
            },
            "accuracy": manifest.accuracy.map(Accuracy::share),
            "better": manifest.better,
            "false_rejection_rate_bound": bound,
            "layers": layers,
            "features": features,
            "infected_labels": infected,
            "inspection": manifest.inspection.as_ref().map(|inspection| &inspection.labels),
            "seed": manifest.seed,
        });
        println!("{report}");
        return;
    }
    println!("artifact        {location}");
    println!("sha256          {sha256}");
    match manifest.accuracy {
        None => {
            println!("model           too few labelled clean images to tell how often it is right")
        }
        Some(accuracy) => println!("model           right on {accuracy}"),
    }
    println!(
        "perturbation    epsilon {:.1}/255, changes {:.1} % of {} held-out images, {:.0} % of them to label {}",
        perturbation.epsilon * 255.0,
        perturbation.fooling_rate * 100.0,
        manifest.images.holdout,
        perturbation.sink_share * 100.0,
        perturbation.sink,
    );
    match infected {
        None => println!("inspection      none: no training images"),
        Some(labels) if labels.is_empty() => println!("inspection      no infected label"),
        Some(labels) => println!("inspection      infected labels {labels:?}"),
    }
    println!("guarantee       at most {:.3} % of clean inputs rejected", bound * 100.0);
    match (layers, features) {
        (0, 0) => {
            println!("activations     none to read: the verdict rests on the perturbations alone");
        }
        _ => println!(
            "activations     {layers} layers and {features} features, on {} images",
            manifest.images.fit + manifest.images.reference
        ),
    }
    println!(
        "seconds         {:.1} perturbations, {:.1} inspection, {:.1} thresholds",
        seconds.uap, seconds.inspection, seconds.calibration
    );
}

pub(super) fn evaluate(
    config: &Config,
    sources: &EvaluationSources,
    as_json: bool,
) -> Result<ExitCode> {
    let model = load_model(config)?;
    let Stored { artifact, .. } = artifact(config, &model)?;
    let frame = prepare::frame(&config.detection.preprocess, model.domain().shape)?;
    let clean = Images::read_all(&sources.clean, frame).context("cannot use --clean")?;
    let triggered =
        Images::read_all(&sources.triggered, frame).context("cannot use --triggered")?;
    let scorer = open::scorer(model, &artifact, &config.detection.policy)?;
    let thresholds = open::thresholds(&artifact, &config.detection.policy);
    let evaluation =
        measure(&scorer, &thresholds, &clean, &triggered, &sources.target, &sources.rules)?;
    if as_json {
        println!("{}", serde_json::to_string(&evaluation)?);
    } else {
        print_evaluation(&evaluation);
    }
    Ok(ExitCode::SUCCESS)
}

/// A table of the rules' figures.
pub(super) fn print_evaluation(evaluation: &Evaluation) {
    let rows = &evaluation.rows;
    println!(
        "{} clean rows, {} triggered, {} of them answered with {:?}",
        rows.clean, rows.triggered, rows.triggered_successful, evaluation.targets
    );
    println!(
        "rule               BDR     CIIR   AUROC  TPR@0.1%  TPR@0.5%  TPR@1%  TPR@5%    passes"
    );
    for (rule, figures) in &evaluation.rules {
        let at = |rate: &str| figures.tpr_at_fpr.get(rate).copied().unwrap_or(f64::NAN) * 100.0;
        println!(
            "{rule:14} {:>6.2} % {:>6.2} %  {:.4} {:>8.2}% {:>8.2}% {:>6.2}% {:>6.2}% {:>9.2}",
            figures.bdr * 100.0,
            figures.ciir * 100.0,
            figures.auroc,
            at("0.001"),
            at("0.005"),
            at("0.01"),
            at("0.05"),
            figures.forwards_per_input
        );
    }
    println!(
        "calibrated guarantees at most {:.3} % false rejections",
        evaluation.false_rejection_rate_bound * 100.0
    );
}

/// What margins are taken of, of a model whose output holds these scores.
fn judged_on(scores: OutputKind) -> String {
    match scores {
        OutputKind::Logits => "logits, the output itself".to_owned(),
        other => format!("logits, of which the output gives {other}"),
    }
}

pub(super) fn check(config: &Config) -> Result<ExitCode> {
    let model = load_model(config)?;
    let program = model.program();
    let mut operators: Vec<(&str, usize)> = Vec::new();
    for name in program.operators() {
        match operators.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => operators.push((name, 1)),
        }
    }
    operators.sort_unstable();
    let operators: Vec<String> =
        operators.iter().map(|(name, count)| format!("{count} {name}")).collect();
    println!("model     {}", config.server.model.path.display());
    println!("sha256    {}", model.digest());
    let [a, b, c] = model.domain().sent_shape();
    println!("input     {:?} [batch, {a}, {b}, {c}]", program.input_name());
    println!("output    {:?} [batch, {}]", program.output_name(), model.labels());
    println!("judged on {}", judged_on(model.output_kind()));
    println!("operators {}", operators.join(", "));
    let (layers, statistics) =
        program.taps().fold((0, 0), |(layers, all), (_, some)| (layers + 1, all + some));
    println!("evidence  {layers} layers of activations, {statistics} statistics an input");
    #[cfg(feature = "ort")]
    println!("predicts  {}", if model.uses_onnxruntime() { "onnxruntime" } else { "the program" });
    println!("ok");
    Ok(ExitCode::SUCCESS)
}
