//! KServe V1, which is TensorFlow Serving's REST protocol.
//!
//! `POST /v1/models/{name}[/versions/{version}]:predict` with the rows in `instances`, each an
//! array or `{"{input}": array}`, or all of them in `inputs`, an array or `{"{input}": array}`. V1
//! has neither shape nor datatype, so arrays are nested exactly as the model's rows are, and
//! numbers are FP32. In place of a row there may be an encoded image (`kserve_v1_images`).

use bytes::Bytes;
use hyper::HeaderMap;
use serde::de::DeserializeSeed;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::datatype::Datatype;
use super::json::EncodedNumbers;
use super::kserve_v1_document::{Document, DocumentSeed, Form};
use super::spelling;
use crate::binary;
use crate::bounds::Bounds;
use crate::checks::{Outside, check_rows, outside};
use crate::error::DecodeError;
use crate::kserve_v1_images;
use crate::media;
use crate::oip_http::agree;
use crate::request::{Checked, Encoded};
use crate::route::{Allowed, Refusal, Route, Target, infer, is_plain, read, ready};

/// The route of a request, whose path has no slash at its end.
pub(crate) fn route(method: &str, path: &str, allowed: Allowed<'_>) -> Route {
    let Some((named, action)) = target(path) else {
        return match path {
            "/v1/models" => read(method),
            _ => Route::Refused(Refusal::Path),
        };
    };
    if allowed.model.is_some() && allowed.model != named.model {
        return Route::Refused(Refusal::Model);
    }
    match action {
        Action::Metadata => read(method),
        Action::Predict => infer(method, named, allowed),
        Action::Status => ready(method),
    }
}

/// The model that a path names.
pub(crate) fn named(path: &str) -> Target<'_> {
    target(path).map(|(named, _)| named).unwrap_or_default()
}

/// What a path asks a model for.
#[derive(Clone, Copy)]
enum Action {
    Metadata,
    Predict,
    Status,
}

/// The model that a path names, and what it asks it for.
fn target(path: &str) -> Option<(Target<'_>, Action)> {
    let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    if !segments.iter().all(|segment| is_plain(segment)) {
        return None;
    }
    let (model, version, action) = match *segments.as_slice() {
        ["v1", "models", last] => {
            let (name, action) = name_and_action(last)?;
            (name, None, action)
        }
        ["v1", "models", name, "metadata"] => (name, None, Action::Metadata),
        ["v1", "models", name, "versions", last] => {
            let (version, action) = name_and_action(last)?;
            (name, Some(version), action)
        }
        ["v1", "models", name, "versions", version, "metadata"] => {
            (name, Some(version), Action::Metadata)
        }
        _ => return None,
    };
    (!model.contains(':')).then_some((Target { model: Some(model), version }, action))
}

/// `name` or `name:predict`.
fn name_and_action(segment: &str) -> Option<(&str, Action)> {
    let (name, action) = match segment.split_once(':') {
        None => (segment, Action::Status),
        Some((name, "predict")) => (name, Action::Predict),
        Some(_) => return None,
    };
    (!name.is_empty()).then_some((name, action))
}

/// Reads a prediction request and writes it again.
pub(crate) fn check(
    named: Target<'_>,
    headers: &HeaderMap,
    body: &Bytes,
    bounds: Bounds<'_>,
) -> Result<Checked, DecodeError> {
    if headers.contains_key(binary::JSON_LENGTH) {
        return Err(DecodeError::Header { name: binary::JSON_LENGTH });
    }
    media::check_json(headers)?;
    let limit = bounds.input.len().saturating_mul(bounds.rows);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let document = DocumentSeed { limit }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    agree("model_name", document.model_name.as_deref(), named.model)?;
    agree("model_version", document.model_version.as_deref(), named.version)?;
    if let Some(received) = &document.signature_name
        && received != bounds.signature
    {
        let (received, expected) = (received.clone(), bounds.signature.to_owned());
        return Err(DecodeError::Signature { received, expected });
    }
    document.check(bounds)
}

/// The rows in the form that they came in.
struct Predict<'a> {
    signature_name: Option<&'a str>,
    form: Form,
    name: Option<&'a str>,
    shape: [usize; 4],
    numbers: EncodedNumbers<'a>,
}

/// Arrays nested by a shape.
struct Nested<'a> {
    numbers: EncodedNumbers<'a>,
    shape: &'a [usize],
}

/// `{"name": array}`, or the array alone.
struct Named<'a> {
    name: Option<&'a str>,
    array: Nested<'a>,
}

/// Every row by itself.
struct Instances<'a>(&'a Predict<'a>);

// === impl Document ===

impl Document {
    fn check(self, bounds: Bounds<'_>) -> Result<Checked, DecodeError> {
        let field = self.form.key();
        if !self.images.is_empty() {
            return kserve_v1_images::check(self, bounds);
        }
        let row = bounds.input.sent_shape();
        let shape = match *self.numbers.lengths.as_slice() {
            [rows, a, b, c] if [a, b, c] == row => [rows, a, b, c],
            _ => {
                let received = self.numbers.lengths;
                return Err(DecodeError::FieldShape { field, received, row });
            }
        };
        check_rows(shape[0], bounds)?;
        let mut values = Vec::with_capacity(self.numbers.values.len());
        for (index, &number) in self.numbers.values.iter().enumerate() {
            let narrowed = Datatype::Fp32.narrow(number);
            values.push(narrowed.ok_or(DecodeError::FieldValue { field, index, value: number })?);
        }
        if let Some(Outside { index, value, lower, upper }) = outside(&values, bounds) {
            let slack = bounds.slack;
            return Err(DecodeError::FieldRange { field, index, value, lower, upper, slack });
        }
        let predict = Predict {
            signature_name: self.signature_name.as_deref(),
            form: self.form,
            name: self.name.as_deref(),
            shape,
            // A model of integers takes no `1.0`.
            numbers: EncodedNumbers { values: &values, integers: self.numbers.integers },
        };
        let body = spelling::to_vec(&predict, values.len());
        let media_type = Some(media::JSON.into());
        let encoded = Encoded { body: body.into(), json_length: None, media_type };
        let values = bounds.input.rows_of_sent(values);
        Ok(Checked { encoded, rows: shape[0], values, dropped: self.dropped })
    }
}

// === impl Predict ===

impl Serialize for Predict<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(name) = self.signature_name {
            map.serialize_entry("signature_name", name)?;
        }
        match self.form {
            Form::Columns => {
                let array = Nested { numbers: self.numbers, shape: &self.shape };
                map.serialize_entry("inputs", &Named { name: self.name, array })?;
            }
            Form::Rows => map.serialize_entry("instances", &Instances(self))?,
        }
        map.end()
    }
}

// === impl Instances ===

impl Serialize for Instances<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Predict { shape, numbers: EncodedNumbers { values, integers }, name, .. } = *self.0;
        let row = &self.0.shape[1..];
        serializer.collect_seq(values.chunks((values.len() / shape[0]).max(1)).map(|values| {
            let numbers = EncodedNumbers { values, integers };
            Named { name, array: Nested { numbers, shape: row } }
        }))
    }
}

// === impl Named ===

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.name {
            None => self.array.serialize(serializer),
            Some(name) => serializer.collect_map([(name, &self.array)]),
        }
    }
}

// === impl Nested ===

impl Serialize for Nested<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let EncodedNumbers { values, integers } = self.numbers;
        match *self.shape {
            [] | [_] => self.numbers.serialize(serializer),
            [count, ref shape @ ..] => serializer.collect_seq(
                values
                    .chunks((values.len() / count).max(1))
                    .map(|values| Nested { numbers: EncodedNumbers { values, integers }, shape }),
            ),
        }
    }
}
