//! Content types: which are taken, and which the upstream is told where the client names none.

use crate::error::DecodeError;
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;

/// The content types of JSON.
pub(super) const JSON: &str = "application/json";

/// The content type of bytes behind JSON.
pub(super) const BYTES: &str = "application/octet-stream";

/// At most one content type, and one that `expected` takes.
pub(super) fn check(headers: &HeaderMap, expected: fn(&str) -> bool) -> Result<(), DecodeError> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    // tritonclient sends none.
    let Some(first) = types.next() else {
        return Ok(());
    };
    let received = String::from_utf8_lossy(first.as_bytes()).into_owned();
    if types.next().is_some() || !expected(&received) {
        return Err(DecodeError::MediaType { received, expected: JSON });
    }
    Ok(())
}

/// `usual` where the client names no content type; some servers want one.
pub(super) fn missing(headers: &HeaderMap, usual: &'static str) -> Option<&'static str> {
    (!headers.contains_key(CONTENT_TYPE)).then_some(usual)
}

/// The content types that clients give JSON with bytes behind it.
pub(super) fn is_binary(media_type: &str) -> bool {
    media_type.eq_ignore_ascii_case(BYTES) || is_json(media_type)
}

/// `application/json` or `application/...+json`, in UTF-8.
pub(super) fn is_json(media_type: &str) -> bool {
    let lower = media_type.to_ascii_lowercase();
    let mut parts = lower.split(';').map(str::trim);
    let json = parts.next().is_some_and(|essence| {
        essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"))
    });
    let utf8 = |parameter: &str| match parameter.strip_prefix("charset=") {
        Some(charset) => matches!(charset.trim_matches('"'), "utf-8" | "utf8" | "us-ascii"),
        None => true,
    };
    json && parts.all(utf8)
}
