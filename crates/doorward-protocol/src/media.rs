//! Content types of requests: which are taken, and what the upstream is told.
//!
//! The body is parsed strictly and sent on in the firewall's own encoding with its own content
//! type, so a client's is no more than a hint. The ones that clients write by themselves are taken,
//! whatever the body is; another coding of characters is not, for then the text is another one.

use crate::error::DecodeError;
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;

/// The content type of JSON.
pub(super) const JSON: &str = "application/json";

/// The content type of bytes, alone or behind JSON.
pub(super) const BYTES: &str = "application/octet-stream";

/// The content types that clients give JSON: by the specification, and by themselves, where nobody
/// chose one (curl and wget, fetch of a string, aiohttp with bytes).
const TAKEN: [&str; 5] =
    [JSON, "text/json", "text/plain", "application/x-www-form-urlencoded", BYTES];

/// Codings of characters whose ASCII is ASCII. JSON's own syntax and its numbers are nothing else.
const ASCII: [&str; 7] =
    ["utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin1", "windows-1252"];

/// The one content type of a request, with its parameters; the header may be repeated identically.
pub(super) fn declared(
    headers: &HeaderMap,
    expected: &'static str,
) -> Result<Option<String>, DecodeError> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    // tritonclient sends none.
    let Some(first) = types.next() else {
        return Ok(None);
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    if let Some(other) = types.find(|value| *value != first) {
        let received = format!("{}, {}", text(first.as_bytes()), text(other.as_bytes()));
        return Err(DecodeError::MediaType { received, expected });
    }
    Ok(Some(text(first.as_bytes())))
}

/// Takes no content type, or one that clients give JSON.
pub(super) fn check_json(headers: &HeaderMap) -> Result<(), DecodeError> {
    const EXPECTED: &str = "application/json in UTF-8 (text/plain, \
                            application/x-www-form-urlencoded and application/octet-stream are read \
                            as such)";
    let Some(received) = declared(headers, EXPECTED)? else {
        return Ok(());
    };
    // A proxy may have joined two headers into one.
    let mut types = received.split(',').map(|media_type| media_type.trim().to_ascii_lowercase());
    let first = types.next().unwrap_or_default();
    if is_json(&first) && types.all(|media_type| media_type == first) {
        return Ok(());
    }
    Err(DecodeError::MediaType { received, expected: EXPECTED })
}

/// The content type of bytes behind JSON, in the words of the client, or its silence: servers that
/// do not know the extension answer by it. Taken by [`check_json`] before.
pub(super) fn of_binary(headers: &HeaderMap) -> Option<&'static str> {
    let declared = headers.get(CONTENT_TYPE)?;
    let json = declared.to_str().is_ok_and(|declared| {
        let essence = essence(declared).to_ascii_lowercase();
        essence == JSON || essence.ends_with("+json")
    });
    Some(if json { JSON } else { BYTES })
}

/// The type without its parameters.
pub(super) fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// `media_type` is in lower case.
fn is_json(media_type: &str) -> bool {
    let essence = essence(media_type);
    let taken = TAKEN.contains(&essence)
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    let mut parameters = media_type.split(';').skip(1).map(str::trim);
    taken
        && parameters.all(|parameter| match parameter.strip_prefix("charset=") {
            Some(charset) => ASCII.contains(&charset.trim_matches('"')),
            None => true,
        })
}
