//! The admission webhook as the API server meets it: reviews over TLS, patches that give the golden pods.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use doorward::config::UpstreamTls;
use doorward::config::injection;
use doorward_injector::Webhook;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::injection::{documents, golden};
use crate::tls::Authority;

/// A webhook and the one client that trusts it.
struct Setup {
    webhook: Webhook,
    client: Client<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>,
    _authority: Authority,
}

impl Setup {
    async fn new() -> Self {
        let authority = Authority::new();
        let identity = authority.issue("webhook");
        let settings = format!(
            "[webhook]\nlisten = '127.0.0.1:0'\ncertificate = '{}'\nkey = '{}'\n",
            identity.certificate.display(),
            identity.key.display()
        );
        let settings = injection::parse("test", &settings).expect("settings");
        let webhook = Webhook::bind(&settings).await.expect("a free port");
        let client = client(&authority.ca());
        Self { webhook, client, _authority: authority }
    }

    async fn send(&self, path: &str, body: impl Into<Bytes>) -> (StatusCode, Bytes) {
        self.try_send(path, body).await.expect("an answer")
    }

    async fn try_send(
        &self,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<(StatusCode, Bytes), hyper_util::client::legacy::Error> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{}{path}", self.webhook.address()))
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .expect("a request");
        let answer = self.client.request(request).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await.expect("a body").to_bytes()))
    }

    /// The response to a review of a pod's creation.
    async fn review(&self, path: &str, pod: &Value) -> Value {
        let (status, body) = self.send(path, review(pod).to_string()).await;
        assert_eq!(status, StatusCode::OK);
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
        answer["response"].clone()
    }
}

fn client(ca: &Path) -> Client<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>> {
    let settings = UpstreamTls { ca: ca.to_owned(), identity: None };
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(doorward_proxy::tls::client(Some(&settings)).expect("settings"))
        .https_only()
        .enable_http1()
        .build();
    Client::builder(TokioExecutor::new()).build(connector)
}

/// As the API server writes them.
fn review(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "vision",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}

fn first(name: &str) -> Value {
    let text = std::fs::read_to_string(golden().join(name)).expect("a golden file");
    documents(&text).swap_remove(0)
}

/// What the API server makes of a response.
fn patched(pod: &Value, response: &Value) -> Value {
    assert_eq!(response["allowed"], true, "{response}");
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = BASE64_STANDARD.decode(response["patch"].as_str().expect("a patch"));
    let patch: json_patch::Patch =
        serde_json::from_slice(&patch.expect("base64")).expect("operations");
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).expect("a patch that fits");
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_give_the_golden_pods() {
    let setup = Setup::new().await;
    for name in ["kserve-pod", "knative-pod", "triton-pod"] {
        let pod = first(&format!("{name}.yaml"));
        let response = setup.review("/inject/pod", &pod).await;
        let got = patched(&pod, &response);
        assert_eq!(got, first(&format!("{name}.injected.yaml")), "{name}");
        // The API server may ask again after other webhooks.
        let again = setup.review("/inject/pod", &got).await;
        assert_eq!((&again["allowed"], again.get("patch")), (&json!(true), None));
    }
    // Warnings reach the person who creates the pod.
    let response = setup.review("/inject/pod", &first("kserve-pod.yaml")).await;
    let warning = response["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("NetworkPolicy doorward-isolate-8080"), "{warning}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_pods_are_denied_with_the_reason() {
    let setup = Setup::new().await;
    for (name, reason) in [
        ("host-network", "hostNetwork is true"),
        ("no-model", "set doorward.dev/model"),
        ("two-containers", "containers one, two could each be the model server"),
        ("numeric-port", "port 8080 of container server has no name"),
        ("ambiguous-port", "has ports 8080 (http), 8081 (grpc)"),
    ] {
        let response = setup.review("/inject/pod", &first(&format!("{name}.yaml"))).await;
        assert_eq!((&response["allowed"], response.get("patch")), (&json!(false), None));
        assert_eq!(response["status"]["code"], 403);
        let message = response["status"]["message"].as_str().expect("a message");
        assert!(message.contains(reason), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_says_who_opts_in() {
    let setup = Setup::new().await;
    let mut pod = first("kserve-pod.yaml");
    let annotations = pod["metadata"]["annotations"].as_object_mut().expect("annotations");
    annotations.shift_remove("doorward.dev/inject");
    let response = setup.review("/inject/namespace", &pod).await;
    let has = patched(&pod, &response)["spec"]["initContainers"][1]["name"] == "doorward";
    assert!(has, "{response}");
    let response = setup.review("/inject/pod", &pod).await;
    assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None));
    assert!(response["warnings"][0].as_str().is_some_and(|text| text.contains("does not ask")));

    // In a namespace that opted in a pod gets the sidecar, says no, or does not start.
    pod["metadata"]["annotations"] = json!({"doorward.dev/inject": "false"});
    let response = setup.review("/inject/namespace", &pod).await;
    assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None));
    pod["metadata"]["annotations"] = json!({});
    assert_eq!(setup.review("/inject/namespace", &pod).await["allowed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_is_answered_like_a_real_one() {
    let setup = Setup::new().await;
    let pod = first("kserve-pod.yaml");
    let mut dry = review(&pod);
    dry["request"]["dryRun"] = json!(true);
    let (_, dry) = setup.send("/inject/pod", dry.to_string()).await;
    let (_, real) = setup.send("/inject/pod", review(&pod).to_string()).await;
    assert_eq!(dry, real);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_pod_being_created_passes() {
    let setup = Setup::new().await;
    let pod = first("kserve-pod.yaml");
    for (key, value) in [
        ("operation", json!("UPDATE")),
        ("subResource", json!("ephemeralcontainers")),
        ("kind", json!({"group": "apps", "version": "v1", "kind": "Deployment"})),
    ] {
        let mut other = review(&pod);
        other["request"][key] = value;
        let (status, body) = setup.send("/inject/pod", other.to_string()).await;
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        let response = &answer["response"];
        assert_eq!((status, &response["allowed"]), (StatusCode::OK, &json!(true)), "{key}");
        assert!(response.get("patch").is_none() && response["warnings"].is_array(), "{response}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_review_is_a_bad_request() {
    let setup = Setup::new().await;
    let mut old = review(&json!({}));
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut headless = review(&json!({}));
    headless.as_object_mut().expect("an object").shift_remove("request");
    for (body, expected) in [
        ("{".to_owned(), "no AdmissionReview"),
        ("[]".to_owned(), "no AdmissionReview"),
        (headless.to_string(), "missing field `request`"),
        (old.to_string(), "expected admission.k8s.io/v1 AdmissionReview"),
    ] {
        let (status, answer) = setup.send("/inject/pod", body).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(answer.contains(expected), "{answer}");
    }
    // A review of something that is no pod's shape is a refusal, not a crash.
    for pod in [json!(null), json!([]), json!({"metadata": 1}), json!({"spec": {"containers": 3}})]
    {
        assert_eq!(setup.review("/inject/namespace", &pod).await["allowed"], false, "{pod}");
    }
    let (status, _) = setup.send("/elsewhere", "{}").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    // Answered before it is read: the client may see the answer, or only that nobody reads on. Last, since
    // the connection it leaves behind is closed whenever the client looks at it again.
    if let Ok((status, _)) = setup.try_send("/inject/pod", vec![b' '; 9 * 1024 * 1024]).await {
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_can_be_the_webhook() {
    let setup = Setup::new().await;
    let other = Authority::new();
    let request = Request::builder()
        .uri(format!("https://{}/livez", setup.webhook.address()))
        .body(Full::new(Bytes::new()))
        .expect("a request");
    let error = client(&other.ca()).request(request).await.expect_err("another authority");
    assert!(format!("{error:?}").contains("InvalidCertificate"), "{error:?}");
    setup.webhook.shutdown().await.expect("nothing is in flight");
}
