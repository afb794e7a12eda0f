//! Other settings take the place of those in effect while requests go on.

use std::sync::{Arc, MutexGuard};

use doorward_detection::conformal::Thresholds;
use doorward_detection::{Artifact, Judge};
use doorward_engine::Classifier;

use super::error::Error;
use super::handle::Handle;
use super::in_effect::{Source, State};
use crate::proxy;
use crate::settings::Settings;

// === impl Handle ===

impl Handle {
    /// There is an artifact: judges requests by it from now on, as the policy in effect says, and
    /// reports readiness. Learns nothing, but computes thresholds; not for an async worker.
    pub fn detect(&self, model: Arc<dyn Classifier>, artifact: Artifact) -> Result<(), Error> {
        self.detect_through(model, artifact, |judge| judge)
    }

    /// As [`Handle::detect`], by what `wrap` makes of the detector, until the next reload.
    pub fn detect_through(
        &self,
        model: Arc<dyn Classifier>,
        artifact: Artifact,
        wrap: impl FnOnce(Arc<dyn Judge>) -> Arc<dyn Judge>,
    ) -> Result<(), Error> {
        let mut state = self.in_effect.lock();
        let source = Source { model, artifact };
        let policy = state.config.judging;
        let (judge, thresholds) = source.detector(&policy)?;
        tracing::info!(
            rule = policy.rule.name(),
            false_rejection_rate_bound = thresholds.false_rejection_rate_bound,
            "ready"
        );
        self.metrics.compare_with(source.excesses(&thresholds));
        self.ready(wrap(judge), &source.manifest(thresholds))?;
        state.source = Some(source);
        state.pictures = None;
        Ok(())
    }

    /// Puts the policy, limits and audit log of `config` into effect for requests that begin from
    /// now on, and its TLS for new connections; the other keys need a new process. The files of the
    /// audit log and of TLS are opened again in any case. After an error nothing has changed. Not
    /// for an async worker.
    pub fn reload(&self, config: &Settings) -> Result<(), Error> {
        reload(&[self], &[config])
    }

    fn prepare<'a>(&'a self, config: &'a Settings) -> Result<Change<'a>, Error> {
        let state = self.in_effect.lock();
        let detector = match &state.source {
            Some(source) => Some(source.detector(&config.judging)?),
            None => None,
        };
        let (judge, thresholds) = detector.unzip();
        let proxy = self.proxy.prepare(config, judge)?;
        Ok(Change { handle: self, config, state, proxy, thresholds })
    }
}

/// As [`Handle::reload`], for each model its own settings: of all of them or of none.
pub fn reload_all(handles: &[Handle], configs: &[Settings]) -> Result<(), Error> {
    if let ([handle], [config]) = (handles, configs) {
        return handle.reload(config);
    }
    let name = |name: Option<&str>| name.unwrap_or("any").to_owned();
    let settings_of = |handle: &Handle| configs.iter().find(|it| it.model.name == handle.name);
    let known: Option<Vec<&Settings>> = handles.iter().map(settings_of).collect();
    match known {
        Some(known) if configs.len() == handles.len() => {
            reload(&handles.iter().collect::<Vec<_>>(), &known)
        }
        _ => Err(Error::Models {
            received: configs.iter().map(|it| name(it.model.name.as_deref())).collect(),
            expected: handles.iter().map(|handle| name(handle.name())).collect(),
        }),
    }
}

/// The handles are of one process, and share its audit log and its certificates.
fn reload(handles: &[&Handle], configs: &[&Settings]) -> Result<(), Error> {
    let (Some(process), Some(shared)) = (handles.first(), configs.first()) else { return Ok(()) };
    let sink = process.audit.open(&shared.audit)?;
    let [http, grpc] = &process.security;
    let [http_tls, grpc_tls] = [http.read(shared.tls.as_ref())?, grpc.read(shared.tls.as_ref())?];
    let changes = handles.iter().zip(configs).map(|(handle, config)| handle.prepare(config));
    let changes = changes.collect::<Result<Vec<_>, _>>()?;
    // Nothing fails from here on.
    http.replace(http_tls);
    grpc.replace(grpc_tls);
    process.audit.replace(sink);
    for change in changes {
        change.apply();
    }
    Ok(())
}

/// Other settings of a model, which can take effect.
struct Change<'a> {
    handle: &'a Handle,
    config: &'a Settings,
    state: MutexGuard<'a, State>,
    proxy: proxy::Change<'a>,
    thresholds: Option<Thresholds>,
}

// === impl Change ===

impl Change<'_> {
    fn apply(self) {
        let Self { handle, config, mut state, proxy, thresholds } = self;
        proxy.apply();
        if let (Some(source), Some(thresholds)) = (&state.source, thresholds) {
            handle.metrics.compare_with(source.excesses(&thresholds));
            let manifest = source.manifest(thresholds);
            handle.metrics.publish(&manifest);
            handle.in_effect.describe(&manifest);
        }
        state.config.policy = config.policy.clone();
        state.config.judging = config.judging;
        state.config.limits = config.limits.clone();
        state.config.audit = config.audit.clone();
    }
}
