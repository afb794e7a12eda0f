//! An axum service behind the layer, asked over loopback.

use doorward_proxy::ScreenLayer;
use doorward_proxy::settings::{Action, Policy, Unverified};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

#[path = "../../examples/axum.rs"]
mod example;

const INFER: &str = "/v2/models/dark/infer";

/// The address of the example, which serves until the test ends.
async fn serve(policy: &Policy) -> (String, ScreenLayer) {
    let (app, layer) = example::app(policy).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, layer)
}

async fn ask(address: &str, method: Method, path: &str, body: String) -> (StatusCode, Value) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::builder()
        .method(method)
        .uri(format!("{address}{path}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn rows(corners: &[f32]) -> String {
    let data: Vec<f32> = corners.iter().flat_map(|&corner| [corner, 0.0, 0.0, 0.0]).collect();
    let shape = [corners.len(), 1, 2, 2];
    json!({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}]}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_rows_reach_the_service_and_triggered_ones_do_not() {
    let (address, layer) = serve(&Policy::default()).await;
    layer.open(example::judge()).unwrap();
    let (status, answer) = ask(&address, Method::POST, INFER, rows(&[0.1, 0.2])).await;
    assert_eq!((status, &answer["outputs"][0]["data"]), (StatusCode::OK, &json!([0, 0])));
    let (status, answer) = ask(&address, Method::POST, INFER, rows(&[0.1, 0.9])).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let message = answer["error"].as_str().unwrap();
    assert!(message.starts_with("input rejected by the firewall: row 1"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_verdict_ends_as_the_policy_says() {
    let (address, layer) = serve(&Policy::default()).await;
    let (status, _) = ask(&address, Method::POST, INFER, rows(&[0.1])).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "there is no detector");
    layer.open(example::judge()).unwrap();
    let (status, _) = ask(&address, Method::POST, INFER, "{}".to_owned()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "it cannot be decoded");

    let lenient = Policy { unverified: Unverified::all(Action::Pass), ..Policy::default() };
    let (address, _layer) = serve(&lenient).await;
    let (status, answer) = ask(&address, Method::POST, INFER, rows(&[0.9])).await;
    assert_eq!((status, &answer["model_name"]), (StatusCode::OK, &json!("dark")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_not_asked_for_another_model_or_method() {
    let (address, layer) = serve(&Policy::default()).await;
    layer.open(example::judge()).unwrap();
    let (status, _) = ask(&address, Method::GET, INFER, String::new()).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let (status, _) = ask(&address, Method::POST, "/v2/models/light/infer", rows(&[0.1])).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
