//! The client to the model server.
//!
//! One exchange is sent at most once (the pool tries another connection only when the first one was
//! closed before any of the request was written) and has one deadline. Replies are collected before
//! they go on: an inference reply has to wait for its verdict anyway, and a reply that breaks off
//! halfway becomes a clear error instead of a truncated answer.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, Uri};

use super::breaker::Breaker;
use super::connect::{Client, Http, client};
use super::error::Error;
use super::failed::{Failed, broken, late, unsent};
use crate::settings;

/// The model server.
#[derive(Debug)]
pub(super) struct Upstream {
    client: Client<Full<Bytes>>,
    settings: settings::Upstream,
    breaker: Breaker,
}

/// One request to the model server.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    /// Without those of the client's connection.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Say something of one connection only.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers of a request that do not go on. The first two are set anew, and a body that is here
/// already needs no `expect`. The others make some servers, or what stands before them, see another
/// method, path or model than the one that was checked: Ray Serve's, ModelMesh's, Seldon's and
/// SageMaker's choices of a model among them.
const REPLACED: [&str; 24] = [
    "content-length",
    "host",
    "expect",
    "mm-model-id",
    "mm-vmodel-id",
    "seldon-internal-model",
    "seldon-model",
    "seldon-route",
    "serve_multiplexed_model_id",
    "x-amzn-sagemaker-custom-attributes",
    "x-amzn-sagemaker-target-container-hostname",
    "x-amzn-sagemaker-target-variant",
    "x-envoy-original-path",
    "x-forwarded-path",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-method",
    "x-original-path",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

// === impl Upstream ===

impl Upstream {
    /// Reads the certificates, if there are any.
    pub(super) fn new(settings: &settings::Upstream) -> Result<Self, Error> {
        let speaks = if settings.http2 { Http::Two } else { Http::One };
        let client = client(&settings.url, settings.tls.as_ref(), speaks)?;
        let breaker = Breaker::new(settings.breaker);
        Ok(Self { client, settings: settings.clone(), breaker })
    }

    /// The same with certificates read anew, from the files of `settings`.
    pub(super) fn successor(&self, settings: &settings::Upstream) -> Result<Option<Self>, Error> {
        // Another URL takes effect after a restart only, and without TLS there is nothing to read.
        if self.settings.tls.is_none() || settings.tls.is_none() {
            return Ok(None);
        }
        let settings = settings::Upstream { tls: settings.tls.clone(), ..self.settings.clone() };
        Self::new(&settings).map(Some)
    }

    /// Sends one request and collects the reply.
    pub(super) async fn send(&self, call: Call) -> Result<Response<Full<Bytes>>, Failed> {
        let exchange = async {
            match tokio::time::timeout(self.settings.timeout, self.exchange(call)).await {
                Ok(reply) => reply,
                Err(_) => Err(late(self.settings.timeout)),
            }
        };
        self.breaker.guard(exchange).await
    }

    async fn exchange(&self, call: Call) -> Result<Response<Full<Bytes>>, Failed> {
        let mut request = Request::new(Full::new(call.body));
        *request.method_mut() = call.method;
        *request.headers_mut() = call.headers;
        drop_replaced(request.headers_mut());
        *request.uri_mut() =
            format!("{}{}", self.settings.url.base(), call.path).parse().map_err(broken)?;
        let reply = self.client.request(request).await.map_err(unsent)?;
        let (mut parts, body) = reply.into_parts();
        let body = body.collect().await.map_err(broken)?.to_bytes();
        strip(&mut parts.headers);
        self.redirect_here(&mut parts.headers);
        Ok(Response::from_parts(parts, Full::new(body)))
    }
}

impl Upstream {
    /// Makes a redirection to the model server one to the firewall: whoever follows it must not go
    /// round.
    fn redirect_here(&self, headers: &mut HeaderMap) {
        let base: Option<Uri> = self.settings.url.base().parse().ok();
        let location: Option<Uri> =
            headers.get(LOCATION).and_then(|location| location.to_str().ok()?.parse().ok());
        let (Some(base), Some(location)) = (base, location) else { return };
        if location.authority().is_none() || location.authority() != base.authority() {
            return;
        }
        let path = location.path_and_query().map_or("/", |path| path.as_str());
        if let Ok(path) = HeaderValue::from_str(path) {
            headers.insert(LOCATION, path);
        }
    }
}

/// Drops the headers that the client of the upstream sets, and those that some servers obey.
pub(super) fn drop_replaced(headers: &mut HeaderMap) {
    for name in REPLACED {
        headers.remove(name);
    }
}

/// Drops what must not travel from one connection to the next.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}
