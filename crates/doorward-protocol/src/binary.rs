//! The binary tensor extension of V2 REST: bytes behind the JSON instead of numbers in it.
//!
//! `Inference-Header-Content-Length` says how many bytes of the body are JSON; the tensor follows, its
//! length in `parameters.binary_data_size`. A length of 0 means that the whole body is one tensor, of
//! the model's only input and in the model's own datatype.

use bytes::Bytes;
use hyper::HeaderMap;

use super::datatype::Datatype;
use super::oip_http::{check_range, check_rows};
use super::{Bounds, Checked, DecodeError, Encoded, media};

/// The header that says how many bytes of the body are JSON.
pub const JSON_LENGTH: &str = "inference-header-content-length";

/// The parameter that says how many bytes the tensor has.
pub(super) const SIZE: &str = "binary_data_size";

/// Why bytes behind the JSON are not a tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BinaryError {
    /// The JSON has data, and says that bytes follow.
    #[error("inputs[0] has both data and parameters.binary_data_size, expected one of them")]
    Both,
    /// The header is not the length of a JSON part.
    #[error(
        "inference-header-content-length is {received:?}, expected one plain decimal number of at most {body}, the bytes of the body"
    )]
    Length {
        /// What was sent; several headers are joined by a comma.
        received: String,
        /// Bytes of the body.
        body: usize,
    },
    /// The JSON says where its tensor is not.
    #[error("parameter binary_data_size belongs to inputs[0].parameters, found it in {place}")]
    Place {
        /// Where it was.
        place: &'static str,
    },
    /// A raw tensor that is not whole rows.
    #[error("the body holds {received} bytes, expected rows of {row} bytes (FP32)")]
    Raw {
        /// Bytes of the body.
        received: usize,
        /// Bytes of one row.
        row: usize,
    },
    /// A raw tensor for a model whose input is not FP32.
    #[error(
        "inference-header-content-length is 0, but only a FP32 model takes a tensor without a datatype: send the JSON part as well"
    )]
    RawDatatype,
    /// `binary_data_size` is not the number of bytes that shape and datatype give.
    #[error(
        "inputs[0].parameters.binary_data_size is {received}, expected {expected} for its shape and datatype"
    )]
    Size {
        /// The JSON value.
        received: String,
        /// Bytes of the tensor.
        expected: usize,
    },
    /// More or fewer bytes behind the JSON than the tensor has.
    #[error("{received} bytes follow the JSON part, expected the {expected} of inputs[0]")]
    Tail {
        /// Bytes behind the JSON.
        received: usize,
        /// Bytes of the tensor.
        expected: usize,
    },
    /// There is the header, but no binary tensor.
    #[error(
        "inference-header-content-length is {length}, but inputs[0].parameters.binary_data_size is missing"
    )]
    Unused {
        /// The header's value.
        length: usize,
    },
    /// There is a binary tensor, but not the header.
    #[error(
        "inputs[0].parameters.binary_data_size is given, but the header inference-header-content-length is missing"
    )]
    Unannounced,
}

/// How many bytes of a body of `body` bytes are JSON; `None` without the header.
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
    if !bounds.domain.fp32 {
        return Err(BinaryError::RawDatatype.into());
    }
    let row = bounds.domain.len() * Datatype::Fp32.size();
    if row == 0 || !body.len().is_multiple_of(row) {
        return Err(BinaryError::Raw { received: body.len(), row }.into());
    }
    let rows = body.len() / row;
    check_rows(rows, bounds)?;
    let values = Datatype::Fp32.read(body);
    check_range(&values, bounds)?;
    // Whatever the client calls it: a server that goes by the content type must not read these bytes as JSON, for
    // there are bytes that are both.
    let media_type = Some(media::BYTES.into());
    let values = bounds.domain.rows_of_sent(values);
    let encoded = Encoded { body: body.clone(), json_length: Some(0), media_type };
    Ok(Checked { encoded, rows, values })
}
