//! `ModelStreamInfer`: a stream of requests each way, each judged by itself.
//!
//! A message is judged before the upstream gets it: replies need not come one for one or in order,
//! so a reply could not be held until the verdict on its request. A message that is turned away
//! gets a reply with an `error_message`, as Triton gives it, and the stream goes on. Messages are
//! judged in turn; the upstream works on earlier ones meanwhile.
//!
//! Each message is a request with a record of its own, and takes a place while it is judged. The
//! stream itself takes none, and has no deadline: it may wait for its client as long as that lives.
//! Once the client has ended its half, each wait for the upstream is bounded as any exchange is.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::Submitted;
use super::status::{self, STATUS};
use crate::proxy::choice::Choice;
use crate::proxy::failed::{Failed, broken, late};
use crate::proxy::gate::Stopped;
use crate::proxy::grpc_body::{GRPC, GrpcAnswer, Piece, Pieces, Task};
use crate::proxy::proxy::Proxy;
use crate::proxy::record::Record;
use crate::proxy::respond::{self, Failure, message};
use crate::proxy::screen::{Unverified, unframed};
use crate::telemetry::spans::Interval;
use crate::verdict::{UpstreamError, Verdict};
use doorward_protocol::GrpcError;
use doorward_protocol::oip_grpc::{STREAM_INFER, stream_error};
use doorward_protocol::{Protocol, grpc_frame};

/// One stream.
pub(super) struct Streaming {
    /// The proxies of all models: each message may be for another one.
    choice: Choice,
    /// The proxy where no message tells; also the way to the upstream.
    proxy: Arc<Proxy>,
    headers: HeaderMap,
    id: HeaderValue,
}

/// The way to the client.
struct Client {
    /// Gone once the answer has begun.
    head: Option<oneshot::Sender<HeaderMap>>,
    pieces: mpsc::Sender<Piece>,
}

/// The end of the client's half.
enum Ended {
    /// The client has sent all it wants to.
    Client,
    /// The firewall stops.
    Draining,
}

/// The end of one message.
enum Step {
    Forward(Bytes),
    /// Goes to the client in place of a reply.
    Reply(Bytes),
}

/// The header with the compressions of replies that the client takes.
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Messages that wait for one of the sides to take them; the next one is read meanwhile.
const WAITING: usize = 1;

// === impl Streaming ===

impl Streaming {
    pub(super) fn new(choice: Choice, headers: HeaderMap, id: HeaderValue) -> Self {
        let proxy = Arc::clone(choice.strictest());
        Self { choice, proxy, headers, id }
    }

    /// The answer as soon as it begins. What follows is made by a task that ends with the answer's
    /// body.
    pub(super) async fn answer(
        self,
        body: Incoming,
        draining: watch::Receiver<bool>,
    ) -> GrpcAnswer {
        let (head, begun) = oneshot::channel();
        let (pieces, receiver) = mpsc::channel(WAITING);
        let client = Client { head: Some(head), pieces };
        let (id, internal) = (self.text(), Failure::Internal);
        let task = Task(tokio::spawn(self.run(body, client, draining)).abort_handle());
        match begun.await {
            Ok(headers) => {
                let mut answer = Response::new(Pieces::new(receiver, Some(task)).boxed_unsync());
                *answer.headers_mut() = headers;
                answer
            }
            // The task has panicked.
            Err(_) => status::answer(&internal, &id),
        }
    }

    async fn run(self, body: Incoming, mut client: Client, draining: watch::Receiver<bool>) {
        let trailers = match self.exchange(body, &mut client, draining).await {
            Ok(trailers) => trailers,
            Err(failure) => status::trailers(&failure, &self.text()),
        };
        client.end(trailers).await;
    }

    /// Moves messages both ways until the stream ends; gives its trailers.
    async fn exchange(
        &self,
        body: Incoming,
        client: &mut Client,
        draining: watch::Receiver<bool>,
    ) -> Result<HeaderMap, Failure> {
        let upstream = self.proxy.grpc()?;
        upstream.breaker.check().map_err(|failed| self.unanswered(&failed))?;
        let (messages, receiver) = mpsc::channel(WAITING);
        let requests = Pieces::new(receiver, None).boxed_unsync();
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_TYPE, GRPC);
        headers.remove(CONTENT_ENCODING);
        // The answer may begin before the upstream names a compression, and then cannot.
        headers.remove(ACCEPT_ENCODING);
        let mut opening = pin!(upstream.open(Method::POST, STREAM_INFER, headers, requests));
        let (rejections, mut rejected) = mpsc::channel(WAITING);
        let mut requests = pin!(self.requests(body, messages, rejections, draining));
        let mut replies: Option<(Incoming, BytesMut)> = None;
        let (mut ended, mut replied) = (None, false);
        loop {
            // Made anew each time: a wait is bounded, not the stream.
            let waited = wait(upstream.timeout(), ended.is_some());
            tokio::select! {
                biased;
                end = &mut requests, if ended.is_none() => ended = Some(end?),
                Some(reply) = rejected.recv() => client.send(reply).await,
                answer = &mut opening, if replies.is_none() => {
                    let answer = answer.map_err(|failed| self.unanswered(&failed))?;
                    let (mut head, body) = answer.into_parts();
                    if body.is_end_stream() || head.headers.contains_key(STATUS) {
                        upstream.breaker.record(true);
                        head.headers.remove(CONTENT_TYPE);
                        return self.last(head.headers, ended.as_ref());
                    }
                    client.begin(head.headers);
                    replies = Some((body, BytesMut::new()));
                }
                frame = next(&mut replies) => {
                    let frame = frame.map_err(|error| self.unanswered(&broken(error)))?;
                    let frame = frame.ok_or_else(|| self.unanswered(&cut_off()))?;
                    // A server may begin its answer and then give none.
                    if !std::mem::replace(&mut replied, true) {
                        upstream.breaker.record(true);
                    }
                    match frame.into_data() {
                        Ok(data) => self.forward(&data, &mut replies, client).await?,
                        Err(frame) => {
                            let trailers = frame.into_trailers().unwrap_or_default();
                            return self.last(trailers, ended.as_ref());
                        }
                    }
                }
                () = waited => return Err(self.unanswered(&late(upstream.timeout()))),
            }
        }
    }

    /// The client's half: reads, judges and forwards one message after another.
    async fn requests(
        &self,
        mut body: Incoming,
        messages: mpsc::Sender<Piece>,
        rejections: mpsc::Sender<Bytes>,
        mut draining: watch::Receiver<bool>,
    ) -> Result<Ended, Failure> {
        let mut buffer = BytesMut::new();
        for number in 0_u64.. {
            let next = tokio::select! {
                // A message that has come goes first.
                biased;
                next = self.next_message(&mut body, &mut buffer, number) => next?,
                () = drained(&mut draining) => {
                    let _ = messages.send(Piece::End(None)).await;
                    return Ok(Ended::Draining);
                }
            };
            let Some(frame) = next else { break };
            let mut record = self.record(number);
            let (verdict, step) = match self.judge(frame.clone(), &mut record).await {
                Ok((verdict, frame)) => (verdict, Step::Forward(frame)),
                Err(Stopped { verdict, failure }) => {
                    let text = message(&failure, record.request_id());
                    record.detail.get_or_insert_with(|| respond::shorten(failure.to_string()));
                    let limit = self.proxy.gate.limits.body_bytes;
                    let request = unframed(&self.headers, &frame, limit).unwrap_or_default();
                    (verdict, Step::Reply(stream_error(text, &request)))
                }
            };
            // Fails where the other half has ended, which says why.
            match step {
                Step::Forward(frame) => drop(messages.send(Piece::Data(frame)).await),
                Step::Reply(frame) => drop(rejections.send(frame).await),
            }
            record.answered(verdict);
        }
        let _ = messages.send(Piece::End(None)).await;
        Ok(Ended::Client)
    }

    /// The verdict on a message, and the frame that the upstream gets.
    async fn judge(&self, frame: Bytes, record: &mut Record) -> Result<(Verdict, Bytes), Stopped> {
        let proxy = self.choice.of_message(&self.headers, &frame);
        proxy.gate.adopt(record);
        let Ok(_place) = proxy.gate.places.try_acquire() else {
            let verdict = proxy.gate.settle(Err(Unverified::overload()), record)?;
            return Ok((verdict, frame));
        };
        let pending = match proxy.submit_grpc(&self.headers, &frame, record).await? {
            Submitted::Pending(pending) => pending,
            Submitted::Passes(verdict) => return Ok((verdict, frame)),
        };
        record.submitted(pending.rows, &pending.inputs);
        let (since, encoded) = (pending.since(), pending.encoded.clone());
        let judged = proxy.gate.screen.judgements(pending).await;
        record.detection = Some(Interval::since(since));
        let verdict = proxy.gate.settle(judged, record)?;
        Ok((verdict, encoded.body))
    }

    /// The next message in its frame; `None` at the end. One that has begun has to come within its
    /// time.
    async fn next_message(
        &self,
        body: &mut Incoming,
        buffer: &mut BytesMut,
        number: u64,
    ) -> Result<Option<Bytes>, Failure> {
        let limits = &self.proxy.gate.limits;
        let read = async {
            loop {
                let cut = grpc_frame::cut(buffer, limits.body_bytes).map_err(GrpcError::Frame);
                if let Some(frame) = cut.map_err(|error| Failure::Decode(error.into()))? {
                    return Ok(Some(frame));
                }
                let begun = !buffer.is_empty();
                let frame = match begun {
                    true => timeout(limits.body_timeout, body.frame())
                        .await
                        .map_err(|_| Failure::BodyTimeout)?,
                    false => body.frame().await,
                };
                match frame {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            buffer.extend_from_slice(&data);
                        }
                    }
                    Some(Err(_)) => return Err(Failure::BodyBroken),
                    None if begun => return Err(Failure::BodyBroken),
                    None => return Ok(None),
                }
            }
        };
        let next = read.await;
        if let (Err(failure), false) = (&next, buffer.is_empty()) {
            // Counted as the message that it would have been; it ends the stream.
            let mut record = self.record(number);
            record.detail = Some(respond::shorten(failure.to_string()));
            record.answered(Verdict::Refused);
        }
        next
    }

    /// Sends the replies that `data` completes.
    async fn forward(
        &self,
        data: &Bytes,
        replies: &mut Option<(Incoming, BytesMut)>,
        client: &mut Client,
    ) -> Result<(), Failure> {
        let Some((_, buffer)) = replies else { return Ok(()) };
        buffer.extend_from_slice(data);
        // Whole ones, so that a reply of the firewall's own never comes inside of one. Not bounded,
        // as no reply of the upstream is.
        while let Some(reply) =
            grpc_frame::cut(buffer, usize::MAX).map_err(|error| self.unanswered(&broken(error)))?
        {
            client.send(reply).await;
        }
        Ok(())
    }

    /// The upstream's trailers, unless the client has to know that it was cut short.
    fn last(&self, trailers: HeaderMap, ended: Option<&Ended>) -> Result<HeaderMap, Failure> {
        match ended {
            Some(Ended::Draining) => Err(Failure::Draining),
            Some(Ended::Client) | None => Ok(trailers),
        }
    }

    fn unanswered(&self, failed: &Failed) -> Failure {
        self.proxy.gate.metrics.upstream_failed(failed.error);
        if failed.error != UpstreamError::Open
            && let Some(upstream) = &self.proxy.grpc
        {
            upstream.breaker.record(false);
        }
        tracing::info!(
            request_id = self.text(),
            upstream_error = failed.error.label(),
            detail = failed.cause,
            "a stream broke off"
        );
        Failure::Upstream(failed.error)
    }

    /// The record of the message with this number.
    fn record(&self, number: u64) -> Record {
        let mut record = self.proxy.gate.record(Protocol::OipGrpc, &self.id, &self.headers);
        record.number(number);
        record
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.id.as_bytes()).into_owned()
    }
}

/// Ends when the firewall stops.
async fn drained(draining: &mut watch::Receiver<bool>) {
    if draining.wait_for(|draining| *draining).await.is_err() {
        // Who would tell has gone, and so has every listener.
        std::future::pending().await
    }
}

/// Ends after `duration`, or never.
async fn wait(duration: Duration, bounded: bool) {
    match bounded {
        true => sleep(duration).await,
        false => std::future::pending().await,
    }
}

/// The next frame of the replies, once there are any.
async fn next(
    replies: &mut Option<(Incoming, BytesMut)>,
) -> Result<Option<Frame<Bytes>>, hyper::Error> {
    match replies {
        Some((body, _)) => body.frame().await.transpose(),
        None => std::future::pending().await,
    }
}

fn cut_off() -> Failed {
    let cause = "it ended without trailers".to_owned();
    Failed { error: UpstreamError::Broken, cause }
}

// === impl Client ===

impl Client {
    /// Begins the answer, if it has not begun.
    fn begin(&mut self, headers: HeaderMap) {
        if let Some(head) = self.head.take() {
            // Fails when the client is gone, which ends this task.
            let _ = head.send(headers);
        }
    }

    async fn send(&mut self, frame: Bytes) {
        self.begin(HeaderMap::from_iter([(CONTENT_TYPE, GRPC)]));
        let _ = self.pieces.send(Piece::Data(frame)).await;
    }

    async fn end(&mut self, trailers: HeaderMap) {
        self.begin(HeaderMap::from_iter([(CONTENT_TYPE, GRPC)]));
        let _ = self.pieces.send(Piece::End(Some(trailers))).await;
    }
}
