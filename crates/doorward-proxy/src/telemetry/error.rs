//! The reasons for which telemetry cannot be set up.

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
        /// The text that was written.
        received: String,
        /// The fault in it.
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
