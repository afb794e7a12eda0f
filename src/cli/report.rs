//! `inspect --report`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use super::offline::{advised, preparation, store};
use crate::config::Config;
use crate::report::{Firewall, Report};
use doorward_detection::batches::score;
use doorward_detection::inspect::Inspection;
use doorward_detection::prepare::Stored;
use doorward_detection::{Needs, open, prepare as preparing};
use doorward_engine::{Classifier, Model};
use doorward_images::{Images, digest_sources};

/// The request for a report.
pub(super) struct ReportRequest {
    /// The folder.
    pub(super) folder: PathBuf,
    pub(super) triggered: Vec<PathBuf>,
}

/// An inspection that was run.
pub(super) struct Inspected<'a> {
    pub(super) inspection: &'a Inspection,
    pub(super) images: &'a Images,
    pub(super) seed: u64,
    pub(super) seconds: f64,
}

/// Finds out, before the inspection takes its minutes, whether a report can be written.
pub(super) fn prepare(config: &Config, request: &ReportRequest) -> Result<()> {
    let folder = &request.folder;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    tempfile::tempfile_in(folder)
        .with_context(|| format!("cannot write into {}", folder.display()))?;
    if !request.triggered.is_empty() && store(config)?.read()?.is_none() {
        bail!(
            "--triggered needs the artifact {}, which is not there: run `doorward calibrate`",
            config.artifact.location
        );
    }
    Ok(())
}

/// Writes the page and returns its path.
pub(super) fn write(
    config: &Config,
    model: &Arc<Model>,
    inspected: &Inspected<'_>,
    request: &ReportRequest,
) -> Result<PathBuf> {
    let (stored, without_firewall) = usable_artifact(config, model);
    let artifact = stored.as_ref().map(|stored| &stored.artifact);
    let thresholds = artifact.map(|artifact| open::thresholds(artifact, &config.detection.policy));
    let mut triggered = Vec::new();
    if !request.triggered.is_empty() {
        let Some(artifact) = artifact else { bail!("--triggered: {without_firewall}") };
        let frame = preparing::frame(&config.detection.preprocess, model.domain().shape)?;
        let images =
            Images::read_all(&request.triggered, frame).context("cannot use --triggered")?;
        let scorer = open::scorer(model.clone(), artifact, &config.detection.policy)?;
        triggered = score(&scorer, &images, 0..images.len(), Needs::ALL, &|_| ())?;
    }
    let firewall = match (artifact, &thresholds) {
        (Some(artifact), Some(thresholds)) => {
            Some(Firewall { artifact, thresholds, triggered: &triggered })
        }
        _ => None,
    };
    let html = Report {
        model: &**model,
        inspection: inspected.inspection,
        images: inspected.images,
        anomaly_threshold: config.detection.inspection.anomaly_threshold.into(),
        firewall,
        without_firewall,
        facts: facts(config, model, inspected, stored.as_ref())?,
    }
    .html()?;
    let path = request.folder.join("report.html");
    std::fs::write(&path, html).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The artifact, or why there is none: a report is of use without it.
fn usable_artifact(config: &Config, model: &Arc<Model>) -> (Option<Stored>, String) {
    let read = store(config).and_then(|store| {
        let read = preparation(config, model, &store).read();
        read.map_err(|error| match error {
            preparing::Error::Artifact(error) => error.into(),
            error => advised(error, config),
        })
    });
    match read {
        Ok(Some(stored)) => (Some(stored), String::new()),
        Ok(None) => {
            let location = &config.artifact.location;
            (None, format!("There is no artifact {location}: run doorward calibrate."))
        }
        Err(error) => (None, format!("The artifact cannot be used: {error:#}.")),
    }
}

fn facts(
    config: &Config,
    model: &Model,
    inspected: &Inspected<'_>,
    stored: Option<&Stored>,
) -> Result<Vec<(String, String)>> {
    let (calibration, inspection) = (&config.detection.calibration, &config.detection.inspection);
    let sources: Vec<String> =
        calibration.training_images.iter().map(|path| path.display().to_string()).collect();
    let mut facts = vec![
        ("Model", config.server.model.path.display().to_string()),
        ("Model SHA-256", model.digest().to_owned()),
        ("Training images", sources.join(", ")),
        (
            "Training images SHA-256",
            digest_sources(&calibration.training_images)?.unwrap_or_default(),
        ),
        ("Artifact", config.artifact.location.to_string()),
    ];
    if let Some(Stored { artifact, sha256 }) = stored {
        facts.extend([
            ("Artifact SHA-256", sha256.clone()),
            ("Artifact made", date(artifact.manifest.created)),
            ("Artifact seed", artifact.manifest.seed.to_string()),
            (
                "Artifact's infected labels",
                artifact
                    .manifest
                    .inspection
                    .as_ref()
                    .map_or("not inspected".to_owned(), |found| format!("{:?}", found.infected)),
            ),
        ]);
    }
    facts.extend([
        ("Date", httpdate::fmt_http_date(SystemTime::now())),
        ("Doorward", env!("CARGO_PKG_VERSION").to_owned()),
        ("Seed", inspected.seed.to_string()),
        ("Seconds", format!("{:.0}", inspected.seconds)),
        (
            "Settings",
            format!(
                "samples {}, steps {}, batch {}, lambda {}, success_rate {}, anomaly_threshold {}, clean_ratio {}; \
                 max_false_rejection_rate {}",
                inspection.samples,
                inspection.steps,
                inspection.batch,
                inspection.lambda,
                inspection.success_rate.value(),
                inspection.anomaly_threshold,
                inspection.clean_ratio.value(),
                config.detection.policy.max_false_rejection_rate.value(),
            ),
        ),
    ]);
    Ok(facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn date(seconds: u64) -> String {
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}
