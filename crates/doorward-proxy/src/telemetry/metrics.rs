//! Every metric family of the crate.
//!
//! Families are fields of one struct that is built from a registry passed in; each closed label set
//! appears with zeros from the start, so that a rate over a counter misses no first event.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Method;
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry,
};

mod families;

use super::drift::Drift;
use super::error::Error;
use super::outcome::{Outcome, RemoteRows};
use super::recent::{Recent, Rejection};
use super::unrecognised::Unrecognised;
use crate::verdict::{Reason, UpstreamError, Verdict};
use doorward_detection::artifact::Manifest;
use doorward_detection::{Judgement, Signal};
use doorward_protocol::Protocol;
use families::Families;

/// The metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    rows: IntCounterVec,
    rejected_rows: IntCounterVec,
    unverified: IntCounterVec,
    score: HistogramVec,
    held_out_score: HistogramVec,
    detection: Histogram,
    upstream: Histogram,
    added: Histogram,
    batch_rows: Histogram,
    queue_depth: IntGauge,
    upstream_errors: IntCounterVec,
    remote_rows: IntCounterVec,
    transfer_ratio: GaugeVec,
    anomaly_index: GaugeVec,
    label_infected: GaugeVec,
    uap_fooling_rate: Gauge,
    uap_norm: GaugeVec,
    false_rejection_rate_bound: Gauge,
    artifact_info: GaugeVec,
    artifact_created: Gauge,
    model_info: GaugeVec,
    config_reloads: IntCounterVec,
    config_last_reload: IntGauge,
    audit_dropped: IntCounter,
    spans: IntCounterVec,
    score_drift: GaugeVec,
    drift: Mutex<Drift>,
    recent: Mutex<Recent>,
    unrecognised: Mutex<Unrecognised>,
}

const OTHER: &str = "other";

/// The label of the score that signals are joined to.
const JOINED: &str = "joined";

const RELOADS: [&str; 2] = ["failure", "success"];

/// From 0.5 ms, below which no model answers, doubling up to 8 s, near the default deadlines.
const SECONDS: [f64; 15] = [
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0,
    8.0,
];

/// Margins are differences of logits, evidence is a sum of logarithms: both live around zero, and
/// both are decided in the single digits.
const SCORES: [f64; 17] =
    [-20.0, -10.0, -5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 20.0];

const ROWS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

// === impl Metrics ===

impl Metrics {
    /// Rows are counted by label up to this one; `other` takes the rest, so that a model with a
    /// thousand labels does not make a thousand series out of what clients send.
    pub const COUNTED_LABELS: usize = 64;

    /// Registers every family with `registry`.
    pub fn new(registry: Registry) -> Result<Self, Error> {
        let families = Families { registry: &registry };
        let metrics = Self {
            requests: families.counters(
                "requests_total",
                "Requests by how they ended; the sum is the requests received.",
                &["protocol", "verdict"],
            )?,
            rows: families.counters(
                "rows_total",
                "Decoded rows by what detection said of each, or by how their request ended \
                 where it said nothing.",
                &["verdict"],
            )?,
            rejected_rows: families.counters(
                "rejected_rows_total",
                "Rows that the rule turns away, in either mode, by predicted label.",
                &["label"],
            )?,
            unverified: families.counters(
                "unverified_total",
                "Requests without a verdict, by reason.",
                &["reason"],
            )?,
            score: families.histograms("score", "Signals of judged rows.", &["signal"], &SCORES)?,
            held_out_score: families.histograms(
                "held_out_score",
                "Scores of the held-out clean images under the thresholds in effect, to compare \
                 live ones with; the rule turns away what is above 0.",
                &["signal"],
                &SCORES,
            )?,
            detection: families.histogram(
                "detection_seconds",
                "Time a request waited for its verdict.",
                &SECONDS,
            )?,
            upstream: families.histogram(
                "upstream_seconds",
                "Time the upstream took to answer, or to fail.",
                &SECONDS,
            )?,
            added: families.histogram(
                "added_seconds",
                "Time a reply was held after the upstream had answered.",
                &SECONDS,
            )?,
            batch_rows: families.histogram("batch_rows", "Rows per detection batch.", &ROWS)?,
            queue_depth: families
                .integer_gauge("queue_depth", "Rows that wait for, or are under, detection.")?,
            upstream_errors: families.counters(
                "upstream_errors_total",
                "Requests that the upstream did not answer, by reason.",
                &["reason"],
            )?,
            remote_rows: families.counters(
                "remote_rows_total",
                "With predictions of the upstream: perturbed copies sent to it, rows judged by its \
                 answer, rows that it labelled otherwise than the local model, and rows whose \
                 request its answer told nothing about. The last two are judged locally.",
                &["kind"],
            )?,
            transfer_ratio: families.gauges(
                "model_transfer_ratio",
                "Share of a label's least confident training images that its patch changes.",
                &["label"],
            )?,
            anomaly_index: families.gauges(
                "model_anomaly_index",
                "Anomaly index of a label's transfer ratio on the low side.",
                &["label"],
            )?,
            label_infected: families.gauges(
                "label_infected",
                "Whether inspection names the label as a backdoor's target.",
                &["label"],
            )?,
            uap_fooling_rate: families.gauge(
                "uap_fooling_rate",
                "Share of held-out clean images whose label the universal perturbation changes.",
            )?,
            uap_norm: families.gauges(
                "uap_norm",
                "Norm of the universal perturbation, in units of the full pixel range.",
                &["norm"],
            )?,
            false_rejection_rate_bound: families.gauge(
                "false_rejection_rate_bound",
                "Upper bound on the share of clean inputs that are turned away.",
            )?,
            artifact_info: families.gauges(
                "artifact_info",
                "1, labelled with the artifact in use.",
                &["format", "version", "model_digest", "data_digest", "settings_digest"],
            )?,
            artifact_created: families.gauge(
                "artifact_created_timestamp_seconds",
                "When the artifact in use was written, seconds since 1970; 0 without one.",
            )?,
            model_info: families.gauges(
                "model_info",
                "1, labelled with the protected model's name on the upstream.",
                &["model"],
            )?,
            config_reloads: families.counters(
                "config_reloads_total",
                "Times the settings were read again while serving, by whether they took effect.",
                &["result"],
            )?,
            config_last_reload: families.integer_gauge(
                "config_last_reload_successful",
                "Whether the settings in effect are the ones last read: 0 after a reload that failed.",
            )?,
            audit_dropped: families.counter(
                "audit_dropped_total",
                "Audit lines that were lost: the queue was full, or they could not be written.",
            )?,
            spans: families.counters(
                "spans_total",
                "Spans of requests by what became of them: exported to the collector, failed to be, \
                 or dropped for want of room.",
                &["result"],
            )?,
            score_drift: families.gauges(
                "score_drift",
                "Kolmogorov-Smirnov distance, 0 to 1, between the scores of the last 1,000 judged \
                 rows and those of the held-out images; absent before 100 rows.",
                &["signal"],
            )?,
            drift: Mutex::default(),
            recent: Mutex::default(),
            unrecognised: Mutex::default(),
            registry: registry.clone(),
        };
        let build_info =
            families.gauges("build_info", "1, labelled with the build.", &["version"])?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        metrics.start_at_zero();
        Ok(metrics)
    }

    /// Counts and logs how one request ended.
    pub fn record(&self, outcome: &Outcome<'_>) {
        let verdict = outcome.verdict.label();
        self.requests.with_label_values(&[outcome.protocol.label(), verdict]).inc();
        if let Some(reason) = outcome.verdict.reason() {
            self.unverified.with_label_values(&[reason.label()]).inc();
        }
        if outcome.judgements.is_empty() {
            let rows = outcome.rows as u64;
            self.rows.with_label_values(&[verdict]).inc_by(rows);
        }
        for judgement in outcome.judgements {
            self.count_row(judgement, outcome.verdict);
        }
        if let Some(detection) = outcome.detection {
            self.detection.observe(detection.as_secs_f64());
        }
        if let Some(upstream) = outcome.upstream {
            self.upstream.observe(upstream.as_secs_f64());
        }
        if let (Some(detection), Some(upstream)) = (outcome.detection, outcome.upstream) {
            let added = detection.saturating_sub(upstream);
            self.added.observe(added.as_secs_f64());
        }
        if let Some(error) = outcome.upstream_error {
            self.upstream_failed(error);
        }
        if outcome.judgements.iter().any(|judgement| judgement.rejected) {
            self.recent().note(outcome);
        }
        log(outcome);
    }

    /// Counts that the upstream did not answer, where that is not the outcome of one request:
    /// streams.
    pub fn upstream_failed(&self, error: UpstreamError) {
        self.upstream_errors.with_label_values(&[error.label()]).inc();
    }

    /// Notes a request whose method and path the firewall does not know.
    pub fn unrecognised(&self, method: &Method, path: &str) {
        let mut paths = self.unrecognised.lock().unwrap_or_else(PoisonError::into_inner);
        paths.note(method.as_str(), path);
    }

    /// The most frequent of those, with their counts, those first.
    pub fn top_unrecognised(&self, most: usize) -> Vec<(String, u64)> {
        let paths = self.unrecognised.lock().unwrap_or_else(PoisonError::into_inner);
        paths.top(most)
    }

    /// Requests so far without a verdict, by reason.
    pub fn unverified(&self) -> BTreeMap<&'static str, u64> {
        let count = |reason: Reason| {
            (reason.label(), self.unverified.with_label_values(&[reason.label()]).get())
        };
        Reason::ALL.map(count).into()
    }

    /// Sets the gauges that describe the model, from the artifact in use.
    pub fn publish(&self, manifest: &Manifest) {
        for family in
            [&self.transfer_ratio, &self.anomaly_index, &self.label_infected, &self.artifact_info]
        {
            family.reset();
        }
        for label in 0..manifest.labels.min(Self::COUNTED_LABELS) {
            self.rejected_rows.with_label_values(&[label.to_string()]);
        }
        if let Some(inspection) = &manifest.inspection {
            for finding in &inspection.labels {
                let infected = inspection.infected.contains(&finding.label);
                let label = [finding.label.to_string()];
                self.transfer_ratio.with_label_values(&label).set(finding.transfer_ratio);
                self.anomaly_index.with_label_values(&label).set(finding.anomaly_index);
                self.label_infected.with_label_values(&label).set(f64::from(u8::from(infected)));
            }
        }
        let perturbation = &manifest.perturbation;
        self.uap_fooling_rate.set(perturbation.fooling_rate);
        self.uap_norm.with_label_values(&["l2"]).set(perturbation.l2);
        self.uap_norm.with_label_values(&["linf"]).set(f64::from(perturbation.epsilon));
        self.false_rejection_rate_bound.set(manifest.thresholds.false_rejection_rate_bound);
        self.artifact_created.set(manifest.created as f64);
        // Not the seed: who knows it can compute the perturbation.
        self.artifact_info
            .with_label_values(&[
                manifest.format.to_string().as_str(),
                &manifest.doorward,
                &manifest.model_digest,
                &manifest.data_digest,
                &manifest.settings_digest,
            ])
            .set(1.0);
    }

    /// Names the protected model, by the settings: `any` if they leave that open.
    pub fn protects(&self, model: Option<&str>) {
        self.model_info.with_label_values(&[model.unwrap_or("any")]).set(1.0);
    }

    /// Live scores are compared with these excesses of held-out images from now on.
    pub fn compare_with(&self, held_out: Vec<f32>) {
        self.held_out_score.reset();
        let scores = self.held_out_score.with_label_values(&[JOINED]);
        for &score in &held_out {
            scores.observe(f64::from(score));
        }
        self.drift().compare_with(held_out);
    }

    /// Counts audit lines that are lost.
    pub fn audit_dropped(&self) -> &IntCounter {
        &self.audit_dropped
    }

    /// Counts spans by what became of them.
    pub fn spans(&self) -> &IntCounterVec {
        &self.spans
    }

    /// Counts that the settings were read again; if not `applied`, the old ones stay in effect.
    pub fn reloaded(&self, applied: bool) {
        self.config_reloads.with_label_values(&[RELOADS[usize::from(applied)]]).inc();
        self.config_last_reload.set(i64::from(applied));
    }

    /// Requests so far by verdict, of all protocols.
    pub fn verdicts(&self) -> BTreeMap<&'static str, u64> {
        let sum = |verdict| {
            let counts = Protocol::ALL.map(|protocol| {
                self.requests.with_label_values(&[protocol.label(), verdict]).get()
            });
            (verdict, counts.iter().sum())
        };
        Verdict::LABELS.into_iter().map(sum).collect()
    }

    /// Rows so far that the rule turned away, predicted as `label`, one of the counted ones.
    pub fn rejected_rows(&self, label: usize) -> u64 {
        self.rejected_rows.with_label_values(&[label.to_string()]).get()
    }

    /// The distance between live scores and the held-out ones; `None` if it is not known.
    pub fn score_drift(&self) -> Option<f64> {
        self.drift().distance()
    }

    /// The rejections of late, the newest first.
    pub fn recent_rejections(&self) -> Vec<Rejection> {
        self.recent().newest()
    }

    /// Counts rows in the upstream's hands.
    pub fn remote_rows(&self, kind: RemoteRows, rows: usize) {
        self.remote_rows.with_label_values(&[kind.label()]).inc_by(rows as u64);
    }

    /// Counts the rows of one detection batch.
    pub fn record_batch(&self, rows: usize) {
        self.batch_rows.observe(rows as f64);
    }

    /// Rows that enter the queue.
    pub fn enqueued(&self, rows: usize) {
        self.queue_depth.add(rows as i64);
    }

    /// Rows that leave the queue, judged or not.
    pub fn dequeued(&self, rows: usize) {
        self.queue_depth.sub(rows as i64);
    }

    /// Everything as it is now.
    pub(super) fn gather(&self) -> Vec<MetricFamily> {
        let signal = [JOINED];
        match self.score_drift() {
            Some(distance) => self.score_drift.with_label_values(&signal).set(distance),
            // Unknown is not zero.
            None => self.score_drift.reset(),
        }
        self.registry.gather()
    }

    fn drift(&self) -> MutexGuard<'_, Drift> {
        // Its numbers may be off after a panic, which no request should fail for.
        self.drift.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_at_zero(&self) {
        // What the process started with is in effect.
        self.config_last_reload.set(1);
        for verdict in Verdict::LABELS {
            for protocol in Protocol::ALL {
                self.requests.with_label_values(&[protocol.label(), verdict]);
            }
            self.rows.with_label_values(&[verdict]);
        }
        for reason in Reason::ALL {
            self.unverified.with_label_values(&[reason.label()]);
        }
        for name in Signal::ALL.map(Signal::name).into_iter().chain([JOINED]) {
            self.score.with_label_values(&[name]);
        }
        for error in UpstreamError::ALL {
            self.upstream_errors.with_label_values(&[error.label()]);
        }
        for kind in RemoteRows::ALL {
            self.remote_rows.with_label_values(&[kind.label()]);
        }
        for norm in ["l2", "linf"] {
            self.uap_norm.with_label_values(&[norm]);
        }
        self.rejected_rows.with_label_values(&[OTHER]);
        for result in RELOADS {
            self.config_reloads.with_label_values(&[result]);
        }
        for result in super::spans::RESULTS {
            self.spans.with_label_values(&[result]);
        }
    }

    fn count_row(&self, judgement: &Judgement, verdict: Verdict) {
        // A clean row of a rejected request was not at fault.
        let row_verdict = if judgement.rejected { verdict } else { Verdict::Passed };
        self.rows.with_label_values(&[row_verdict.label()]).inc();
        if judgement.rejected {
            let number = judgement.label.to_string();
            let label = if judgement.label < Self::COUNTED_LABELS { &number } else { OTHER };
            self.rejected_rows.with_label_values(&[label]).inc();
        }
        if let Some(joined) = judgement.joined {
            self.drift().observe(joined);
        }
        let scores = Signal::ALL.map(|signal| (signal.name(), judgement.scores[signal]));
        for (name, score) in scores.into_iter().chain([(JOINED, judgement.joined)]) {
            if let Some(score) = score {
                self.score.with_label_values(&[name]).observe(f64::from(score));
            }
        }
    }
}

/// One log line a request: at `info` where an operator may have to look, else at `debug`.
fn log(outcome: &Outcome<'_>) {
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                request_id = outcome.request_id,
                trace_id = outcome.trace_id,
                protocol = outcome.protocol.label(),
                verdict = outcome.verdict.label(),
                reason = outcome.verdict.reason().map(Reason::label),
                rows = outcome.rows,
                detection_ms = outcome.detection.map(milliseconds),
                upstream_ms = outcome.upstream.map(milliseconds),
                upstream_error = outcome.upstream_error.map(UpstreamError::label),
                detail = outcome.detail,
                "request"
            )
        };
    }
    let routine = matches!(outcome.verdict, Verdict::Bypassed | Verdict::Passed);
    if routine && outcome.upstream_error.is_none() {
        line!(debug);
    } else {
        line!(info);
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
