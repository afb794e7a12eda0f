//! As much of S3 as an artifact takes, on a loopback port: objects whole and uploads in parts.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// The running server; it ends with this.
pub(crate) struct ObjectStorage {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    _runtime: Runtime,
}

#[derive(Default)]
pub(crate) struct Shared {
    /// By path, `/bucket/key`.
    pub(crate) objects: BTreeMap<String, Bytes>,
    /// Parts of uploads that were neither completed nor given up.
    pub(crate) uploads: BTreeMap<String, BTreeMap<usize, Bytes>>,
    /// So many requests get 503.
    pub(crate) failures: usize,
    /// Who signed requests.
    pub(crate) authorizations: Vec<String>,
}

// === impl ObjectStorage ===

impl ObjectStorage {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let socket = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = socket.local_addr().expect("an address");
        runtime.spawn(async move { axum::serve(socket, router).await });
        Self { address, shared, _runtime: runtime }
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no panic while held")
    }

    /// What a client of it finds in its environment.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", "reader"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ENDPOINT_URL", &format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

async fn answer(State(shared): State<Arc<Mutex<Shared>>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().as_bytes();
    let query: HashMap<_, _> = url::form_urlencoded::parse(query).into_owned().collect();
    let body = body.collect().await.expect("a body").to_bytes();
    let path = parts.uri.path().to_owned();
    let mut shared = shared.lock().expect("no panic while held");
    if shared.failures > 0 {
        shared.failures -= 1;
        return reply(StatusCode::SERVICE_UNAVAILABLE, Bytes::new());
    }
    let signed = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
    shared.authorizations.push(signed.unwrap_or_default().to_owned());
    let done = |text: &'static str| reply(StatusCode::OK, Bytes::from_static(text.as_bytes()));
    let upload = query.get("uploadId");
    match (&parts.method, upload) {
        (&Method::POST, None) => {
            shared.uploads.insert(path, BTreeMap::new());
            done(
                "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>",
            )
        }
        (&Method::PUT, Some(_)) => {
            let number = query["partNumber"].parse().expect("a number");
            shared.uploads.get_mut(&path).expect("an upload").insert(number, body);
            done("")
        }
        (&Method::POST, Some(_)) => {
            let parts = shared.uploads.remove(&path).expect("an upload");
            let whole: Vec<u8> = parts.into_values().flatten().collect();
            shared.objects.insert(path, whole.into());
            done("<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
        }
        (&Method::DELETE, Some(_)) => {
            shared.uploads.remove(&path).expect("an upload");
            reply(StatusCode::NO_CONTENT, Bytes::new())
        }
        (&Method::GET, None) => match shared.objects.get(&path) {
            Some(object) => reply(StatusCode::OK, object.clone()),
            None => reply(StatusCode::NOT_FOUND, Bytes::new()),
        },
        _ => reply(StatusCode::METHOD_NOT_ALLOWED, Bytes::new()),
    }
}

fn reply(status: StatusCode, body: Bytes) -> Response {
    Response::builder()
        .status(status)
        .header("etag", "\"e\"")
        .header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        .body(Body::from(body))
        .expect("a response")
}
