//! The id of a request, which the client, the upstream and every line about it have in common.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use rand::TryRngCore;

use super::error::Error;

/// The header that carries it.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Makes ids for requests that bring none.
#[derive(Debug)]
pub(super) struct RequestIds {
    process: u64,
    next: AtomicU64,
}

// === impl RequestIds ===

impl RequestIds {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self { process: rand::rngs::OsRng.try_next_u64()?, next: AtomicU64::new(0) })
    }

    /// The client's id if it is one plain token, else a new one.
    pub(super) fn identify(&self, headers: &HeaderMap) -> HeaderValue {
        let mut given = headers.get_all(REQUEST_ID).iter();
        if let (Some(id), None) = (given.next(), given.next())
            && is_token(id.as_bytes())
        {
            return id.clone();
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_str(&format!("{:016x}-{number:x}", self.process))
            .expect("hexadecimal digits and a dash are a header value")
    }
}

/// Short, and safe to log and to put into a message.
fn is_token(id: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:".contains(byte);
    (1..=128).contains(&id.len()) && id.iter().all(plain)
}
