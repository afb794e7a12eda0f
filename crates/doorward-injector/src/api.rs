//! The few calls of the Kubernetes API that a webhook needs to look after its own certificate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request, StatusCode};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use doorward_proxy::settings::UpstreamTls;
use doorward_proxy::tls;

/// The address of the API server, and the credentials for it.
#[derive(Clone, Debug)]
pub struct Access {
    /// `https://host:port`
    pub url: String,
    /// The certificate of the authority that signs the API server's.
    pub ca: PathBuf,
    /// A file with a token, which Kubernetes replaces before it expires.
    pub token: PathBuf,
}

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The answer is not what the API promises.
    #[error("{method} {path}: the answer cannot be read: {reason}")]
    Answer {
        /// The call's.
        method: Method,
        /// The call's.
        path: String,
        /// The fault.
        reason: String,
    },
    /// This process is not in a pod.
    #[error("{variable} is not set: the API server is known only inside of a pod")]
    NotInAPod {
        /// The variables that Kubernetes sets.
        variable: &'static str,
    },
    /// The API server refuses.
    #[error("{method} {path}: {status}: {message}")]
    Refused {
        /// The call's.
        method: Method,
        /// The call's.
        path: String,
        /// The API server's.
        status: StatusCode,
        /// The API server's.
        message: String,
    },
    /// The authority's certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The token cannot be read.
    #[error("cannot read {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no connection.
    #[error("{method} {path}: the API server cannot be reached: {reason}")]
    Unreachable {
        /// The call's.
        method: Method,
        /// The call's.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// A client of the API server.
#[derive(Debug)]
pub(super) struct Api {
    access: Access,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// The form in which a body is to be taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body<'a> {
    Object(&'a Value),
    Patch(&'a Value),
}

const MOUNTED: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_BYTES: usize = 8 * 1024 * 1024;

// === impl Access ===

impl Access {
    /// As Kubernetes tells every pod. `variable` looks up the environment.
    pub fn in_pod(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let known = |name: &'static str| variable(name).ok_or(Error::NotInAPod { variable: name });
        let (host, port) = (known("KUBERNETES_SERVICE_HOST")?, known("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let file = |name: &str| Path::new(MOUNTED).join(name);
        Ok(Self { url: format!("https://{host}:{port}"), ca: file("ca.crt"), token: file("token") })
    }
}

// === impl Api ===

impl Api {
    pub(super) fn new(access: Access) -> Result<Self, Error> {
        let settings = UpstreamTls { ca: access.ca.clone(), identity: None };
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls::client(Some(&settings))?)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self { access, client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// An object; `None` if there is none.
    pub(super) async fn find(&self, path: &str) -> Result<Option<Value>, Error> {
        match self.call(Method::GET, path, None).await {
            Ok(object) => Ok(Some(object)),
            Err(Error::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Body<'_>>,
    ) -> Result<Value, Error> {
        let (kind, body) = match body {
            None => ("application/json", Bytes::new()),
            Some(Body::Object(object)) => ("application/json", object.to_string().into()),
            Some(Body::Patch(patch)) => ("application/json-patch+json", patch.to_string().into()),
        };
        let file = &self.access.token;
        let token = std::fs::read_to_string(file)
            .map_err(|source| Error::Token { path: file.clone(), source })?;
        let unreachable = |reason: String| Error::Unreachable {
            method: method.clone(),
            path: path.to_owned(),
            reason,
        };
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.access.url))
            .header(AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, kind)
            .body(Full::new(body))
            .map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| chain(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
            Ok::<_, String>((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(TIMEOUT, exchange)
            .await
            .map_err(|_| unreachable(format!("no answer within {TIMEOUT:?}")))?
            .map_err(unreachable)?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| Error::Answer {
                method,
                path: path.to_owned(),
                reason: error.to_string(),
            });
        }
        // A Status object, where the API server itself answers.
        let message = serde_json::from_slice::<Value>(&body).ok();
        let message = message.as_ref().and_then(|status| status["message"].as_str());
        let message = message.unwrap_or("without a message").to_owned();
        Err(Error::Refused { method, path: path.to_owned(), status, message })
    }
}

/// An error with its causes, which hyper leaves out of its message.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
