//! The binary tensor extension of V2 REST: bytes behind the JSON instead of numbers in it.
//!
//! `Inference-Header-Content-Length` says how many bytes of the body are JSON; the tensor follows,
//! its length in `parameters.binary_data_size`. A length of 0 means that the whole body is one
//! tensor, of the model's only input and in the model's own datatype.

use bytes::Bytes;
use hyper::HeaderMap;

use super::datatype::Datatype;
use crate::bounds::Bounds;
use crate::checks::{check_range, check_rows};
use crate::error::{BinaryError, DecodeError};
use crate::media;
use crate::request::{Checked, Encoded};

/// The header that says how many bytes of the body are JSON.
pub const JSON_LENGTH: &str = "inference-header-content-length";

/// The parameter that says how many bytes the tensor has.
pub(super) const SIZE: &str = "binary_data_size";

/// The number of bytes of a body of `body` bytes are JSON; `None` without the header.
pub(super) fn json_length(headers: &HeaderMap, body: usize) -> Result<Option<usize>, DecodeError> {
    let values: Vec<_> =
        headers.get_all(JSON_LENGTH).iter().map(|value| value.as_bytes()).collect();
    let length = match values.as_slice() {
        [] => return Ok(None),
        [value] => plain_number(value).filter(|&length| length <= body),
        _ => None,
    };
    if length.is_none() {
        let received = String::from_utf8_lossy(&values.join(&b", "[..])).into_owned();
        return Err(BinaryError::Length { received, body }.into());
    }
    Ok(length)
}

/// Digits only, and no needless zero: everything else is read in more than one way.
fn plain_number(text: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(text).ok()?;
    let number: usize = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// A body that is one tensor and nothing else.
pub(super) fn raw(body: &Bytes, bounds: Bounds<'_>) -> Result<Checked, DecodeError> {
    if !bounds.input.fp32 {
        return Err(BinaryError::RawDatatype.into());
    }
    let row = bounds.input.len() * Datatype::Fp32.size();
    if row == 0 || !body.len().is_multiple_of(row) {
        return Err(BinaryError::Raw { received: body.len(), row }.into());
    }
    let rows = body.len() / row;
    check_rows(rows, bounds)?;
    let values = Datatype::Fp32.read(body);
    check_range(&values, bounds)?;
    // Whatever the client calls it: a server that goes by the content type must not read these
    // bytes as JSON, for there are bytes that are both.
    let media_type = Some(media::BYTES.into());
    let values = bounds.input.rows_of_sent(values);
    let encoded = Encoded { body: body.clone(), json_length: Some(0), media_type };
    Ok(Checked { encoded, rows, values, dropped: Vec::new() })
}
