//! The listeners, readiness, and a drain that loses no request.
//!
//! ```no_run
//! # use doorward::{config::Config, server::Server};
//! # async fn example(config: Config) -> Result<(), doorward::server::Error> {
//! let server = Server::bind(&config).await?;
//! println!("clients: {}, operators: {}", server.proxy_addr(), server.admin_addr());
//! let handle = server.handle(); // `handle.detect(model, artifact)` once there is an artifact
//! server.run_until_signal().await
//! # }
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::artifact::Manifest;
use crate::calibrate;
use crate::config::{self, Config};
use crate::detect::Judge;
use crate::proxy::{self, Live};
use crate::telemetry::audit::{self, Audit};
use crate::telemetry::{self, metrics::Metrics};
use crate::tls;

mod admin;
mod listener;
mod reload;
mod security;
mod status;
mod watch;

use admin::{Phase, Readiness};
pub use listener::{Listener, Speaks};
use reload::InEffect;
pub use security::Security;
pub use watch::Reloader;

/// A running firewall. Dropping it without [`Server::shutdown`] leaves its tasks to the runtime.
#[derive(Debug)]
pub struct Server {
    handle: Handle,
    proxy: Listener,
    grpc: Option<Listener>,
    admin: Listener,
}

/// What can be told to a running firewall, from anywhere.
#[derive(Clone, Debug)]
pub struct Handle {
    proxy: Arc<Live>,
    in_effect: Arc<InEffect>,
    audit: Arc<Audit>,
    /// Of the listeners for clients.
    security: [Arc<Security>; 2],
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
}

/// Why the firewall cannot run, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] audit::Error),
    /// A listener does not know its address.
    #[error("cannot tell a listener's address")]
    Address(#[source] std::io::Error),
    /// A listener cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// No detector can be made of the artifact for this policy.
    #[error(transparent)]
    Calibrate(#[from] calibrate::Error),
    /// The settings cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// Requests in flight did not end in time.
    #[error("requests in flight did not end within {timeout:?}")]
    Drain {
        /// `limits.drain_timeout_seconds`.
        timeout: Duration,
    },
    /// The request path cannot be set up.
    #[error(transparent)]
    Proxy(#[from] proxy::Error),
    /// Signals cannot be received.
    #[error("cannot wait for signals")]
    Signal(#[source] std::io::Error),
    /// Metrics cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// `tls` cannot be used.
    #[error("tls cannot be used")]
    Tls(#[from] tls::Error),
}

/// Idle connections are cheap, so there may be more of them than requests in flight.
const CONNECTIONS_PER_PLACE: usize = 4;

/// What the listeners speak.
const PROTOCOLS: [&str; 1] = ["http/1.1"];

/// What the one for gRPC speaks.
const GRPC_PROTOCOLS: [&str; 1] = ["h2"];

/// Enough for every scraper and probe, few enough not to matter.
const ADMIN_CONNECTIONS: usize = 64;

// === impl Server ===

impl Server {
    /// Binds the listeners and serves: not ready, and without a detector until
    /// [`Handle::ready`].
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new())?);
        metrics.protects(config.model.name.as_deref());
        let audit = Arc::new(Audit::start(&config.audit, metrics.audit_dropped().clone())?);
        let proxy = Arc::new(Live::new(config, Arc::clone(&metrics), Arc::clone(&audit))?);
        let readiness = Arc::new(Readiness::new());
        let security = Arc::new(Security::new(config.tls.as_ref(), &PROTOCOLS)?);
        let grpc_security = Arc::new(Security::new(config.tls.as_ref(), &GRPC_PROTOCOLS)?);
        let plain = Arc::new(Security::new(None, &PROTOCOLS)?);
        let proxy_socket = bind(config.listen.http).await?;
        let grpc_socket = match config.listen.grpc {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let admin_socket = bind(config.admin.listen).await?;

        let connections = config.limits.concurrency.get();
        let connections = connections.saturating_mul(CONNECTIONS_PER_PLACE);
        let path = Arc::clone(&proxy);
        let service = service_fn(move |request| {
            let proxy = Arc::clone(&path);
            async move { Ok::<_, std::convert::Infallible>(proxy.handle(request).await) }
        });
        let path = Arc::clone(&proxy);
        let grpc_service = service_fn(move |request| {
            let proxy = Arc::clone(&path);
            async move { Ok::<_, std::convert::Infallible>(proxy.handle_grpc(request).await) }
        });
        let in_effect = Arc::new(InEffect::new(config));
        let (listening, calls) = (Arc::clone(&security), Arc::clone(&grpc_security));
        let security = [security, grpc_security];
        let handle = Handle { proxy, in_effect, audit, security, metrics, readiness };
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
                TowerToHyperService::new(admin::router(handle.clone())),
                Speaks::Http1,
                ADMIN_CONNECTIONS,
            )?,
            handle,
        })
    }

    /// Where clients connect.
    pub fn proxy_addr(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// Where gRPC clients connect, if they can.
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().map(Listener::address)
    }

    /// Where operators connect.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.address()
    }

    /// The metrics of this firewall.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.handle.metrics
    }

    /// For tasks that outlive a borrow of the server.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// As [`Handle::ready`].
    pub fn ready(&self, judge: Arc<dyn Judge>, manifest: &Manifest) -> Result<(), Error> {
        self.handle.ready(judge, manifest)
    }

    /// Serves until SIGTERM or SIGINT, then shuts down.
    pub async fn run_until_signal(self) -> Result<(), Error> {
        signalled().await?;
        self.shutdown().await
    }

    /// Reports that it drains, has clients close their connections, lets requests in flight finish.
    pub async fn shutdown(self) -> Result<(), Error> {
        self.handle.readiness.set(Phase::Draining);
        let timeout = self.handle.in_effect.drain_timeout();
        let linger = LINGER.min(timeout / 4);
        self.handle.proxy.drain();
        let stop = |listener: Listener| listener.stop(linger, timeout - 2 * linger);
        let grpc = async {
            match self.grpc {
                Some(grpc) => stop(grpc).await,
                None => true,
            }
        };
        let (requests, calls) = tokio::join!(stop(self.proxy), grpc);
        let drained = requests && calls;
        self.handle.audit.flush().await;
        // Last, so that probes and a last scrape see the drain.
        self.admin.stop(Duration::ZERO, ADMIN_DRAIN).await;
        if drained { Ok(()) } else { Err(Error::Drain { timeout }) }
    }
}

/// Long enough for every client that is sending to get an answer that closes its connection, short
/// against the grace period of any supervisor.
const LINGER: Duration = Duration::from_millis(200);

/// A scrape takes milliseconds.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

// === impl Handle ===

impl Handle {
    /// There is a detector, whatever the policy: publishes what it was calibrated to, judges requests from now on, and
    /// reports readiness.
    pub fn ready(&self, judge: Arc<dyn Judge>, manifest: &Manifest) -> Result<(), Error> {
        self.proxy.open(judge)?;
        self.metrics.publish(manifest);
        self.in_effect.describe(manifest);
        self.readiness.set(Phase::Ready);
        Ok(())
    }

    /// The metrics of this firewall.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }
}

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

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })
}
