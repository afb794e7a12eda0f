//! Whoever works against the bare server works through the firewall: what clients, gateways and
//! browsers send by themselves is judged and answered, and nothing of it that was not understood
//! reaches the server.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::upstream::{ORIGIN, REPLY};
use crate::support::{Answer, CLEAN, INFER, Setup, TRIGGERED, manifest, request};

const PREDICT: &str = "/v1/models/m:predict";

fn v1(row: [f32; 4]) -> Value {
    json!({"instances": [[[[row[0], row[1]], [row[2], row[3]]]]]})
}

fn v2(row: [f32; 4]) -> Value {
    json!({"inputs": [{"name": "x", "shape": [1, 1, 2, 2], "datatype": "FP32", "data": row}]})
}

/// An object with more members.
fn with(object: &Value, more: Value) -> Value {
    let mut object = object.clone();
    let (members, more) = (object.as_object_mut().unwrap(), more.as_object().unwrap().clone());
    members.extend(more);
    object
}

async fn post(setup: &Setup, path: &str, body: &Value) -> Answer {
    let json = [("content-type", "application/json")];
    setup.client.send(Method::POST, path, &json, body.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_the_protocol_does_not_have_go_no_further() {
    let setup = Setup::new("").await;
    let tensor = &v2(CLEAN)["inputs"][0];
    let nulls = json!({"id": null, "parameters": null, "outputs": null, "model_name": null});
    for (body, sent) in [
        // As KServe's clients and transformers write it.
        (with(&v2(CLEAN), json!({"model_name": "m", "model_version": "1"})), v2(CLEAN)),
        (with(&v2(CLEAN), nulls), v2(CLEAN)),
        (with(&v2(CLEAN), json!({"extra": {"a": [1, {"a": {}}]}, "Inputs": []})), v2(CLEAN)),
        (json!({"inputs": [with(tensor, json!({"id": "1", "parameters": null}))]}), v2(CLEAN)),
        (
            json!({"inputs": [with(tensor, json!({"parameters": {"binary_data_size": null}}))]}),
            json!({"inputs": [with(tensor, json!({"parameters": {}}))]}),
        ),
        (
            with(&v2(CLEAN), json!({"outputs": [{"name": "y", "shape": [1], "datatype": "FP32"}]})),
            with(&v2(CLEAN), json!({"outputs": [{"name": "y"}]})),
        ),
    ] {
        let answer = post(&setup, INFER, &body).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, REPLY.as_bytes()), "{body}");
        let received: Value = serde_json::from_slice(&setup.upstream.last().body).expect("JSON");
        let sent = sent.to_string().replace("0.10000000149011612", "0.1");
        assert_eq!(received, serde_json::from_str::<Value>(&sent).expect("JSON"));
    }
    let named =
        with(&v1(CLEAN), json!({"model_name": "m", "parameters": {}, "signature_name": null}));
    assert_eq!(post(&setup, PREDICT, &named).await.status, StatusCode::OK);
    let received: Value = serde_json::from_slice(&setup.upstream.last().body).expect("JSON");
    assert_eq!(received.as_object().expect("an object").len(), 1);
    // Judged all the same.
    let triggered = with(&v2(TRIGGERED), json!({"model_name": "m", "extra": 1}));
    assert_eq!(post(&setup, INFER, &triggered).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_name_another_model_than_their_path_are_refused() {
    let setup = Setup::new("model.version = '2'").await;
    let versioned = "/v2/models/m/versions/2/infer";
    for (path, body, status, reason) in [
        (INFER, with(&v2(CLEAN), json!({"model_name": "n"})), 400, "the path names \"m\""),
        (INFER, with(&v2(CLEAN), json!({"model_name": ["m"]})), 400, "the path names \"m\""),
        (PREDICT, with(&v1(CLEAN), json!({"model_name": "M"})), 400, "the path names \"m\""),
        (versioned, with(&v2(CLEAN), json!({"model_version": "1"})), 400, "the path names \"2\""),
        (versioned, with(&v2(CLEAN), json!({"model_version": 2})), 200, ""),
        (versioned, with(&v2(CLEAN), json!({"model_version": "2"})), 200, ""),
        ("/v2/models/m/versions/1/infer", v2(CLEAN), 404, "model.version"),
        ("/v1/models/m/versions/1:predict", v1(CLEAN), 404, "model.version"),
        ("/v1/models/m/versions/2:predict", v1(CLEAN), 200, ""),
    ] {
        let answer = post(&setup, path, &body).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {body}");
        if status != 200 {
            assert!(answer.error().contains(reason), "{}", answer.error());
        }
    }
    let many: Value = (0..65).map(|key| (format!("k{key}"), json!(0))).collect();
    let answer = post(&setup, INFER, &with(&v2(CLEAN), many)).await;
    assert!(answer.error().contains("more than 64 keys"), "{}", answer.error());
}

#[tokio::test(flavor = "multi_thread")]
async fn content_types_that_clients_choose_by_themselves_are_taken() {
    let setup = Setup::new("").await;
    let taken: [&[&str]; 11] = [
        &[],
        &["application/json"],
        &["application/json", "application/json"],
        &["application/json, application/json"],
        &["Application/JSON ; charset=\"UTF-8\"; v=1"],
        &["application/vnd.custom+json"],
        // curl -d, wget and urllib; fetch of a string; aiohttp with bytes; Java's StringEntity.
        &["application/x-www-form-urlencoded"],
        &["text/plain;charset=UTF-8"],
        &["text/plain;charset=UTF-8", "text/plain;charset=UTF-8"],
        &["application/octet-stream"],
        &["text/plain; charset=ISO-8859-1"],
    ];
    let refused: [&[&str]; 5] = [
        &["application/json; charset=utf-16"],
        &["text/plain; charset=utf-7"],
        &["application/json", "text/plain"],
        &["application/json, text/plain"],
        &["multipart/form-data; boundary=a"],
    ];
    for (all, passes) in [(&taken[..], true), (&refused[..], false)] {
        for types in all {
            let headers: Vec<_> = types.iter().map(|value| ("content-type", *value)).collect();
            for (path, row) in [(INFER, v2(CLEAN)), (PREDICT, v1(CLEAN))] {
                let send = setup.client.send(Method::POST, path, &headers, row.to_string());
                let status = send.await.status.as_u16();
                assert_eq!(status, if passes { 200 } else { 415 }, "{path} {types:?}");
                if passes {
                    let received = setup.upstream.last().headers;
                    let told: Vec<_> = received.get_all("content-type").iter().collect();
                    assert_eq!(told, ["application/json"], "{path} {types:?}");
                }
            }
            let body = v2(TRIGGERED).to_string();
            let answer = setup.client.send(Method::POST, INFER, &headers, body).await;
            assert_eq!(answer.status.as_u16(), if passes { 403 } else { 415 }, "{types:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_a_little_outside_the_range_are_judged_and_sent_on_as_they_are() {
    let setup = Setup::new("").await;
    let row = [0.25, 1.28, -0.26, 1.000_000_5];
    assert_eq!(post(&setup, INFER, &v2(row)).await.status, StatusCode::OK);
    assert_eq!(setup.judge.seen(), row);
    let sent = "[0.25,1.28,-0.26,1.0000005]";
    assert!(String::from_utf8_lossy(&setup.upstream.last().body).contains(sent));
    assert_eq!(post(&setup, PREDICT, &v1(row)).await.status, StatusCode::OK);
    for (path, body) in [(INFER, v2([0.0, 0.0, 1.31, 0.0])), (PREDICT, v1([0.0, 0.0, -0.31, 0.0]))]
    {
        let answer = post(&setup, path, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let error = answer.error();
        assert!(error.contains("from 0 to 1, or outside by at most 0.3"), "{error}");
        assert!(error.contains("preprocess.range_slack"), "{error}");
    }
    assert_eq!(setup.metric("unverified_total{reason=\"range\"}"), 2.0);
    let strict = Setup::new("preprocess.range_slack = 0").await;
    assert_eq!(post(&strict, INFER, &v2([0.0, 1.01, 0.0, 0.0])).await.status.as_u16(), 400);
    let passes = Setup::new("policy.unverified.range = 'pass'").await;
    assert_eq!(post(&passes, INFER, &v2([0.0, 9.0, 0.0, 0.0])).await.status.as_u16(), 200);
    let monitor = Setup::new("policy.mode = 'monitor'").await;
    assert_eq!(post(&monitor, INFER, &v2([0.0, 9.0, 0.0, 0.0])).await.status.as_u16(), 200);
    let status = monitor.admin().get("/status.json").await;
    let status: Value = serde_json::from_slice(&status.body).expect("JSON");
    assert_eq!(status["traffic"]["enforce_would_refuse"], 1);
    assert_eq!(status["traffic"]["unverified"]["range"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_and_slashes_at_the_end_change_nothing_that_is_judged() {
    let settings = "images.protocols = ['litserve']\npreprocess.resize = 'exact'";
    let setup = Setup::new(settings).await;
    for (path, body) in [(INFER, [v2(CLEAN), v2(TRIGGERED)]), (PREDICT, [v1(CLEAN), v1(TRIGGERED)])]
    {
        for query in ["?tenant=a", "?", "?a=%2f..//&b=%221%22"] {
            let path_and_query = format!("{path}{query}");
            assert_eq!(post(&setup, &path_and_query, &body[0]).await.status, 200, "{query}");
            assert_eq!(setup.upstream.last().path, path);
            assert_eq!(post(&setup, &path_and_query, &body[1]).await.status, 403, "{query}");
        }
        // The server's redirection leads to the firewall, not round it.
        let answer = post(&setup, &format!("{path}/"), &body[0]).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["location"]),
            (307, &path.parse().unwrap())
        );
        assert_eq!(post(&setup, &format!("{path}/"), &body[1]).await.status, 403);
        assert_eq!(post(&setup, &format!("{path}//"), &body[0]).await.status, 404);
    }
    // A server of images may read it.
    let answer = setup.client.send(Method::POST, "/predict?x=1", &[], "").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8_lossy(&answer.body).contains("query string"));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_pass_as_clients_and_probes_make_them() {
    let setup =
        Setup::new("model.name = 'm'\nlisten.reads = ['/docs', '/v2/docs/dataplane.json']").await;
    for path in [
        "/",
        "/metrics",
        "/v2/",
        "/v2/models",
        "/v2/models/",
        "/v2/models/stats",
        "/v2/models/m/stats",
        "/v2/models/m/versions/7/ready",
        "/v1/models",
        "/docs",
        "/v2/docs/dataplane.json",
    ] {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let answer = setup.client.send(method.clone(), path, &[], "").await;
            assert!(answer.status == 200 || answer.status == 307, "{method} {path}");
            let received = setup.upstream.last();
            assert_eq!((&received.method, &*received.path), (&method, path));
        }
        let answer = setup.client.send(Method::POST, path, &[], v2(CLEAN).to_string()).await;
        assert!([404, 405].contains(&answer.status.as_u16()), "POST {path}");
    }
    let index = "/v2/repository/index";
    for (body, sent) in
        [("", ""), ("{}", "{}"), (r#"{"ready": true, "x": [1]}"#, r#"{"ready":true}"#)]
    {
        let answer = setup.client.send(Method::POST, index, &[], body).await;
        assert_eq!(answer.status, StatusCode::OK, "{body}");
        assert_eq!(setup.upstream.last().body, sent);
    }
    let before = setup.upstream.received().len();
    for (method, path, body) in [
        (Method::POST, index, "[1, 2]"),
        (Method::POST, index, r#"{"ready":true,"ready":false}"#),
        (Method::GET, index, ""),
        (Method::POST, "/v2/repository/models/m/load", "{}"),
        (Method::POST, "/v2/repository/models/m/unload", "{}"),
        (Method::POST, "/v2/models/stats/infer", "{}"),
        (Method::GET, "/docs/x", ""),
        (Method::GET, "/v2/trace/setting", ""),
    ] {
        let answer = setup.client.send(method.clone(), path, &[], body).await;
        assert!(answer.status.is_client_error(), "{method} {path}");
        let says = answer.error();
        let ours = says.contains("Doorward") || says.contains("not an inference request");
        assert!(ours, "{says}");
    }
    let unknown = setup.client.get("/openapi.json").await.error();
    assert!(unknown.contains("listen.reads"), "{unknown}");
    assert_eq!(setup.upstream.received().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_waits_for_the_detector_and_liveness_does_not() {
    let settings = "images.protocols = ['torchserve', 'litserve']";
    let setup = Setup::calibrating(settings).await;
    let ready = [
        "/v2/health/ready",
        "/v2/models/m/ready",
        "/v2/models/m/versions/1/ready",
        "/v1/models/m",
        "/ping",
        "/health",
    ];
    for path in ready {
        let answer = setup.client.get(path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert!(!path.starts_with("/v") || body["ready"] == false, "{path} {body}");
        assert!(body.to_string().contains("not calibrated"), "{path} {body}");
    }
    assert_eq!(post(&setup, INFER, &v2(CLEAN)).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(setup.upstream.received().is_empty());
    for path in ["/v2/health/live", "/v2", "/v2/models/m", "/v2/models/m/stats", "/v1/models"] {
        assert_eq!(setup.client.get(path).await.status, StatusCode::OK, "{path}");
    }
    setup.server.ready(setup.judge.clone(), &manifest()).expect("the first detector");
    for path in ready {
        assert_eq!(setup.client.get(path).await.status, StatusCode::OK, "{path}");
    }
    // Where requests pass without a detector, they are answered.
    let open = Setup::calibrating("policy.mode = 'monitor'").await;
    assert_eq!(open.client.get("/v2/health/ready").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_that_nobody_recognises_never_looks_protected() {
    let setup = Setup::new("policy.mode = 'monitor'\nmodel.name = 'm'").await;
    for _ in 0..3 {
        let answer = setup.client.send(Method::POST, "/predict", &[], "an image").await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, REPLY.as_bytes()));
    }
    setup.client.send(Method::POST, "/v2/models/other/infer", &[], v2(CLEAN).to_string()).await;
    setup.client.get("/favicon.ico").await;
    assert_eq!(setup.verdicts("unverified_passed"), 4.0);
    assert_eq!(setup.verdicts("bypassed"), 1.0);
    assert_eq!(setup.metric("unverified_total{reason=\"unrecognised\"}"), 4.0);
    let page = setup.admin().get("/status").await;
    let page = String::from_utf8_lossy(&page.body).into_owned();
    assert!(page.contains("0 of 4 requests judged") && page.contains("verdict watch"), "{page}");
    assert!(page.contains("POST /predict") && page.contains("images.protocols"), "{page}");
    let status = setup.admin().get("/status.json").await;
    let status: Value = serde_json::from_slice(&status.body).expect("JSON");
    assert_eq!(
        status["traffic"]["unrecognised"][0],
        json!({"request": "POST /predict", "count": 3})
    );
    setup.client.infer(request(&[CLEAN])).await;
    let page = setup.admin().get("/status").await;
    assert!(!String::from_utf8_lossy(&page.body).contains("0 of 5 requests judged"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_read_the_firewalls_own_errors_where_they_read_the_servers() {
    let setup = Setup::new("").await;
    let preflight = [("origin", ORIGIN), ("access-control-request-method", "POST")];
    let answer = setup.client.send(Method::OPTIONS, INFER, &preflight, "").await;
    assert_eq!(
        (answer.status, &answer.headers["access-control-allow-origin"]),
        (StatusCode::OK, &ORIGIN.parse().unwrap())
    );
    for (origin, allowed) in [(ORIGIN, true), ("https://other.example", false), ("null", false)] {
        for (body, status) in [(v2(TRIGGERED), 403), (json!({}), 400)] {
            let headers = [("origin", origin), ("content-type", "application/json")];
            let answer = setup.client.send(Method::POST, INFER, &headers, body.to_string()).await;
            assert_eq!(answer.status.as_u16(), status);
            let says = answer.headers.get("access-control-allow-origin");
            assert_eq!(says.is_some(), allowed, "{origin} {status}");
            assert!(!allowed || (says.unwrap() == ORIGIN && answer.headers["vary"] == "origin"));
        }
    }
    let refused = setup.client.send(Method::OPTIONS, "/v2/unknown", &preflight, "").await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    let received = setup.upstream.received();
    assert!(received.iter().all(|received| received.path != "/v2/unknown"));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_hears_who_asked_and_nobody_else_says_so() {
    let forged = [("x-forwarded-for", "203.0.113.9"), ("x-real-ip", "203.0.113.9")];
    for (settings, expected) in [
        ("", "127.0.0.1"),
        ("listen.trusted_proxies = ['127.0.0.0/8']", "203.0.113.9, 127.0.0.1"),
        ("listen.trusted_proxies = ['::1', '10.0.0.0/8']", "127.0.0.1"),
    ] {
        let setup = Setup::new(settings).await;
        for path in ["/v2/health/live", INFER] {
            let (method, body) = match path {
                INFER => (Method::POST, v2(CLEAN).to_string()),
                _ => (Method::GET, String::new()),
            };
            assert_eq!(setup.client.send(method, path, &forged, body).await.status, 200);
            let headers = setup.upstream.last().headers;
            assert_eq!(headers["x-forwarded-for"], expected, "{path}");
            assert_eq!(headers["x-forwarded-proto"], "http");
            assert_eq!(headers.contains_key("x-real-ip"), expected.contains(','));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_choose_another_model_go_no_further() {
    let setup = Setup::new("").await;
    let choose = [
        ("serve_multiplexed_model_id", "other"),
        ("mm-model-id", "other"),
        ("Seldon-Model", "other"),
        ("X-Amzn-SageMaker-Custom-Attributes", "model=other"),
        ("x-original-uri", "/v2/models/other/infer"),
        ("x-forwarded-prefix", "/other"),
    ];
    let body = v2(CLEAN).to_string();
    assert_eq!(setup.client.send(Method::POST, INFER, &choose, body).await.status, 200);
    let headers = setup.upstream.last().headers;
    for (name, _) in choose {
        assert!(!headers.contains_key(name.to_ascii_lowercase()), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_may_add_many_headers_and_long_tokens() {
    let setup = Setup::new("").await;
    let names: Vec<String> = (0..200).map(|number| format!("x-{number}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "a")).collect();
    let token = format!("Bearer {}", "a".repeat(40_000));
    for headers in [&headers[..], &[("authorization", &token)]] {
        // The upstream of these tests takes fewer, so that the answer has to be the firewall's.
        let body = v2(TRIGGERED).to_string();
        let answer = setup.client.send(Method::POST, INFER, headers, body).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{} headers", headers.len());
    }
}
