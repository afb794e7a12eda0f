//! One listener: accepts connections within bounds, and stops without losing a request.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::Error;
use super::security::Security;
use super::socket::{Accepted, Socket};
use crate::address::Address;
use crate::proxy::Peer;

/// A listener that serves.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    /// From now on each connection closes after its answer.
    closing: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<Open>,
}

/// The protocol that a listener's clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 from the first byte on, as gRPC does.
    Http2,
}

/// The connections that are open when no more are accepted.
#[derive(Debug)]
struct Open {
    connections: GracefulShutdown,
    /// Dropped to break handshakes off.
    handshakes: watch::Sender<()>,
}

/// The longest time that a client may take to shake hands, and to send a request's head; also that
/// a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes in a request's head, as uvicorn takes them. Clients of model servers send a few hundred,
/// behind gateways some kilobytes of tokens.
const HEAD_BYTES: usize = 64 * 1024;

/// Most headers of a request over HTTP/1.1; hyper's own limit is 100, gateways add dozens.
const HEADERS: usize = 256;

/// When accepting fails, for instance for want of file descriptors, trying again at once would
/// spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

// === impl Listener ===

impl Listener {
    /// Accepts at most `connections` at a time; more wait in the system's backlog.
    pub fn serve<S, B>(
        socket: impl Into<Socket>,
        security: Arc<Security>,
        service: S,
        speaks: Speaks,
        connections: usize,
    ) -> Result<Self, Error>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let socket = socket.into();
        let address = socket.address().map_err(Error::Address)?;
        let (stop, stopped) = oneshot::channel();
        let closing = Arc::new(AtomicBool::new(false));
        let limits = (speaks, connections);
        let accept = accept(socket, security, service, limits, Arc::clone(&closing), stopped);
        let accepting = tokio::spawn(accept);
        Ok(Self { address, closing, stop, accepting })
    }

    /// The address; with the port that the system chose for port 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Stops in three steps: for `linger`, each answer asks its client to close the connection;
    /// then the listener is closed; after another `linger` idle connections are closed too, and the
    /// others get up to `timeout` to finish. `false` if they did not.
    ///
    /// # Design
    ///
    /// Closing at once would lose a request that arrives just as its idle, or new, connection is
    /// closed: HTTP/1.1 gives a client no way to know whether it was read.
    pub async fn stop(self, linger: Duration, timeout: Duration) -> bool {
        self.closing.store(true, Ordering::Release);
        tokio::time::sleep(linger).await;
        // Fails when accepting has ended by itself, which it only does by panicking.
        let _ = self.stop.send(());
        let Ok(Open { connections, handshakes }) = self.accepting.await else {
            return false;
        };
        tokio::time::sleep(linger).await;
        drop(handshakes);
        tokio::time::timeout(timeout, connections.shutdown()).await.is_ok()
    }
}

async fn accept<S, B>(
    socket: Socket,
    security: Arc<Security>,
    service: S,
    (speaks, limit): (Speaks, usize),
    closing: Arc<AtomicBool>,
    mut stopped: oneshot::Receiver<()>,
) -> Open
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let service = service_fn(move |request| {
        let closing = Arc::clone(&closing);
        let answer = service.call(request);
        async move {
            let mut answer = answer.await?;
            // Over HTTP/2, connections say so themselves when they are shut down.
            if speaks == Speaks::Http1 && closing.load(Ordering::Acquire) {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connections = GracefulShutdown::new();
    let (handshakes, ending) = watch::channel(());
    let places = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
    let mut one = http1::Builder::new();
    one.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HEAD_BYTES)
        .max_headers(HEADERS);
    let mut two = http2::Builder::new(TokioExecutor::new());
    two.timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES as u32)
        // As many calls on one connection as there may be connections.
        .max_concurrent_streams(u32::try_from(limit).unwrap_or(u32::MAX))
        .keep_alive_interval(HEAD_TIMEOUT)
        .keep_alive_timeout(HEAD_TIMEOUT);
    let serve = move |accepted: Accepted, place: OwnedSemaphorePermit, watcher: Watcher| {
        let Accepted { stream, peer } = accepted;
        let (security, service) = (Arc::clone(&security), service.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(Peer(peer));
            }
            service.call(request)
        });
        let (one, two) = (one.clone(), two.clone());
        let mut ending = ending.clone();
        tokio::spawn(async move {
            let begun = tokio::select! {
                begun = timeout(HEAD_TIMEOUT, security.begin(stream)) => begun,
                _ = ending.changed() => return,
            };
            match begun {
                Ok(Ok(stream)) => {
                    let stream = TokioIo::new(stream);
                    let served = match speaks {
                        Speaks::Http1 => watcher.watch(one.serve_connection(stream, service)).await,
                        Speaks::Http2 => watcher.watch(two.serve_connection(stream, service)).await,
                    };
                    if let Err(error) = served {
                        tracing::debug!(%error, "a connection ended early");
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            }
            drop(place);
        });
    };
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((place, socket.accept().await))
        };
        let next = tokio::select! {
            next = next => next,
            _ = &mut stopped => break,
        };
        match next {
            Some((place, Ok(accepted))) => serve(accepted, place, connections.watcher()),
            Some((_, Err(error))) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            None => break,
        }
    }
    while let Ok(place) = Arc::clone(&places).try_acquire_owned()
        && let Ok(accepted) = socket.accept_waiting()
    {
        serve(accepted, place, connections.watcher());
    }
    Open { connections, handshakes }
}
