//! Addresses: on a TCP port, behind a URL, or on a Unix socket.
//!
//! A Unix socket is written `unix:/path`, as nginx and gRPC write it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On a TCP port.
    Tcp(SocketAddr),
    /// On a Unix socket, which is made.
    Unix(PathBuf),
}

/// The address of the model server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On a Unix socket.
    Unix(PathBuf),
    /// `http://host:port` or `https://host:port`.
    Url(String),
}

/// A text that is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct NoAddress {
    /// The form of one.
    pub expected: &'static str,
}

const UNIX: &str = "unix:";

// === impl Address ===

impl Address {
    /// The TCP address, if it is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl FromStr for Address {
    type Err = NoAddress;

    /// Fails unless `text` is an IP address and port, or `unix:` and an absolute path.
    fn from_str(text: &str) -> Result<Self, NoAddress> {
        if let Some(path) = socket(text)? {
            return Ok(Self::Unix(path));
        }
        let expected = "an address and port such as 127.0.0.1:8080, or unix:/path";
        text.parse().map(Self::Tcp).map_err(|_| NoAddress { expected })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

// === impl Origin ===

impl Origin {
    /// True if it is reached by TLS.
    pub fn is_secured(&self) -> bool {
        matches!(self, Self::Url(url) if url.starts_with("https://"))
    }

    /// The base that the paths of requests are appended to.
    pub fn base(&self) -> &str {
        match self {
            // Who it is says the socket; HTTP wants a host all the same.
            Self::Unix(_) => "http://localhost",
            Self::Url(url) => url,
        }
    }

    /// The Unix socket, if it is one.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Url(_) => None,
        }
    }
}

impl FromStr for Origin {
    type Err = NoAddress;

    /// Fails unless `text` is an HTTP URL without a path, or `unix:` and an absolute path.
    fn from_str(text: &str) -> Result<Self, NoAddress> {
        if let Some(path) = socket(text)? {
            return Ok(Self::Unix(path));
        }
        for scheme in ["http://", "https://"] {
            let authority = text.strip_prefix(scheme);
            let authority = authority.map(|rest| rest.strip_suffix('/').unwrap_or(rest));
            if let Some(authority) = authority.filter(|authority| is_authority(authority)) {
                return Ok(Self::Url(format!("{scheme}{authority}")));
            }
        }
        Err(NoAddress {
            expected: "http://host:port or https://host:port without a path, or unix:/path",
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// The path of a Unix socket, if it is one.
fn socket(text: &str) -> Result<Option<PathBuf>, NoAddress> {
    match text.strip_prefix(UNIX).map(Path::new) {
        None => Ok(None),
        // Most systems take 107 bytes.
        Some(path) if path.is_absolute() && path.as_os_str().len() < 108 => {
            Ok(Some(path.to_owned()))
        }
        Some(_) => Err(NoAddress {
            expected: "unix: and an absolute path of at most 107 bytes, such as unix:/run/doorward/http.sock",
        }),
    }
}

fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_fits = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !host.is_empty() && host.chars().all(sane)
        }
    };
    host_fits && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}
