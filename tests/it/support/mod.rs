//! A firewall between a real client and a real upstream, with a judge that does as it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use doorward::config::Config;
use doorward_detection::artifact::{ImageCounts, Manifest, PerturbationSummary};
use doorward_detection::conformal::{LabelThreshold, Thresholds};
use doorward_detection::{InspectionSummary, LabelInspection};
use doorward_proxy::server::Server;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) mod grpc;
pub(crate) mod judge;
pub(crate) mod model_server;
pub(crate) mod object_storage;
#[allow(dead_code, reason = "the engine's tests make more kinds of models")]
#[path = "../../../crates/doorward-engine/tests/it/support/onnx.rs"]
pub(crate) mod onnx;
pub(crate) mod served;
pub(crate) mod upstream;

pub(crate) use judge::FakeJudge;
pub(crate) use upstream::FakeUpstream;

pub(crate) const INFER: &str = "/v2/models/m/infer";

/// Everything that one test needs.
pub(crate) struct Setup {
    pub(crate) server: Server,
    pub(crate) judge: Arc<FakeJudge>,
    pub(crate) upstream: FakeUpstream,
    pub(crate) client: Client,
}

/// A client that keeps connections alive.
#[derive(Clone)]
pub(crate) struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    base: String,
}

/// A collected answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

// === impl Setup ===

impl Setup {
    /// A ready firewall. `settings` is TOML, without the required keys.
    pub(crate) async fn new(settings: &str) -> Self {
        let setup = Self::calibrating(settings).await;
        setup.server.ready(setup.judge.clone(), &manifest()).expect("the first detector");
        setup
    }

    /// A ready firewall in front of a model of another shape.
    pub(crate) async fn of_shape(shape: [usize; 3], settings: &str) -> Self {
        let judge = Arc::new(FakeJudge::of_shape(shape));
        let setup = Self { judge, ..Self::calibrating(settings).await };
        setup.server.ready(setup.judge.clone(), &manifest()).expect("the first detector");
        setup
    }

    /// A firewall without a detector.
    pub(crate) async fn calibrating(settings: &str) -> Self {
        let upstream = FakeUpstream::start().await;
        let config = config(&upstream.url(), settings);
        let server = Server::bind(&config.server).await.expect("free ports");
        let client = Client::new(&format!("http://{}", server.proxy_addr()));
        Self { server, judge: Arc::new(FakeJudge::default()), upstream, client }
    }

    /// The counters, gauges and histogram counts that are not zero.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let page = self.server.metrics().page().expect("a metrics page");
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.strip_prefix("doorward_")?.to_owned(), value.parse().ok()?))
        };
        page.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(sample)
            .filter(|(_, value)| *value != 0.0)
            .collect()
    }

    /// One sample; 0 if it is not there.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metrics().get(name).copied().unwrap_or(0.0)
    }

    /// How many V1 requests ended with `verdict`.
    pub(crate) fn v1_verdicts(&self, verdict: &str) -> f64 {
        self.metric(&format!("requests_total{{protocol=\"kserve_v1\",verdict=\"{verdict}\"}}"))
    }

    /// How many requests of images ended with `verdict`.
    pub(crate) fn image_verdicts(&self, verdict: &str) -> f64 {
        self.metric(&format!("requests_total{{protocol=\"raw_image\",verdict=\"{verdict}\"}}"))
    }

    /// How many requests ended with `verdict`.
    pub(crate) fn verdicts(&self, verdict: &str) -> f64 {
        self.metric(&format!("requests_total{{protocol=\"oip_http\",verdict=\"{verdict}\"}}"))
    }

    /// Where clients connect.
    pub(crate) fn proxy_tcp(&self) -> SocketAddr {
        self.server.proxy_addr().tcp().expect("a TCP port")
    }

    pub(crate) fn admin(&self) -> Client {
        Client::new(&format!("http://{}", self.server.admin_addr()))
    }

    /// Sends bytes as they are and reads until the firewall closes.
    pub(crate) async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.proxy_tcp()).await.expect("a listener");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // A reset after the answer is as good as an end.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

// === impl Client ===

impl Client {
    pub(crate) fn new(base: &str) -> Self {
        Self { http: HttpClient::builder(TokioExecutor::new()).build_http(), base: base.to_owned() }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let answer = self.http.request(request).await.expect("an answer");
        let (parts, body) = answer.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.expect("a body").to_bytes(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn infer(&self, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, INFER, &[], body).await
    }
}

// === impl Answer ===

impl Answer {
    /// The protocol's error message; the body must be nothing but that.
    pub(crate) fn error(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        let object = body.as_object().expect("an object");
        assert_eq!(object.len(), 1, "{body}");
        body["error"].as_str().expect("a message").to_owned()
    }
}

/// Settings with the required keys, ports of the system's choice, and `settings`.
pub(crate) fn config(upstream: &str, settings: &str) -> Config {
    let environment = [
        ("DOORWARD_LISTEN__HTTP", "127.0.0.1:0"),
        ("DOORWARD_ADMIN__LISTEN", "127.0.0.1:0"),
        ("DOORWARD_UPSTREAM__URL", upstream),
        ("DOORWARD_MODEL__PATH", "model.onnx"),
        ("DOORWARD_CALIBRATION__CLEAN_IMAGES", "clean"),
    ];
    Config::parse("test", settings, environment).expect("settings")
}

/// An inference request with these rows of four values.
pub(crate) fn request(rows: &[[f32; 4]]) -> String {
    let data: Vec<f32> = rows.concat();
    serde_json::json!({
        "id": "7",
        "inputs": [{
            "name": "x",
            "shape": [rows.len(), 1, 2, 2],
            "datatype": "FP32",
            "data": data,
        }],
    })
    .to_string()
}

/// The body of a request in binary form, with this parameter and these bytes behind the JSON, and
/// how many bytes of it are JSON.
pub(crate) fn binary(datatype: &str, shape: &str, size: &str, tensor: &[u8]) -> (Vec<u8>, usize) {
    let mut body = format!(
        r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}]}}"#
    )
    .into_bytes();
    let length = body.len();
    body.extend_from_slice(tensor);
    (body, length)
}

/// Values as FP32 bytes.
pub(crate) fn fp32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A row that the fake judge lets pass.
pub(crate) const CLEAN: [f32; 4] = [0.25, 0.1, 1.0, 0.0];

/// A row that the fake judge turns away.
pub(crate) const TRIGGERED: [f32; 4] = [0.75, 0.1, 1.0, 0.0];

pub(crate) fn manifest() -> Manifest {
    let finding = |label, transfer_ratio, anomaly_index| LabelInspection {
        label,
        transfer_ratio,
        anomaly_index,
        top_k_changed: 0.97,
        mask_l1: 12.0,
        top_k_survival: 0.5,
        survival: 0.25,
        survival_excess: 0.125,
        survival_anomaly_index: 1.5,
        shift: 0.5,
        shift_anomaly_index: 0.0,
    };
    let threshold = LabelThreshold { threshold: 3.0, images: 100, pooled: false };
    Manifest {
        format: 1,
        doorward: "0.1.0".to_owned(),
        created: 1_700_000_000,
        model_digest: "aa".to_owned(),
        data_digest: "bb".to_owned(),
        settings_digest: "cc".to_owned(),
        seed: 987_654_321,
        input_shape: [1, 2, 2],
        labels: 2,
        images: ImageCounts { fit: 300, reference: 0, holdout: 2000, probe: 0, training: 50 },
        accuracy: None,
        better: None,
        perturbation: PerturbationSummary {
            epsilon: 0.0625,
            fooling_rate: 0.875,
            l2: 1.5,
            sink: 0,
            sink_share: 0.5,
        },
        inspection: Some(InspectionSummary {
            labels: vec![finding(0, 0.875, 0.25), finding(1, 0.125, 7.5)],
            infected: vec![1],
        }),
        thresholds: Thresholds {
            labels: vec![threshold; 2],
            false_rejection_rate_bound: 0.0078125,
            holdout_rejected: 0.0071,
        },
    }
}

/// Waits for something that is about to happen; panics after ten seconds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within ten seconds: {what}");
}

/// Says so and is true where this build wants an onnxruntime that is not there: tests skip then.
pub(crate) fn models_cannot_be_loaded() -> bool {
    #[cfg(feature = "ort")]
    {
        use candle_core::Device;
        use doorward_engine::{Error, Model};
        let model = onnx::Graph::new(&[1, 1, 2]).node("Flatten", &["x"], "y", vec![]).encode();
        let model = Model::decode(&model, &[0.0], &[1.0], &Device::Cpu);
        if let Err(Error::Onnxruntime { reason }) = &model {
            println!("skipped: {reason}");
        }
        model.is_err()
    }
    #[cfg(not(feature = "ort"))]
    false
}
