//! The Open Inference Protocol, version 2, over REST.
//!
//! `POST /v2/models/{name}[/versions/{version}]/infer` with `{id?, parameters?, inputs: [{name,
//! shape, datatype, parameters?, data}], outputs?}`. One input of shape `[n, C, H, W]` is taken,
//! `data` flat or nested exactly as the shape says, or bytes behind the JSON as `binary` describes.
//!
//! The decoder is the gate that an attacker works on. It refuses duplicate keys, bytes that belong to
//! nothing, arrays where the protocol has objects, shared-memory tensors, and values that no image
//! can give. Keys that the protocol does not have go no further.

use bytes::Bytes;
use hyper::HeaderMap;
use serde::de::{DeserializeSeed, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::binary;
use super::datatype::Datatype;
use super::document::{Document, DocumentSeed};
use super::json::{EncodedNumbers, Numbers};
use super::media::{self, JSON};
use super::spelling;
use crate::bounds::Bounds;
use crate::checks::{check_range, check_shape};
use crate::error::BinaryError;
use crate::error::DecodeError;
use crate::request::{Checked, Encoded};
use crate::route::{Allowed, Refusal, Route, Target, infer, is_plain, read, ready};

/// A decoded inference request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InferRequest {
    id: Option<String>,
    parameters: Option<Map<String, Value>>,
    name: String,
    shape: Vec<usize>,
    datatype: Datatype,
    input_parameters: Option<Map<String, Value>>,
    values: Vec<f32>,
    /// The tensor as it was sent behind the JSON.
    binary: Option<Bytes>,
    outputs: Option<Vec<Value>>,
    /// Paths of the keys that were dropped.
    dropped: Vec<String>,
}

/// The route of a request, whose path has no slash at its end.
pub(crate) fn route(method: &str, path: &str, allowed: Allowed<'_>) -> Route {
    let refused = Route::Refused(Refusal::Path);
    let Some(segments) = segments(path) else {
        return refused;
    };
    match *segments.as_slice() {
        // KServe's liveness, and its metrics, which it has on the same port.
        [""] | ["metrics"] => match read(method) {
            Route::Read => Route::Read,
            _ => refused,
        },
        ["v2"] | ["v2", "health", "live"] | ["v2", "models"] => read(method),
        ["v2", "health", "ready"] => ready(method),
        // Triton's statistics of all models. Not those of a model of this name: it has none.
        ["v2", "models", "stats"] if allowed.model != Some("stats") => read(method),
        ["v2", "repository", "index"] => match method {
            "POST" => Route::Index,
            _ => Route::Refused(Refusal::Method { allow: "POST" }),
        },
        ["v2", "models", name, ref rest @ ..] => {
            let (version, action) = version_and_action(rest);
            let takes = allowed.model.is_none_or(|model| model == name);
            match *action {
                [] | ["config" | "infer" | "ready" | "stats"] if !takes => {
                    Route::Refused(Refusal::Model)
                }
                [] | ["config" | "stats"] => read(method),
                ["ready"] => ready(method),
                ["infer"] => infer(method, Target { model: Some(name), version }, allowed),
                _ => refused,
            }
        }
        _ => refused,
    }
}

/// The model that a path names.
pub(crate) fn named(path: &str) -> Target<'_> {
    match segments(path).as_deref() {
        Some(&["v2", "models", name, ref rest @ ..]) => {
            Target { model: Some(name), version: version_and_action(rest).0 }
        }
        _ => Target::default(),
    }
}

/// The plain segments of a path; one that is empty for the root.
fn segments(path: &str) -> Option<Vec<&str>> {
    let rest = path.strip_prefix('/')?;
    let segments: Vec<&str> = rest.split('/').collect();
    (rest.is_empty() || segments.iter().all(|segment| is_plain(segment))).then_some(segments)
}

/// The part of a path behind the model's name.
fn version_and_action<'a, 'b>(rest: &'b [&'a str]) -> (Option<&'a str>, &'b [&'a str]) {
    match rest {
        ["versions", version, action @ ..] => (Some(version), action),
        action => (None, action),
    }
}

/// Reads an inference request and writes it again.
pub(crate) fn check(
    named: Target<'_>,
    headers: &HeaderMap,
    body: &Bytes,
    bounds: Bounds<'_>,
) -> Result<Checked, DecodeError> {
    match binary::json_length(headers, body.len())? {
        Some(0) => {
            media::check_json(headers)?;
            binary::raw(body, bounds)
        }
        _ => Ok(decode(named, headers, body, bounds)?.into_checked(headers, bounds)),
    }
}

/// Reads the body of an inference request that has a JSON part.
pub(crate) fn decode(
    named: Target<'_>,
    headers: &HeaderMap,
    body: &Bytes,
    bounds: Bounds<'_>,
) -> Result<InferRequest, DecodeError> {
    let length = binary::json_length(headers, body.len())?;
    media::check_json(headers)?;
    let limit = bounds.input.len().saturating_mul(bounds.rows);
    let text = &body[..length.unwrap_or(body.len())];
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let document = DocumentSeed { limit }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    agree("model_name", document.model_name.as_deref(), named.model)?;
    agree("model_version", document.model_version.as_deref(), named.version)?;
    document.check(length.map(|length| (length, body.slice(length..))), bounds)
}

/// Refuses a body that names another model, or version, than its path. Where the path names none the
/// server goes by its own choice, and never sees what the body says.
pub(super) fn agree(
    key: &'static str,
    received: Option<&RawValue>,
    expected: Option<&str>,
) -> Result<(), DecodeError> {
    let (Some(received), Some(expected)) = (received.map(RawValue::get), expected) else {
        return Ok(());
    };
    // A version may be a number.
    let text: String = serde_json::from_str(received).unwrap_or_else(|_| received.to_owned());
    if text == expected {
        return Ok(());
    }
    Err(DecodeError::Named { key, received: received.to_owned(), expected: expected.to_owned() })
}

/// Reads the filter of a list of models and writes it again; there may be none.
pub(crate) fn check_index(body: &Bytes) -> Result<Encoded, DecodeError> {
    #[derive(Default, Deserialize, Serialize)]
    struct Filter {
        #[serde(skip_serializing_if = "Option::is_none")]
        ready: Option<bool>,
    }
    let body = match body.is_empty() {
        true => body.clone(),
        false => spelling::to_vec(&serde_json::from_slice::<Filter>(body)?, 0).into(),
    };
    let media_type = (!body.is_empty()).then_some(JSON.into());
    Ok(Encoded { body, json_length: None, media_type })
}

/// The JSON part that is sent to the upstream.
#[derive(Serialize)]
struct EncodedRequest<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: &'a Option<Map<String, Value>>,
    inputs: [EncodedInput<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: &'a Option<Vec<Value>>,
}

#[derive(Serialize)]
struct EncodedInput<'a> {
    name: &'a str,
    shape: &'a [usize],
    datatype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: &'a Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<EncodedNumbers<'a>>,
}

// === impl InferRequest ===

impl InferRequest {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.shape[0]
    }

    /// The rows, one after another.
    #[cfg(test)]
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The JSON part in the firewall's own spelling. Each number has the fewest digits that give
    /// the same `f32` again.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let data = self.binary.is_none().then_some(EncodedNumbers {
            values: &self.values,
            integers: self.datatype.is_integer(),
        });
        let request = EncodedRequest {
            id: &self.id,
            parameters: &self.parameters,
            inputs: [EncodedInput {
                name: &self.name,
                shape: &self.shape,
                datatype: self.datatype.name(),
                parameters: &self.input_parameters,
                data,
            }],
            outputs: &self.outputs,
        };
        spelling::to_vec(&request, data.map_or(0, |data| data.values.len()))
    }

    fn into_checked(self, headers: &HeaderMap, bounds: Bounds<'_>) -> Checked {
        let mut body = self.encode();
        let json_length = self.binary.as_ref().map(|tensor| {
            let length = body.len();
            body.extend_from_slice(tensor);
            length
        });
        let media_type = match json_length {
            Some(_) => media::of_binary(headers),
            None => Some(JSON),
        };
        let media_type = media_type.map(Into::into);
        let encoded = Encoded { body: body.into(), json_length, media_type };
        let rows = self.rows();
        let values = bounds.input.rows_of_sent(self.values);
        Checked { encoded, rows, values, dropped: self.dropped }
    }
}

// === impl Document ===

impl Document {
    /// `tail`: how many bytes the JSON part has, and what follows it, where the header says so.
    fn check(
        self,
        tail: Option<(usize, Bytes)>,
        bounds: Bounds<'_>,
    ) -> Result<InferRequest, DecodeError> {
        let mut input = self.input.ok_or_else(|| serde_json::Error::missing_field("inputs"))?;
        check_parameters(self.parameters.as_ref(), Some("parameters"))?;
        check_parameters(input.parameters.as_ref(), None)?;
        for output in self.outputs.iter().flatten() {
            let parameters = output.get("parameters").and_then(Value::as_object);
            check_parameters(parameters, Some("outputs"))?;
        }
        let Some(datatype) = Datatype::parse(&input.datatype) else {
            return Err(DecodeError::Datatype { received: input.datatype });
        };
        check_shape(&input.shape, bounds)?;
        // As if it were not there.
        if let (Some(parameters), Some(_)) = (&mut input.parameters, &input.numbers) {
            parameters.retain(|key, value| key != binary::SIZE || !value.is_null());
        }
        let size = input.parameters.as_ref().and_then(|parameters| parameters.get(binary::SIZE));
        let (values, binary) = match (input.numbers, size, tail) {
            (Some(_), Some(_), _) => return Err(BinaryError::Both.into()),
            (_, None, Some((length, _))) => return Err(BinaryError::Unused { length }.into()),
            (None, Some(_), None) => return Err(BinaryError::Unannounced.into()),
            (None, None, None) => return Err(serde_json::Error::missing_field("data").into()),
            (Some(numbers), None, None) => {
                check_count(&input.shape, &numbers)?;
                (narrow(&numbers.values, datatype)?, None)
            }
            (None, Some(size), Some((_, tensor))) => {
                let expected = input.shape.iter().product::<usize>() * datatype.size();
                if size.as_u64() != Some(expected as u64) {
                    return Err(BinaryError::Size { received: size.to_string(), expected }.into());
                }
                if tensor.len() != expected {
                    return Err(BinaryError::Tail { received: tensor.len(), expected }.into());
                }
                (datatype.read(&tensor), Some(tensor))
            }
        };
        check_range(&values, bounds)?;
        Ok(InferRequest {
            id: self.id,
            parameters: self.parameters,
            name: input.name,
            shape: input.shape,
            datatype,
            input_parameters: input.parameters,
            values,
            binary,
            outputs: self.outputs,
            dropped: self.dropped,
        })
    }
}

/// Refuses parameters that say the tensor is elsewhere. `place` is given where no tensor is.
fn check_parameters(
    parameters: Option<&Map<String, Value>>,
    place: Option<&'static str>,
) -> Result<(), DecodeError> {
    for key in parameters.into_iter().flat_map(Map::keys) {
        if let Some(place) = place
            && key == binary::SIZE
        {
            return Err(BinaryError::Place { place }.into());
        }
        if key.starts_with("shared_memory") {
            return Err(DecodeError::SharedMemory { key: key.clone() });
        }
    }
    Ok(())
}

/// Numbers of a text as the datatype holds them.
fn narrow(numbers: &[f64], datatype: Datatype) -> Result<Vec<f32>, DecodeError> {
    let narrow = |(index, &value)| {
        let unfit = || DecodeError::Value { index, value, datatype: datatype.name() };
        datatype.narrow(value).ok_or_else(unfit)
    };
    numbers.iter().enumerate().map(narrow).collect()
}

/// The shape has been checked, so its product is bounded.
fn check_count(shape: &[usize], numbers: &Numbers) -> Result<(), DecodeError> {
    if numbers.lengths.len() > 1 && numbers.lengths != shape {
        return Err(DecodeError::Nesting {
            received: numbers.lengths.clone(),
            expected: shape.to_vec(),
        });
    }
    let expected: usize = shape.iter().product();
    if numbers.values.len() != expected {
        return Err(DecodeError::Count { received: numbers.values.len(), expected });
    }
    Ok(())
}
