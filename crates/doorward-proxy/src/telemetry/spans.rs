//! A span for each request, sent to an OpenTelemetry collector.
//!
//! The span belongs to the trace that the client's `traceparent` names, or begins one, and is the
//! parent of what the upstream does. It has two children: how long the detector and the upstream
//! took.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan};
use prometheus::IntCounterVec;

mod export;

use super::error::Error;
use super::outcome::Outcome;
use crate::settings::Otlp;
use crate::verdict::{Reason, UpstreamError};
use export::Export;

/// The way of spans out of the process.
#[derive(Debug)]
pub struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// The content of a `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The trace, not 0.
    pub trace: u128,
    /// The span of the caller, not 0.
    pub span: u64,
    /// True if the caller's span is recorded.
    pub sampled: bool,
}

/// A request's span, which ends when it is told how the request did.
#[derive(Debug)]
pub struct Span {
    span: SdkSpan,
    spans: Arc<Spans>,
}

/// Something that a request waited for.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// When it began.
    pub since: Instant,
    /// The time that it took.
    pub took: Duration,
}

/// The name of the service in spans.
const SERVICE: &str = "doorward";

/// The ends of a span.
pub(super) const RESULTS: [&str; 3] = ["exported", "failed", "dropped"];

// === impl Spans ===

impl Spans {
    /// Sends spans from this runtime until [`Spans::end`]; `counter` counts them by what became of
    /// them.
    pub fn start(settings: &Otlp, counter: &IntCounterVec) -> Result<Self, Error> {
        let sampler = Sampler::TraceIdRatioBased(settings.sample_ratio.value());
        // Beside the name, OTEL_RESOURCE_ATTRIBUTES; OTEL_SERVICE_NAME is stronger than the
        // default.
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(SERVICE);
        }
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_resource(resource.with_attribute(version).build())
            .with_span_processor(Export::start(settings, counter)?)
            .build();
        let tracer = provider.tracer(SERVICE);
        Ok(Self { provider, tracer })
    }

    /// Begins the span of a request.
    pub fn begin(self: &Arc<Self>, parent: Option<Parent>) -> Span {
        let context = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent.context()),
            None => Context::new(),
        };
        let builder = SpanBuilder::from_name("request").with_kind(SpanKind::Server);
        let span = self.tracer.build_with_context(builder, &context);
        Span { span, spans: Arc::clone(self) }
    }

    /// Sends what is left, for so long. Blocks.
    pub fn end(&self, timeout: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(timeout) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

// === impl Parent ===

impl Parent {
    /// 32 lower-case hexadecimal digits.
    pub fn trace_id(self) -> String {
        TraceId::from(self.trace).to_string()
    }

    fn context(self) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let (trace, span) = (TraceId::from(self.trace), SpanId::from(self.span));
        SpanContext::new(trace, span, flags, true, TraceState::default())
    }
}

// === impl Span ===

impl Span {
    /// The trace that it belongs to: 32 lower-case hexadecimal digits.
    pub fn trace_id(&self) -> String {
        self.span.span_context().trace_id().to_string()
    }

    /// The `traceparent` for the upstream, so that its spans are this one's children; `None` if
    /// this one is not recorded.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.span.span_context();
        let (trace, span) = (context.trace_id(), context.span_id());
        self.span.is_recording().then(|| format!("00-{trace}-{span}-01"))
    }

    /// Ends it.
    pub fn end(
        mut self,
        outcome: &Outcome<'_>,
        model: Option<&str>,
        detection: Option<Interval>,
        upstream: Option<Interval>,
    ) {
        if !self.span.is_recording() {
            return;
        }
        let upstream_error = outcome.upstream_error.map(UpstreamError::label);
        if let Some(interval) = detection {
            self.child("detection", SpanKind::Internal, interval).end_at(interval);
        }
        if let Some(interval) = upstream {
            let mut span = self.child("upstream", SpanKind::Client, interval);
            span.fail(upstream_error);
            span.end_at(interval);
        }
        // What the client did wrong is no failure of the server's.
        let reason = outcome.verdict.reason().filter(|reason| {
            !matches!(reason, Reason::Range | Reason::Undecodable | Reason::Unrecognised)
        });
        self.fail(upstream_error.or(reason.map(Reason::label)));
        self.span.update_name(outcome.protocol.label());
        self.span.set_attributes(attributes(outcome, model));
        self.span.end();
    }

    fn child(&self, name: &'static str, kind: SpanKind, interval: Interval) -> Self {
        let parent = Context::new().with_remote_span_context(self.span.span_context().clone());
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let builder = builder.with_start_time(system_time(interval.since));
        let span = self.spans.tracer.build_with_context(builder, &parent);
        Self { span, spans: Arc::clone(&self.spans) }
    }

    fn end_at(mut self, interval: Interval) {
        self.span.end_with_timestamp(system_time(interval.since) + interval.took);
    }

    fn fail(&mut self, error: Option<&'static str>) {
        if let Some(error) = error {
            self.span.set_attribute(KeyValue::new("error.type", error));
            self.span.set_status(Status::error(error));
        }
    }
}

// === impl Interval ===

impl Interval {
    /// From then to now.
    pub fn since(since: Instant) -> Self {
        Self { since, took: since.elapsed() }
    }
}

fn system_time(then: Instant) -> SystemTime {
    SystemTime::now() - then.elapsed()
}

fn attributes(outcome: &Outcome<'_>, model: Option<&str>) -> Vec<KeyValue> {
    let rejected = outcome.judgements.iter().filter(|judgement| judgement.rejected).count();
    let count = |rows: usize| i64::try_from(rows).unwrap_or(i64::MAX);
    let mut attributes = vec![
        KeyValue::new("doorward.request_id", outcome.request_id.to_owned()),
        KeyValue::new("doorward.verdict", outcome.verdict.label()),
        KeyValue::new("doorward.rows", count(outcome.rows)),
        KeyValue::new("doorward.rejected_rows", count(rejected)),
    ];
    let reason = outcome.verdict.reason().map(Reason::label);
    attributes.extend(reason.map(|reason| KeyValue::new("doorward.reason", reason)));
    let texts = [("doorward.model", model), ("doorward.detail", outcome.detail)];
    let texts = texts.into_iter().filter_map(|(key, text)| Some((key, text?)));
    attributes.extend(texts.map(|(key, text)| KeyValue::new(key, text.to_owned())));
    attributes
}
