//! The reasons for which there is no proxy.

/// Why the proxy cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is a detector already.
    #[error("there is a detector already")]
    Judging,
    /// The system's random generator failed.
    #[error("no random numbers can be had")]
    Random(#[from] rand::rand_core::OsError),
    /// Nothing to protect.
    #[error("there is no model")]
    Models,
    /// No detection thread.
    #[error("the detection thread cannot be started")]
    Thread(#[from] std::io::Error),
    /// `upstream.tls` cannot be used.
    #[error("upstream.tls cannot be used")]
    Tls(#[from] crate::tls::Error),
    /// `upstream.url` or `upstream.grpc_url` is not a URL.
    #[error("{received:?} is not a URL: expected http://host:port")]
    Url {
        /// The text that was given.
        received: String,
    },
}
