//! Looks over the fields of an inference request before it is decoded.
//!
//! In protobuf an empty tensor takes two bytes, and decoded more than a hundred; a list of ones
//! takes eight times the memory of its text. So the number of fields is bounded, and the lists that
//! no datatype here uses are refused, before anything is allocated: what is decoded afterwards
//! takes at most four times the message.

use bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::error::GrpcError;

/// A message of the protocol, as far as its fields have to be looked at.
#[derive(Clone, Copy)]
enum Kind {
    Contents,
    Input,
    Output,
    Request,
}

/// The treatment of a field.
enum Field {
    Descend(Kind),
    Refuse(&'static str),
    /// A list of sizes.
    Shape,
    Skip,
}

/// Far more than inputs, outputs and parameters are; a list of values is one field. Who sends each
/// value as a field of its own, as no client does, is refused.
const MOST_FIELDS: usize = 1024;

/// Four sizes take a dozen.
const MOST_SHAPE_BYTES: usize = 256;

/// Looks over a whole request.
pub(super) fn check(message: &[u8]) -> Result<(), GrpcError> {
    let mut fields = 0;
    walk(message, Kind::Request, &mut fields)
}

fn walk(mut message: &[u8], kind: Kind, fields: &mut usize) -> Result<(), GrpcError> {
    while message.has_remaining() {
        *fields += 1;
        if *fields > MOST_FIELDS {
            return Err(GrpcError::Fields { limit: MOST_FIELDS });
        }
        let (tag, wire_type) = decode_key(&mut message)?;
        let field = kind.field(tag);
        if let Field::Refuse(field) = field {
            return Err(GrpcError::Unused { field });
        }
        if wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
        let Some((inner, rest)) = message.split_at_checked(length) else {
            return Err(GrpcError::Truncated);
        };
        match field {
            Field::Descend(kind) => walk(inner, kind, fields)?,
            Field::Shape if length > MOST_SHAPE_BYTES => {
                return Err(GrpcError::ShapeBytes { received: length, limit: MOST_SHAPE_BYTES });
            }
            Field::Refuse(_) | Field::Shape | Field::Skip => {}
        }
        message = rest;
    }
    Ok(())
}

// === impl Kind ===

impl Kind {
    /// Numbers are those of `proto/inference.proto`.
    fn field(self, tag: u32) -> Field {
        match (self, tag) {
            (Self::Request, 5) => Field::Descend(Self::Input),
            (Self::Request, 6) => Field::Descend(Self::Output),
            (Self::Input, 3) => Field::Shape,
            (Self::Input, 5) => Field::Descend(Self::Contents),
            (Self::Contents, 1) => Field::Refuse("bool_contents"),
            (Self::Contents, 3) => Field::Refuse("int64_contents"),
            (Self::Contents, 5) => Field::Refuse("uint64_contents"),
            (Self::Contents, 8) => Field::Refuse("bytes_contents"),
            _ => Field::Skip,
        }
    }
}
