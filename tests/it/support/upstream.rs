//! A model server on a loopback port that keeps what it got, and can be slow, broken or down.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{HeaderMap, Method, Request};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The running server.
pub(crate) struct FakeUpstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

struct Shared {
    received: Mutex<Vec<Received>>,
    open: watch::Sender<bool>,
}

/// No encoder writes it like this, so a re-encoded answer would be seen.
pub(crate) const REPLY: &str = "{ \"model_name\":\"m\",\n\t\"outputs\" : [1.50, 2e0] }";

/// The pages that it lets read its answers. A path that ends in a slash it redirects to the one without.
pub(crate) const ORIGIN: &str = "https://app.example";

// === impl FakeUpstream ===

impl FakeUpstream {
    pub(crate) async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let shared =
            Arc::new(Shared { received: Mutex::new(Vec::new()), open: watch::Sender::new(true) });
        let task = serve(socket, Arc::clone(&shared));
        Self { address, shared, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("no panic while held").clone()
    }

    /// The one with this header: what was turned away while it was on its way may arrive behind a later one.
    pub(crate) fn of(&self, name: &str, value: &str) -> Received {
        let received = self.shared.received.lock().expect("no panic while held");
        let mut found = received
            .iter()
            .rev()
            .filter(|request| request.headers.get(name).is_some_and(|found| found == value));
        found.next().expect("a request").clone()
    }

    /// The last one.
    pub(crate) fn last(&self) -> Received {
        let received = self.shared.received.lock().expect("no panic while held");
        received.last().expect("a request").clone()
    }

    /// From now on requests wait.
    pub(crate) fn hold(&self) {
        self.shared.open.send_replace(false);
    }

    /// Requests are answered again.
    pub(crate) fn release(&self) {
        self.shared.open.send_replace(true);
    }

    /// Stops accepting.
    pub(crate) async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Comes back on the same port.
    pub(crate) async fn restart(&mut self) {
        let socket = TcpListener::bind(self.address).await.expect("the port");
        self.task = serve(socket, Arc::clone(&self.shared));
    }
}

fn serve(socket: TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    let app = Router::new().fallback(answer).with_state(shared);
    tokio::spawn(async move {
        let _ = axum::serve(socket, app).await;
    })
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let (method, path, headers) = (parts.method, parts.uri.to_string(), parts.headers);
    let received =
        Received { method: method.clone(), path: path.clone(), headers: headers.clone(), body };
    shared.received.lock().expect("no panic while held").push(received);
    let mut open = shared.open.subscribe();
    let _ = open.wait_for(|open| *open).await;
    let mut response = Response::builder();
    if method == Method::OPTIONS && headers.get("origin").is_some_and(|origin| origin == ORIGIN) {
        response = response.header("access-control-allow-origin", ORIGIN).header("vary", "origin");
    }
    if let Some(plain) = path.strip_suffix('/').filter(|path| !path.is_empty()) {
        let host = headers["host"].to_str().expect("a host");
        response = response.status(307).header("location", format!("http://{host}{plain}"));
    }
    response
        .header("content-type", "application/json; odd=1")
        .header("x-model", "m")
        .header("set-cookie", "a=1")
        .header("set-cookie", "b=2")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .body(Body::from(REPLY))
        .expect("a response")
}
