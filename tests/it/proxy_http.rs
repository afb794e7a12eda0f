//! What clients and the upstream see of the request path.

use bytes::Bytes;
use doorward_proxy::server::Server;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::judge::SCORE;
use crate::support::upstream::REPLY;
use crate::support::{
    CLEAN, Client, INFER, Setup, TRIGGERED, config, eventually, manifest, request,
};

#[tokio::test(flavor = "multi_thread")]
async fn clean_request_gets_the_upstreams_exact_answer() {
    let setup = Setup::new("").await;
    let answer = setup.client.infer(request(&[CLEAN, CLEAN])).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body, REPLY);
    assert_eq!(answer.headers["content-type"], "application/json; odd=1");
    assert_eq!(answer.headers["x-model"], "m");
    let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    assert!(!answer.headers.contains_key("x-hop"));
    assert!(answer.headers.contains_key("x-request-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_gets_what_was_judged_in_the_firewalls_spelling() {
    let setup = Setup::new("").await;
    let body = r#" { "outputs": [{"name":"y","parameters":{"classification":2}}], "parameters": {"b":1,"a":[2.5,null]},
        "inputs": [{"data": [[[[2.5e-1, 0.10000000149011612], [1, -0.0]]]], "datatype": "FP32",
        "parameters": {"content_type":"np"}, "shape": [1,1,2,2], "name": "x"}], "id": "\u0041" } "#;
    let headers = [
        ("ce-source", "tests"),
        ("connection", "x-secret-hop"),
        ("x-secret-hop", "1"),
        ("te", "trailers"),
        ("x-http-method-override", "DELETE"),
        ("x-request-id", "given-1"),
    ];
    let answer = setup.client.send(Method::POST, INFER, &headers, body).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["x-request-id"], "given-1");
    let received = setup.upstream.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].method, Method::POST);
    assert_eq!(received[0].path, INFER);
    assert_eq!(
        received[0].body,
        r#"{"id":"A","parameters":{"b":1,"a":[2.5,null]},"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"content_type":"np"},"data":[0.25,0.1,1.0,-0.0]}],"outputs":[{"name":"y","parameters":{"classification":2}}]}"#
    );
    let headers = &received[0].headers;
    assert_eq!(headers["ce-source"], "tests");
    assert_eq!(headers["x-request-id"], "given-1");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["host"], setup.upstream.url()["http://".len()..]);
    for dropped in ["x-secret-hop", "te", "connection", "x-http-method-override"] {
        assert!(!headers.contains_key(dropped), "{dropped}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_is_asked_in_http2_where_it_is_configured() {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    // Speaks HTTP/2 from the first byte on, and nothing else.
    tokio::spawn(async move {
        let service = service_fn(async |request: Request<hyper::body::Incoming>| {
            let (parts, body) = request.into_parts();
            let length = body.collect().await?.to_bytes().len();
            let text = format!("{:?} {} {length}", parts.version, parts.uri);
            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(text))))
        });
        while let Ok((stream, _)) = socket.accept().await {
            let server = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let url = format!("http://{address}");
    let mut setup = Setup::calibrating("").await;
    for (http2, status) in [(true, StatusCode::OK), (false, StatusCode::BAD_GATEWAY)] {
        let config = config(&url, &format!("upstream.http2 = {http2}"));
        let server = Server::bind(&config.server).await.expect("free ports");
        setup.client = Client::new(&format!("http://{}", server.proxy_addr()));
        setup.server = server;
        setup.server.ready(setup.judge.clone(), &manifest()).expect("the first detector");
        for _ in 0..3 {
            let answer = setup.client.infer(request(&[CLEAN])).await;
            assert_eq!(answer.status, status, "{answer:?}");
            let expected = format!("HTTP/2.0 {url}{INFER} 96");
            assert!(!http2 || answer.body == expected, "{answer:?}, expected {expected}");
        }
        let answer = setup.client.infer(request(&[TRIGGERED])).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn triggered_request_is_rejected_without_a_score() {
    let setup = Setup::new("").await;
    let answer = setup.client.infer(request(&[TRIGGERED])).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(answer.headers["content-type"], "application/json");
    let error = answer.error();
    let id = answer.headers["x-request-id"].to_str().expect("text");
    assert!(error.contains("row 0"), "{error}");
    assert!(error.contains(id), "{error}");
    assert!(!error.contains(&SCORE.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_row_rejects_the_request_and_is_named() {
    let setup = Setup::new("").await;
    let rows = [CLEAN, TRIGGERED, CLEAN, TRIGGERED];
    let answer = setup.client.infer(request(&rows)).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(answer.error().contains("rows 1, 3"), "{}", answer.error());
}

#[tokio::test(flavor = "multi_thread")]
async fn monitor_mode_flags_and_changes_nothing() {
    let setup = Setup::new("policy.mode = 'monitor'").await;
    let answer = setup.client.infer(request(&[TRIGGERED])).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body, REPLY);
    assert_eq!(setup.verdicts("flagged"), 1.0);
    // Undecodable requests go on byte for byte.
    let odd = "{\"inputs\": [], \"inputs\": []}";
    let headers = [("content-encoding", "br"), ("content-type", "text/x")];
    let answer = setup.client.send(Method::POST, INFER, &headers, odd).await;
    assert_eq!(answer.body, REPLY);
    let received = &setup.upstream.received()[1];
    assert_eq!(received.body, odd);
    assert_eq!(received.headers["content-encoding"], "br");
    assert_eq!(received.headers["content-type"], "text/x");
    // And so do paths that enforcing would refuse.
    let answer = setup.client.send(Method::POST, "/v2/repository/index", &[], "{}").await;
    assert_eq!(answer.body, REPLY);
    assert_eq!(setup.verdicts("bypassed"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reply_is_held_until_the_verdict_and_dropped_on_rejection() {
    use crate::support::judge::Behaviour;
    let setup = Setup::new("").await;
    setup.judge.behave(Behaviour::Wait);
    let client = setup.client.clone();
    let waiting = tokio::spawn(async move { client.infer(request(&[TRIGGERED])).await });
    eventually("the upstream is asked at once", || setup.upstream.received().len() == 1).await;
    assert!(!waiting.is_finished());
    setup.judge.behave(Behaviour::Answer);
    let answer = waiting.await.expect("no panic");
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_pass_and_everything_else_is_refused() {
    let setup = Setup::new("model.name = 'm'").await;
    let reads = [
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/m",
        "/v2/models/m/ready",
        "/v2/models/m/config",
        "/v2/models/m/stats",
        "/v2/models/m/versions/1",
        "/v2/models/m/versions/1/ready?verbose=1",
    ];
    for path in reads {
        let answer = setup.client.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(answer.body, REPLY, "{path}");
    }
    let seen: Vec<String> =
        (setup.upstream.received().into_iter()).map(|received| received.path).collect();
    assert_eq!(seen, reads);

    let refused = [
        (Method::POST, "/", 404),
        (Method::POST, "/v2//models/m/infer", 404),
        (Method::POST, "//v2/models/m/infer", 404),
        (Method::POST, "/v2/models/m%2finfer", 404),
        (Method::POST, "/v2/models/%6d/infer", 404),
        (Method::POST, "/v2/models/x/../m/infer", 404),
        (Method::POST, "/v2/models/./m/infer", 404),
        (Method::POST, "/v2/models/m/infer//", 404),
        (Method::POST, "/v2/models/m/versions/999/infer", 404),
        (Method::POST, "/v2/models/other/infer", 404),
        (Method::POST, "/v2/models/m/generate", 404),
        (Method::POST, "/v2/models/m;v=1/infer", 404),
        (Method::POST, "/V2/models/m/infer", 404),
        (Method::POST, "/v2/repository/models/m/load", 404),
        (Method::POST, "/v2/systemsharedmemory/region/r/register", 404),
        (Method::GET, "/v2/models/other/ready", 404),
        (Method::GET, "/docs", 404),
        (Method::GET, "//", 404),
        (Method::GET, INFER, 405),
        (Method::PUT, INFER, 405),
        (Method::DELETE, "/v2/models/m", 405),
    ];
    let count = refused.len() as f64;
    for (method, path, status) in refused {
        let body = request(&[CLEAN]);
        let answer = setup.client.send(method.clone(), path, &[], body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}");
        if method != Method::HEAD {
            assert!(!answer.error().is_empty());
        }
        assert_eq!(answer.headers.contains_key("allow"), status == 405);
    }
    assert_eq!(setup.upstream.received().len(), reads.len());
    assert_eq!(setup.verdicts("refused"), count);
    assert_eq!(setup.verdicts("bypassed"), reads.len() as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn body_of_a_read_goes_nowhere() {
    let setup = Setup::new("").await;
    let body = request(&[TRIGGERED]);
    let answer = setup.client.send(Method::GET, "/v2", &[], body).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(setup.upstream.received()[0].body.is_empty());
}

/// A request whose one tensor has this shape and data.
fn tensor(shape: &str, data: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":{shape},"data":{data}}}]}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_or_foreign_requests_are_refused_with_the_reason() {
    let setup = Setup::new("limits.rows = 2\nlimits.queue_rows = 2").await;
    let cases = [
        ("".to_owned(), 400, "EOF"),
        ("[]".to_owned(), 400, "JSON object"),
        (r#"["7", {}, []]"#.to_owned(), 400, "JSON object"),
        (r#"{"inputs":[]}"#.to_owned(), 400, "empty"),
        (r#"{"id":"1"}"#.to_owned(), 400, "inputs"),
        (r#"{"id":1,"inputs":[]}"#.to_owned(), 400, "string"),
        (r#"{"extra":1,"\u0065xtra":1,"inputs":[]}"#.to_owned(), 400, "duplicate"),
        (r#"{"id":"1","\u0069d":"2","inputs":[]}"#.to_owned(), 400, "duplicate"),
        (r#"{"parameters":{"a":{"b":1,"b":2}},"inputs":[]}"#.to_owned(), 400, "duplicate"),
        (r#"{"outputs":[{"name":"y","name":"z"}],"inputs":[]}"#.to_owned(), 400, "duplicate"),
        ("{\"id\":\"\u{fffd}\",\"inputs\":[[\"x\"]]}".to_owned(), 400, "tensor object"),
        (tensor("[1,1,2,2]", "[0,0,0,0]") + " x", 400, "trailing"),
        (tensor("[1,1,2,2]", "[0,0,0,0]") + "{}", 400, "trailing"),
        (tensor("[1,1,2,2]", "[0,0,0]"), 400, "holds 3 values, expected 4"),
        (tensor("[1,1,2,2]", "[[0,0],[0,0]]"), 400, "nested as [2, 2]"),
        (tensor("[1,1,2,2]", "[[[[0,0],[0]]]]"), 400, "ragged"),
        (tensor("[1,1,2,2]", "[[[[0,0],0]]]"), 400, "mixed"),
        (tensor("[1,1,2,2]", "[0,[0],0,0]"), 400, "mixed"),
        (tensor("[1,1,2,2]", "[0,0,0,0,[]]"), 400, "nested"),
        (tensor("[1,1,2,2]", "[[[[[0,0],[0,0]]]]]"), 400, "too deep"),
        (tensor("[1,1,2,2]", "0"), 400, "expected an array of numbers"),
        (tensor("[1,1,2,2]", "[0,0,0,NaN]"), 400, "line 1"),
        (tensor("[1,1,2,2]", "[0,0,0,-Infinity]"), 400, "line 1"),
        (tensor("[1,1,2,2]", "[0,0,0,1e39]"), 400, "does not fit FP32"),
        (tensor("[1,1,2,2]", "[0,0,0,1e999]"), 400, "out of range"),
        (tensor("[1,1,2,2]", "[0,0,0,\"0\"]"), 400, "string"),
        (tensor("[1,1,2,2]", "[0,0,0,null]"), 400, "null"),
        (tensor("[1,1,2,2]", "[0,0,0,true]"), 400, "boolean"),
        (tensor("[1,1,2,2]", "[0,0,1.5,0]"), 400, "data[2] is 1.5"),
        (tensor("[1,2,1,2]", "[0,0,0,0]"), 400, "expected [n, 1, 2, 2]"),
        (tensor("[4]", "[0,0,0,0]"), 400, "expected [n, 1, 2, 2]"),
        (tensor("[0,1,2,2]", "[]"), 400, "0 rows"),
        (tensor("[3,1,2,2]", "[0]"), 413, "3 rows, expected 1 to 2"),
        (tensor("[9223372036854775807,9,2,2]", "[0]"), 400, "expected [n"),
        (tensor("[-1,1,2,2]", "[0]"), 400, "integer"),
        (tensor("[1.0,1,2,2]", "[0,0,0,0]"), 400, "floating point"),
        (r#"{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["a"]}]}"#.to_owned(), 400, "BYTES"),
        (r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"INT16","data":[0]}]}"#.to_owned(), 400, "INT16"),
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}]}"#.to_owned(),
            400,
            "binary",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"shared_memory_region":"r"}}]}"#.to_owned(),
            400,
            "shared memory",
        ),
    ];
    let count = cases.len() as f64;
    for (body, status, reason) in cases {
        let answer = setup.client.infer(body.clone()).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.error());
        assert!(answer.error().contains(reason), "{body}: {}", answer.error());
    }
    assert_eq!(setup.upstream.received().len(), 0);
    assert_eq!(setup.metric("unverified_total{reason=\"range\"}"), 1.0);
    assert_eq!(setup.metric("unverified_total{reason=\"undecodable\"}"), count - 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_announce_another_body_are_refused() {
    let setup = Setup::new("").await;
    let cases = [
        (vec![("content-encoding", "br")], 415),
        (vec![("content-encoding", "identity, gzip")], 415),
        (vec![("content-type", "application/xml")], 415),
        (vec![("content-type", "application/json; charset=utf-16")], 415),
        (vec![("content-type", "application/json"), ("content-type", "text/plain")], 415),
        (vec![("inference-header-content-length", "10")], 400),
        (vec![("content-encoding", "identity")], 200),
        (vec![("content-type", "Application/JSON; charset=\"UTF-8\"")], 200),
        (vec![("content-type", "application/cloudevents+json")], 200),
    ];
    for (headers, status) in cases {
        let body = request(&[CLEAN]);
        let answer = setup.client.send(Method::POST, INFER, &headers, body).await;
        assert_eq!(answer.status.as_u16(), status, "{headers:?}");
    }
    let received = setup.upstream.received();
    assert!(!received[0].headers.contains_key("content-encoding"));
    let told = &received[1].headers["content-type"];
    assert_eq!(told, "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_body_is_judged_like_a_small_one() {
    let setup = Setup::new("").await;
    let padding = " ".repeat(1 << 20);
    let answer = setup.client.infer(padding.clone() + &request(&[CLEAN])).await;
    assert_eq!(answer.status, StatusCode::OK);
    let received = setup.upstream.received();
    assert!(received[0].body.len() < 200);
    let answer = setup.client.infer(padding + &request(&[TRIGGERED])).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_are_unique_or_the_clients_if_sane() {
    let setup = Setup::new("").await;
    let long = "a".repeat(129);
    for bad in ["", "a b", "a\"b", "{}", &long] {
        let headers = [("x-request-id", bad)];
        let answer = setup.client.send(Method::GET, "/v2", &headers, "").await;
        assert_ne!(answer.headers["x-request-id"], bad);
    }
    let received = setup.upstream.received();
    let mut ids: Vec<_> =
        (received.iter()).map(|received| received.headers["x-request-id"].clone()).collect();
    ids.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    ids.dedup();
    assert_eq!(ids.len(), received.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_http_never_reaches_the_upstream() {
    let setup = Setup::new("").await;
    let cases = [
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n{}",
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ntransfer-encoding: nonsense\r\n\r\n{}",
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\n folded: 1\r\n\r\n{}",
        "nonsense\r\n\r\n",
    ];
    for case in cases {
        let answer = setup.raw(case).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{case:?}: {answer:?}");
    }
    let huge = format!("GET /v2 HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    let answer = setup.raw(&huge).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer:?}");
    assert_eq!(setup.upstream.received().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_are_read_and_sent_on_with_a_length() {
    let setup = Setup::new("").await;
    let body = request(&[CLEAN]);
    let (first, second) = body.split_at(10);
    let raw = format!(
        "POST {INFER} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
         {:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len(),
    );
    let answer = setup.raw(&raw).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let received = &setup.upstream.received()[0];
    let sent: Value = serde_json::from_slice(&received.body).expect("JSON");
    assert_eq!(sent["inputs"][0]["data"].as_array().map(Vec::len), Some(4));
    let length = received.body.len().to_string();
    assert_eq!(received.headers["content-length"], length.as_str());
    assert!(!received.headers.contains_key("transfer-encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_context_passes_on_unchanged_and_is_not_made_up() {
    let setup = Setup::new("").await;
    let (parent, state) = ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=1, b=%20");
    let headers = [("traceparent", parent), ("tracestate", state)];
    setup.client.send(Method::POST, INFER, &headers, request(&[CLEAN])).await;
    setup.client.infer(request(&[CLEAN])).await;
    let received = setup.upstream.received();
    assert_eq!(received[0].headers["traceparent"], parent);
    assert_eq!(received[0].headers["tracestate"], state);
    assert!(!received[1].headers.contains_key("traceparent"));
}
