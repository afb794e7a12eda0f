//! A gRPC model server and gRPC clients around a firewall.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request as HttpRequest, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::{Setup, fp32};
use inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use inference::infer_parameter::ParameterChoice;
use inference::model_infer_request::InferInputTensor;
use inference::model_infer_response::InferOutputTensor;
use inference::*;

#[allow(clippy::pedantic, unreachable_pub, reason = "generated from proto/inference.proto")]
pub(crate) mod inference {
    include!(concat!(env!("OUT_DIR"), "/tonic/inference.rs"));
}

pub(crate) const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

pub(crate) const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Everything that one test needs.
pub(crate) struct GrpcSetup {
    pub(crate) setup: Setup,
    pub(crate) upstream: GrpcUpstream,
    pub(crate) client: GrpcInferenceServiceClient<Channel>,
    pub(crate) raw: RawClient,
}

/// A model server that keeps what it got.
pub(crate) struct GrpcUpstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Its own, so that its connections end with it.
    runtime: Option<Runtime>,
}

struct Shared {
    received: Mutex<Vec<(MetadataMap, ModelInferRequest)>>,
    open: watch::Sender<bool>,
}

#[derive(Clone)]
struct Service(Arc<Shared>);

/// Sends any bytes over HTTP/2.
#[derive(Clone)]
pub(crate) struct RawClient {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    base: String,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct RawAnswer {
    pub(crate) http: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// `grpc-status`, wherever it was.
    pub(crate) status: i32,
    pub(crate) message: String,
}

// === impl GrpcSetup ===

impl GrpcSetup {
    /// A ready firewall. `settings` is TOML, without the required keys.
    pub(crate) async fn new(settings: &str) -> Self {
        let setup = Self::calibrating(settings).await;
        let judge = setup.setup.judge.clone();
        setup.setup.server.ready(judge, &super::manifest()).expect("the first detector");
        setup
    }

    /// A firewall without a detector.
    pub(crate) async fn calibrating(settings: &str) -> Self {
        let upstream = GrpcUpstream::start().await;
        let setup = Setup::calibrating(&format!(
            "listen.grpc = '127.0.0.1:0'\nupstream.grpc_url = '{}'\n{settings}",
            upstream.url()
        ))
        .await;
        let base = format!("http://{}", setup.server.grpc_addr().expect("a listener for calls"));
        let endpoint = Endpoint::from_shared(base.clone()).expect("a URL");
        let channel = endpoint.connect().await.expect("a connection");
        let client = GrpcInferenceServiceClient::new(channel)
            .max_encoding_message_size(usize::MAX)
            .max_decoding_message_size(usize::MAX);
        Self { setup, upstream, client, raw: RawClient::new(&base) }
    }

    pub(crate) async fn infer(
        &self,
        request: ModelInferRequest,
    ) -> Result<ModelInferResponse, Status> {
        self.client.clone().model_infer(request).await.map(Response::into_inner)
    }

    /// How many calls and messages of streams ended with `verdict`.
    pub(crate) fn verdicts(&self, verdict: &str) -> f64 {
        self.setup.metric(&format!("requests_total{{protocol=\"oip_grpc\",verdict=\"{verdict}\"}}"))
    }
}

// === impl GrpcUpstream ===

impl GrpcUpstream {
    pub(crate) async fn start() -> Self {
        let shared =
            Arc::new(Shared { received: Mutex::new(Vec::new()), open: watch::Sender::new(true) });
        let (address, runtime) = serve("127.0.0.1:0", Arc::clone(&shared)).await;
        Self { address, shared, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was to be inferred.
    pub(crate) fn received(&self) -> Vec<ModelInferRequest> {
        let received = self.shared.received.lock().expect("no panic while held");
        received.iter().map(|(_, request)| request.clone()).collect()
    }

    /// The one with this metadata: what was turned away while it was on its way may arrive behind a later one.
    pub(crate) fn of(&self, name: &str, value: &str) -> ModelInferRequest {
        let received = self.shared.received.lock().expect("no panic while held");
        let mut found = received.iter().rev().filter(|(metadata, _)| {
            metadata.get(name).is_some_and(|found| found.as_encoded_bytes() == value.as_bytes())
        });
        found.next().expect("a request").1.clone()
    }

    pub(crate) fn last(&self) -> (MetadataMap, ModelInferRequest) {
        let received = self.shared.received.lock().expect("no panic while held");
        received.last().expect("a request").clone()
    }

    /// From now on calls wait.
    pub(crate) fn hold(&self) {
        self.shared.open.send_replace(false);
    }

    /// From now on they do not.
    pub(crate) fn release(&self) {
        self.shared.open.send_replace(true);
    }

    /// Stops accepting, and breaks its connections.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Comes back on the same port.
    pub(crate) async fn restart(&mut self) {
        let address = self.address.to_string();
        self.runtime = Some(serve(&address, Arc::clone(&self.shared)).await.1);
    }
}

impl Drop for GrpcUpstream {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(address: &str, shared: Arc<Shared>) -> (SocketAddr, Runtime) {
    let service = GrpcInferenceServiceServer::new(Service(shared))
        .max_decoding_message_size(usize::MAX)
        .accept_compressed(tonic::codec::CompressionEncoding::Gzip);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let address = address.to_owned();
    let (bound, listening) = oneshot::channel();
    runtime.spawn(async move {
        let socket = TcpListener::bind(address).await.expect("a port");
        let _ = bound.send(socket.local_addr().expect("an address"));
        let incoming = TcpIncoming::from(socket).with_nodelay(Some(true));
        let _ = Server::builder().add_service(service).serve_with_incoming(incoming).await;
    });
    (listening.await.expect("a port"), runtime)
}

// === impl Service ===

impl Service {
    async fn keep(&self, metadata: MetadataMap, request: &ModelInferRequest) {
        let kept = (metadata, request.clone());
        self.0.received.lock().expect("no panic while held").push(kept);
        let mut open = self.0.open.subscribe();
        let _ = open.wait_for(|open| *open).await;
    }
}

/// The answer to a request; bits that no number is printed as.
pub(crate) fn reply(request: &ModelInferRequest) -> ModelInferResponse {
    let output = InferOutputTensor {
        name: "y".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 2],
        ..Default::default()
    };
    ModelInferResponse {
        model_name: request.model_name.clone(),
        model_version: "3".to_owned(),
        id: request.id.clone(),
        outputs: vec![output],
        raw_output_contents: vec![fp32(&[f32::from_bits(0x7fc0_0001), -0.0])],
        ..Default::default()
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    type ModelStreamInferStream = ReceiverStream<Result<ModelStreamInferResponse, Status>>;

    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        Ok(Response::new(ModelReadyResponse { ready: request.into_inner().name == "m" }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let extensions = vec!["statistics".to_owned()];
        let version = "1".to_owned();
        Ok(Response::new(ServerMetadataResponse { name: "fake".to_owned(), version, extensions }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let versions = vec![version];
        Ok(Response::new(ModelMetadataResponse { name, versions, ..Default::default() }))
    }

    async fn model_config(
        &self,
        _: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        Ok(Response::new(ModelConfigResponse { config: b"\x0a\x01m".to_vec() }))
    }

    async fn model_statistics(
        &self,
        _: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        Err(Status::not_found("no statistics: 50 %"))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.keep(metadata, &request).await;
        let mut response = Response::new(reply(&request));
        response.metadata_mut().insert("x-model", "m".parse().expect("a value"));
        Ok(response)
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (metadata, _, mut requests) = request.into_parts();
        let (sender, receiver) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                service.keep(metadata.clone(), &request).await;
                let reply = ModelStreamInferResponse {
                    infer_response: Some(reply(&request)),
                    ..Default::default()
                };
                if sender.send(Ok(reply)).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

// === impl RawClient ===

impl RawClient {
    pub(crate) fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = HttpClient::builder(TokioExecutor::new()).http2_only(true).build(connector);
        Self { http, base: base.to_owned() }
    }

    /// Posts `body`. Of `headers`, a content type takes the place of the usual one.
    pub(crate) async fn send(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> RawAnswer {
        let mut request = HttpRequest::post(format!("{}{path}", self.base));
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let (parts, body) = self.http.request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a body");
        let trailers = body.trailers().cloned().unwrap_or_default();
        let find = |name: &str| {
            let value = trailers.get(name).or_else(|| parts.headers.get(name));
            value.map(|value| value.to_str().expect("text").to_owned())
        };
        RawAnswer {
            http: parts.status,
            status: find("grpc-status").map_or(-1, |status| status.parse().expect("a number")),
            message: find("grpc-message").unwrap_or_default(),
            headers: parts.headers.clone(),
            body: body.to_bytes(),
        }
    }

    pub(crate) async fn infer(&self, message: impl Into<Vec<u8>>) -> RawAnswer {
        self.send(INFER, &[], framed(0, &message.into())).await
    }
}

/// A message in its frame.
pub(crate) fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a short message");
    [&[flag][..], &length.to_be_bytes(), message].concat()
}

/// A request with rows of four values as raw contents.
pub(crate) fn raw_request(rows: &[[f32; 4]]) -> ModelInferRequest {
    tensor_request("FP32", &[rows.len() as i64, 1, 2, 2], fp32(&rows.concat()))
}

/// A request with a tensor as raw contents.
pub(crate) fn tensor_request(datatype: &str, shape: &[i64], raw: Vec<u8>) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "m".to_owned(),
        id: "7".to_owned(),
        inputs: vec![InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            ..Default::default()
        }],
        raw_input_contents: vec![raw],
        ..Default::default()
    }
}

/// A request with a tensor as typed contents.
pub(crate) fn typed_request(datatype: &str, contents: InferTensorContents) -> ModelInferRequest {
    let mut request = tensor_request(datatype, &[1, 1, 2, 2], Vec::new());
    request.raw_input_contents.clear();
    request.inputs[0].contents = Some(contents);
    request
}

/// A message's bytes.
pub(crate) fn bytes(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

pub(crate) fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::best());
    writer.write_all(bytes).expect("memory");
    writer.finish().expect("memory")
}

/// A length-delimited field by hand.
pub(crate) fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![tag << 3 | 2];
    prost::encoding::encode_varint(bytes.len() as u64, &mut field);
    [&field[..], bytes].concat()
}

/// A clean or triggered request with this id.
pub(crate) fn named(row: [f32; 4], id: &str) -> ModelInferRequest {
    ModelInferRequest { id: id.to_owned(), ..raw_request(&[row]) }
}
