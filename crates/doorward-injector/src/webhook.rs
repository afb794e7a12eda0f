//! The admission webhook: parses, calls, wraps.
//!
//! Two paths say who opts in: `/inject/namespace` takes every pod that does not say no,
//! `/inject/pod` those that say yes. Which requests come here is the MutatingWebhookConfiguration's
//! business.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use super::options::OptIn;
use super::review::answer;
use super::settings::{Settings, Sidecar};
use doorward_proxy::Address;
use doorward_proxy::server::{Error, Listener, Security, Speaks, signalled};
use doorward_proxy::settings::{Identity, Tls};
use sha2::{Digest, Sha256};

/// A running webhook.
#[derive(Debug)]
pub struct Webhook {
    listener: Listener,
    /// True if the certificate follows its files.
    following: tokio::task::JoinHandle<()>,
}

/// The API server keeps a few connections to each webhook.
const CONNECTIONS: usize = 256;

/// Objects of up to 3 MiB come twice in a review when they are updated, with some around them.
const BODY_BYTES: usize = 8 * 1024 * 1024;

/// Kubernetes takes up to a minute to update a mounted Secret.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The API server waits for 30 s at most.
const DRAIN: Duration = Duration::from_secs(30);

/// For endpoints to forget this process.
const LINGER: Duration = Duration::from_millis(500);

const PROTOCOLS: [&str; 1] = ["http/1.1"];

// === impl Webhook ===

impl Webhook {
    /// Binds and answers reviews. The certificate's files are looked at again every ten seconds.
    pub async fn bind(settings: &Settings) -> Result<Self, Error> {
        let identity = Identity {
            certificate: settings.webhook.certificate.clone(),
            key: settings.webhook.key.clone(),
        };
        let tls = Tls { identity, client_ca: None };
        let seen = contents(&tls);
        let security = Arc::new(Security::new(Some(&tls), &PROTOCOLS)?);
        let address = settings.webhook.listen;
        let socket = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Bind { address: Address::Tcp(address), source })?;
        let service = TowerToHyperService::new(router(settings.sidecar.clone()));
        let listener =
            Listener::serve(socket, Arc::clone(&security), service, Speaks::Http1, CONNECTIONS)?;
        let following = tokio::spawn(follow(security, tls, seen));
        Ok(Self { listener, following })
    }

    /// The port where it listens.
    pub fn address(&self) -> &Address {
        self.listener.address()
    }

    /// Answers until SIGTERM or SIGINT.
    pub async fn run_until_signal(self) -> Result<(), Error> {
        signalled().await?;
        self.shutdown().await
    }

    /// Lets reviews in flight finish.
    pub async fn shutdown(self) -> Result<(), Error> {
        self.following.abort();
        match self.listener.stop(LINGER, DRAIN).await {
            true => Ok(()),
            false => Err(Error::Drain { timeout: DRAIN }),
        }
    }
}

fn router(settings: Sidecar) -> Router {
    let namespace = async |state, body| review(state, OptIn::Namespace, body);
    let pod = async |state, body| review(state, OptIn::Pod, body);
    Router::new()
        .route("/inject/namespace", post(namespace))
        .route("/inject/pod", post(pod))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(Arc::new(settings))
}

fn review(State(settings): State<Arc<Sidecar>>, opt_in: OptIn, body: Bytes) -> Response {
    match answer(&body, opt_in, &settings) {
        Ok(answer) => {
            tracing::info!(
                pod = answer.pod,
                verdict = answer.verdict,
                allowed = answer.allowed,
                dry_run = answer.dry_run,
                "a review"
            );
            Json(answer.review).into_response()
        }
        Err(error) => {
            tracing::warn!(%error, "what came is no review");
            (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response()
        }
    }
}

/// Takes the certificate over when its files change. Files that do not go together, as in the
/// middle of an update, change nothing.
async fn follow(security: Arc<Security>, tls: Tls, mut seen: Vec<Option<String>>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = contents(&tls);
        if now == seen {
            continue;
        }
        match security.read(Some(&tls)) {
            Ok(server) => {
                security.replace(server);
                seen = now;
                tracing::info!("the certificate is new");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the certificate stays as it was");
            }
        }
    }
}

fn contents(tls: &Tls) -> Vec<Option<String>> {
    let files: [&PathBuf; 2] = [&tls.identity.certificate, &tls.identity.key];
    let digest = |file| Some(hex::encode(Sha256::digest(std::fs::read(file).ok()?)));
    files.iter().map(digest).collect()
}
