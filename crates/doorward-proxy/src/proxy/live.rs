//! The proxy that is in effect, which a reload replaces under way.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::error::Error;
use super::proxy::Proxy;
use crate::settings::Settings;
use crate::telemetry::audit::Audit;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::Spans;
use doorward_detection::Judge;

/// Always one whole proxy. A request stays with the one that it began with, so that it sees either
/// the old settings or the new ones and never some of both.
#[derive(Debug)]
pub struct Live {
    current: ArcSwap<Proxy>,
    /// Held by who replaces or opens the current one: neither may miss what the other does.
    changing: Mutex<()>,
}

/// Another proxy that is ready to take the place of the one in effect.
#[derive(Debug)]
pub struct Change<'a> {
    live: &'a Live,
    next: Proxy,
    _changing: MutexGuard<'a, ()>,
}

// === impl Live ===

impl Live {
    /// Without a detector: until [`Live::open`], inference requests are unverified.
    pub fn new(
        config: &Settings,
        metrics: Arc<Metrics>,
        audit: Arc<Audit>,
        spans: Option<Arc<Spans>>,
    ) -> Result<Self, Error> {
        let proxy = Proxy::new(config, metrics, audit, spans)?;
        Ok(Self { current: ArcSwap::from_pointee(proxy), changing: Mutex::new(()) })
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

    /// Prepares to handle requests by these settings, and to judge them by `judge` or, without one,
    /// by the detector that there is.
    pub fn prepare(
        &self,
        config: &Settings,
        judge: Option<Arc<dyn Judge>>,
    ) -> Result<Change<'_>, Error> {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.current().successor(config, judge)?;
        Ok(Change { live: self, next, _changing: changing })
    }
}

// === impl Change ===

impl Change<'_> {
    /// For requests that begin from now on.
    pub fn apply(self) {
        self.live.current.store(Arc::new(self.next));
    }
}
