//! The life of a request over HTTP, top to bottom: name it, look at its route, make room, read its
//! body, decode it and queue its rows, ask the upstream and the detector at the same time, decide,
//! answer, record.
//!
//! Each step that can fail says which `Failure` that is; what it means for the client is in
//! `respond`. A step ends with a verdict and an answer, or with a verdict and a failure; they are
//! recorded once, at the end of [`Gate::handle`].

use bytes::Bytes;
use doorward_protocol::Format;
use doorward_protocol::Route;
use hyper::body::Body;
use hyper::header::EXPECT;
use hyper::http::request::Parts;
use hyper::{Method, Request};

use super::cors::Preflight;
use super::gate::{Answer, BodyError, Forwarded, Gate, Serve, Stopped};
use super::record::{self, Record};
use super::request_id::REQUEST_ID;
use super::respond::{self, Failure, respond};
use super::screen::{Unverified, Wire};
use crate::settings::Predictions;
use crate::verdict::{Reason, Verdict};

/// Most bytes in the filter of a list of models.
const INDEX_BYTES: usize = 4 * 1024;

// === impl Gate ===

impl Gate {
    /// Answers one request, by `to` where it may pass.
    pub(super) async fn handle<B>(&self, request: Request<B>, to: &dyn Serve) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: Into<BodyError>,
    {
        let (mut parts, mut body) = request.into_parts();
        // Who waits for a `100 Continue` has not sent a body yet.
        let mut sending = !parts.headers.contains_key(EXPECT);
        let id = self.begin(&mut parts.headers);
        let format = self.screen.format(parts.uri.path());
        let mut record = self.record(format.protocol(), &id, &parts.headers);
        record.continue_trace(&mut parts.headers);
        if record.names_model() && record.model.is_none() {
            record.model = record::model_in(parts.uri.path());
        }
        let preflight = Preflight::of(&parts);
        let ended = self.dispatch(format, parts, &mut body, to, &mut record).await;
        let (verdict, mut answer) = match ended {
            Ok(ended) => ended,
            Err(Stopped { verdict, failure }) => {
                sending &= !matches!(failure, Failure::BodyBroken | Failure::BodyTimeout);
                record.detail.get_or_insert_with(|| respond::shorten(failure.to_string()));
                let mut answer = respond(format, &failure, record.request_id());
                // The server is not asked about what does not reach it.
                let reaches = !matches!(failure, Failure::Refused(_) | Failure::Upstream(_));
                if let Some(preflight) = preflight.filter(|_| reaches) {
                    preflight.settle(to, &mut answer).await;
                }
                (verdict, answer)
            }
        };
        answer.headers_mut().insert(REQUEST_ID, id);
        record.answered(verdict);
        if sending {
            self.discard(body).await;
        }
        answer
    }

    async fn dispatch<B>(
        &self,
        format: Format,
        parts: Parts,
        body: &mut B,
        to: &dyn Serve,
        record: &mut Record,
    ) -> Result<(Verdict, Answer), Stopped>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: Into<BodyError>,
    {
        let (method, uri) = (parts.method.as_str(), &parts.uri);
        match format.route(method, uri.path(), uri.query(), self.screen.allowed()) {
            Route::Infer => {
                if uri.query().is_some() {
                    self.screen.drops("the query string");
                }
                self.infer(format, parts, body, to, record).await
            }
            Route::Index => {
                let body = self.read(body, INDEX_BYTES, record).await?;
                let body = match format.check_index(&body) {
                    Ok(encoded) => Forwarded::Reencoded(encoded),
                    Err(_) if self.screen.monitors() => Forwarded::Original(body),
                    Err(error) => return Err(Failure::Decode(error).into()),
                };
                self.forward(Verdict::Bypassed, parts, body, to, record).await
            }
            // Liveness goes on to the upstream, for a firewall that waits is no reason to restart
            // it.
            Route::Ready if !self.screen.is_open() => {
                Err(Stopped { verdict: Verdict::Bypassed, failure: Failure::Unready })
            }
            // Takes no place: a busy firewall must not fail the upstream's health checks. Whatever
            // body it has is not read.
            Route::Read | Route::Ready => {
                let nothing = Forwarded::Original(Bytes::new());
                self.forward(Verdict::Bypassed, parts, nothing, to, record).await
            }
            // Monitoring changes no answer: the upstream decides what it makes of the path. What may
            // have been an inference was not judged.
            Route::Refused(refusal) if self.screen.monitors() => {
                let verdict = match parts.method {
                    Method::GET | Method::HEAD | Method::OPTIONS => Verdict::Bypassed,
                    _ => {
                        let failure = Failure::Refused(refusal);
                        let unverified = Unverified::new(failure, Reason::Unrecognised);
                        self.metrics.unrecognised(&parts.method, uri.path());
                        self.settle(Err(unverified), record)?
                    }
                };
                let body = self.read(body, self.limits.body_bytes, record).await?;
                self.forward(verdict, parts, Forwarded::Original(body), to, record).await
            }
            Route::Refused(refusal) => {
                self.metrics.unrecognised(&parts.method, uri.path());
                Err(Failure::Refused(refusal).into())
            }
        }
    }

    async fn infer<B>(
        &self,
        format: Format,
        parts: Parts,
        body: &mut B,
        to: &dyn Serve,
        record: &mut Record,
    ) -> Result<(Verdict, Answer), Stopped>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: Into<BodyError>,
    {
        // Before the body, because bodies are what costs memory. Not by a layer around this
        // function, because a full house is a question of policy: the request may have to pass.
        let Ok(_place) = self.places.try_acquire() else {
            let verdict = self.settle(Err(Unverified::overload()), record)?;
            let body = Forwarded::Original(self.read(body, self.limits.body_bytes, record).await?);
            return self.forward(verdict, parts, body, to, record).await;
        };
        let body = self.read(body, self.limits.body_bytes, record).await?;
        if self.predictions == Predictions::Upstream {
            return self.infer_remotely(format, parts, body, to, record).await;
        }
        let submitted = {
            let path = parts.uri.path();
            self.screen.submit(Wire::Rest(format), path, &parts.headers, &body).await
        };
        let pending = match submitted {
            Ok(pending) => pending,
            Err(unverified) => return self.unverified(unverified, parts, body, to, record).await,
        };
        drop(body);
        self.judge_and_forward(parts, pending, to, record).await
    }
}
