//! The listeners, readiness, and a drain that loses no request.
//!
//! ```no_run
//! # use doorward_proxy::{Server, Settings};
//! # async fn example(settings: Settings) -> Result<(), doorward_proxy::server::Error> {
//! let server = Server::bind(&settings).await?;
//! println!("clients: {}, operators: {}", server.proxy_addr(), server.admin_addr());
//! let handle = server.handle(); // `handle.detect(model, artifact)` once there is an artifact
//! server.run_until_signal().await
//! # }
//! ```

use std::sync::Arc;
use std::time::Duration;

use doorward_detection::Judge;
use doorward_detection::artifact::Manifest;
use hyper::service::service_fn;
use hyper_util::service::TowerToHyperService;
use tokio::signal::unix::{SignalKind, signal};

use super::admin;
use super::error::Error;
use super::handle::Handle;
use super::in_effect::InEffect;
use super::listener::{Listener, Speaks};
use super::readiness::{Phase, Readiness};
use super::security::Security;
use super::socket::Socket;
use crate::address::Address;
use crate::proxy::{self, Forwarding, Live, Models};
use crate::settings::Settings;
use crate::telemetry::audit::Audit;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::Spans;

/// A running firewall. Dropping it without [`Server::shutdown`] leaves its tasks to the runtime.
#[derive(Debug)]
pub struct Server {
    /// One a model.
    handles: Vec<Handle>,
    models: Arc<Models>,
    spans: Option<Arc<Spans>>,
    proxy: Listener,
    grpc: Option<Listener>,
    admin: Listener,
}

/// Idle connections are cheap, so there may be more of them than requests in flight.
const CONNECTIONS_PER_PLACE: usize = 4;

/// The protocols of the listeners for HTTP, by their ALPN names.
const PROTOCOLS: [&str; 1] = ["http/1.1"];

/// The protocols of the listener for gRPC, by their ALPN names.
const GRPC_PROTOCOLS: [&str; 1] = ["h2"];

/// Enough for every scraper and probe, few enough not to matter.
const ADMIN_CONNECTIONS: usize = 64;

// === impl Server ===

impl Server {
    /// Binds the listeners and serves: not ready, and without a detector until
    /// [`Handle::ready`].
    pub async fn bind(config: &Settings) -> Result<Self, Error> {
        Self::bind_all(std::slice::from_ref(config)).await
    }

    /// As [`Server::bind`], for several models on the same listeners. What they share is the first
    /// one's.
    pub async fn bind_all(configs: &[Settings]) -> Result<Self, Error> {
        let config = configs.first().ok_or(proxy::Error::Models)?;
        let metrics = (configs.iter())
            .map(|_| Ok(Arc::new(Metrics::new(prometheus::Registry::new())?)))
            .collect::<Result<Vec<_>, Error>>()?;
        let audit = Arc::new(Audit::start(&config.audit, metrics[0].audit_dropped().clone())?);
        let otlp = config.telemetry.otlp.as_ref();
        let spans = otlp.map(|otlp| Spans::start(otlp, metrics[0].spans()).map(Arc::new));
        let spans = spans.transpose()?;
        let security = Arc::new(Security::new(config.tls.as_ref(), &PROTOCOLS)?);
        let grpc_security = Arc::new(Security::new(config.tls.as_ref(), &GRPC_PROTOCOLS)?);
        let plain = Arc::new(Security::new(None, &PROTOCOLS)?);
        let proxy_socket = bind(&config.listen.http).await?;
        let grpc_socket = match &config.listen.grpc {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let admin_socket = bind(&Address::Tcp(config.admin.listen)).await?;

        let connections = config.limits.concurrency.get();
        let connections = connections.saturating_mul(CONNECTIONS_PER_PLACE);
        let mut handles = Vec::with_capacity(configs.len());
        let (listening, calls) = (Arc::clone(&security), Arc::clone(&grpc_security));
        for (config, metrics) in configs.iter().zip(metrics) {
            metrics.protects(config.model.name.as_deref());
            let (audit, spans) = (Arc::clone(&audit), spans.clone());
            let live = Live::new(config, Arc::clone(&metrics), Arc::clone(&audit), spans)?;
            handles.push(Handle {
                name: config.model.name.clone(),
                proxy: Arc::new(live),
                in_effect: Arc::new(InEffect::new(config)),
                audit,
                security: [Arc::clone(&security), Arc::clone(&grpc_security)],
                metrics,
                readiness: Arc::new(Readiness::new()),
            });
        }
        let proxies = handles.iter().map(|handle| Arc::clone(&handle.proxy)).collect();
        let forwarding = Forwarding::new(&config.listen.trusted_proxies, config.tls.is_some());
        let models = Arc::new(Models::new(proxies, forwarding)?);
        let path = Arc::clone(&models);
        let service = service_fn(move |request| {
            let proxy = Arc::clone(&path);
            async move { Ok::<_, std::convert::Infallible>(proxy.handle(request).await) }
        });
        let path = Arc::clone(&models);
        let grpc_service = service_fn(move |request| {
            let proxy = Arc::clone(&path);
            async move { Ok::<_, std::convert::Infallible>(proxy.handle_grpc(request).await) }
        });
        Ok(Self {
            proxy: Listener::serve(proxy_socket, listening, service, Speaks::Http1, connections)?,
            grpc: grpc_socket
                .map(|socket| {
                    Listener::serve(socket, calls, grpc_service, Speaks::Http2, connections)
                })
                .transpose()?,
            admin: Listener::serve(
                admin_socket,
                plain,
                TowerToHyperService::new(admin::router(&handles)),
                Speaks::Http1,
                ADMIN_CONNECTIONS,
            )?,
            handles,
            models,
            spans,
        })
    }

    /// The addresses that clients connect to.
    pub fn proxy_addr(&self) -> &Address {
        self.proxy.address()
    }

    /// The address that gRPC clients connect to, if they can.
    pub fn grpc_addr(&self) -> Option<&Address> {
        self.grpc.as_ref().map(Listener::address)
    }

    /// The address that operators connect to.
    pub fn admin_addr(&self) -> &Address {
        self.admin.address()
    }

    /// The metrics of the first model.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.handles[0].metrics
    }

    /// The handle of the first model, for tasks that outlive a borrow of the server.
    pub fn handle(&self) -> Handle {
        self.handles[0].clone()
    }

    /// The handle of each model.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// As [`Handle::ready`], for the first model.
    pub fn ready(&self, judge: Arc<dyn Judge>, manifest: &Manifest) -> Result<(), Error> {
        self.handles[0].ready(judge, manifest)
    }

    /// Serves until SIGTERM or SIGINT, then shuts down.
    pub async fn run_until_signal(self) -> Result<(), Error> {
        signalled().await?;
        self.shutdown().await
    }

    /// Reports that it drains, has clients close their connections, lets requests in flight finish.
    pub async fn shutdown(self) -> Result<(), Error> {
        for handle in &self.handles {
            handle.readiness.set(Phase::Draining);
        }
        let timeout = self.handles[0].in_effect.drain_timeout();
        let linger = LINGER.min(timeout / 4);
        self.models.drain();
        let stop = |listener: Listener| listener.stop(linger, timeout - 2 * linger);
        let grpc = async {
            match self.grpc {
                Some(grpc) => stop(grpc).await,
                None => true,
            }
        };
        let (requests, calls) = tokio::join!(stop(self.proxy), grpc);
        let drained = requests && calls;
        self.handles[0].audit.flush().await;
        if let Some(spans) = self.spans {
            // It blocks; if it panics, the spans are lost and nothing else is.
            let _ = tokio::task::spawn_blocking(move || spans.end(SPANS_DRAIN)).await;
        }
        // Last, so that probes and a last scrape see the drain.
        self.admin.stop(Duration::ZERO, ADMIN_DRAIN).await;
        if drained { Ok(()) } else { Err(Error::Drain { timeout }) }
    }
}

/// Long enough for every client that is sending to get an answer that closes its connection, short
/// against the grace period of any supervisor.
const LINGER: Duration = Duration::from_millis(500);

/// A scrape takes milliseconds.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// A collector that answers takes milliseconds.
const SPANS_DRAIN: Duration = Duration::from_secs(2);

/// Waits for SIGTERM or SIGINT.
pub async fn signalled() -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
    }
    Ok(())
}

async fn bind(address: &Address) -> Result<Socket, Error> {
    let bound = Socket::bind(address).await;
    bound.map_err(|source| Error::Bind { address: address.clone(), source })
}
