//! The client to the model server's gRPC port.
//!
//! One HTTP/2 connection takes all calls; without TLS it begins as HTTP/2 at once. As over HTTP/1.1, a call is sent
//! at most once, and its reply is collected and has one deadline; streams are not collected, and have none.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, TE};
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::GrpcAnswer;
use super::body::{CallBody, whole};
use crate::config;
use crate::proxy::Error;
use crate::proxy::upstream::{Failed, broken, connector, drop_replaced, late, strip, unsent};
use crate::tls;

/// The model server.
#[derive(Debug)]
pub(in crate::proxy) struct Upstream {
    client: Client<HttpsConnector<HttpConnector>, CallBody>,
    url: String,
    timeout: Duration,
    has_tls: bool,
}

/// How long a connection without calls is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a silent connection with open calls is asked whether it lives. gRPC's own library, which is under most
/// model servers, closes a connection that is asked more often than every five minutes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(310);

const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

// === impl Upstream ===

impl Upstream {
    /// Reads the certificates, if there are any. `None` without a URL.
    pub(in crate::proxy) fn new(settings: &config::Upstream) -> Result<Option<Self>, Error> {
        settings.grpc_url.as_ref().map(|url| Self::at(url, settings)).transpose()
    }

    /// The same with certificates read anew, from the files of `settings`.
    pub(in crate::proxy) fn successor(
        &self,
        settings: &config::Upstream,
    ) -> Result<Option<Self>, Error> {
        // For the reasons that the other client has.
        if !self.has_tls || settings.tls.is_none() {
            return Ok(None);
        }
        let settings = config::Upstream { timeout: self.timeout, ..settings.clone() };
        Self::at(&self.url, &settings).map(Some)
    }

    fn at(url: &str, settings: &config::Upstream) -> Result<Self, Error> {
        if url.parse::<Uri>().is_err() {
            return Err(Error::Url { received: url.to_owned() });
        }
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client(settings.tls.as_ref())?)
            .https_or_http()
            .enable_http2()
            .wrap_connector(connector());
        let client = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        let has_tls = settings.tls.is_some();
        Ok(Self { client, url: url.to_owned(), timeout: settings.timeout, has_tls })
    }

    /// How long one exchange may take.
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
        let exchange = async {
            let answer = self.open(Method::POST, path, headers, whole(body, None)).await?;
            let (parts, body) = answer.into_parts();
            let body = body.collect().await.map_err(broken)?;
            let trailers = body.trailers().cloned();
            Ok(Response::from_parts(parts, whole(body.to_bytes(), trailers)))
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(late(self.timeout)),
        }
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
        *request.uri_mut() = format!("{}{path}", self.url).parse().map_err(broken)?;
        let mut answer = self.client.request(request).await.map_err(unsent)?;
        strip(answer.headers_mut());
        Ok(answer)
    }
}
