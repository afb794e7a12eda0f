//! Cross-origin answers: an error of the firewall's own can be read by a page of a browser where the
//! model server lets that page read its answers.
//!
//! Only the server knows which origins those are, so it is asked as a browser would ask it.

use bytes::Bytes;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, Response};

use super::gate::Serve;
use super::upstream::Call;

/// The question whether a page may read the answers to its requests.
#[derive(Debug)]
pub(super) struct Preflight {
    origin: HeaderValue,
    method: HeaderValue,
    path: String,
}

/// The headers of the server's answer that say so.
const SAYS: [HeaderName; 3] = [ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, VARY];

// === impl Preflight ===

impl Preflight {
    /// The question about a request; `None` where it is no page's.
    pub(super) fn of(parts: &Parts) -> Option<Self> {
        let mut origins = parts.headers.get_all(ORIGIN).iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else { return None };
        let method = HeaderValue::from_str(parts.method.as_str()).ok()?;
        Some(Self { origin: origin.clone(), method, path: parts.uri.path().to_owned() })
    }

    /// Asks the server, and makes the answer say what it says. Without its answer nothing is said.
    pub(super) async fn settle<B>(self, to: &dyn Serve, answer: &mut Response<B>) {
        let headers = HeaderMap::from_iter([
            (ORIGIN, self.origin),
            (ACCESS_CONTROL_REQUEST_METHOD, self.method),
        ]);
        let call = Call { method: Method::OPTIONS, path: self.path, headers, body: Bytes::new() };
        let Ok(said) = to.send(call).await else { return };
        if !said.status().is_success() {
            return;
        }
        for name in SAYS {
            if let Some(value) = said.headers().get(&name) {
                answer.headers_mut().insert(name, value.clone());
            }
        }
    }
}
