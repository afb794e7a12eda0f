//! A model server with a real model, which answers as it is told: logits, probabilities, labels.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use candle_core::Tensor;
use doorward_engine::{Classifier, Model};
use http_body_util::BodyExt;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(crate) struct ModelServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What it answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// No more rows than this; an error otherwise.
    AtMost(usize),
    Labels,
    Logits,
    Probabilities,
    /// Each label called by the next one's number.
    Rolled,
    /// One number for the whole batch, beside the logits.
    Summed,
}

struct Shared {
    model: Arc<Model>,
    answers: Mutex<Answers>,
    served: Mutex<Vec<Served>>,
}

/// What one request got.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) rows: usize,
    /// Row-major, `shape` a row.
    pub(crate) values: Vec<f32>,
    pub(crate) appended: Option<String>,
}

const LENGTH: &str = "inference-header-content-length";

// === impl ModelServer ===

impl ModelServer {
    pub(crate) async fn start(model: Arc<Model>) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let (answers, served) = (Mutex::new(Answers::Logits), Mutex::new(Vec::new()));
        let shared = Arc::new(Shared { model, answers, served });
        let app = Router::new().fallback(infer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(socket, app).await });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn answer_with(&self, answers: Answers) {
        *self.shared.answers.lock().expect("no panic while held") = answers;
    }

    /// What it served since it was last asked.
    pub(crate) fn take_served(&self) -> Vec<Served> {
        std::mem::take(&mut self.shared.served.lock().expect("no panic while held"))
    }
}

async fn infer(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let number = |value: &hyper::header::HeaderValue| value.to_str().unwrap().parse().unwrap();
    let length: Option<usize> = parts.headers.get(LENGTH).map(number);
    let (text, tensor) = body.split_at(length.unwrap_or(body.len()));
    let document: Value = match length {
        Some(0) => Value::Null,
        _ => serde_json::from_slice(text).expect("JSON"),
    };
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    let v1 = parts.uri.path().starts_with("/v1/");
    let values = if v1 {
        numbers(&document["instances"])
    } else if length.is_some() {
        floats(tensor)
    } else {
        numbers(&document["inputs"][0]["data"])
    };
    let model = &shared.model;
    let [channels, height, width] = model.domain().shape;
    let rows = values.len() / model.domain().len();
    if !v1 && length != Some(0) {
        assert_eq!(document["inputs"][0]["shape"], json!([rows, channels, height, width]));
    }
    let answers = *shared.answers.lock().expect("no panic while held");
    if let Answers::AtMost(most) = answers
        && rows > most
    {
        let mut refusal = Response::new(Body::from(r#"{"error":"batch-size must be <= 2"}"#));
        *refusal.status_mut() = StatusCode::BAD_REQUEST;
        return refusal;
    }
    let batch = Tensor::from_vec(values, (rows, channels, height, width), model.device()).unwrap();
    let logits = model.logits(&batch).unwrap().to_vec2::<f32>().unwrap();
    let values: Vec<f32> = logits.iter().flat_map(|row| answer(row, answers)).collect();
    shared.served.lock().expect("no panic while held").push(Served {
        rows,
        values: values.clone(),
        appended: (parts.headers.get("x-doorward-appended-rows"))
            .map(|value| value.to_str().unwrap().to_owned()),
    });
    let width = values.len() / rows;
    if v1 {
        let rows: Vec<&[f32]> = values.chunks(width).collect();
        return reply(json!({ "predictions": rows }).to_string().into_bytes(), None);
    }
    if answers == Answers::Labels {
        let labels: Vec<i64> = values.iter().map(|&value| value as i64).collect();
        let output = json!({"name": "top", "shape": [rows], "datatype": "INT64", "data": labels});
        return reply(json!({"model_name": "m", "outputs": [output]}).to_string().into(), None);
    }
    let mut output = json!({"name": "logits", "shape": [rows, width], "datatype": "FP32"});
    let mut tail = Vec::new();
    if length.is_some() {
        tail = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        output["parameters"] = json!({"binary_data_size": tail.len()});
    } else {
        output["data"] = json!(values);
    }
    let mut outputs = vec![output];
    if answers == Answers::Summed {
        let sum = json!({"name": "sum", "shape": [1], "datatype": "FP32", "data": [1.0]});
        outputs.push(sum);
    }
    let mut body = json!({"model_name": "m", "id": document["id"], "outputs": outputs});
    body["parameters"] = json!({"kept": 1.5});
    let mut body = body.to_string().into_bytes();
    let json_length = length.map(|_| body.len());
    body.append(&mut tail);
    reply(body, json_length)
}

fn answer(logits: &[f32], answers: Answers) -> Vec<f32> {
    let top = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("some");
    match answers {
        Answers::AtMost(_) | Answers::Logits | Answers::Summed => logits.to_vec(),
        Answers::Labels => vec![top as f32],
        Answers::Probabilities => {
            let exponentials: Vec<f32> =
                logits.iter().map(|value| (value - logits[top]).exp()).collect();
            let sum: f32 = exponentials.iter().sum();
            exponentials.iter().map(|value| value / sum).collect()
        }
        Answers::Rolled => {
            let mut rolled = logits.to_vec();
            rolled.rotate_right(1);
            rolled
        }
    }
}

fn reply(body: Vec<u8>, json_length: Option<usize>) -> Response {
    let response = Response::builder().header("content-type", "application/json");
    let response = match json_length {
        Some(length) => response.header(LENGTH, length),
        None => response,
    };
    response.body(Body::from(body)).expect("a response")
}

fn numbers(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        Value::Object(entries) => entries.values().flat_map(numbers).collect(),
        number => vec![number.as_f64().expect("a number") as f32],
    }
}
