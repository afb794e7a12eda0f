//! A model server made with axum, and the firewall as a layer around its one route.
//!
//! ```text
//! cargo run --release -p doorward-proxy --example axum -- 127.0.0.1:8080
//! curl -s http://127.0.0.1:8080/v2/models/dark/infer \
//!     -d '{"inputs": [{"name": "x", "shape": [1, 1, 2, 2], "datatype": "FP32", "data": [0.1, 0, 0, 0]}]}'
//! ```
//!
//! The judge here turns away images whose first pixel is bright; a real one is
//! `doorward_detection::open::detector`.

use std::sync::Arc;

use axum::routing::post;
use axum::{Json, Router};
use doorward_detection::{Error, Judge, Judgement, Scores};
use doorward_engine::InputDomain;
use doorward_proxy::settings::{Allowed, Limits, Policy, Predictions, Screening};
use doorward_proxy::{Metrics, ScreenLayer};
use serde_json::{Value, json};

/// Images of one channel and 2 x 2 pixels, from 0 to 1.
struct BrightCorner(InputDomain);

impl Judge for BrightCorner {
    fn domain(&self) -> &InputDomain {
        &self.0
    }

    fn judge(&self, rows: &[f32]) -> Result<Vec<Judgement>, Error> {
        let judge = |row: &[f32]| {
            let rejected = row[0] > 0.5;
            Judgement { label: 0, rejected, scores: Scores::default(), joined: None }
        };
        Ok(rows.chunks_exact(self.0.len()).map(judge).collect())
    }
}

/// The model: dark images are label 0.
async fn infer(Json(request): Json<Value>) -> Json<Value> {
    let rows = request["inputs"][0]["shape"][0].as_u64().unwrap_or(1);
    let labels = vec![0; rows as usize];
    let output = json!({"name": "label", "datatype": "INT64", "shape": [rows], "data": labels});
    Json(json!({"model_name": "dark", "outputs": [output]}))
}

/// The server, and the layer that waits for its judge.
pub(crate) fn app(policy: &Policy) -> Result<(Router, ScreenLayer), Box<dyn std::error::Error>> {
    let settings = Screening {
        allowed: Allowed { model: Some("dark"), ..Allowed::default() },
        signature: "serving_default",
        predictions: Predictions::Local,
        max_rows: None,
        images: &Default::default(),
        pictures: Default::default(),
        range_slack: 0.0,
        policy,
        limits: &Limits::default(),
    };
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new())?);
    let layer = ScreenLayer::new(settings, metrics)?;
    let app = Router::new().route("/v2/models/dark/infer", post(infer)).layer(layer.clone());
    Ok((app, layer))
}

/// What judges.
pub(crate) fn judge() -> Arc<dyn Judge> {
    let domain = InputDomain {
        shape: [1, 2, 2],
        lower: vec![0.0],
        upper: vec![1.0],
        channels_last: false,
        fp32: true,
    };
    Arc::new(BrightCorner(domain))
}

#[tokio::main]
#[allow(dead_code, reason = "the test of this example starts it otherwise")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let (app, layer) = app(&Policy::default())?;
    layer.open(judge())?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
