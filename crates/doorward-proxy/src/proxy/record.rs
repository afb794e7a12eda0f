//! The facts known of one request so far; they are counted and logged when it is dropped.
//!
//! Dropping is the one thing that happens to every request, also to those whose client goes away,
//! so no request can end uncounted, and none can be counted twice.

use std::sync::Arc;

use doorward_detection::Judgement;
use doorward_protocol::Protocol;
use hyper::HeaderMap;

use super::failed::Failed;
use super::respond::Failure;
use super::trace;
use crate::telemetry::Outcome;
use crate::telemetry::audit::{Inputs, Tap};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::{Interval, Span};
use crate::verdict::{UpstreamError, Verdict};

/// One request's outcome in the making.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) metrics: Arc<Metrics>,
    request_id: String,
    pub(super) trace_id: Option<String>,
    /// `None`: no spans are made.
    pub(super) span: Option<Span>,
    /// The audit log that the request is noted in; `None`: none.
    pub(super) audit: Option<Arc<Tap>>,
    pub(super) model: Option<String>,
    pub(super) inputs: Option<Inputs>,
    protocol: Protocol,
    /// `None`: it was not answered.
    verdict: Option<Verdict>,
    pub(super) rows: usize,
    pub(super) judgements: Vec<Judgement>,
    pub(super) detection: Option<Interval>,
    pub(super) upstream: Option<Interval>,
    upstream_error: Option<UpstreamError>,
    pub(super) detail: Option<String>,
}

/// The model that an inference path names, `/v2/models/NAME/...` or `/predictions/NAME`, as the
/// client spelt it.
pub(super) fn model_in(path: &str) -> Option<String> {
    let name =
        path.split('/').skip_while(|part| !matches!(*part, "models" | "predictions")).nth(1)?;
    Some(name.chars().take(128).collect())
}

// === impl Record ===

impl Record {
    /// A request that nothing is known of but its id.
    pub(super) fn new(metrics: Arc<Metrics>, protocol: Protocol, request_id: String) -> Self {
        Self {
            metrics,
            request_id,
            trace_id: None,
            span: None,
            audit: None,
            model: None,
            inputs: None,
            protocol,
            verdict: None,
            rows: 0,
            judgements: Vec::new(),
            detection: None,
            upstream: None,
            upstream_error: None,
            detail: None,
        }
    }

    /// The id that the client and the upstream see.
    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }

    /// True if anybody wants to know which model the request is for.
    pub(super) fn names_model(&self) -> bool {
        self.audit.is_some() || self.span.is_some()
    }

    /// Makes what the upstream does a part of the request's span.
    pub(super) fn continue_trace(&self, headers: &mut HeaderMap) {
        if let Some(traceparent) = self.span.as_ref().and_then(Span::traceparent) {
            trace::replace(headers, &traceparent);
        }
    }

    /// The request is this one, from 0, of a stream's.
    pub(super) fn number(&mut self, number: u64) {
        self.request_id = format!("{}.{number}", self.request_id);
    }

    /// The rows are about to be judged.
    pub(super) fn submitted(&mut self, rows: usize, inputs: &Inputs) {
        self.rows = rows;
        self.inputs = self.audit.is_some().then(|| inputs.clone());
    }

    /// The upstream gave no answer.
    pub(super) fn unanswered(&mut self, failed: Failed) -> Failure {
        self.upstream_error = Some(failed.error);
        self.detail = Some(failed.cause);
        Failure::Upstream(failed.error)
    }

    /// There is an answer, by this verdict.
    pub(super) fn answered(mut self, verdict: Verdict) {
        self.verdict = Some(verdict);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let verdict = self.verdict.unwrap_or_else(|| {
            self.detail = Some("the client went away before it was answered".to_owned());
            Verdict::Refused
        });
        let outcome = Outcome {
            request_id: &self.request_id,
            trace_id: self.trace_id.as_deref(),
            protocol: self.protocol,
            verdict,
            rows: self.rows,
            judgements: &self.judgements,
            detection: self.detection.map(|interval| interval.took),
            upstream: self.upstream.map(|interval| interval.took),
            upstream_error: self.upstream_error,
            detail: self.detail.as_deref(),
        };
        self.metrics.record(&outcome);
        if let Some(audit) = &self.audit {
            audit.record(&outcome, self.model.as_deref(), self.inputs.as_ref());
        }
        if let Some(span) = self.span.take() {
            span.end(&outcome, self.model.as_deref(), self.detection, self.upstream);
        }
    }
}
