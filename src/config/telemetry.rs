//! The section on logs and on spans for a collector.

use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

use super::value::{file, invalid, probability, required};
use super::{LogFormat, Otlp, Result, Telemetry};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTelemetry {
    log: Option<String>,
    format: Option<LogFormat>,
    otlp: RawOtlp,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawOtlp {
    endpoint: Option<String>,
    sample_ratio: Option<f64>,
    ca: Option<PathBuf>,
}

// === impl RawTelemetry ===

impl RawTelemetry {
    pub(super) fn convert(self) -> Result<Telemetry> {
        Ok(Telemetry {
            log: required("telemetry.log", self.log)?,
            format: required("telemetry.format", self.format)?,
            otlp: self.otlp.convert()?,
        })
    }
}

// === impl RawOtlp ===

impl RawOtlp {
    fn convert(self) -> Result<Option<Otlp>> {
        let sample_ratio = probability("telemetry.otlp.sample_ratio", self.sample_ratio)?;
        let ca = self.ca.map(|path| file("telemetry.otlp.ca", Some(path))).transpose()?;
        let endpoint = self.endpoint.map(spans_url).transpose()?;
        Ok(endpoint.map(|endpoint| Otlp { endpoint, sample_ratio, ca }))
    }
}

/// The URL that spans go to at a collector: `/v1/traces` behind the URL of the collector.
fn spans_url(collector: String) -> Result<Url> {
    let parsed = Url::parse(&collector).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    let Some(mut url) = parsed else {
        return invalid(
            "telemetry.otlp.endpoint",
            format!("{collector:?}"),
            "a collector's URL such as http://127.0.0.1:4318",
        );
    };
    url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
    Ok(url)
}
