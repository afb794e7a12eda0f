//! The proxy that is in effect, which a reload replaces under way.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use hyper::Request;
use hyper::body::Incoming;
use tokio::sync::watch;

use super::{Answer, Error, GrpcAnswer, Proxy};
use crate::config::Config;
use crate::detect::Judge;
use crate::telemetry::audit::Audit;
use crate::telemetry::metrics::Metrics;

/// Always one whole proxy. A request stays with the one that it began with, so that it sees either
/// the old settings or the new ones and never some of both.
#[derive(Debug)]
pub struct Live {
    current: ArcSwap<Proxy>,
    /// Held by who replaces or opens the current one: neither may miss what the other does.
    changing: Mutex<()>,
    draining: watch::Sender<bool>,
}

// === impl Live ===

impl Live {
    /// Without a detector: until [`Live::open`], inference requests are unverified.
    pub fn new(config: &Config, metrics: Arc<Metrics>, audit: Arc<Audit>) -> Result<Self, Error> {
        let proxy = Proxy::new(config, metrics, audit)?;
        Ok(Self {
            current: ArcSwap::from_pointee(proxy),
            changing: Mutex::new(()),
            draining: watch::Sender::new(false),
        })
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Incoming>) -> Answer {
        self.current().handle(request).await
    }

    /// Answers one gRPC call.
    pub async fn handle_grpc(&self, request: Request<Incoming>) -> GrpcAnswer {
        self.current().handle_grpc(request, self.draining.subscribe()).await
    }

    /// Streams read no further message from now on.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// The proxy for a request that begins now.
    pub fn current(&self) -> Arc<Proxy> {
        self.current.load_full()
    }

    /// From now on requests are judged by `judge`.
    pub fn open(&self, judge: Arc<dyn Judge>) -> Result<(), Error> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.current().open(judge)
    }

    /// From now on requests are handled by these settings, and judged by `judge` or, without one, by
    /// the detector that there is. After an error nothing has changed.
    pub fn replace(&self, config: &Config, judge: Option<Arc<dyn Judge>>) -> Result<(), Error> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.current().successor(config, judge)?;
        self.current.store(Arc::new(next));
        Ok(())
    }
}
