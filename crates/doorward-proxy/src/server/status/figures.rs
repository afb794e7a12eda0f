//! The figures that the page and `/status.json` show, gathered when they are asked for.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use doorward_detection::artifact::Manifest;
use serde::Serialize;

use super::history::{History, Minute};
use super::numbers::{Counts, time};
use crate::server::handle::Handle;
use crate::settings::{Mode, Settings};
use crate::telemetry::Rejection;
use crate::telemetry::metrics::Metrics;

/// Everything that is shown.
#[derive(Debug, Serialize)]
pub(in crate::server) struct Status {
    pub(super) version: &'static str,
    pub(super) phase: &'static str,
    /// The model that is protected.
    pub(super) model: Protected,
    pub(super) policy: PolicyStatus,
    /// Requests by how they ended, since the start.
    pub(super) verdicts: Counts,
    /// What became of those that may be inferences.
    pub(super) traffic: TrafficStatus,
    /// The same of each of the last minutes, the oldest first.
    pub(super) minutes: Vec<Minute>,
    /// And of the minute that is not over.
    pub(super) minute_so_far: Counts,
    pub(super) labels: Vec<LabelStatus>,
    pub(super) artifact: Option<ArtifactStatus>,
    /// Kolmogorov-Smirnov distance of live and held-out scores, where it is known.
    pub(super) score_drift: Option<f64>,
    /// The newest first.
    pub(super) rejections: Vec<RejectionStatus>,
    /// Names of all models, each with a page of its own, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) models: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Protected {
    pub(super) path: String,
    pub(super) name: Option<String>,
    pub(super) upstream: String,
}

#[derive(Debug, Serialize)]
pub(super) struct PolicyStatus {
    pub(super) mode: &'static str,
    pub(super) rule: &'static str,
    pub(super) max_false_rejection_rate: f64,
    /// The bound that the held-out images guarantee for inputs like them; only for the rule
    /// `calibrated`.
    pub(super) false_rejection_rate_bound: Option<f64>,
}

/// Requests that may be inferences, since the start.
#[derive(Debug, Serialize)]
pub(super) struct TrafficStatus {
    /// All but the reads.
    pub(super) received: u64,
    /// Those whose rows have a judgement.
    pub(super) judged: u64,
    /// Those that passed, and that `enforce` would turn away.
    pub(super) enforce_would_refuse: u64,
    /// Those without a verdict, by reason.
    pub(super) unverified: Counts,
    /// The most frequent methods and paths that nobody here knows.
    pub(super) unrecognised: Vec<Unrecognised>,
}

#[derive(Debug, Serialize)]
pub(super) struct Unrecognised {
    pub(super) request: String,
    pub(super) count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct LabelStatus {
    pub(super) label: usize,
    /// By inspection, where there was one.
    pub(super) infected: Option<bool>,
    pub(super) transfer_ratio: Option<f64>,
    pub(super) anomaly_index: Option<f64>,
    pub(super) held_out_images: usize,
    /// True if they are too few for a threshold of its own.
    pub(super) pooled: bool,
    /// Since the start, in either mode.
    pub(super) rejected_rows: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct ArtifactStatus {
    pub(super) created: String,
    pub(super) age_seconds: u64,
    pub(super) written_by: String,
    pub(super) model_digest: String,
    pub(super) held_out_images: usize,
}

/// A request with rows that the rule turned away.
#[derive(Debug, Serialize)]
pub(super) struct RejectionStatus {
    pub(super) time: String,
    pub(super) request_id: String,
    pub(super) protocol: &'static str,
    pub(super) verdict: &'static str,
    /// Rows turned away by predicted label.
    pub(super) labels: BTreeMap<usize, usize>,
    pub(super) rows: usize,
}

// === impl Status ===

impl Status {
    pub(in crate::server) fn gather(handle: &Handle, history: &History, models: &[String]) -> Self {
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
            traffic: traffic(metrics),
            minutes: history.minutes(),
            minute_so_far: history.minute_so_far(metrics),
            labels: manifest.map_or_else(Vec::new, |manifest| labels(manifest, metrics)),
            artifact: manifest.map(artifact),
            score_drift: metrics.score_drift(),
            rejections: metrics.recent_rejections().into_iter().map(rejection).collect(),
            models: models.to_vec(),
        }
    }
}

/// As many paths as a reader takes in.
const TOP: usize = 5;

fn traffic(metrics: &Metrics) -> TrafficStatus {
    let verdicts = metrics.verdicts();
    let count = |verdict: &str| verdicts.get(verdict).copied().unwrap_or(0);
    let unrecognised = metrics.top_unrecognised(TOP).into_iter();
    TrafficStatus {
        received: verdicts.values().sum::<u64>() - count("bypassed"),
        judged: count("passed") + count("flagged") + count("rejected"),
        enforce_would_refuse: count("flagged") + count("unverified_passed"),
        unverified: metrics.unverified(),
        unrecognised: unrecognised
            .map(|(request, count)| Unrecognised { request, count })
            .collect(),
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
