//! Connections to the model server: TCP or a Unix socket, plain or TLS, HTTP/1.1 or HTTP/2.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::body::Body;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tower::Service;

use super::error::Error;
use crate::address::Origin;
use crate::settings::UpstreamTls;
use crate::tls;

/// A pool of connections that sends bodies of type `B`.
pub(super) type Client<B> = legacy::Client<HttpsConnector<Connector>, B>;

/// The version of HTTP that is spoken to the model server. Without TLS, HTTP/2 begins at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Http {
    One,
    Two,
}

/// Opens connections, TLS aside.
#[derive(Clone, Debug)]
pub(super) enum Connector {
    Tcp(HttpConnector),
    Unix(Arc<Path>),
}

/// A connection, TLS aside.
pub(super) struct Stream(Box<dyn Io>);

trait Io: Read + Write + Connection + Send + Unpin {}

impl<T: Read + Write + Connection + Send + Unpin> Io for T {}

/// The time that a connection of HTTP/1.1 without requests is kept: below the 5 s after which
/// uvicorn, under most Python model servers, closes it. A request must not meet a connection that
/// is about to close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The same of a connection of HTTP/2, which says when it closes.
const HTTP2_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The pause after which a silent connection with open calls is asked whether it lives. gRPC's own
/// library, which is under most model servers, closes a connection that is asked more often than
/// every five minutes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(310);

const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Reads the certificates, if there are any.
pub(super) fn client<B>(
    origin: &Origin,
    tls: Option<&UpstreamTls>,
    speaks: Http,
) -> Result<Client<B>, Error>
where
    B: Body + Send,
    B::Data: Send,
{
    if origin.base().parse::<Uri>().is_err() {
        return Err(Error::Url { received: origin.to_string() });
    }
    let connector = Connector::new(origin);
    let https = HttpsConnectorBuilder::new().with_tls_config(tls::client(tls)?).https_or_http();
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
    Ok(match speaks {
        Http::One => builder
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(https.enable_http1().wrap_connector(connector)),
        Http::Two => builder
            .http2_only(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .pool_idle_timeout(HTTP2_IDLE_TIMEOUT)
            .build(https.enable_http2().wrap_connector(connector)),
    })
}

// === impl Connector ===

impl Connector {
    fn new(origin: &Origin) -> Self {
        if let Some(path) = origin.socket() {
            return Self::Unix(path.into());
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        // Without it, a request in two segments waits 40 ms for a delayed acknowledgement.
        connector.set_nodelay(true);
        Self::Tcp(connector)
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self {
            Self::Tcp(connector) => connector.poll_ready(context).map_err(Into::into),
            Self::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self {
            Self::Tcp(connector) => {
                let connecting = connector.call(uri);
                Box::pin(async { Ok(Stream(Box::new(connecting.await?))) })
            }
            Self::Unix(path) => {
                let path = Arc::clone(path);
                Box::pin(async move {
                    Ok(Stream(Box::new(TokioIo::new(UnixStream::connect(path).await?))))
                })
            }
        }
    }
}

// === impl Stream ===

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(context, slices)
    }
}
