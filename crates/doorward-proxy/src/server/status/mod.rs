//! What the firewall does, for people and for programs: `/status` and `/status.json`.
//!
//! Both show one [`Status`], which is gathered when it is asked for. Nothing in it helps to craft an
//! input: no perturbation, threshold or score. Pictures do, and are [shown](pictures) to a reader on
//! this machine only.

mod chart;
mod history;
mod page;
mod pictures;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Handle;
use crate::settings::{Mode, Settings};
use crate::telemetry::Rejection;
use crate::telemetry::metrics::Metrics;
use doorward_detection::artifact::Manifest;
pub(super) use history::History;
use history::Minute;
pub(super) use pictures::{Pictures, Shown, visible};

/// Everything that is shown.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    version: &'static str,
    phase: &'static str,
    /// What is protected.
    model: Protected,
    policy: PolicyStatus,
    /// Requests by how they ended, since the start.
    verdicts: Counts,
    /// The same of each of the last minutes, the oldest first.
    minutes: Vec<Minute>,
    /// And of the minute that is not over.
    minute_so_far: Counts,
    labels: Vec<LabelStatus>,
    artifact: Option<ArtifactStatus>,
    /// Kolmogorov-Smirnov distance of live and held-out scores, where it is known.
    score_drift: Option<f64>,
    /// The newest first.
    rejections: Vec<RejectionStatus>,
    /// Names of all models, each with a page of its own, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    models: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Protected {
    path: String,
    name: Option<String>,
    upstream: String,
}

#[derive(Debug, Serialize)]
struct PolicyStatus {
    mode: &'static str,
    rule: &'static str,
    max_false_rejection_rate: f64,
    /// What the held-out images guarantee for inputs like them; only for the rule `calibrated`.
    false_rejection_rate_bound: Option<f64>,
}

#[derive(Debug, Serialize)]
struct LabelStatus {
    label: usize,
    /// By inspection, where there was one.
    infected: Option<bool>,
    transfer_ratio: Option<f64>,
    anomaly_index: Option<f64>,
    held_out_images: usize,
    /// Whether they are too few for a threshold of its own.
    pooled: bool,
    /// Since the start, in either mode.
    rejected_rows: u64,
}

#[derive(Debug, Serialize)]
struct ArtifactStatus {
    created: String,
    age_seconds: u64,
    written_by: String,
    model_digest: String,
    held_out_images: usize,
}

/// A request with rows that the rule turned away.
#[derive(Debug, Serialize)]
struct RejectionStatus {
    time: String,
    request_id: String,
    protocol: &'static str,
    verdict: &'static str,
    /// Rows turned away by predicted label.
    labels: BTreeMap<usize, usize>,
    rows: usize,
}

/// Requests by how they ended.
type Counts = BTreeMap<&'static str, u64>;

// === impl Status ===

impl Status {
    pub(super) fn gather(handle: &Handle, history: &History, models: &[String]) -> Self {
        let (config, manifest) = handle.in_effect.snapshot();
        let metrics = &handle.metrics;
        let manifest = manifest.as_deref();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            phase: handle.readiness.phase().name(),
            model: Protected {
                path: config.model.path.display().to_string(),
                name: config.model.name.clone(),
                upstream: config.upstream.url.to_string(),
            },
            policy: policy(&config, manifest),
            verdicts: metrics.verdicts(),
            minutes: history.minutes(),
            minute_so_far: history.minute_so_far(metrics),
            labels: manifest.map_or_else(Vec::new, |manifest| labels(manifest, metrics)),
            artifact: manifest.map(artifact),
            score_drift: metrics.score_drift(),
            rejections: metrics.recent_rejections().into_iter().map(rejection).collect(),
            models: models.to_vec(),
        }
    }

    /// The page for people; with `pictures` to those who may see what gives the perturbation away.
    pub(super) fn page(&self, pictures: Option<&Shown>) -> String {
        page::page(self, pictures)
    }
}

fn policy(config: &Settings, manifest: Option<&Manifest>) -> PolicyStatus {
    let (policy, judging) = (&config.policy, &config.judging);
    let calibrated = judging.rule == doorward_detection::Rule::Calibrated;
    PolicyStatus {
        mode: match policy.mode {
            Mode::Enforce => "enforce",
            Mode::Monitor => "monitor",
        },
        rule: judging.rule.name(),
        max_false_rejection_rate: judging.max_false_rejection_rate.value(),
        false_rejection_rate_bound: manifest
            .filter(|_| calibrated)
            .map(|manifest| manifest.thresholds.false_rejection_rate_bound),
    }
}

fn labels(manifest: &Manifest, metrics: &Metrics) -> Vec<LabelStatus> {
    let inspection = manifest.inspection.as_ref();
    let thresholds = manifest.thresholds.labels.iter().enumerate();
    let status = thresholds.map(|(label, threshold)| {
        let finding = inspection.and_then(|found| found.labels.iter().find(|l| l.label == label));
        LabelStatus {
            label,
            infected: inspection.map(|found| found.infected.contains(&label)),
            transfer_ratio: finding.map(|finding| finding.transfer_ratio),
            anomaly_index: finding.map(|finding| finding.anomaly_index),
            held_out_images: threshold.images,
            pooled: threshold.pooled,
            rejected_rows: metrics.rejected_rows(label),
        }
    });
    // As many as the metrics tell apart.
    status.take(Metrics::COUNTED_LABELS).collect()
}

fn artifact(manifest: &Manifest) -> ArtifactStatus {
    let created = UNIX_EPOCH + Duration::from_secs(manifest.created);
    ArtifactStatus {
        created: time(created),
        age_seconds: SystemTime::now().duration_since(created).map_or(0, |age| age.as_secs()),
        written_by: manifest.doorward.clone(),
        model_digest: manifest.model_digest.clone(),
        held_out_images: manifest.images.holdout,
    }
}

fn rejection(rejection: Rejection) -> RejectionStatus {
    RejectionStatus {
        time: time(rejection.time),
        request_id: rejection.request_id,
        protocol: rejection.protocol,
        verdict: rejection.verdict,
        labels: rejection.labels,
        rows: rejection.rows,
    }
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
