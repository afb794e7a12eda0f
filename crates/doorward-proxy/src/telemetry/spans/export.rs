//! From ended spans to requests to the collector, never in the way of a request: what does not fit
//! into a bounded queue is dropped, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::Context;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter as Exporter, SpanProcessor,
};
use prometheus::{IntCounter, IntCounterVec};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::Error;
use crate::settings::Otlp;
use crate::tls;

/// Takes ended spans.
#[derive(Debug)]
pub(super) struct Export {
    batches: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    dropped: IntCounter,
}

/// The library's exporter, which does not say what it did.
#[derive(Debug)]
struct Counted {
    exporter: SpanExporter,
    waiting: Arc<AtomicUsize>,
    exported: IntCounter,
    failed: IntCounter,
    failing: AtomicBool,
}

/// The HTTP client of the rest of the program, for the library's thread.
#[derive(Debug)]
struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
}

/// Most spans that wait, those on their way included: some 700 requests.
const WAITING: usize = 2048;
/// For an answer of the collector.
const WAIT: Duration = Duration::from_secs(10);
/// Most bytes of it.
const ANSWER_BYTES: usize = 64 * 1024;

// === impl Export ===

impl Export {
    pub(super) fn start(settings: &Otlp, counter: &IntCounterVec) -> Result<Self, Error> {
        let waiting = Arc::new(AtomicUsize::new(0));
        let collector = Collector::new(settings)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(settings.endpoint.as_str())
            .build()?;
        let [exported, failed, dropped] =
            super::RESULTS.map(|result| counter.with_label_values(&[result]));
        let exporter = Counted {
            exporter,
            waiting: Arc::clone(&waiting),
            exported,
            failed,
            failing: AtomicBool::new(false),
        };
        let config = BatchConfigBuilder::default().with_max_queue_size(WAITING).build();
        let batches = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        Ok(Self { batches, waiting, dropped })
    }
}

impl SpanProcessor for Export {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < WAITING {
            self.batches.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

// === impl Counted ===

impl Exporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.exporter.export(batch).await;
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let counter = if sent.is_ok() { &self.exported } else { &self.failed };
        counter.inc_by(spans as u64);
        // Once a failure, not once a batch.
        let failed = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !failed => tracing::warn!(%error, spans, "the collector takes no spans"),
            Ok(()) if failed => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

// === impl Collector ===

impl Collector {
    fn new(settings: &Otlp) -> Result<Self, Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(WAIT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::public_client(settings.ca.as_deref())?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, runtime: Handle::current() })
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.client.request(request.map(Full::new));
        let exchange = async {
            let (head, body) = answer.await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        // On the runtime: the caller's thread has no timer.
        self.runtime.spawn(async { timeout(WAIT, exchange).await }).await??
    }
}
