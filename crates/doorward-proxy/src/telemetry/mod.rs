//! Says what happened: log lines, metrics, and the one event that feeds both.
//!
//! A request ends in exactly one [`Outcome`]; [`metrics::Metrics::record`] counts it and logs it
//! together, so the counters add up to the requests received. Label values come from the closed
//! enums here; nothing that a client sends becomes a label.

use std::io::IsTerminal;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::settings::{self, LogFormat};
use crate::verdict::{UpstreamError, Verdict};
use doorward_detection::Judgement;
use doorward_protocol::Protocol;

pub mod audit;
mod drift;
pub mod metrics;
mod page;
mod recent;
pub mod spans;

pub use page::page;
pub use recent::Rejection;

/// How one request ended.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The id that the client and the upstream see.
    pub request_id: &'a str,
    /// The trace that the client's `traceparent` names.
    pub trace_id: Option<&'a str>,
    /// The wire format.
    pub protocol: Protocol,
    /// What became of the request.
    pub verdict: Verdict,
    /// Rows in the request, as far as it was decoded.
    pub rows: usize,
    /// One judgement per row, where detection gave any.
    pub judgements: &'a [Judgement],
    /// How long detection took, waiting included.
    pub detection: Option<Duration>,
    /// How long the upstream took to answer.
    pub upstream: Option<Duration>,
    /// Why the upstream gave no answer.
    pub upstream_error: Option<UpstreamError>,
    /// What was wrong, in words, where something was.
    pub detail: Option<&'a str>,
}

/// What becomes of rows where the upstream predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteRows {
    /// Perturbed copies that it was sent.
    Copied,
    /// It labels them otherwise than the local model.
    Disputed,
    /// Judged by its predictions.
    Judged,
    /// Its answer told nothing.
    Untold,
}

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A log subscriber is installed already.
    #[error("a log subscriber is installed already")]
    Installed(#[from] tracing::subscriber::SetGlobalDefaultError),
    /// `telemetry.log` is not a filter.
    #[error("telemetry.log = {received:?}: expected a filter such as \"info\"")]
    Filter {
        /// What was written.
        received: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// No spans can be sent.
    #[error("telemetry.otlp cannot be used")]
    Otlp(#[from] opentelemetry_otlp::ExporterBuildError),
    /// `telemetry.otlp.ca` cannot be used.
    #[error("telemetry.otlp.ca cannot be used")]
    Tls(#[from] crate::tls::Error),
    /// A metric cannot be registered.
    #[error("a metric cannot be registered")]
    Metric(#[from] prometheus::Error),
}

/// Sends log lines to standard error, as the settings say.
pub fn init(settings: &settings::Telemetry) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&settings.log)
        .map_err(|source| Error::Filter { received: settings.log.clone(), source })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.format {
        LogFormat::Json => tracing::subscriber::set_global_default(builder.json().finish())?,
        LogFormat::Text => tracing::subscriber::set_global_default(builder.finish())?,
    }
    Ok(())
}

// === impl RemoteRows ===

impl RemoteRows {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Copied, Self::Disputed, Self::Judged, Self::Untold];

    /// The label value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Disputed => "disputed",
            Self::Judged => "judged",
            Self::Untold => "untold",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_that_is_none_is_quoted() {
        let error = init(&settings::Telemetry {
            log: "doorward=loud".to_owned(),
            format: LogFormat::Text,
            otlp: None,
        })
        .expect_err("no such level");
        assert!(error.to_string().contains("doorward=loud"), "{error}");
    }
}
