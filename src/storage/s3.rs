//! An object in S3, or in what speaks its protocol.
//!
//! The library signs, retries and finds credentials; requests go through the HTTP client and the
//! TLS of the rest of the program.

use std::time::Duration;

use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper::http::uri::Scheme;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::TokioExecutor;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector as Connect, HttpError, HttpErrorKind, HttpRequest,
    HttpRequestBody, HttpResponse, HttpResponseBody, HttpService,
};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStoreExt, RetryConfig, WriteMultipart};
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;

use super::Cause;
use doorward_proxy::tls;

/// One object.
#[derive(Debug)]
pub(super) struct Object {
    store: AmazonS3,
    key: Path,
    runtime: Runtime,
}

/// Makes the library's client of ours.
#[derive(Debug)]
struct Connector {
    tls: ClientConfig,
}

#[derive(Debug)]
struct Service {
    client: Client<HttpsConnector<HttpConnector>, HttpRequestBody>,
    plain: Plain,
}

/// True if requests may go without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plain {
    Allowed,
    Refused,
}

/// A request would be readable on its way.
#[derive(Debug, thiserror::Error)]
#[error(
    "the endpoint is http://, expected https://, or AWS_ALLOW_HTTP=true for a network that is safe"
)]
struct NotEncrypted;

/// Nobody answers.
#[derive(Debug, thiserror::Error)]
#[error("nothing was received for {} s", WAIT.as_secs())]
struct Late;

const CONNECT: Duration = Duration::from_secs(5);
/// For an answer, and for each piece of it.
const WAIT: Duration = Duration::from_secs(30);
/// The time for which a failure is tried again.
const RETRIES: Duration = Duration::from_secs(30);
/// Bytes that one request writes; S3 takes 5 MiB or more.
const PART: usize = 8 << 20;

// === impl Object ===

impl Object {
    pub(super) fn open(
        bucket: &str,
        key: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Cause> {
        let variables: Vec<(String, String)> =
            environment.into_iter().filter(|(name, _)| name.starts_with("AWS_")).collect();
        let authorities = variables.iter().find(|(name, _)| name == "AWS_CA_BUNDLE");
        let authorities = authorities.map(|(_, path)| std::path::Path::new(path));
        let tls = tls::public_client(authorities)?;
        let mut builder = AmazonS3Builder::new();
        for (name, value) in variables {
            // Others of that prefix are not the library's.
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let retry = RetryConfig { retry_timeout: RETRIES, ..RetryConfig::default() };
        let store = builder
            .with_bucket_name(bucket)
            .with_retry(retry)
            .with_http_connector(Connector { tls })
            .build()?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { store, key: Path::from_url_path(key)?, runtime })
    }

    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, Cause> {
        self.runtime.block_on(async {
            let found = match self.store.get(&self.key).await {
                Ok(found) => found,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let mut bytes = Vec::new();
            let mut pieces = found.into_stream();
            while let Some(piece) = timeout(WAIT, pieces.next()).await.map_err(|_| Late)? {
                bytes.extend_from_slice(&piece?);
            }
            Ok(Some(bytes))
        })
    }

    /// Begins an upload and gives it up.
    pub(super) fn check_writable(&self) -> Result<(), Cause> {
        self.runtime.block_on(async {
            self.store.put_multipart(&self.key).await?.abort().await?;
            Ok(())
        })
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Cause> {
        self.runtime.block_on(async {
            let upload = self.store.put_multipart(&self.key).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
            for part in bytes.chunks(PART) {
                upload.wait_for_capacity(1).await?;
                upload.write(part);
            }
            upload.finish().await?;
            Ok(())
        })
    }
}

// === impl Connector ===

impl Connect for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // It is false for the storage unless AWS_ALLOW_HTTP says so, and true for the machine's own
        // service of credentials.
        let allowed = options.get_config_value(&ClientConfigKey::AllowHttp);
        let plain = match allowed.as_deref() {
            Some("true") => Plain::Allowed,
            _ => Plain::Refused,
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(HttpClient::new(Service { client, plain }))
    }
}

// === impl Service ===

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if self.plain == Plain::Refused && request.uri().scheme() != Some(&Scheme::HTTPS) {
            return Err(HttpError::new(HttpErrorKind::Unknown, NotEncrypted));
        }
        let answer = timeout(WAIT, self.client.request(request));
        let answer = answer.await.map_err(|_| HttpError::new(HttpErrorKind::Timeout, Late))?;
        let body = |error| HttpError::new(HttpErrorKind::Interrupted, error);
        Ok(answer.map_err(broken)?.map(|answer| HttpResponseBody::new(answer.map_err(body))))
    }
}

fn broken(error: ClientError) -> HttpError {
    let kind = match error.is_connect() {
        true => HttpErrorKind::Connect,
        false => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, error)
}
