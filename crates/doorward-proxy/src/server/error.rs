//! The reasons for which the firewall cannot run.

use std::time::Duration;

use crate::address::Address;
use crate::telemetry::audit;
use crate::{proxy, telemetry, tls};

/// Why the firewall cannot run, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Other models than at the start.
    #[error("the settings are of the models {received:?}, expected {expected:?} as at the start")]
    Models {
        /// Names of those that were read.
        received: Vec<String>,
        /// Names of those that are served.
        expected: Vec<String>,
    },
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
        address: Address,
        /// Why not.
        source: std::io::Error,
    },
    /// No detector can be made of the artifact for this policy.
    #[error(transparent)]
    Detector(#[from] doorward_detection::Error),
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
