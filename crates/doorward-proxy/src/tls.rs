//! From PEM files to TLS: version 1.2 or later, with the safe suites of the library.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

use crate::settings::{Identity, Tls, UpstreamTls};

/// Why files give no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is not what it should be.
    #[error("{} holds no usable {expected}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The content that it should have.
        expected: &'static str,
        /// The fault in it.
        reason: String,
    },
    /// Certificate and key do not go together, or are not of a kind that is supported.
    #[error(
        "{} and {} cannot be used together", identity.certificate.display(), identity.key.display()
    )]
    Identity {
        /// Their files.
        identity: Box<Identity>,
        /// Why not.
        source: rustls::Error,
    },
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up")]
    Library(#[from] rustls::Error),
    /// No client can be checked with the authority.
    #[error("{} cannot be used to check clients", path.display())]
    Verifier {
        /// The authority's file.
        path: PathBuf,
        /// Why not.
        source: VerifierBuilderError,
    },
}

/// For a listener. `protocols` are offered to clients that negotiate one, for instance `http/1.1`.
pub fn server(settings: &Tls, protocols: &[&str]) -> Result<ServerConfig, Error> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|source| Error::Verifier { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (certificates, key) = read(&settings.identity)?;
    let mut server = builder
        .with_single_cert(certificates, key)
        .map_err(|source| mismatch(&settings.identity, source))?;
    server.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(server)
}

/// For the upstream. Without settings no server is trusted; that is for a URL without TLS.
pub fn client(settings: Option<&UpstreamTls>) -> Result<ClientConfig, Error> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let Some(settings) = settings else {
        return Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    };
    let builder = builder.with_root_certificates(roots(&settings.ca)?);
    let Some(identity) = &settings.identity else { return Ok(builder.with_no_client_auth()) };
    let (certificates, key) = read(identity)?;
    builder.with_client_auth_cert(certificates, key).map_err(|source| mismatch(identity, source))
}

/// For storage anywhere: trusts the public authorities, or those in a file.
pub fn public_client(authorities: Option<&Path>) -> Result<ClientConfig, Error> {
    let roots = match authorities {
        Some(path) => roots(path)?,
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
    };
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn mismatch(identity: &Identity, source: rustls::Error) -> Error {
    Error::Identity { identity: Box::new(identity.clone()), source }
}

type Chain = Vec<CertificateDer<'static>>;

fn read(identity: &Identity) -> Result<(Chain, PrivateKeyDer<'static>), Error> {
    let key = PrivateKeyDer::from_pem_file(&identity.key)
        .map_err(|error| unusable(&identity.key, "private key", &error))?;
    Ok((certificates(&identity.certificate)?, key))
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| unusable(path, "authority", &error))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Chain, Error> {
    let fail = |reason: &dyn std::fmt::Display| unusable(path, "certificate", reason);
    let read: Result<Chain, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match read {
        Ok(chain) if chain.is_empty() => Err(fail(&"it holds no PEM certificate")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(fail(&error)),
    }
}

fn unusable(path: &Path, expected: &'static str, reason: &dyn std::fmt::Display) -> Error {
    Error::File { path: path.to_owned(), expected, reason: reason.to_string() }
}
