//! A gate, and the model server behind it.

use std::sync::Arc;

use doorward_detection::Judge;
use hyper::Request;
use hyper::body::Incoming;

use super::error::Error;
use super::gate::{Answer, Gate, Sending, Serve};
use super::grpc_upstream;
use super::upstream::{Call, Upstream};
use crate::settings::Settings;
use crate::telemetry::audit::Audit;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::Spans;

/// The inspected way to the model server.
#[derive(Debug)]
pub struct Proxy {
    pub(super) gate: Gate,
    upstream: Arc<Upstream>,
    /// `None`: no gRPC.
    pub(super) grpc: Option<Arc<grpc_upstream::Upstream>>,
    audit: Arc<Audit>,
}

// === impl Proxy ===

impl Proxy {
    /// Without a detector: until [`Proxy::open`], inference requests are unverified. Fails where
    /// certificates cannot be read, and without random numbers.
    pub fn new(
        settings: &Settings,
        metrics: Arc<Metrics>,
        audit: Arc<Audit>,
        spans: Option<Arc<Spans>>,
    ) -> Result<Self, Error> {
        let upstream = Arc::new(Upstream::new(&settings.upstream)?);
        let grpc = grpc_upstream::Upstream::new(&settings.upstream)?.map(Arc::new);
        let tap = audit.tap(&settings.audit, settings.judging.rule.name());
        let gate = Gate::new(settings.screening(), metrics, tap, spans)?;
        Ok(Self { gate, upstream, grpc, audit })
    }

    /// The same with the policy, limits, audit log and certificates of `settings`; its requests are
    /// judged by `judge`, or by this one's detector if it has one. Fails where certificates cannot
    /// be read.
    ///
    /// Its queue is a new one, so that while requests that began here end there are two, each
    /// within its bounds.
    pub(super) fn successor(
        &self,
        settings: &Settings,
        judge: Option<Arc<dyn Judge>>,
    ) -> Result<Self, Error> {
        let tap = self.audit.tap(&settings.audit, settings.judging.rule.name());
        let next = Self {
            gate: self.gate.successor(settings.screening(), tap),
            grpc: match self.grpc.as_ref().map(|grpc| grpc.successor(&settings.upstream)) {
                Some(successor) => successor?.map(Arc::new).or_else(|| self.grpc.clone()),
                None => None,
            },
            upstream: match self.upstream.successor(&settings.upstream)? {
                Some(upstream) => Arc::new(upstream),
                None => Arc::clone(&self.upstream),
            },
            audit: Arc::clone(&self.audit),
        };
        if let Some(judge) = judge.or_else(|| self.gate.screen.judge()) {
            next.open(judge)?;
        }
        Ok(next)
    }

    /// From now on requests are judged by `judge`. Fails if they are judged already.
    pub fn open(&self, judge: Arc<dyn Judge>) -> Result<(), Error> {
        self.gate.open(judge)
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Incoming>) -> Answer {
        self.gate.handle(request, &*self.upstream).await
    }
}

// === impl Upstream ===

impl Serve for Upstream {
    fn send(&self, call: Call) -> Sending<'_> {
        Box::pin(self.send(call))
    }
}
