//! What the firewall does, for people and for programs: `/status` and `/status.json`.
//!
//! Both show one [`Status`], which is gathered when it is asked for. Nothing in it helps to craft an
//! input: no perturbation, threshold or score.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;

use super::Handle;
use crate::artifact::Manifest;
use crate::config::{Config, Mode};
use crate::telemetry::metrics::Metrics;

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
    labels: Vec<LabelStatus>,
    artifact: Option<ArtifactStatus>,
    /// Kolmogorov-Smirnov distance of live and held-out scores, where it is known.
    score_drift: Option<f64>,
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

/// Requests by how they ended.
type Counts = BTreeMap<&'static str, u64>;

/// The requests that ended in one minute.
#[derive(Clone, Debug, Serialize)]
struct Minute {
    end: String,
    verdicts: Counts,
}

/// The last minutes' verdicts.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<VecDeque<Minute>>);

/// How far the history goes back.
const MINUTES: usize = 60;

// === impl History ===

impl History {
    /// Looks at the counters once a minute, as long as somebody else holds the history.
    pub(super) async fn run(history: std::sync::Weak<Self>, metrics: Arc<Metrics>) {
        let mut before = metrics.verdicts();
        loop {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let Some(history) = history.upgrade() else { return };
            let now = metrics.verdicts();
            let more = |(verdict, count): (&&'static str, &u64)| {
                (*verdict, count - before.get(verdict).unwrap_or(&0))
            };
            let verdicts = now.iter().map(more).collect();
            history.push(Minute { end: time(SystemTime::now()), verdicts });
            before = now;
        }
    }

    fn push(&self, minute: Minute) {
        let mut minutes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if minutes.len() == MINUTES {
            minutes.pop_front();
        }
        minutes.push_back(minute);
    }

    fn minutes(&self) -> Vec<Minute> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

// === impl Status ===

impl Status {
    pub(super) fn gather(handle: &Handle, history: &History) -> Self {
        let (config, manifest) = handle.in_effect.snapshot();
        let metrics = &handle.metrics;
        let manifest = manifest.as_deref();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            phase: handle.readiness.phase().name(),
            model: Protected {
                path: config.model.path.display().to_string(),
                name: config.model.name.clone(),
                upstream: config.upstream.url.clone(),
            },
            policy: policy(&config, manifest),
            verdicts: metrics.verdicts(),
            minutes: history.minutes(),
            labels: manifest.map_or_else(Vec::new, |manifest| labels(manifest, metrics)),
            artifact: manifest.map(artifact),
            score_drift: metrics.score_drift(),
        }
    }

    /// The page for people.
    pub(super) fn page(&self) -> String {
        let markup = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta http-equiv="refresh" content="30";
                    title { "Doorward: " (self.phase) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    main {
                        h1 { "Doorward " (self.version) ": " (self.phase) ", mode " (self.policy.mode) }
                        (self.protection())
                        (self.counts())
                        (self.history())
                        (self.label_table())
                    }
                }
            }
        };
        markup.into_string()
    }

    fn protection(&self) -> Markup {
        let model = self.model.name.as_deref().unwrap_or("any name");
        html! {
            dl {
                dt { "Model" } dd { (self.model.path) " (" (model) ") at " (self.model.upstream) }
                dt { "Rule" } dd { (self.policy.rule) }
                dt { "Guarantee" }
                dd {
                    @match self.policy.false_rejection_rate_bound {
                        Some(bound) => {
                            "At most " (percent(bound)) " of inputs like the held-out images are turned away; the budget is "
                            (percent(self.policy.max_false_rejection_rate)) "."
                        }
                        None => "None yet, or none with this rule.",
                    }
                }
                @if let Some(artifact) = &self.artifact {
                    dt { "Artifact" }
                    dd {
                        (artifact.age_seconds / 86_400) " days old (" (artifact.created) ", doorward " (artifact.written_by) "), "
                        (artifact.held_out_images) " held-out images, model SHA-256 " code { (artifact.model_digest) }
                    }
                }
                dt { "Score drift" }
                dd {
                    @match self.score_drift {
                        Some(distance) => (format!("{distance:.3}")),
                        None => "not known: fewer than 100 scores so far",
                    }
                }
            }
        }
    }

    fn counts(&self) -> Markup {
        html! {
            h2 { "Requests since the start" }
            table {
                tr { @for verdict in self.verdicts.keys() { th { (verdict) } } }
                tr { @for count in self.verdicts.values() { td { (count) } } }
            }
        }
    }

    fn history(&self) -> Markup {
        html! {
            h2 { "By minute" }
            @if self.minutes.is_empty() {
                p { "The first minute is not over." }
            } @else {
                table {
                    tr { th { "until" } @for verdict in self.verdicts.keys() { th { (verdict) } } }
                    @for minute in self.minutes.iter().rev() {
                        tr { td { (minute.end) } @for count in minute.verdicts.values() { td { (count) } } }
                    }
                }
            }
        }
    }

    fn label_table(&self) -> Markup {
        let number = |value: Option<f64>| value.map(|value| format!("{value:.2}"));
        html! {
            h2 { "Labels" }
            @if self.labels.is_empty() {
                p { "There is no detector yet." }
            } @else {
                table {
                    tr {
                        th { "label" } th { "infected" } th { "transfer ratio" } th { "anomaly index" }
                        th { "held-out images" } th { "rejected rows" }
                    }
                    @for label in &self.labels {
                        tr .infected[label.infected == Some(true)] {
                            td { (label.label) }
                            td { (match label.infected { Some(true) => "yes", Some(false) => "no", None => "" }) }
                            td { (number(label.transfer_ratio).unwrap_or_default()) }
                            td { (number(label.anomaly_index).unwrap_or_default()) }
                            td { (label.held_out_images) @if label.pooled { " (pooled)" } }
                            td { (label.rejected_rows) }
                        }
                    }
                }
            }
        }
    }
}

fn policy(config: &Config, manifest: Option<&Manifest>) -> PolicyStatus {
    let policy = &config.policy;
    let calibrated = policy.rule == crate::config::Rule::Calibrated;
    PolicyStatus {
        mode: match policy.mode {
            Mode::Enforce => "enforce",
            Mode::Monitor => "monitor",
        },
        rule: policy.rule.name(),
        max_false_rejection_rate: policy.max_false_rejection_rate.value(),
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

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:16px/1.5 system-ui,sans-serif;margin:0}\
main{max-width:70rem;margin:0 auto;padding:1.5rem}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}\
th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #8884}\
dt{font-weight:600}dd{margin:0 0 .5rem}code{overflow-wrap:anywhere}\
.infected{color:#b3261e;font-weight:600}";
