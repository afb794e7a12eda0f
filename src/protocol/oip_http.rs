//! The Open Inference Protocol, version 2, over REST with JSON tensors.
//!
//! `POST /v2/models/{name}[/versions/{version}]/infer` with
//! `{id?, parameters?, inputs: [{name, shape, datatype, parameters?, data}], outputs?}`. One FP32
//! input of shape `[n, C, H, W]` is taken, `data` flat or nested exactly as the shape says.
//!
//! The decoder is the gate that an attacker works on. It refuses duplicate and unknown keys, bytes
//! after the document, arrays where the protocol has objects, binary and shared-memory tensors, and
//! values that no image can give.

use hyper::HeaderMap;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde::Serialize;
use serde::de::{DeserializeSeed, Error as _};
use serde_json::{Map, Value};

use super::document::{Document, DocumentSeed};
use super::json::Numbers;
use super::{Bounds, DecodeError, Refusal, Route};

/// A decoded inference request.
#[derive(Clone, Debug, PartialEq)]
pub struct InferRequest {
    id: Option<String>,
    parameters: Option<Map<String, Value>>,
    name: String,
    shape: Vec<usize>,
    input_parameters: Option<Map<String, Value>>,
    values: Vec<f32>,
    outputs: Option<Vec<Value>>,
}

/// The header that announces binary tensors behind the JSON part.
const BINARY_HEADER: &str = "inference-header-content-length";

/// Which route a request takes. `model` is the only model name taken, if given.
pub fn route(method: &str, path: &str, query: Option<&str>, model: Option<&str>) -> Route {
    let refused = Route::Refused(Refusal::Path);
    let Some(rest) = path.strip_prefix('/') else {
        return refused;
    };
    let segments: Vec<&str> = rest.split('/').collect();
    if !segments.iter().all(|segment| is_plain(segment)) {
        return refused;
    }
    let named = |name: &str| model.is_none_or(|model| model == name);
    match segments.as_slice() {
        ["v2"] | ["v2", "health", "live" | "ready"] => read(method),
        ["v2", "models", name, rest @ ..] => {
            let action = match rest {
                ["versions", _, action @ ..] => action,
                action => action,
            };
            match action {
                [] | ["config" | "ready" | "stats"] if named(name) => read(method),
                ["infer"] if named(name) => infer(method, query),
                [] | ["config" | "infer" | "ready" | "stats"] => Route::Refused(Refusal::Model),
                _ => refused,
            }
        }
        _ => refused,
    }
}

/// Reads the body of an inference request.
pub fn decode(
    headers: &HeaderMap,
    body: &[u8],
    bounds: Bounds<'_>,
) -> Result<InferRequest, DecodeError> {
    check_headers(headers)?;
    let limit = bounds.domain.len().saturating_mul(bounds.rows);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let document = DocumentSeed { limit }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    document.check(bounds)
}

fn read(method: &str) -> Route {
    match method {
        "GET" => Route::Read,
        _ => Route::Refused(Refusal::Method { allow: "GET" }),
    }
}

fn infer(method: &str, query: Option<&str>) -> Route {
    match (method, query) {
        ("POST", None) => Route::Infer,
        ("POST", Some(_)) => Route::Refused(Refusal::Query),
        _ => Route::Refused(Refusal::Method { allow: "POST" }),
    }
}

/// A path segment that every server reads in the same way: nothing to decode, nothing to resolve.
fn is_plain(segment: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@:+".contains(&byte);
    !segment.is_empty() && segment.bytes().all(plain) && segment.bytes().any(|byte| byte != b'.')
}

fn check_headers(headers: &HeaderMap) -> Result<(), DecodeError> {
    if headers.contains_key(BINARY_HEADER) {
        return Err(DecodeError::Binary { what: "header inference-header-content-length" });
    }
    for value in headers.get_all(CONTENT_ENCODING) {
        if !value.as_bytes().eq_ignore_ascii_case(b"identity") {
            return Err(DecodeError::Encoding {
                received: String::from_utf8_lossy(value.as_bytes()).into_owned(),
            });
        }
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    // tritonclient sends none.
    let Some(first) = types.next() else {
        return Ok(());
    };
    let received = String::from_utf8_lossy(first.as_bytes()).into_owned();
    if types.next().is_some() || !is_json(&received) {
        return Err(DecodeError::MediaType { received });
    }
    Ok(())
}

/// `application/json` or `application/...+json`, in UTF-8.
fn is_json(media_type: &str) -> bool {
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

/// What is sent to the upstream.
#[derive(Serialize)]
struct Encoded<'a> {
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
    data: &'a [f32],
}

// === impl InferRequest ===

impl InferRequest {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// The rows, one after another.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The rows, one after another.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// The request in the firewall's own spelling. Each number has the fewest digits that give the
    /// same `f32` again.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&Encoded {
            id: &self.id,
            parameters: &self.parameters,
            inputs: [EncodedInput {
                name: &self.name,
                shape: &self.shape,
                datatype: "FP32",
                parameters: &self.input_parameters,
                data: &self.values,
            }],
            outputs: &self.outputs,
        })
        .expect("keys are strings and writing to memory cannot fail")
    }
}

// === impl Document ===

impl Document {
    fn check(self, bounds: Bounds<'_>) -> Result<InferRequest, DecodeError> {
        let input = self.input.ok_or_else(|| serde_json::Error::missing_field("inputs"))?;
        check_parameters(self.parameters.as_ref())?;
        check_parameters(input.parameters.as_ref())?;
        for output in self.outputs.iter().flatten() {
            check_parameters(output.get("parameters").and_then(Value::as_object))?;
        }
        if input.datatype != "FP32" {
            return Err(DecodeError::Datatype { received: input.datatype });
        }
        let numbers = input.numbers.ok_or_else(|| serde_json::Error::missing_field("data"))?;
        check_shape(&input.shape, bounds)?;
        check_count(&input.shape, &numbers)?;
        check_range(&numbers.values, bounds)?;
        Ok(InferRequest {
            id: self.id,
            parameters: self.parameters,
            name: input.name,
            shape: input.shape,
            input_parameters: input.parameters,
            values: numbers.values,
            outputs: self.outputs,
        })
    }
}

/// Refuses parameters that say the tensor is elsewhere.
fn check_parameters(parameters: Option<&Map<String, Value>>) -> Result<(), DecodeError> {
    for key in parameters.into_iter().flat_map(Map::keys) {
        if key == "binary_data_size" {
            return Err(DecodeError::Binary { what: "parameter binary_data_size" });
        }
        if key.starts_with("shared_memory") {
            return Err(DecodeError::SharedMemory { key: key.clone() });
        }
    }
    Ok(())
}

fn check_shape(shape: &[usize], bounds: Bounds<'_>) -> Result<(), DecodeError> {
    let row = bounds.domain.sent_shape();
    let [rows, a, b, c] = *shape else {
        return Err(DecodeError::Shape { received: shape.to_vec(), row });
    };
    if [a, b, c] != row {
        return Err(DecodeError::Shape { received: shape.to_vec(), row });
    }
    if rows == 0 || rows > bounds.rows {
        return Err(DecodeError::Rows { received: rows, limit: bounds.rows });
    }
    Ok(())
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

fn check_range(values: &[f32], bounds: Bounds<'_>) -> Result<(), DecodeError> {
    let domain = bounds.domain;
    // Values of one channel that lie side by side.
    let run = if domain.channels_last { 1 } else { domain.shape[1] * domain.shape[2] };
    if run == 0 {
        return Ok(());
    }
    let limits: Vec<(f32, f32)> = (domain.lower.iter().zip(&domain.upper))
        .map(|(&lower, &upper)| {
            let tolerance = ROUNDING * (upper - lower);
            (lower - tolerance, upper + tolerance)
        })
        .collect();
    for (number, chunk) in values.chunks_exact(run).enumerate() {
        let channel = number % domain.shape[0];
        let (lower, upper) = limits[channel];
        let outside = |value: &f32| !(lower..=upper).contains(value);
        if let Some(position) = chunk.iter().position(outside) {
            return Err(DecodeError::Range {
                index: number * run + position,
                value: chunk[position],
                lower: domain.lower[channel],
                upper: domain.upper[channel],
            });
        }
    }
    Ok(())
}

/// Share of a channel's range by which a client's normalisation may round past its ends: some ten
/// units in the last place of an `f32`.
const ROUNDING: f32 = 1e-6;
