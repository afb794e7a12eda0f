//! `serve` and `demo`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

use super::offline;
use super::progress::Progress;
use crate::config::{self, Settings};
use crate::demo;
use crate::watch::Reloader;
use doorward_proxy::server::Server;
use doorward_proxy::telemetry;

/// The sidecar: serves at once, and judges as soon as there is an artifact. `read` reads the
/// settings, now and whenever `file`, if any, changes.
pub(super) fn serve(
    file: Option<&Path>,
    read: impl Fn() -> config::Result<Settings> + Send + Sync + 'static,
) -> Result<ExitCode> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(async {
        let reloader = Reloader::new(file, read)?;
        let configs = reloader.settings().configs()?;
        let config = configs.first().context("there is no model")?;
        telemetry::init(&config.server.telemetry)?;
        let servers: Vec<_> = configs.iter().map(|config| config.server.clone()).collect();
        let server = Server::bind_all(&servers).await?;
        tracing::info!(
            proxy = %server.proxy_addr(),
            grpc = server.grpc_addr().map(tracing::field::display),
            admin = %server.admin_addr(),
            upstream = %config.server.upstream.url,
            "listening"
        );
        let handles = server.handles().to_vec();
        tokio::spawn(reloader.run(handles.clone()));
        let mut offline = tokio::task::spawn_blocking(move || {
            for (config, handle) in configs.iter().zip(handles) {
                let model = offline::load_model(config)?;
                let stored = offline::artifact(config, &model)?;
                handle.detect(model, stored.artifact)?;
            }
            anyhow::Ok(())
        });
        let mut serving = std::pin::pin!(server.run_until_signal());
        tokio::select! {
            drained = &mut serving => drained.map_err(anyhow::Error::from),
            prepared = &mut offline => {
                // Without an artifact there is nothing to wait for: the sidecar must not look
                // alive.
                prepared.context("the offline flow panicked")??;
                Ok(serving.await?)
            }
        }
    });
    // A calibration that a signal interrupted goes on; its result is not wanted any more.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// A backdoored model, its server, the firewall and traffic in one process.
pub(super) fn demo(keep_serving: bool, as_json: bool) -> Result<ExitCode> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(async {
        let progress = Progress::new();
        eprintln!("calibrating on the embedded model and images, which takes one to four minutes on two cores");
        let demo = demo::run(move |stage, share| progress.update(stage, share)).await?;
        if as_json {
            println!("{}", serde_json::to_string(&demo.report)?);
        } else {
            println!("{}", demo.table());
        }
        if keep_serving {
            eprintln!("\n{}", demo.invitation());
            demo.serve().await?;
        } else {
            demo.finish().await?;
        }
        anyhow::Ok(())
    });
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}
