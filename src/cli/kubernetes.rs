//! `inject` and `webhook`.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

use crate::k8s::{Settings, Webhook, inject_manifest};
use crate::telemetry;

/// The manifest with the sidecar goes to standard output, what its author should know to standard error.
pub(super) fn inject(manifest: &Path, settings: Option<&Path>) -> Result<ExitCode> {
    let settings = Settings::load(settings)?;
    let mut text = String::new();
    if manifest == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        text = std::fs::read_to_string(manifest)
            .with_context(|| format!("cannot read {}", manifest.display()))?;
    }
    let injected = inject_manifest(&text, &settings.sidecar)
        .with_context(|| format!("nothing of {} is injected", manifest.display()))?;
    for note in injected.notes {
        eprintln!("{note}");
    }
    print!("{}", injected.text);
    Ok(ExitCode::SUCCESS)
}

/// Answers the API server until a signal.
pub(super) fn webhook(settings: Option<&Path>) -> Result<ExitCode> {
    let settings = Settings::load(settings)?;
    telemetry::init(&settings.telemetry)?;
    Runtime::new()?.block_on(async {
        let webhook = Webhook::bind(&settings).await?;
        tracing::info!(address = %webhook.address(), image = settings.sidecar.image, "listening");
        webhook.run_until_signal().await
    })?;
    Ok(ExitCode::SUCCESS)
}
