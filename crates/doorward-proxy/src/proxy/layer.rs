//! Screening as a layer around somebody else's service.
//!
//! ```
//! # use std::sync::Arc;
//! use axum::Router;
//! use axum::routing::post;
//! use doorward_proxy::settings::{Allowed, Limits, Policy, Predictions, Screening};
//! use doorward_proxy::{Metrics, ScreenLayer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let layer = ScreenLayer::new(
//!     Screening {
//!         allowed: Allowed { model: Some("digits"), ..Allowed::default() },
//!         signature: "serving_default",
//!         predictions: Predictions::Local,
//!         max_rows: None,
//!         images: &Default::default(),
//!         pictures: Default::default(),
//!         range_slack: 0.0,
//!         policy: &Policy::default(),
//!         limits: &Limits::default(),
//!     },
//!     Arc::new(Metrics::new(prometheus::Registry::new())?),
//! )?;
//! let app: Router = Router::new()
//!     .route("/v2/models/digits/infer", post(async || "the model's answer"))
//!     .layer(layer.clone());
//! // Until `layer.open(detector)`, requests have the verdict of `policy.unverified.artifact`.
//! # drop(app);
//! # Ok(())
//! # }
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use doorward_detection::Judge;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::{Request, Response};
use tower::{Layer, Service};

use super::error::Error;
use super::failed::{Failed, broken};
use super::gate::{Answer, BodyError, Gate, Sending, Serve};
use super::upstream::{Call, drop_replaced, strip};
use crate::settings::Screening;
use crate::telemetry::metrics::Metrics;
use crate::verdict::UpstreamError;

/// A layer that has the inputs of inference requests judged before the service's answer goes out.
///
/// It decodes requests as the sidecar does, and treats all other routes as the sidecar does: reads
/// of health and metadata pass, the rest is refused. Lay it around the routes of the model alone
/// where a service has others.
#[derive(Clone, Debug)]
pub struct ScreenLayer {
    gate: Arc<Gate>,
}

/// A service behind a [`ScreenLayer`].
#[derive(Clone, Debug)]
pub struct Screened<S> {
    gate: Arc<Gate>,
    inner: S,
}

/// The service, as requests that may pass see it.
struct Inner<S>(Mutex<S>);

// === impl ScreenLayer ===

impl ScreenLayer {
    /// Without a detector, which comes later. Fails without random numbers.
    pub fn new(settings: Screening<'_>, metrics: Arc<Metrics>) -> Result<Self, Error> {
        Ok(Self { gate: Arc::new(Gate::new(settings, metrics, None, None)?) })
    }

    /// From now on requests are judged by `judge`. Fails if they are judged already.
    pub fn open(&self, judge: Arc<dyn Judge>) -> Result<(), Error> {
        self.gate.open(judge)
    }
}

impl<S> Layer<S> for ScreenLayer {
    type Service = Screened<S>;

    fn layer(&self, inner: S) -> Screened<S> {
        Screened { gate: Arc::clone(&self.gate), inner }
    }
}

// === impl Screened ===

impl<S, B, R> Service<Request<B>> for Screened<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BodyError>,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
    R: Body<Data = Bytes> + Send,
    R::Error: Into<BodyError>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Whether the service is asked at all is not known before the verdict; its readiness is
        // awaited then, by the clone that is asked.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let gate = Arc::clone(&self.gate);
        let inner = Inner(Mutex::new(self.inner.clone()));
        Box::pin(async move { Ok(gate.handle(request, &inner).await) })
    }
}

// === impl Inner ===

impl<S, R> Serve for Inner<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BodyError>,
    R: Body<Data = Bytes> + Send,
    R::Error: Into<BodyError>,
{
    fn send(&self, call: Call) -> Sending<'_> {
        let mut service = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move {
            let mut request = Request::new(Full::new(call.body));
            *request.method_mut() = call.method;
            *request.headers_mut() = call.headers;
            drop_replaced(request.headers_mut());
            *request.uri_mut() = call.path.parse().map_err(broken)?;
            let ready = std::future::poll_fn(|context| service.poll_ready(context)).await;
            ready.map_err(failed)?;
            let reply = service.call(request).await.map_err(failed)?;
            let (mut parts, body) = reply.into_parts();
            let body = body.collect().await.map_err(failed)?.to_bytes();
            strip(&mut parts.headers);
            Ok(Response::from_parts(parts, Full::new(body)))
        })
    }
}

fn failed(error: impl Into<BodyError>) -> Failed {
    let error: BodyError = error.into();
    Failed { error: UpstreamError::Broken, cause: error.to_string() }
}
