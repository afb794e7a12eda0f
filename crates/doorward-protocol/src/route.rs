//! Routes: the methods and paths of requests.

/// The route of a request by its method and path.
///
/// Exhaustive: whoever acts on routes has to act on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// An inference request; its input is inspected.
    Infer,
    /// A read of the list of models, whose body may hold a filter.
    Index,
    /// A read that says whether inference requests are answered.
    Ready,
    /// A health or metadata read, or a browser's question before a request; it carries no input and
    /// passes.
    Read,
    /// Anything else.
    Refused(Refusal),
}

/// What a path may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed<'a> {
    /// The only model name taken; `None` takes any.
    pub model: Option<&'a str>,
    /// The only version that an inference may name; `None`: it names none.
    pub version: Option<&'a str>,
    /// More paths whose reads pass.
    pub reads: &'a [String],
}

/// The model that the path of an inference names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    pub(crate) model: Option<&'a str>,
    pub(crate) version: Option<&'a str>,
}

/// Why a route is refused. The messages go to clients: they say who refuses, and which setting
/// would help.
///
/// Exhaustive: each has an answer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A gRPC method that is not one of the protocol's, or not open.
    #[error(
        "Doorward passes no such call: it knows ModelInfer, ModelStreamInfer, and the reads of the protocol"
    )]
    Call,
    /// A gRPC call whose content type is another one.
    #[error("expected one content-type, application/grpc")]
    MediaType,
    /// The path takes another method.
    #[error("Doorward passes no such method here: expected {allow}")]
    Method {
        /// The methods that the path takes.
        allow: &'static str,
    },
    /// The path names a model that is not the protected one.
    #[error("Doorward protects no such model: see model.name")]
    Model,
    /// The path is not one of the protocol's, or not in its plain spelling.
    #[error(
        "Doorward passes no such path: it knows inferences and reads below /v2 and /v1, and those of images.protocols; listen.reads opens more reads"
    )]
    Path,
    /// An inference request with a query string, which its server may read.
    #[error("Doorward passes no query string to a server of images")]
    Query,
    /// The request names a version that is not the protected one.
    #[error("Doorward protects no such version of the model: name none, or set model.version")]
    Version,
}

pub(super) fn read(method: &str) -> Route {
    match method {
        "GET" | "HEAD" | "OPTIONS" => Route::Read,
        _ => Route::Refused(Refusal::Method { allow: "GET, HEAD, OPTIONS" }),
    }
}

pub(super) fn ready(method: &str) -> Route {
    match method {
        "GET" | "HEAD" => Route::Ready,
        _ => read(method),
    }
}

pub(super) fn infer(method: &str, named: Target<'_>, allowed: Allowed<'_>) -> Route {
    match method {
        "POST" if named.version.is_some() && named.version != allowed.version => {
            Route::Refused(Refusal::Version)
        }
        "POST" => Route::Infer,
        // A browser's question whether it may ask.
        "OPTIONS" => Route::Read,
        _ => Route::Refused(Refusal::Method { allow: "POST, OPTIONS" }),
    }
}

/// The path without a slash at its end, which servers take, or redirect to the path without it.
pub(super) fn without_end(path: &str) -> &str {
    match path.strip_suffix('/') {
        Some(rest) if !rest.is_empty() && !rest.ends_with('/') => rest,
        _ => path,
    }
}

/// A path segment that every server reads in the same way: nothing to decode, nothing to resolve.
pub(super) fn is_plain(segment: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@:+".contains(&byte);
    !segment.is_empty() && segment.bytes().all(plain) && segment.bytes().any(|byte| byte != b'.')
}
