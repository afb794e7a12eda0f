//! The part of the request path that every protocol and every upstream has in common: ids, records,
//! bounds, verdicts.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use doorward_detection::{Judge, Judgement};
use doorward_protocol::{Encoded, Protocol, Route, binary};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, Uri};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::batch::Queue;
use super::error::Error;
use super::failed::Failed;
use super::record::Record;
use super::request_id::{REQUEST_ID, RequestIds};
use super::respond::{self, Failure};
use super::screen::{Decision, Pending, Screen, Unverified};
use super::trace;
use super::upstream::{self, Call};
use crate::settings::{Limits, Predictions, Screening};
use crate::telemetry::audit::Tap;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::{Interval, Spans};
use crate::verdict::Verdict;

/// A reply that is here as a whole.
pub type Answer = Response<Full<Bytes>>;

/// Any error of a body.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The model server, or what stands for it, as requests that may pass see it.
pub(super) trait Serve: Send + Sync {
    /// Sends one request and collects the reply.
    fn send(&self, call: Call) -> Sending<'_>;
}

/// A reply that is on its way.
pub(super) type Sending<'a> = Pin<Box<dyn Future<Output = Result<Answer, Failed>> + Send + 'a>>;

/// The gate that requests of one model pass.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) screen: Screen,
    pub(super) places: Arc<Semaphore>,
    pub(super) limits: Limits,
    pub(super) model: Option<String>,
    pub(super) predictions: Predictions,
    pub(super) max_rows: Option<NonZeroUsize>,
    ids: Arc<RequestIds>,
    pub(super) metrics: Arc<Metrics>,
    tap: Option<Arc<Tap>>,
    /// `None`: none are made.
    spans: Option<Arc<Spans>>,
}

/// An end without an answer of the upstream's.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) verdict: Verdict,
    pub(super) failure: Failure,
}

/// The body of a request to the upstream.
pub(super) enum Forwarded {
    /// The client's, byte for byte.
    Original(Bytes),
    /// The firewall's own encoding of an inference request.
    Reencoded(Encoded),
}

/// Most of an unwanted body that is read, and dropped, for the sake of the answer.
const DISCARDED_BYTES: usize = 64 << 20;

/// A client that pauses for so long waits for the answer.
const DISCARD_PAUSE: Duration = Duration::from_millis(500);

// === impl Gate ===

impl Gate {
    /// Without a detector: until [`Gate::open`], inference requests are unverified. Fails without
    /// random numbers.
    pub(super) fn new(
        settings: Screening<'_>,
        metrics: Arc<Metrics>,
        tap: Option<Tap>,
        spans: Option<Arc<Spans>>,
    ) -> Result<Self, Error> {
        Ok(Self {
            screen: Screen::new(settings),
            places: places(settings.limits),
            limits: settings.limits.clone(),
            model: settings.allowed.model.map(str::to_owned),
            predictions: settings.predictions,
            max_rows: settings.max_rows,
            ids: Arc::new(RequestIds::new()?),
            metrics,
            tap: tap.map(Arc::new),
            spans,
        })
    }

    /// The same with another policy, limits and audit log, and without a detector.
    pub(super) fn successor(&self, settings: Screening<'_>, tap: Option<Tap>) -> Self {
        let unchanged = self.limits.concurrency == settings.limits.concurrency;
        Self {
            screen: self.screen.successor(settings),
            places: if unchanged { Arc::clone(&self.places) } else { places(settings.limits) },
            limits: settings.limits.clone(),
            model: self.model.clone(),
            predictions: self.predictions,
            max_rows: self.max_rows,
            ids: Arc::clone(&self.ids),
            metrics: Arc::clone(&self.metrics),
            tap: tap.map(Arc::new),
            spans: self.spans.clone(),
        }
    }

    /// From now on requests are judged by `judge`. Fails if they are judged already.
    pub(super) fn open(&self, judge: Arc<dyn Judge>) -> Result<(), Error> {
        let queue = Queue::start(judge, &self.limits, Arc::clone(&self.metrics))?;
        self.screen.open(queue).then_some(()).ok_or(Error::Judging)
    }

    /// True if a path is one that this model's clients ask for.
    pub(super) fn takes(&self, method: &Method, uri: &Uri) -> bool {
        let (path, query) = (uri.path(), uri.query());
        let format = self.screen.format(path);
        let route = format.route(method.as_str(), path, query, self.screen.allowed());
        !matches!(route, Route::Refused(_))
    }

    /// Counts and notes a request as one of this model's.
    pub(super) fn adopt(&self, record: &mut Record) {
        record.metrics = Arc::clone(&self.metrics);
        record.audit.clone_from(&self.tap);
        record.model = self.model.clone().filter(|_| record.names_model());
    }

    /// Gives a request its id, first of all, so that every answer, log line and upstream request
    /// carries it, and drops the headers of its connection.
    pub(super) fn begin(&self, headers: &mut HeaderMap) -> HeaderValue {
        let id = self.ids.identify(headers);
        // Before anything is read from the headers: a header that `Connection` names does not reach
        // the upstream, so it must not tell the firewall how to read the body either.
        upstream::strip(headers);
        headers.insert(REQUEST_ID, id.clone());
        id
    }

    /// The record of a request that has begun.
    pub(super) fn record(
        &self,
        protocol: Protocol,
        id: &HeaderValue,
        headers: &HeaderMap,
    ) -> Record {
        let text = String::from_utf8_lossy(id.as_bytes()).into_owned();
        let mut record = Record::new(Arc::clone(&self.metrics), protocol, text);
        let parent = trace::parent(headers);
        record.span = self.spans.as_ref().map(|spans| spans.begin(parent));
        record.trace_id = match &record.span {
            Some(span) => Some(span.trace_id()),
            None => parent.map(|parent| parent.trace_id()),
        };
        self.adopt(&mut record);
        record
    }

    /// Asks the detector and the upstream at the same time, so that what detection costs the client
    /// is only what it takes longer, and decides. The reply is held until then, and a rejection
    /// drops it.
    pub(super) async fn judged<R>(
        &self,
        pending: Pending,
        exchange: impl Future<Output = Result<R, Failed>>,
        record: &mut Record,
    ) -> Result<(Verdict, R), Stopped> {
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
        let verdict = self.settle(judged, record)?;
        let reply = match reply {
            Some(reply) => reply,
            None => {
                let reply = exchange.await;
                record.upstream = Some(Interval::since(since));
                reply
            }
        };
        match reply {
            Ok(reply) => Ok((verdict, reply)),
            Err(failed) => Err(Stopped { verdict, failure: record.unanswered(failed) }),
        }
    }

    /// The verdict by which a request goes on, after what detection said; an error if it does not.
    pub(super) fn settle(
        &self,
        judged: Result<Vec<Judgement>, Unverified>,
        record: &mut Record,
    ) -> Result<Verdict, Stopped> {
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
            Decision::Forward(verdict) => Ok(verdict),
            Decision::Reject(verdict, failure) => Err(Stopped { verdict, failure }),
        }
    }

    /// Sends a request on, whatever was found out about it.
    pub(super) async fn forward(
        &self,
        verdict: Verdict,
        parts: Parts,
        body: Forwarded,
        to: &dyn Serve,
        record: &mut Record,
    ) -> Result<(Verdict, Answer), Stopped> {
        let call = call(parts, body);
        let since = std::time::Instant::now();
        let reply = to.send(call).await;
        record.upstream = Some(Interval::since(since));
        match reply {
            Ok(answer) => Ok((verdict, answer)),
            Err(failed) => Err(Stopped { verdict, failure: record.unanswered(failed) }),
        }
    }

    /// Forwards a request without a verdict as it came, if it may pass.
    pub(super) async fn unverified(
        &self,
        unverified: Unverified,
        parts: Parts,
        body: Bytes,
        to: &dyn Serve,
        record: &mut Record,
    ) -> Result<(Verdict, Answer), Stopped> {
        let verdict = self.settle(Err(unverified), record)?;
        self.forward(verdict, parts, Forwarded::Original(body), to, record).await
    }

    /// Asks the upstream and waits for the verdict.
    pub(super) async fn judge_and_forward(
        &self,
        parts: Parts,
        pending: Pending,
        to: &dyn Serve,
        record: &mut Record,
    ) -> Result<(Verdict, Answer), Stopped> {
        let call = call(parts, Forwarded::Reencoded(pending.encoded.clone()));
        self.judged(pending, to.send(call), record).await
    }

    /// Reads a body within its bounds. Without a whole body there is nothing to forward, so a
    /// failure here refuses the request whatever the policy says.
    pub(super) async fn read<B>(
        &self,
        body: &mut B,
        limit: usize,
        record: &mut Record,
    ) -> Result<Bytes, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BodyError>,
    {
        let bytes = self.read_bounded(body, limit).await;
        if bytes.is_err() {
            record.detail = None;
        }
        bytes
    }

    async fn read_bounded<B>(&self, body: &mut B, limit: usize) -> Result<Bytes, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BodyError>,
    {
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
    pub(super) async fn discard<B: Body<Data = Bytes> + Unpin>(&self, mut body: B) {
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
}

// === impl Stopped ===

impl From<Failure> for Stopped {
    /// A request that fails before there is a verdict is refused.
    fn from(failure: Failure) -> Self {
        Self { verdict: Verdict::Refused, failure }
    }
}

fn places(limits: &Limits) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(limits.concurrency.get().min(Semaphore::MAX_PERMITS)))
}

/// The upstream request.
pub(super) fn call(parts: Parts, body: Forwarded) -> Call {
    let path = parts.uri.path_and_query();
    let mut path = path.map_or("/", |path| path.as_str()).to_owned();
    let mut headers = parts.headers;
    let body = match body {
        Forwarded::Original(body) => body,
        Forwarded::Reencoded(Encoded { body, json_length, media_type }) => {
            // The query was not understood.
            path.truncate(parts.uri.path().len());
            headers.remove(CONTENT_TYPE);
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
