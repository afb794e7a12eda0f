//! The operators' listener: `/metrics`, `/livez`, `/readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower::limit::ConcurrencyLimitLayer;

use crate::telemetry::metrics::Metrics;

/// Whether traffic should be sent here. It only moves forward.
#[derive(Debug)]
pub(super) struct Readiness(AtomicU8);

/// A part of a process's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// No detector yet.
    Calibrating,
    /// Serving.
    Ready,
    /// On the way out.
    Draining,
}

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
}

/// A page of metrics is gathered whole; more than a few at once serve nobody.
const REQUESTS_AT_ONCE: usize = 8;

/// The routes.
pub(super) fn router(metrics: Arc<Metrics>, readiness: Arc<Readiness>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics_page))
        .route("/readyz", get(ready))
        .layer(ConcurrencyLimitLayer::new(REQUESTS_AT_ONCE))
        .with_state(Shared { metrics, readiness })
}

async fn metrics_page(State(shared): State<Shared>) -> Response {
    match shared.metrics.page() {
        Ok(page) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(shared): State<Shared>) -> Response {
    match shared.readiness.phase() {
        Phase::Ready => "ok\n".into_response(),
        Phase::Calibrating => not_ready("calibrating: there is no detector yet\n"),
        Phase::Draining => not_ready("draining: the process is shutting down\n"),
    }
}

fn not_ready(reason: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}

// === impl Readiness ===

impl Readiness {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(Phase::Calibrating as u8))
    }

    /// Enters a phase, unless a later one has begun: a detector that comes during the drain must
    /// not bring traffic back.
    pub(super) fn set(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::AcqRel);
    }

    fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            value if value == Phase::Calibrating as u8 => Phase::Calibrating,
            value if value == Phase::Ready as u8 => Phase::Ready,
            _ => Phase::Draining,
        }
    }
}
