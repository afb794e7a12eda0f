//! V1 instances that are encoded images, `{"b64": "..."}` or `{"{input}": {"b64": "..."}}`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::kserve_v1_document::{Document, Form};
use crate::bounds::Bounds;
use crate::checks::check_rows;
use crate::error::DecodeError;
use crate::media;
use crate::request::{Checked, Encoded};
use doorward_images::decode;

/// Decodes the images of a document and writes them again: their bytes, in base64 of one spelling.
pub(super) fn check(document: Document, bounds: Bounds<'_>) -> Result<Checked, DecodeError> {
    let field = document.form.key();
    if !bounds.pictures.in_instances || document.form != Form::Rows {
        return Err(DecodeError::EncodedBytes { field });
    }
    let rows = document.images.len();
    if document.numbers.lengths != [rows] {
        return Err(DecodeError::Mixed { field });
    }
    check_rows(rows, bounds)?;
    let mut left = bounds.pictures.pixels;
    let mut values = Vec::with_capacity(rows * bounds.input.len());
    let mut instances = Vec::with_capacity(rows);
    for (index, text) in document.images.iter().enumerate() {
        let image =
            STANDARD.decode(text).map_err(|reason| DecodeError::Base64 { field, index, reason })?;
        let decoded = decode(&image, bounds.pictures.frame, left)
            .map_err(|reason| DecodeError::FieldImage { field, index, reason })?;
        left -= decoded.pixels;
        values.extend((bounds.pictures.normalise)(&decoded.bytes));
        let bytes = json!({"b64": STANDARD.encode(&image)});
        instances.push(match &document.name {
            None => bytes,
            Some(name) => json!({name: bytes}),
        });
    }
    let mut body = json!({"instances": instances});
    if let Some(name) = &document.signature_name {
        body["signature_name"] = name.as_str().into();
    }
    let encoded = Encoded {
        body: body.to_string().into(),
        json_length: None,
        media_type: Some(media::JSON.into()),
    };
    Ok(Checked { encoded, rows, values, dropped: document.dropped })
}
