//! The beginning of a listener's connections: as they are, or with TLS by the certificates in
//! effect.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::settings::Tls;
use crate::tls;

/// The security of one listener. A reload changes it for new connections.
#[derive(Debug)]
pub struct Security {
    protocols: &'static [&'static str],
    /// `None`: plain.
    server: ArcSwapOption<ServerConfig>,
}

/// A connection, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

// === impl Security ===

impl Security {
    /// `protocols` are those that the listener speaks, by their ALPN names.
    pub fn new(
        settings: Option<&Tls>,
        protocols: &'static [&'static str],
    ) -> Result<Self, tls::Error> {
        let security = Self { protocols, server: ArcSwapOption::empty() };
        security.replace(security.read(settings)?);
        Ok(security)
    }

    /// Reads the files that the settings name.
    pub fn read(&self, settings: Option<&Tls>) -> Result<Option<Arc<ServerConfig>>, tls::Error> {
        settings.map(|settings| tls::server(settings, self.protocols).map(Arc::new)).transpose()
    }

    /// From the next connection on.
    pub fn replace(&self, server: Option<Arc<ServerConfig>>) {
        self.server.store(server);
    }

    /// Shakes hands, where it has to. An error is the client's.
    pub(super) async fn begin(&self, stream: Box<dyn Stream>) -> io::Result<Box<dyn Stream>> {
        match self.server.load_full() {
            None => Ok(stream),
            Some(server) => Ok(Box::new(TlsAcceptor::from(server).accept(stream).await?)),
        }
    }
}
