//! The settings in effect, and what detectors are made of.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use doorward_detection::artifact::{Artifact, Manifest};
use doorward_detection::conformal::Thresholds;
use doorward_detection::{Judge, open};
use doorward_engine::Classifier;

use super::error::Error;
use super::pictures::Pictures;
use crate::settings::Settings;

/// The settings and the source that a running firewall works with. Code that changes it locks it,
/// so that changes come one by one.
#[derive(Debug)]
pub(super) struct InEffect {
    state: Mutex<State>,
    /// The manifest of the detector in effect; apart, because it is told while the state is locked.
    manifest: ArcSwapOption<Manifest>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) config: Settings,
    pub(super) source: Option<Source>,
    /// The pictures of that source, once they were asked for.
    pub(super) pictures: Option<Arc<Pictures>>,
}

/// The model and artifact that detectors are made of.
pub(super) struct Source {
    pub(super) model: Arc<dyn Classifier>,
    pub(super) artifact: Artifact,
}

// === impl InEffect ===

impl InEffect {
    pub(super) fn new(config: &Settings) -> Self {
        let state = Mutex::new(State { config: config.clone(), source: None, pictures: None });
        Self { state, manifest: ArcSwapOption::empty() }
    }

    /// Notes the manifest of the detector in effect.
    pub(super) fn describe(&self, manifest: &Manifest) {
        self.manifest.store(Some(Arc::new(manifest.clone())));
    }

    /// The settings, and what the detector was calibrated to.
    pub(super) fn snapshot(&self) -> (Settings, Option<Arc<Manifest>>) {
        (self.lock().config.clone(), self.manifest.load_full())
    }

    /// The pictures of the detector; `None` without one. Not for an async worker.
    pub(super) fn pictures(&self) -> Option<Arc<Pictures>> {
        let mut state = self.lock();
        if state.pictures.is_none() {
            let source = state.source.as_ref()?;
            let painted = Pictures::paint(&*source.model, &source.artifact);
            let painted = painted.inspect_err(|error| {
                let error = error as &dyn std::error::Error;
                tracing::warn!(error, "the detector's pictures cannot be painted");
            });
            state.pictures = painted.ok().map(Arc::new);
        }
        state.pictures.clone()
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        self.lock().config.limits.drain_timeout
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked had not changed it yet: it is changed by single assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Source ===

impl Source {
    /// Fitted to the policy's budget from the held-out scores in the artifact.
    pub(super) fn detector(
        &self,
        policy: &doorward_detection::Policy,
    ) -> Result<(Arc<dyn Judge>, Thresholds), Error> {
        let model = Arc::clone(&self.model);
        let (detector, thresholds) = open::detector(model, &self.artifact, policy, policy.rule)?;
        Ok((Arc::new(detector), thresholds))
    }

    /// The excesses of the held-out images' scores over these thresholds.
    pub(super) fn excesses(&self, thresholds: &Thresholds) -> Vec<f32> {
        let held_out = self.artifact.holdout.iter();
        held_out.map(|joined| thresholds.excess(joined)).collect()
    }

    pub(super) fn manifest(&self, thresholds: Thresholds) -> Manifest {
        Manifest { thresholds, ..self.artifact.manifest.clone() }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("manifest", &self.artifact.manifest).finish_non_exhaustive()
    }
}
