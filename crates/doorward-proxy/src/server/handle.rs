//! The handle of a running firewall, from anywhere.

use std::sync::Arc;

use doorward_detection::Judge;
use doorward_detection::artifact::Manifest;

use super::error::Error;
use super::in_effect::InEffect;
use super::readiness::{Phase, Readiness};
use super::security::Security;
use crate::proxy::Live;
use crate::telemetry::audit::Audit;
use crate::telemetry::metrics::Metrics;

/// A handle of a running firewall of one model, from anywhere.
#[derive(Clone, Debug)]
pub struct Handle {
    /// The model's, if requests have to name it.
    pub(super) name: Option<String>,
    pub(super) proxy: Arc<Live>,
    pub(super) in_effect: Arc<InEffect>,
    pub(super) audit: Arc<Audit>,
    /// The security of the listeners for clients.
    pub(super) security: [Arc<Security>; 2],
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Arc<Readiness>,
}

// === impl Handle ===

impl Handle {
    /// There is a detector, whatever the policy: publishes what it was calibrated to, judges
    /// requests from now on, and reports readiness.
    pub fn ready(&self, judge: Arc<dyn Judge>, manifest: &Manifest) -> Result<(), Error> {
        self.proxy.open(judge)?;
        self.metrics.publish(manifest);
        self.in_effect.describe(manifest);
        self.readiness.set(Phase::Ready);
        Ok(())
    }

    /// The metrics of this model.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The model's name, if requests have to name it.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}
