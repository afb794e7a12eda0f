//! Log lines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::error::Error;
use crate::settings::{self, LogFormat};

/// Sends log lines to standard error, as the settings say. Fails for a filter that is none, and
/// where lines are sent already.
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
