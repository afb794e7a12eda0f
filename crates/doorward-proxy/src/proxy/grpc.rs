//! gRPC calls: from a client's call to the upstream's answer, or to a status of the firewall's own.
//!
//! [`Choice::handle_grpc`] is to a call what [`Proxy::handle`] is to a request over HTTP/1.1, and
//! decides by the same functions; what differs is the wire: messages in frames, statuses in
//! trailers, and streams.
//!
//! # Design
//!
//! HTTP/2 and protobuf are libraries' work, frames are ours: a gRPC library between the two would
//! decode replies that nobody looks into, cannot pass on a method that it was not compiled for, and
//! hides where one message of a stream ends, which is where a rejection has to go.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request};
use tokio::sync::watch;

use super::choice::Choice;
use super::coding::GRPC_ENCODING;
use super::gate::Stopped;
use super::grpc_body::{GRPC, GrpcAnswer};
use super::grpc_upstream::Upstream;
use super::proxy::Proxy;
use super::record::Record;
use super::request_id::REQUEST_ID;
use super::respond::{self, Failure};
use super::screen::{Pending, Unverified, Wire, unframed};
use crate::telemetry::spans::Interval;
use crate::verdict::{Reason, UpstreamError, Verdict};
use doorward_protocol::oip_grpc::{self, Call, Read, ReadMessage};
use doorward_protocol::{DecodeError, Encoded, Protocol, Refusal, grpc_frame};

mod status;
mod stream;

use stream::Streaming;

/// The way on of a message that was understood, or that passes all the same.
enum Submitted {
    Pending(Pending),
    Passes(Verdict),
}

/// Most bytes in a call that holds no tensor: a name and a version.
const READ_BYTES: usize = 64 * 1024;

// === impl Choice ===

impl Choice {
    /// Answers one call. Streams end soon after `draining` becomes true.
    pub(super) async fn handle_grpc(
        self,
        request: Request<Incoming>,
        draining: watch::Receiver<bool>,
    ) -> GrpcAnswer {
        let (mut parts, body) = request.into_parts();
        // Until its message says whose the call is.
        let proxy = Arc::clone(self.strictest());
        let id = proxy.gate.begin(&mut parts.headers);
        let call = route(&parts);
        let mut answer = if call == Ok(Call::StreamInfer) {
            // Each of its messages has a record of its own.
            Streaming::new(self, parts.headers, id.clone()).answer(body, draining).await
        } else {
            let mut record = proxy.gate.record(Protocol::OipGrpc, &id, &parts.headers);
            record.continue_trace(&mut parts.headers);
            let ended = match call {
                Ok(Call::Read(read)) => {
                    proxy.read_grpc(&self, read, parts, body, &mut record).await
                }
                Ok(_) => proxy.infer_grpc(&self, parts, body, &mut record).await,
                // Monitoring changes no answer: the upstream decides what it makes of the call.
                Err(refusal) if proxy.gate.screen.monitors() => {
                    proxy.relay(refusal, parts, body, &mut record).await
                }
                Err(refusal) => {
                    proxy.gate.metrics.unrecognised(&parts.method, parts.uri.path());
                    Err(Failure::Refused(refusal).into())
                }
            };
            let (verdict, answer) = ended.unwrap_or_else(|Stopped { verdict, failure }| {
                record.detail.get_or_insert_with(|| respond::shorten(failure.to_string()));
                (verdict, status::answer(&failure, record.request_id()))
            });
            record.answered(verdict);
            answer
        };
        answer.headers_mut().insert(REQUEST_ID, id);
        answer
    }
}

// === impl Proxy ===

impl Proxy {
    async fn infer_grpc(
        &self,
        choice: &Choice,
        mut parts: Parts,
        mut body: Incoming,
        record: &mut Record,
    ) -> Result<(Verdict, GrpcAnswer), Stopped> {
        let limit = self.gate.limits.body_bytes;
        // Before the body, and not by a layer around this function, for the reasons that `infer`
        // has.
        let mut place = self.gate.places.try_acquire();
        if place.is_err() && !choice.is_plural() {
            self.gate.settle(Err(Unverified::overload()), record)?;
        }
        let body = self.read_message(&mut body, limit, record).await?;
        let proxy = choice.of_message(&parts.headers, &body);
        if !std::ptr::eq(self, Arc::as_ptr(proxy)) {
            proxy.gate.adopt(record);
            place = proxy.gate.places.try_acquire();
        }
        let Ok(_place) = place else {
            let verdict = proxy.gate.settle(Err(Unverified::overload()), record)?;
            return proxy.send_grpc(verdict, oip_grpc::INFER, parts.headers, body, record).await;
        };
        let pending = match proxy.submit_grpc(&parts.headers, &body, record).await? {
            Submitted::Pending(pending) => pending,
            Submitted::Passes(verdict) => {
                return proxy
                    .send_grpc(verdict, oip_grpc::INFER, parts.headers, body, record)
                    .await;
            }
        };
        drop(body);
        let Encoded { body, .. } = pending.encoded.clone();
        reencoded(&mut parts.headers);
        let exchange = proxy.grpc()?.send(oip_grpc::INFER, parts.headers, body);
        proxy.gate.judged(pending, exchange, record).await
    }

    /// Queues the rows of a message in its frame.
    async fn submit_grpc(
        &self,
        headers: &HeaderMap,
        frame: &Bytes,
        record: &mut Record,
    ) -> Result<Submitted, Stopped> {
        if record.names_model() && record.model.is_none() {
            let message = frame.get(grpc_frame::PREFIX..).unwrap_or_default();
            record.model = oip_grpc::model_in(message).map(|name| name.chars().take(128).collect());
        }
        match self.gate.screen.submit(Wire::Grpc, oip_grpc::INFER, headers, frame).await {
            Ok(pending) => Ok(Submitted::Pending(pending)),
            Err(Unverified { failure: failure @ Failure::Refused(_), .. })
                if !self.gate.screen.monitors() =>
            {
                Err(failure.into())
            }
            Err(unverified) => self.gate.settle(Err(unverified), record).map(Submitted::Passes),
        }
    }

    async fn read_grpc(
        &self,
        choice: &Choice,
        read: Read,
        mut parts: Parts,
        mut body: Incoming,
        record: &mut Record,
    ) -> Result<(Verdict, GrpcAnswer), Stopped> {
        // Takes no place, as reads over HTTP/1.1.
        let body = self.read_message(&mut body, READ_BYTES, record).await?;
        let proxy = match read.request {
            ReadMessage::Model => choice.of_message(&parts.headers, &body),
            ReadMessage::Index | ReadMessage::Server => choice.least_ready(),
        };
        proxy.gate.adopt(record);
        let allowed = proxy.gate.screen.allowed();
        let checked = unframed(&parts.headers, &body, READ_BYTES)
            .and_then(|message| oip_grpc::check_read(message, read, allowed));
        let body = match checked {
            Ok(encoded) => {
                reencoded(&mut parts.headers);
                encoded
            }
            Err(_) if proxy.gate.screen.monitors() => body,
            Err(DecodeError::Refused(refusal)) => return Err(Failure::Refused(refusal).into()),
            Err(error) => return Err(Failure::Decode(error).into()),
        };
        if let Some(readiness) = read.readiness
            && !proxy.gate.screen.is_open()
        {
            return Ok((Verdict::Bypassed, status::success(readiness.refusal())));
        }
        proxy.send_grpc(Verdict::Bypassed, read.path, parts.headers, body, record).await
    }

    /// Passes a call on as it is, both ways, while it lasts.
    async fn relay(
        &self,
        refusal: Refusal,
        parts: Parts,
        body: Incoming,
        record: &mut Record,
    ) -> Result<(Verdict, GrpcAnswer), Stopped> {
        // It may have been an inference, and was not judged.
        self.gate.metrics.unrecognised(&parts.method, parts.uri.path());
        let unverified = Unverified::new(Failure::Refused(refusal), Reason::Unrecognised);
        let verdict = self.gate.settle(Err(unverified), record)?;
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let body = body.map_err(Into::into).boxed_unsync();
        let upstream = self.grpc().map_err(|failure| Stopped { verdict, failure })?;
        let opening = upstream.open(parts.method, path, parts.headers, body);
        match upstream.breaker.guard(opening).await {
            Ok(answer) => {
                let answer = answer.map(|body| body.map_err(Into::into).boxed_unsync());
                Ok((verdict, answer))
            }
            Err(failed) => Err(Stopped { verdict, failure: record.unanswered(failed) }),
        }
    }

    async fn send_grpc(
        &self,
        verdict: Verdict,
        path: &'static str,
        headers: HeaderMap,
        body: Bytes,
        record: &mut Record,
    ) -> Result<(Verdict, GrpcAnswer), Stopped> {
        let since = std::time::Instant::now();
        let upstream = self.grpc().map_err(|failure| Stopped { verdict, failure })?;
        let reply = upstream.send(path, headers, body).await;
        record.upstream = Some(Interval::since(since));
        match reply {
            Ok(answer) => Ok((verdict, answer)),
            Err(failed) => Err(Stopped { verdict, failure: record.unanswered(failed) }),
        }
    }

    /// Reads a body of one message within its bounds.
    async fn read_message(
        &self,
        body: &mut Incoming,
        limit: usize,
        record: &mut Record,
    ) -> Result<Bytes, Failure> {
        let framed = limit.saturating_add(grpc_frame::PREFIX);
        self.gate.read(body, framed, record).await.map_err(|failure| match failure {
            Failure::BodyTooLarge { .. } => Failure::BodyTooLarge { limit },
            failure => failure,
        })
    }

    fn grpc(&self) -> Result<&Upstream, Failure> {
        // There is a listener for calls only where there is an upstream for them.
        self.grpc.as_deref().ok_or(Failure::Upstream(UpstreamError::Unreachable))
    }
}

fn route(parts: &Parts) -> Result<Call, Refusal> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let media_types: Vec<&[u8]> =
        parts.headers.get_all(CONTENT_TYPE).iter().map(HeaderValue::as_bytes).collect();
    let method: &Method = &parts.method;
    oip_grpc::call(method.as_str(), path, &media_types)
}

/// The headers of a message in the firewall's own encoding.
fn reencoded(headers: &mut HeaderMap) {
    headers.remove(GRPC_ENCODING);
    headers.remove(CONTENT_ENCODING);
    headers.insert(CONTENT_TYPE, GRPC);
}
