//! `inject` and `webhook`.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

use crate::config::injection;
use doorward_injector::{Access, Keeper, Webhook, inject_manifest};
use doorward_proxy::telemetry;

/// The manifest with the sidecar goes to standard output, what its author should know to standard
/// error.
pub(super) fn inject(manifest: &Path, settings: Option<&Path>) -> Result<ExitCode> {
    let settings = injection::load(settings)?;
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
    let settings = injection::load(settings)?;
    telemetry::init(&settings.telemetry)?;
    Runtime::new()?.block_on(async {
        if let Some(managed) = settings.webhook.self_managed.clone() {
            let access = Access::in_pod(|name| std::env::var(name).ok())?;
            let keeper = Keeper::new(access, managed, settings.webhook.clone())?;
            keeper.keep().await.context("the webhook has no certificate")?;
            tokio::spawn(keep(keeper));
        }
        let webhook = Webhook::bind(&settings).await?;
        tracing::info!(address = %webhook.address(), image = settings.sidecar.image, "listening");
        anyhow::Ok(webhook.run_until_signal().await?)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A certificate has weeks left when it is renewed, so that failures have time to pass.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
const TRY_AGAIN: Duration = Duration::from_secs(60);

async fn keep(keeper: Keeper) {
    let mut pause = LOOK_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        pause = match keeper.keep().await {
            Ok(()) => LOOK_EVERY,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the certificate could not be looked after");
                TRY_AGAIN
            }
        };
    }
}
