//! Unix sockets on either side of the firewall: what TCP does, they do, and files that are in the way are dealt with.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use doorward::config::Config;
use doorward_proxy::server::Server;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::grpc::{GrpcSetup, INFER as CALL, bytes, framed, raw_request};
use crate::support::judge::Behaviour;
use crate::support::upstream::REPLY;
use crate::support::{
    CLEAN, FakeJudge, INFER, Setup, TRIGGERED, eventually, fp32, manifest, request,
};

/// Listens on `http` and, if given, on `grpc`; asks `upstream` and `grpc_upstream`.
async fn firewall(
    (http, grpc): (&str, Option<&str>),
    (upstream, grpc_upstream): (&str, Option<&str>),
) -> Result<Server, doorward_proxy::server::Error> {
    let mut settings = format!(
        "listen.http = '{http}'\nadmin.listen = '127.0.0.1:0'\nupstream.url = '{upstream}'\n\
         model.path = 'm.onnx'\ncalibration.clean_images = 'clean'\n"
    );
    if let (Some(grpc), Some(upstream)) = (grpc, grpc_upstream) {
        settings += &format!("listen.grpc = '{grpc}'\nupstream.grpc_url = '{upstream}'\n");
    }
    let environment: [(&str, &str); 0] = [];
    let config = Config::parse("test", &settings, environment).expect("settings");
    Server::bind(&config.server).await
}

fn ready(server: &Server) -> std::sync::Arc<FakeJudge> {
    let judge = std::sync::Arc::new(FakeJudge::default());
    server.ready(judge.clone(), &manifest()).expect("the first detector");
    judge
}

async fn infer(socket: &Path, row: [f32; 4]) -> (StatusCode, Bytes) {
    let stream = UnixStream::connect(socket).await.expect("a listener");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    let body = Full::new(Bytes::from(request(&[row])));
    let request = Request::builder().method(Method::POST).uri(INFER).header("host", "a").body(body);
    let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
    collect(answer).await
}

/// The answer's `grpc-status`.
async fn infer_grpc(socket: &Path, row: [f32; 4]) -> String {
    let stream = UnixStream::connect(socket).await.expect("a listener");
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://localhost{CALL}"))
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from(framed(0, &bytes(&raw_request(&[row]))))))
        .expect("a request");
    let (parts, body) = sender.send_request(request).await.expect("an answer").into_parts();
    let body = body.collect().await.expect("a body");
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = trailers.get("grpc-status").or_else(|| parts.headers.get("grpc-status"));
    status.expect("a status").to_str().expect("text").to_owned()
}

async fn collect(answer: Response<hyper::body::Incoming>) -> (StatusCode, Bytes) {
    let status = answer.status();
    (status, answer.into_body().collect().await.expect("a body").to_bytes())
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_are_judged_over_sockets_on_both_sides() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (front_http, front_grpc) = (path("front.sock"), path("front-grpc.sock"));
    let (back_http, back_grpc) = (path("back.sock"), path("back-grpc.sock"));
    let model = GrpcSetup::new("").await;
    // What stands for the model server is a firewall that asks one by TCP.
    let back = firewall(
        (&unix(&back_http), Some(&unix(&back_grpc))),
        (&model.setup.upstream.url(), Some(&model.upstream.url())),
    )
    .await
    .expect("sockets");
    ready(&back);
    let front = firewall(
        (&unix(&front_http), Some(&unix(&front_grpc))),
        (&unix(&back_http), Some(&unix(&back_grpc))),
    )
    .await
    .expect("sockets");
    ready(&front);
    assert_eq!(front.proxy_addr().to_string(), unix(&front_http));
    assert_eq!(front.grpc_addr().expect("a listener").to_string(), unix(&front_grpc));

    let (status, body) = infer(&front_http, CLEAN).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, REPLY.as_bytes()));
    assert_eq!(infer(&front_http, TRIGGERED).await.0, StatusCode::FORBIDDEN);
    assert_eq!(infer_grpc(&front_grpc, CLEAN).await, "0");
    assert_eq!(infer_grpc(&front_grpc, TRIGGERED).await, "7");
    assert_eq!(model.upstream.received()[0].raw_input_contents[0], fp32(&CLEAN));

    // A model server that is down, and one that is back on the same path.
    back.shutdown().await.expect("a drain");
    assert!(!back_http.exists() && !back_grpc.exists());
    assert_eq!(infer(&front_http, CLEAN).await.0, StatusCode::BAD_GATEWAY);
    assert_eq!(infer_grpc(&front_grpc, CLEAN).await, "14");
    let page = front.metrics().page().expect("a page");
    assert!(page.contains("doorward_upstream_errors_total{reason=\"unreachable\"} 2"), "{page}");
    let back = firewall(
        (&unix(&back_http), Some(&unix(&back_grpc))),
        (&model.setup.upstream.url(), Some(&model.upstream.url())),
    )
    .await
    .expect("the same sockets");
    ready(&back);
    assert_eq!(infer(&front_http, CLEAN).await.0, StatusCode::OK);
    assert_eq!(infer_grpc(&front_grpc, CLEAN).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn model_server_on_a_socket_is_asked_as_localhost() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let app = axum::Router::new().fallback(async |headers: hyper::HeaderMap| {
        headers["host"].to_str().expect("text").to_owned()
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    let front = firewall(("127.0.0.1:0", None), (&unix(&path), None)).await.expect("a port");
    ready(&front);
    let client = crate::support::Client::new(&format!("http://{}", front.proxy_addr()));
    assert_eq!(client.infer(request(&[CLEAN])).await.body, "localhost");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_requests_in_flight_and_removes_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("http.sock");
    let setup = Setup::new("").await;
    let server =
        firewall((&unix(&path), None), (&setup.upstream.url(), None)).await.expect("a socket");
    let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o666, "its folder says who may connect");
    let judge = ready(&server);
    judge.behave(Behaviour::Wait);
    let mut stream = UnixStream::connect(&path).await.expect("a listener");
    let body = request(&[CLEAN]);
    let head =
        format!("POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.expect("sent");
    eventually("in flight", || judge.entered() == 1).await;
    let shutdown = tokio::spawn(server.shutdown());
    eventually("the file is gone", || !path.exists()).await;
    assert!(!shutdown.is_finished());
    judge.behave(Behaviour::Answer);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(REPLY), "{answer}");
    assert!(shutdown.await.expect("no panic").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_socket_is_replaced_and_anything_else_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("http.sock");
    let setup = Setup::new("").await;
    let bind = async || firewall((&unix(&path), None), (&setup.upstream.url(), None)).await;
    // As a process that was killed leaves it behind.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let server = bind().await.expect("its place");
    ready(&server);
    assert_eq!(infer(&path, CLEAN).await.0, StatusCode::OK);
    // One that somebody listens on.
    let error = bind().await.expect_err("taken").to_string();
    assert_eq!(error, format!("cannot listen on {}", unix(&path)));
    assert_eq!(infer(&path, CLEAN).await.0, StatusCode::OK);
    server.shutdown().await.expect("a drain");
    // No socket, and a link to nowhere.
    std::fs::write(&path, "kept").expect("written");
    bind().await.expect_err("a file");
    assert_eq!(std::fs::read(&path).expect("the file"), b"kept");
    std::fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink("nowhere", &path).expect("a link");
    bind().await.expect_err("a link");
    assert!(std::fs::symlink_metadata(&path).expect("the link").is_symlink());
}
