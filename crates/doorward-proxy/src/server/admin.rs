//! The operators' listener: `/metrics`, `/livez`, `/readyz`, `/status`, `/status.json`.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tower::limit::ConcurrencyLimitLayer;

use super::handle::Handle;
use super::pictures::{Shown, visible};
use super::readiness::Phase;
use super::status::{History, Status, page};
use crate::proxy::Peer;
use crate::telemetry;

/// One protected model.
#[derive(Clone)]
struct Model {
    handle: Handle,
    history: Arc<History>,
    /// Names of all of them, where there are several.
    names: Arc<[String]>,
}

/// A page of metrics is gathered whole; more than a few at once serve nobody.
const REQUESTS_AT_ONCE: usize = 8;

/// The routes. `/status` is the first model's; each has its own, `/status/NAME`, where there are
/// several.
pub(super) fn router(handles: &[Handle]) -> Router {
    let names: Arc<[String]> = match handles {
        [_] => Arc::default(),
        _ => handles.iter().filter_map(|handle| handle.name().map(str::to_owned)).collect(),
    };
    let model = |handle: &Handle| {
        let history = Arc::new(History::new(handle.metrics()));
        tokio::spawn(History::run(Arc::downgrade(&history), Arc::clone(handle.metrics())));
        Model { handle: handle.clone(), history, names: Arc::clone(&names) }
    };
    let models: Vec<Model> = handles.iter().map(model).collect();
    let of_all: Arc<[Handle]> = handles.into();
    let mut router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics_page))
        .route("/readyz", get(ready))
        .with_state(of_all);
    if let Some(first) = models.first() {
        router = router.merge(status_routes("", first.clone()));
    }
    for (name, model) in names.iter().zip(models) {
        router = router.merge(status_routes(&format!("/{name}"), model));
    }
    router.layer(ConcurrencyLimitLayer::new(REQUESTS_AT_ONCE))
}

fn status_routes(suffix: &str, model: Model) -> Router {
    Router::new()
        .route(&format!("/status{suffix}"), get(status_page))
        .route(
            &format!("/status.json{suffix}"),
            get(async |State(model): State<Model>| Json(model.status())),
        )
        .with_state(model)
}

impl Model {
    fn status(&self) -> Status {
        Status::gather(&self.handle, &self.history, &self.names)
    }
}

async fn status_page(
    State(model): State<Model>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
) -> Html<String> {
    let shown = match visible(peer, &headers) {
        true => shown(&model.handle).await,
        false => None,
    };
    Html(page(&model.status(), shown.as_ref()))
}

/// Pictures take a while to paint and to read, the first time most of all.
async fn shown(handle: &Handle) -> Option<Shown> {
    let handle = handle.clone();
    let shown = tokio::task::spawn_blocking(move || {
        let quarantine = handle.in_effect.snapshot().0.audit.quarantine;
        Some(handle.in_effect.pictures()?.shown(quarantine.as_ref()))
    });
    shown.await.ok().flatten()
}

async fn metrics_page(State(handles): State<Arc<[Handle]>>) -> Response {
    let models: Vec<_> =
        handles.iter().map(|handle| (handle.name(), &**handle.metrics())).collect();
    match telemetry::page(&models) {
        Ok(page) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Once every model has its detector.
async fn ready(State(handles): State<Arc<[Handle]>>) -> Response {
    let phases: Vec<Phase> = handles.iter().map(|handle| handle.readiness.phase()).collect();
    let unready = phases.iter().copied().find(|&phase| phase != Phase::Ready);
    match unready.unwrap_or(Phase::Ready) {
        Phase::Ready => "ok\n".into_response(),
        Phase::Calibrating => not_ready("calibrating: there is no detector yet\n"),
        Phase::Draining => not_ready("draining: the process is shutting down\n"),
    }
}

fn not_ready(reason: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}
