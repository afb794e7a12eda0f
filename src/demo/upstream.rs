//! The demo's model server: Open Inference Protocol over HTTP, the backdoored model behind it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Value, json};

use doorward_engine::{Classifier, Model};

/// A running model server; it ends with the runtime.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
}

#[derive(Deserialize)]
struct InferRequest {
    id: Option<String>,
    inputs: Vec<InferInput>,
}

#[derive(Deserialize)]
struct InferInput {
    shape: Vec<usize>,
    data: Vec<f32>,
}

type Reply = Result<Json<Value>, (StatusCode, Json<Value>)>;

impl Upstream {
    /// Serves `model` as [`MODEL_NAME`] on a free loopback port.
    pub(super) async fn start(model: Arc<Model>) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let path = format!("/v2/models/{MODEL_NAME}");
        let router = Router::new()
            .route("/v2/health/live", get(StatusCode::OK))
            .route("/v2/health/ready", get(StatusCode::OK))
            .route(&path, get(metadata))
            .route(&format!("{path}/ready"), get(StatusCode::OK))
            .route(&format!("{path}/infer"), post(infer))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(model);
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the demo's model server ended");
            }
        });
        Ok(Self { address })
    }
}

async fn metadata(State(model): State<Arc<Model>>) -> Json<Value> {
    let [channels, height, width] = model.domain().shape;
    Json(json!({
        "name": MODEL_NAME,
        "platform": "onnx",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, channels, height, width]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, model.labels()]}],
    }))
}

async fn infer(State(model): State<Arc<Model>>, Json(request): Json<InferRequest>) -> Reply {
    let answered = tokio::task::spawn_blocking(move || predict(&model, request)).await;
    match answered {
        Ok(Ok(body)) => Ok(Json(body)),
        Ok(Err(reason)) => Err((StatusCode::BAD_REQUEST, Json(json!({"error": reason})))),
        Err(error) => {
            let reason = json!({"error": error.to_string()});
            Err((StatusCode::INTERNAL_SERVER_ERROR, Json(reason)))
        }
    }
}

fn predict(model: &Model, request: InferRequest) -> Result<Value, String> {
    let [input] = <[InferInput; 1]>::try_from(request.inputs)
        .map_err(|inputs| format!("{} inputs, expected 1", inputs.len()))?;
    let logits = Tensor::from_vec(input.data, input.shape, model.device())
        .map_err(|error| error.to_string())
        .and_then(|batch| model.logits(&batch).map_err(|error| error.to_string()))?;
    let values: Vec<f32> =
        logits.flatten_all().and_then(|flat| flat.to_vec1()).map_err(|error| error.to_string())?;
    let output =
        json!({"name": "logits", "datatype": "FP32", "shape": logits.dims(), "data": values});
    let mut body = json!({"model_name": MODEL_NAME, "outputs": [output]});
    if let Some(id) = request.id {
        body["id"] = id.into();
    }
    Ok(body)
}

/// The model's name on the demo's upstream.
pub(super) const MODEL_NAME: &str = "fashion";

const MAX_BODY_BYTES: usize = 16 << 20;
