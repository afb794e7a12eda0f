//! One listener: accepts connections within bounds, and stops without losing a request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

use super::Error;

/// A listener that serves.
#[derive(Debug)]
pub(super) struct Listener {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<GracefulShutdown>,
}

/// How long a client may take to send a request's head; also how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes in a request's head. Clients of model servers send a few hundred.
const HEAD_BYTES: usize = 32 * 1024;

/// When accepting fails, for instance for want of file descriptors, trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

// === impl Listener ===

impl Listener {
    /// Accepts at most `connections` at a time; more wait in the system's backlog.
    pub(super) fn serve<S, B>(
        socket: TcpListener,
        service: S,
        connections: usize,
    ) -> Result<Self, Error>
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let address = socket.local_addr().map_err(Error::Address)?;
        let (stop, stopped) = oneshot::channel();
        let accepting = tokio::spawn(accept(socket, service, connections, stopped));
        Ok(Self {
            address,
            stop,
            accepting,
        })
    }

    /// Where it listens; with the port that the system chose for port 0.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and idle connections, and waits for the others. `false` if they did not
    /// end in time.
    pub(super) async fn stop(self, timeout: Duration) -> bool {
        // Fails when accepting has ended by itself, which it only does by panicking.
        let _ = self.stop.send(());
        let Ok(connections) = self.accepting.await else {
            return false;
        };
        tokio::time::timeout(timeout, connections.shutdown())
            .await
            .is_ok()
    }
}

async fn accept<S, B>(
    socket: TcpListener,
    service: S,
    connections: usize,
    mut stopped: oneshot::Receiver<()>,
) -> GracefulShutdown
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HEAD_BYTES);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = &mut stopped => return graceful,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without it an answer in two segments waits 40 ms for a delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let connection = protocol.serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
}
