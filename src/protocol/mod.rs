//! Wire formats: which routes there are, and what an inference request holds.
//!
//! What was checked is what is served: a request is parsed once, strictly, and the upstream gets the
//! firewall's own encoding of what was parsed. Anything that two parsers could read in two ways is
//! refused, for an attacker would let the firewall see one input and the model another.

use crate::model::InputDomain;

mod document;
mod json;
pub mod oip_http;
#[cfg(test)]
mod tests;

/// What a request's method and path ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Route {
    /// An inference request; its input is inspected.
    Infer,
    /// A health or metadata read; it carries no input and passes.
    Read,
    /// Anything else.
    Refused(Refusal),
}

/// Why a route is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The path takes another method.
    #[error("method not allowed here: expected {allow}")]
    Method {
        /// The method that the path takes.
        allow: &'static str,
    },
    /// The path names a model that is not the protected one.
    #[error("no such model here")]
    Model,
    /// The path is not one of the protocol's, or not in its plain spelling.
    #[error("no such path here")]
    Path,
    /// An inference request with a query string.
    #[error("an inference request takes no query string")]
    Query,
}

/// What a decoder needs to know of the model and the limits.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// Shape of one row and range of its values.
    pub domain: &'a InputDomain,
    /// Most rows in one request.
    pub rows: usize,
}

/// Why a body is not an inference request that the firewall understands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Binary tensors were announced.
    #[error("{what}: binary tensors are not supported, send the tensor as JSON data")]
    Binary {
        /// What announced them.
        what: &'static str,
    },
    /// A number of data values that the shape does not give.
    #[error("inputs[0].data holds {received} values, expected {expected} for its shape")]
    Count {
        /// Values in the body.
        received: usize,
        /// Values that the shape gives.
        expected: usize,
    },
    /// A datatype other than FP32.
    #[error("inputs[0].datatype is {received:?}, expected \"FP32\"")]
    Datatype {
        /// What was sent.
        received: String,
    },
    /// A content coding.
    #[error("content-encoding {received:?} is not supported, send the body as it is")]
    Encoding {
        /// What was sent.
        received: String,
    },
    /// Not one JSON document of the protocol's form.
    #[error("the body is not an inference request: {0}")]
    Json(#[from] serde_json::Error),
    /// A content type other than JSON.
    #[error("content-type {received:?} is not supported, expected application/json")]
    MediaType {
        /// What was sent.
        received: String,
    },
    /// Nested data whose lengths are not those of the shape.
    #[error("inputs[0].data is nested as {received:?}, expected {expected:?} or a flat array")]
    Nesting {
        /// Lengths of the nested arrays, outermost first.
        received: Vec<usize>,
        /// The shape.
        expected: Vec<usize>,
    },
    /// A value outside the range that the model's preprocessing can give.
    #[error("inputs[0].data[{index}] is {value}, expected a number from {lower} to {upper}")]
    Range {
        /// Position in the flat data.
        index: usize,
        /// The value.
        value: f32,
        /// The channel's smallest value.
        lower: f32,
        /// The channel's largest value.
        upper: f32,
    },
    /// More rows than one request may hold, or none.
    #[error("inputs[0] holds {received} rows, expected 1 to {limit}")]
    Rows {
        /// Rows in the shape.
        received: usize,
        /// Most rows allowed.
        limit: usize,
    },
    /// A shape that is not the model's.
    #[error("inputs[0].shape is {received:?}, expected [n, {}, {}, {}]", row[0], row[1], row[2])]
    Shape {
        /// What was sent.
        received: Vec<usize>,
        /// Shape of one row.
        row: [usize; 3],
    },
    /// A tensor that lies outside the body.
    #[error("parameter {key:?}: shared memory is not supported, send the tensor as JSON data")]
    SharedMemory {
        /// The parameter that asks for it.
        key: String,
    },
}
