//! The demo's clients: Open Inference Protocol requests over HTTP.

use std::fmt::Display;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::json;

use super::Error;
use super::upstream::MODEL_NAME;

/// A client of one address; clones share its connections.
#[derive(Clone)]
pub(super) struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    url: String,
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Answer {
    /// The predicted label; `None` if the firewall rejected the row.
    pub(super) label: Option<usize>,
    pub(super) took: Duration,
}

#[derive(Deserialize)]
struct InferResponse {
    outputs: Vec<InferOutput>,
}

#[derive(Deserialize)]
struct InferOutput {
    data: Vec<f32>,
}

impl Client {
    pub(super) fn new(address: impl Display) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = HyperClient::builder(TokioExecutor::new()).build(connector);
        Self { http, url: format!("http://{address}/v2/models/{MODEL_NAME}/infer") }
    }

    /// Sends one row.
    pub(super) async fn infer(&self, body: Bytes) -> Result<Answer, Error> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| Error::Exchange(error.to_string()))?;
        let start = Instant::now();
        let response = self
            .http
            .request(request)
            .await
            .map_err(|error| Error::Exchange(format!("{error:?}")))?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| Error::Exchange(error.to_string()))?
            .to_bytes();
        let took = start.elapsed();
        match status {
            StatusCode::OK => {
                let answer: InferResponse = serde_json::from_slice(&body)
                    .map_err(|error| Error::Exchange(error.to_string()))?;
                let logits = answer.outputs.first().map_or(&[][..], |output| &output.data);
                let label = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                Ok(Answer { label, took })
            }
            StatusCode::FORBIDDEN => Ok(Answer { label: None, took }),
            other => {
                let body = String::from_utf8_lossy(&body);
                Err(Error::Exchange(format!("status {other}: {body}")))
            }
        }
    }
}

/// An infer request for one row.
pub(super) fn request(row: &[f32], shape: [usize; 3]) -> Bytes {
    let [channels, height, width] = shape;
    let input = json!({
        "name": "input",
        "datatype": "FP32",
        "shape": [1, channels, height, width],
        "data": row,
    });
    json!({"inputs": [input]}).to_string().into()
}
