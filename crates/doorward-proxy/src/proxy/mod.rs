//! The request path: from a client's request to the upstream's answer, or to a refusal.
//!
//! [`Proxy::handle`] is the life of a request, top to bottom: name it, look at its route, make room,
//! read its body, decode it and queue its rows, ask the upstream and the detector at the same time,
//! decide, answer, record. Each step that can fail says which `Failure` that is; what it means for
//! the client is in `respond`, what it means for the operator in the record.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, Uri};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::settings::{Limits, Predictions, Settings};
use crate::telemetry::Verdict;
use crate::telemetry::audit::{Audit, Tap};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::{Interval, Spans};
use doorward_detection::{Judge, Judgement};
use doorward_protocol::rest::Rest;
use doorward_protocol::{Encoded, Route, binary};

mod batch;
mod breaker;
mod choice;
mod coding;
mod connect;
mod grpc;
mod live;
mod models;
mod record;
mod remote;
mod request_id;
mod respond;
mod screen;
mod trace;
mod upstream;

use batch::Queue;
use choice::Choice;
pub use grpc::GrpcAnswer;
pub use live::{Change, Live};
pub use models::Models;
use record::Record;
use request_id::{REQUEST_ID, RequestIds};
use respond::{Failure, respond};
use screen::{Decision, Format, Pending, Screen, Unverified};
use upstream::{Call, Failed, Upstream};

/// The inspected way to the model server.
#[derive(Debug)]
pub struct Proxy {
    screen: Screen,
    upstream: Arc<Upstream>,
    /// `None`: no gRPC.
    grpc: Option<Arc<grpc::Upstream>>,
    places: Arc<Semaphore>,
    limits: Limits,
    model: Option<String>,
    predictions: Predictions,
    max_rows: Option<NonZeroUsize>,
    ids: Arc<RequestIds>,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
    tap: Option<Arc<Tap>>,
    /// `None`: none are made.
    spans: Option<Arc<Spans>>,
}

/// What the proxy answers with.
pub type Answer = Response<Full<Bytes>>;

/// Why the proxy cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is a detector already.
    #[error("there is a detector already")]
    Judging,
    /// The system's random generator failed.
    #[error("no random numbers can be had")]
    Random(#[from] rand::rand_core::OsError),
    /// Nothing to protect.
    #[error("there is no model")]
    Models,
    /// No detection thread.
    #[error("the detection thread cannot be started")]
    Thread(#[from] std::io::Error),
    /// `upstream.tls` cannot be used.
    #[error("upstream.tls cannot be used")]
    Tls(#[from] crate::tls::Error),
    /// `upstream.url` or `upstream.grpc_url` is not a URL.
    #[error("{received:?} is not a URL: expected http://host:port")]
    Url {
        /// What was given.
        received: String,
    },
}

/// What is forwarded.
enum Forwarded {
    /// What the client sent, byte for byte.
    Original(Bytes),
    /// The firewall's own encoding of an inference request.
    Reencoded(Encoded),
}

/// Most of an unwanted body that is read, and dropped, for the sake of the answer.
const DISCARDED_BYTES: usize = 64 << 20;

/// A client that pauses for so long waits for the answer.
const DISCARD_PAUSE: Duration = Duration::from_millis(500);

// === impl Proxy ===

impl Proxy {
    /// Without a detector: until [`Proxy::open`], inference requests are unverified.
    pub fn new(
        config: &Settings,
        metrics: Arc<Metrics>,
        audit: Arc<Audit>,
        spans: Option<Arc<Spans>>,
    ) -> Result<Self, Error> {
        let upstream = Upstream::new(&config.upstream)?;
        Ok(Self {
            screen: Screen::new(config),
            upstream: Arc::new(upstream),
            grpc: grpc::Upstream::new(&config.upstream)?.map(Arc::new),
            places: places(&config.limits),
            limits: config.limits.clone(),
            model: config.model.name.clone(),
            predictions: config.model.predictions,
            max_rows: config.upstream.max_rows,
            ids: Arc::new(RequestIds::new()?),
            metrics,
            tap: audit.tap(config).map(Arc::new),
            audit,
            spans,
        })
    }

    /// The same with the policy, limits, audit log and certificates of `config`; its requests are judged by `judge`, or by this
    /// one's detector if it has one.
    ///
    /// Its queue is a new one, so that while requests that began here end there are two, each within
    /// its bounds.
    fn successor(&self, config: &Settings, judge: Option<Arc<dyn Judge>>) -> Result<Self, Error> {
        let unchanged = self.limits.concurrency == config.limits.concurrency;
        let next = Self {
            screen: self.screen.successor(config),
            grpc: match self.grpc.as_ref().map(|grpc| grpc.successor(&config.upstream)) {
                Some(successor) => successor?.map(Arc::new).or_else(|| self.grpc.clone()),
                None => None,
            },
            upstream: match self.upstream.successor(&config.upstream)? {
                Some(upstream) => Arc::new(upstream),
                None => Arc::clone(&self.upstream),
            },
            places: if unchanged { Arc::clone(&self.places) } else { places(&config.limits) },
            limits: config.limits.clone(),
            model: self.model.clone(),
            predictions: self.predictions,
            max_rows: self.max_rows,
            ids: Arc::clone(&self.ids),
            metrics: Arc::clone(&self.metrics),
            tap: self.audit.tap(config).map(Arc::new),
            audit: Arc::clone(&self.audit),
            spans: self.spans.clone(),
        };
        if let Some(judge) = judge.or_else(|| self.screen.judge()) {
            next.open(judge)?;
        }
        Ok(next)
    }

    /// From now on requests are judged by `judge`.
    pub fn open(&self, judge: Arc<dyn Judge>) -> Result<(), Error> {
        let queue = Queue::start(judge, &self.limits, Arc::clone(&self.metrics))?;
        self.screen.open(queue).then_some(()).ok_or(Error::Judging)
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Incoming>) -> Answer {
        let (mut parts, mut body) = request.into_parts();
        // Who waits for a `100 Continue` has not sent a body yet.
        let mut sending = !parts.headers.contains_key(EXPECT);
        let id = self.begin(&mut parts.headers);
        let mut record = self.record(&id, &parts.headers);
        record.continue_trace(&mut parts.headers);
        if record.names_model() && record.model.is_none() {
            record.model = record::model_in(parts.uri.path());
        }
        let format = self.screen.format(parts.uri.path());
        let mut answer = match self.dispatch(format, parts, &mut body, &mut record).await {
            Ok(answer) => answer,
            Err(failure) => {
                sending &= !matches!(failure, Failure::BodyBroken | Failure::BodyTimeout);
                record.detail.get_or_insert_with(|| respond::shorten(failure.to_string()));
                respond(format, &failure, record.request_id())
            }
        };
        answer.headers_mut().insert(REQUEST_ID, id);
        record.answered();
        if sending {
            self.discard(body).await;
        }
        answer
    }

    /// Whether a path is one that this model's clients ask for.
    fn takes(&self, method: &Method, uri: &Uri) -> bool {
        let (path, query) = (uri.path(), uri.query());
        let format = self.screen.format(path);
        let route = format.route(method.as_str(), path, query, self.model.as_deref());
        !matches!(route, Route::Refused(_))
    }

    /// Counts and notes a request as one of this model's.
    fn adopt(&self, record: &mut Record) {
        record.metrics = Arc::clone(&self.metrics);
        record.audit.clone_from(&self.tap);
        record.model = self.model.clone().filter(|_| record.names_model());
    }

    /// Gives a request its id, first of all, so that every answer, log line and upstream request carries
    /// it, and drops the headers of its connection.
    fn begin(&self, headers: &mut HeaderMap) -> HeaderValue {
        let id = self.ids.identify(headers);
        // Before anything is read from the headers: a header that `Connection` names does not reach the
        // upstream, so it must not tell the firewall how to read the body either.
        upstream::strip(headers);
        headers.insert(REQUEST_ID, id.clone());
        id
    }

    /// Of a request that has begun.
    fn record(&self, id: &HeaderValue, headers: &HeaderMap) -> Record {
        let text = String::from_utf8_lossy(id.as_bytes()).into_owned();
        let mut record = Record::new(Arc::clone(&self.metrics), text);
        let parent = trace::parent(headers);
        record.span = self.spans.as_ref().map(|spans| spans.begin(parent));
        record.trace_id = match &record.span {
            Some(span) => Some(span.trace_id()),
            None => parent.map(|parent| parent.trace_id()),
        };
        self.adopt(&mut record);
        record
    }

    async fn dispatch(
        &self,
        format: Rest,
        parts: Parts,
        body: &mut Incoming,
        record: &mut Record,
    ) -> Result<Answer, Failure> {
        let (method, uri) = (parts.method.as_str(), &parts.uri);
        record.protocol = format.protocol();
        match format.route(method, uri.path(), uri.query(), self.model.as_deref()) {
            Route::Infer => self.infer(format, parts, body, record).await,
            // Takes no place: a busy firewall must not fail the upstream's health checks. Whatever
            // body it has is not read.
            Route::Read => {
                record.verdict = Verdict::Bypassed;
                let nothing = Forwarded::Original(Bytes::new());
                self.forward(parts, nothing, record).await
            }
            // Monitoring changes no answer: the upstream decides what it makes of the path.
            Route::Refused(_) if self.screen.monitors() => {
                let body = self.read(body, self.limits.body_bytes, record).await?;
                let body = Forwarded::Original(body);
                record.verdict = Verdict::Bypassed;
                self.forward(parts, body, record).await
            }
            Route::Refused(refusal) => Err(Failure::Refused(refusal)),
        }
    }

    async fn infer(
        &self,
        format: Rest,
        parts: Parts,
        body: &mut Incoming,
        record: &mut Record,
    ) -> Result<Answer, Failure> {
        // Before the body, because bodies are what costs memory. Not by a layer around this
        // function, because a full house is a question of policy: the request may have to pass.
        let Ok(_place) = self.places.try_acquire() else {
            self.settle(Err(Unverified::overload()), record)?;
            let body = Forwarded::Original(self.read(body, self.limits.body_bytes, record).await?);
            return self.forward(parts, body, record).await;
        };
        let body = self.read(body, self.limits.body_bytes, record).await?;
        if self.is_remote() {
            return self.infer_remotely(format, parts, body, record).await;
        }
        let submitted = self.screen.submit(Format::Rest(format), &parts.headers, &body).await;
        let pending = match submitted {
            Ok(pending) => pending,
            Err(unverified) => return self.unverified(unverified, parts, body, record).await,
        };
        drop(body);
        self.judge_and_forward(parts, pending, record).await
    }

    /// Forwards a request without a verdict as it came, if it may pass.
    async fn unverified(
        &self,
        unverified: Unverified,
        parts: Parts,
        body: Bytes,
        record: &mut Record,
    ) -> Result<Answer, Failure> {
        self.settle(Err(unverified), record)?;
        self.forward(parts, Forwarded::Original(body), record).await
    }

    /// Asks the upstream and waits for the verdict.
    async fn judge_and_forward(
        &self,
        parts: Parts,
        pending: Pending,
        record: &mut Record,
    ) -> Result<Answer, Failure> {
        let call = call(parts, Forwarded::Reencoded(pending.encoded.clone()));
        self.judged(pending, self.upstream.send(call), record).await
    }

    /// Asks the detector and the upstream at the same time, so that what detection costs the client is
    /// only what it takes longer, and decides. The reply is held until then, and a rejection drops it.
    async fn judged<R>(
        &self,
        pending: Pending,
        exchange: impl Future<Output = Result<R, Failed>>,
        record: &mut Record,
    ) -> Result<R, Failure> {
        record.submitted(pending.rows, &pending.inputs);
        let since = pending.since();
        let mut exchange = pin!(exchange);
        let mut detection = pin!(self.screen.judgements(pending));
        let mut reply = None;
        let judged = loop {
            tokio::select! {
                biased;
                judged = &mut detection => break judged,
                answered = &mut exchange, if reply.is_none() => {
                    record.upstream = Some(Interval::since(since));
                    reply = Some(answered);
                }
            }
        };
        record.detection = Some(Interval::since(since));
        self.settle(judged, record)?;
        let reply = match reply {
            Some(reply) => reply,
            None => {
                let reply = exchange.await;
                record.upstream = Some(Interval::since(since));
                reply
            }
        };
        reply.map_err(|failed| unanswered(failed, record))
    }

    /// Decides on what detection said and notes it; an error if it is a rejection.
    fn settle(
        &self,
        judged: Result<Vec<Judgement>, Unverified>,
        record: &mut Record,
    ) -> Result<(), Failure> {
        let decision = match judged {
            Ok(judgements) => {
                record.judgements = judgements;
                self.screen.decide(Ok(&record.judgements))
            }
            Err(unverified) => {
                record.rows = unverified.rows;
                record.detail = Some(respond::shorten(unverified.failure.to_string()));
                self.screen.decide(Err(unverified))
            }
        };
        match decision {
            Decision::Forward(verdict) => {
                record.verdict = verdict;
                Ok(())
            }
            Decision::Reject(verdict, failure) => {
                record.verdict = verdict;
                Err(failure)
            }
        }
    }

    /// Reads a body within its bounds. Without a whole body there is nothing to forward, so a
    /// failure here refuses the request whatever the policy says.
    async fn read(
        &self,
        body: &mut Incoming,
        limit: usize,
        record: &mut Record,
    ) -> Result<Bytes, Failure> {
        let bytes = self.read_bounded(body, limit).await;
        if bytes.is_err() {
            record.verdict = Verdict::Refused;
            record.detail = None;
        }
        bytes
    }

    async fn read_bounded(&self, body: &mut Incoming, limit: usize) -> Result<Bytes, Failure> {
        // A length that was announced need not arrive to be too large.
        if body.size_hint().lower() > limit as u64 {
            return Err(Failure::BodyTooLarge { limit });
        }
        let collected = Limited::new(body, limit).collect();
        match timeout(self.limits.body_timeout, collected).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err(Failure::BodyTooLarge { limit })
            }
            Ok(Err(_)) => Err(Failure::BodyBroken),
            Err(_) => Err(Failure::BodyTimeout),
        }
    }

    /// Takes the rest of a body that nobody read. Most clients read no answer before they have sent
    /// everything, and closing a connection with unread bytes would destroy the answer.
    async fn discard(&self, mut body: Incoming) {
        let rest = async {
            let mut bytes = 0;
            while let Ok(Some(Ok(frame))) = timeout(DISCARD_PAUSE, body.frame()).await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
                if bytes > DISCARDED_BYTES {
                    break;
                }
            }
        };
        // Too slow, or too much, is the client's loss.
        let _ = timeout(self.limits.body_timeout, rest).await;
    }

    async fn forward(
        &self,
        parts: Parts,
        body: Forwarded,
        record: &mut Record,
    ) -> Result<Answer, Failure> {
        let call = call(parts, body);
        let since = Instant::now();
        let reply = self.upstream.send(call).await;
        record.upstream = Some(Interval::since(since));
        reply.map_err(|failed| unanswered(failed, record))
    }
}

fn places(limits: &Limits) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(limits.concurrency.get().min(Semaphore::MAX_PERMITS)))
}

/// The upstream request.
fn call(parts: Parts, body: Forwarded) -> Call {
    let path = parts.uri.path_and_query();
    let path = path.map_or("/", |path| path.as_str()).to_owned();
    let mut headers = parts.headers;
    let body = match body {
        Forwarded::Original(body) => body,
        Forwarded::Reencoded(Encoded { body, json_length, media_type }) => {
            headers.remove(CONTENT_ENCODING);
            headers.remove(binary::JSON_LENGTH);
            if let Some(length) = json_length {
                headers.insert(binary::JSON_LENGTH, HeaderValue::from(length));
            }
            let media_type = match media_type {
                Some(Cow::Borrowed(media_type)) => Some(HeaderValue::from_static(media_type)),
                Some(Cow::Owned(media_type)) => HeaderValue::try_from(media_type).ok(),
                None => None,
            };
            if let Some(media_type) = media_type {
                headers.insert(CONTENT_TYPE, media_type);
            }
            body
        }
    };
    Call { method: parts.method, path, headers, body }
}

fn unanswered(failed: Failed, record: &mut Record) -> Failure {
    record.upstream_error = Some(failed.error);
    record.detail = Some(failed.cause);
    Failure::Upstream(failed.error)
}
