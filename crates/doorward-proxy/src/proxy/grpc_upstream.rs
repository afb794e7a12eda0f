//! The client to the model server's gRPC port.
//!
//! One HTTP/2 connection takes all calls; without TLS it begins as HTTP/2 at once. As over
//! HTTP/1.1, a call is sent at most once, and its reply is collected and has one deadline; streams
//! are not collected, and have none.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, TE};
use hyper::{Method, Request, Response};

use super::grpc_body::{CallBody, GrpcAnswer, whole};
use crate::address::Origin;
use crate::proxy::breaker::Breaker;
use crate::proxy::connect::{Client, Http, client};
use crate::proxy::error::Error;
use crate::proxy::failed::{Failed, broken, late, unsent};
use crate::proxy::upstream::{drop_replaced, strip};
use crate::settings::{self};

/// The model server.
#[derive(Debug)]
pub(in crate::proxy) struct Upstream {
    client: Client<CallBody>,
    origin: Origin,
    timeout: Duration,
    has_tls: bool,
    /// The breaker. It looks after calls that are collected by itself; code that opens a stream
    /// asks it before and tells it the outcome.
    pub(super) breaker: Breaker,
}

// === impl Upstream ===

impl Upstream {
    /// Reads the certificates, if there are any. `None` without a URL.
    pub(in crate::proxy) fn new(settings: &settings::Upstream) -> Result<Option<Self>, Error> {
        settings.grpc_url.as_ref().map(|origin| Self::at(origin, settings)).transpose()
    }

    /// The same with certificates read anew, from the files of `settings`.
    pub(in crate::proxy) fn successor(
        &self,
        settings: &settings::Upstream,
    ) -> Result<Option<Self>, Error> {
        // For the reasons that the other client has.
        if !self.has_tls || settings.tls.is_none() {
            return Ok(None);
        }
        let settings = settings::Upstream { timeout: self.timeout, ..settings.clone() };
        Self::at(&self.origin, &settings).map(Some)
    }

    fn at(origin: &Origin, settings: &settings::Upstream) -> Result<Self, Error> {
        Ok(Self {
            client: client(origin, settings.tls.as_ref(), Http::Two)?,
            origin: origin.clone(),
            timeout: settings.timeout,
            has_tls: settings.tls.is_some(),
            breaker: Breaker::new(settings.breaker),
        })
    }

    /// The longest time that one exchange may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends one message in its frame and collects the reply.
    pub(super) async fn send(
        &self,
        path: &'static str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<GrpcAnswer, Failed> {
        let call = async {
            let answer = self.open(Method::POST, path, headers, whole(body, None)).await?;
            let (parts, body) = answer.into_parts();
            let body = body.collect().await.map_err(broken)?;
            let trailers = body.trailers().cloned();
            Ok(Response::from_parts(parts, whole(body.to_bytes(), trailers)))
        };
        let exchange = async {
            match tokio::time::timeout(self.timeout, call).await {
                Ok(answer) => answer,
                Err(_) => Err(late(self.timeout)),
            }
        };
        self.breaker.guard(exchange).await
    }

    /// Begins a call; its reply is read as it comes.
    pub(super) async fn open(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: CallBody,
    ) -> Result<Response<Incoming>, Failed> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        drop_replaced(request.headers_mut());
        // Of the connection, and so stripped; servers may insist.
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        *request.uri_mut() = format!("{}{path}", self.origin.base()).parse().map_err(broken)?;
        let mut answer = self.client.request(request).await.map_err(unsent)?;
        strip(answer.headers_mut());
        Ok(answer)
    }
}
