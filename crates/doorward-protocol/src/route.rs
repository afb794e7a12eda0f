//! Routes: the methods and paths of requests.

/// The route of a request by its method and path.
///
/// Exhaustive: whoever acts on routes has to act on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// An inference request; its input is inspected.
    Infer,
    /// A health or metadata read; it carries no input and passes.
    Read,
    /// Anything else.
    Refused(Refusal),
}

/// Why a route is refused.
///
/// Exhaustive: each has an answer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A gRPC method that is not one of the protocol's, or not open.
    #[error("no such call here")]
    Call,
    /// A gRPC call whose content type is another one.
    #[error("expected one content-type, application/grpc")]
    MediaType,
    /// The path takes another method.
    #[error("method not allowed here: expected {allow}")]
    Method {
        /// The method that the path takes.
        allow: &'static str,
    },
    /// The path names a model that is not the protected one.
    #[error("no such model here")]
    Model,
    /// The path is not one of the protocol's, or not in its plain spelling.
    #[error("no such path here")]
    Path,
    /// An inference request with a query string.
    #[error("an inference request takes no query string")]
    Query,
}

pub(super) fn read(method: &str) -> Route {
    match method {
        "GET" => Route::Read,
        _ => Route::Refused(Refusal::Method { allow: "GET" }),
    }
}

pub(super) fn infer(method: &str, query: Option<&str>) -> Route {
    match (method, query) {
        ("POST", None) => Route::Infer,
        ("POST", Some(_)) => Route::Refused(Refusal::Query),
        _ => Route::Refused(Refusal::Method { allow: "POST" }),
    }
}

/// A path segment that every server reads in the same way: nothing to decode, nothing to resolve.
pub(super) fn is_plain(segment: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@:+".contains(&byte);
    !segment.is_empty() && segment.bytes().all(plain) && segment.bytes().any(|byte| byte != b'.')
}
