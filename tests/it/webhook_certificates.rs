//! The webhook looks after its own certificate, against an API server that keeps versions as the real one does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use doorward::config::Tls;
use doorward::config::injection;
use doorward_injector::{Access, Keeper, Settings, Webhook};
use doorward_proxy::server::{Listener, Security, Speaks};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::tls::Authority;

const SECRETS: &str = "/api/v1/namespaces/doorward/secrets";
const SECRET: &str = "/api/v1/namespaces/doorward/secrets/tls";
const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/webhook.doorward.dev";

/// What the API server stores.
#[derive(Default)]
struct Store {
    version: u64,
    secret: Option<Value>,
    configuration: Value,
    /// The next writes fail, as if another client had been faster.
    conflicts: usize,
    writes: usize,
}

type Shared = Arc<Mutex<Store>>;

struct ApiServer {
    store: Shared,
    address: SocketAddr,
    folder: TempDir,
    authority: Authority,
    _listener: Listener,
}

impl ApiServer {
    async fn start() -> Self {
        let store = Shared::default();
        store.lock().unwrap().configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "webhook.doorward.dev", "resourceVersion": "1"},
            "webhooks": [
                {"name": "namespace.webhook.doorward.dev", "clientConfig": {"service": {"name": "w"}}},
                {"name": "pod.webhook.doorward.dev", "clientConfig": {"caBundle": "b2xk"}},
            ],
        });
        let router = Router::new()
            .route(SECRETS, post(create))
            .route(SECRET, get(read_secret).put(replace))
            .route(CONFIGURATION, get(read_configuration).patch(patch))
            .with_state(Arc::clone(&store));
        let authority = Authority::new();
        let tls = Tls { identity: authority.issue("api"), client_ca: None };
        let security = Security::new(Some(&tls), &["http/1.1"]).expect("TLS");
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("an address");
        let service = TowerToHyperService::new(router);
        let listener = Listener::serve(socket, Arc::new(security), service, Speaks::Http1, 64)
            .expect("serving");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "a-token\n").expect("written");
        Self { store, address, folder, authority, _listener: listener }
    }

    fn access(&self) -> Access {
        Access {
            url: format!("https://{}", self.address),
            ca: self.authority.ca(),
            token: self.folder.path().join("token"),
        }
    }

    /// A replica with its own files.
    fn replica(&self, folder: &Path) -> (Keeper, Settings) {
        let file = |name: &str| folder.join(name).display().to_string();
        let settings = format!(
            "[webhook]\nlisten = '127.0.0.1:0'\ncertificate = '{}'\nkey = '{}'\n\
             [webhook.self_managed]\nsecret = 'tls'\n",
            file("tls.crt"),
            file("tls.key")
        );
        let settings = injection::parse("test", &settings).expect("settings");
        let managed = settings.webhook.self_managed.clone().expect("given");
        let keeper =
            Keeper::new(self.access(), managed, settings.webhook.clone()).expect("a keeper");
        (keeper, settings)
    }

    /// Every bundle that the API server would check the webhook with.
    fn bundles(&self) -> Vec<String> {
        let store = self.store.lock().unwrap();
        let webhooks = store.configuration["webhooks"].as_array().expect("webhooks").clone();
        let bundle = |webhook: &Value| {
            let text = webhook["clientConfig"]["caBundle"].as_str().expect("a bundle");
            String::from_utf8(BASE64_STANDARD.decode(text).expect("base64")).expect("PEM")
        };
        webhooks.iter().map(bundle).collect()
    }
}

fn refuse(status: StatusCode) -> Response {
    let code = status.as_u16();
    (status, Json(json!({"kind": "Status", "code": code, "message": "no"}))).into_response()
}

fn known(headers: &HeaderMap) -> bool {
    headers.get("authorization").is_some_and(|value| value == "Bearer a-token")
}

async fn read_secret(State(store): State<Shared>, headers: HeaderMap) -> Response {
    match (known(&headers), &store.lock().unwrap().secret) {
        (false, _) => refuse(StatusCode::UNAUTHORIZED),
        (true, None) => refuse(StatusCode::NOT_FOUND),
        (true, Some(secret)) => Json(secret).into_response(),
    }
}

async fn read_configuration(State(store): State<Shared>) -> Response {
    Json(&store.lock().unwrap().configuration).into_response()
}

async fn create(State(store): State<Shared>, Json(object): Json<Value>) -> Response {
    let mut store = store.lock().unwrap();
    if store.secret.is_some() {
        return refuse(StatusCode::CONFLICT);
    }
    store.put(object)
}

async fn replace(State(store): State<Shared>, Json(object): Json<Value>) -> Response {
    let mut store = store.lock().unwrap();
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    let current = store.secret.as_ref().map(version);
    if store.fails() || current != Some(version(&object)) {
        return refuse(StatusCode::CONFLICT);
    }
    store.put(object)
}

async fn patch(State(store): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers["content-type"], "application/json-patch+json");
    let patch: json_patch::Patch = serde_json::from_slice(&body).expect("operations");
    let mut store = store.lock().unwrap();
    let mut object = store.configuration.clone();
    if store.fails() || json_patch::patch(&mut object, &patch).is_err() {
        return refuse(StatusCode::UNPROCESSABLE_ENTITY);
    }
    store.version += 1;
    store.writes += 1;
    object["metadata"]["resourceVersion"] = json!(store.version.to_string());
    store.configuration = object.clone();
    Json(object).into_response()
}

impl Store {
    fn fails(&mut self) -> bool {
        let fails = self.conflicts > 0;
        self.conflicts = self.conflicts.saturating_sub(1);
        fails
    }

    fn put(&mut self, mut object: Value) -> Response {
        self.version += 1;
        self.writes += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.secret = Some(object.clone());
        Json(object).into_response()
    }
}

/// Shakes hands with a webhook as the API server does: by the Service's name and one of its bundles.
async fn trusts(bundle: &str, webhook: &Webhook) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, bundle).expect("written");
    let settings = doorward::config::UpstreamTls { ca, identity: None };
    let client = doorward_proxy::tls::client(Some(&settings)).expect("a bundle");
    let stream =
        TcpStream::connect(webhook.address().tcp().expect("a port")).await.expect("a connection");
    let name = "doorward-webhook.doorward.svc".try_into().expect("a name");
    TlsConnector::from(Arc::new(client)).connect(name, stream).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_one_certificate_that_the_api_server_trusts() {
    let server = ApiServer::start().await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, settings) = server.replica(one.path());
    let (second, other) = server.replica(two.path());
    let (a, b) = tokio::join!(first.keep(), second.keep());
    a.expect("a certificate");
    b.expect("a certificate");
    let read = |folder: &TempDir, name| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read(&one, "tls.crt"), read(&two, "tls.crt"));
    let bundles = server.bundles();
    for settings in [settings, other] {
        let webhook = Webhook::bind(&settings).await.expect("the files go together");
        for bundle in &bundles {
            assert!(trusts(bundle, &webhook).await, "{bundle}");
        }
    }
    // Nothing is due: nothing is written.
    let writes = server.store.lock().unwrap().writes;
    first.keep().await.expect("still valid");
    assert_eq!(server.store.lock().unwrap().writes, writes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_trusted_before_and_after_the_change() {
    let server = ApiServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (keeper, settings) = server.replica(folder.path());
    keeper.keep().await.expect("a certificate");
    let before = Webhook::bind(&settings).await.expect("the first certificate");
    let old = server.bundles();
    {
        let mut store = server.store.lock().unwrap();
        let secret = store.secret.as_mut().expect("a secret");
        secret["metadata"]["annotations"]["doorward.dev/renew-after"] = json!("1");
        secret["metadata"]["labels"] = json!({"of": "others"});
        // Others get in between a few times.
        store.conflicts = 3;
    }
    keeper.keep().await.expect("a new certificate");
    let new = server.bundles();
    assert_ne!(old, new);
    // A replica that has not seen the new files yet, and one that has.
    let after = Webhook::bind(&settings).await.expect("the new certificate");
    assert!(trusts(&new[0], &before).await && trusts(&new[0], &after).await);
    assert!(!trusts(&old[0], &after).await, "another authority signed it");
    assert_eq!(
        server.store.lock().unwrap().secret.as_ref().unwrap()["metadata"]["labels"]["of"],
        "others"
    );
    // Only the newest one before stays.
    assert_eq!(new[0].matches("BEGIN CERTIFICATE").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_is_missing() {
    let server = ApiServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (keeper, _) = server.replica(folder.path());
    std::fs::write(server.folder.path().join("token"), "another").unwrap();
    let error = keeper.keep().await.expect_err("not known").to_string();
    assert!(error.contains("GET") && error.contains("401 Unauthorized: no"), "{error}");
    std::fs::write(server.folder.path().join("token"), "a-token").unwrap();
    server.store.lock().unwrap().secret =
        Some(json!({"metadata": {}, "data": {"tls.crt": "AA=="}}));
    let error = keeper.keep().await.expect_err("somebody else's").to_string();
    assert!(error.contains("Secret tls holds no ca.crt"), "{error}");
    server.store.lock().unwrap().secret = None;
    server.store.lock().unwrap().conflicts = usize::MAX;
    let error = keeper.keep().await.expect_err("never first").to_string();
    assert!(error.contains("MutatingWebhookConfiguration webhook.doorward.dev changed"), "{error}");
    let error = Access::in_pod(|_| None).expect_err("not in a pod").to_string();
    assert!(error.contains("KUBERNETES_SERVICE_HOST"), "{error}");
}
