//! Wire formats: which routes there are, and what an inference request holds.
//!
//! What was checked is what is served: a request is parsed once, strictly, and the upstream gets the
//! firewall's own encoding of what was parsed. Anything that two parsers could read in two ways is
//! refused, for an attacker would let the firewall see one input and the model another.

use std::borrow::Cow;

use bytes::Bytes;

use doorward_engine::InputDomain;
use doorward_images::{EncodedError, Frame, Kind};

pub mod append;
pub mod binary;
pub mod cut;
pub mod datatype;
mod document;
pub mod form;
mod grpc_fields;
pub mod grpc_frame;
mod json;
pub mod kserve_v1;
mod kserve_v1_document;
mod kserve_v1_images;
mod media;
pub mod oip_grpc;
pub mod oip_http;
pub mod raw_image;
pub mod rest;
mod settings;
mod spelling;
#[cfg(test)]
mod tests;
mod text;

pub use settings::{ImageProtocol, Images};

/// The wire format of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// KServe V1 and TensorFlow Serving, REST.
    KserveV1,
    /// Open Inference Protocol V2, gRPC; each message of a stream is a request.
    OipGrpc,
    /// Open Inference Protocol V2, REST.
    OipHttp,
    /// Images, as TorchServe, SageMaker containers, BentoML and LitServe take them.
    RawImage,
}

/// What a request's method and path ask for.
///
/// Exhaustive: whoever acts on routes has to act on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// An inference request; its input is inspected.
    Infer,
    /// A health or metadata read; it carries no input and passes.
    Read,
    /// Anything else.
    Refused(Refusal),
}

/// Why a route is refused.
///
/// Exhaustive: each has an answer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A gRPC method that is not one of the protocol's, or not open.
    #[error("no such call here")]
    Call,
    /// A gRPC call whose content type is another one.
    #[error("expected one content-type, application/grpc")]
    MediaType,
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
    /// How images become rows.
    pub pictures: Pictures<'a>,
}

/// How images become rows.
#[derive(Clone, Copy, Debug)]
pub struct Pictures<'a> {
    /// From a picture to the model's shape.
    pub frame: &'a Frame,
    /// Most pixels of the images of one request.
    pub pixels: usize,
    /// The name of a form's part.
    pub part: &'a str,
    /// Whether V1 instances may be images.
    pub in_instances: bool,
}

/// An inference request that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// What the upstream gets.
    pub encoded: Encoded,
    /// Number of rows.
    pub rows: usize,
    /// The rows, one after another, channels first.
    pub values: Vec<f32>,
}

/// A request in the firewall's own spelling.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The body. Bytes of tensors are the client's.
    pub body: Bytes,
    /// How many bytes of `body` are JSON, where bytes of a tensor follow.
    pub json_length: Option<usize>,
    /// The content type, where the client's will not do.
    pub media_type: Option<Cow<'static, str>>,
}

/// Why a body is not an inference request that the firewall understands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Text that is not base64.
    #[error("{field}[{index}].b64 is not base64: {reason}")]
    Base64 {
        /// The key of the document.
        field: &'static str,
        /// Which of the instances.
        index: usize,
        /// What is wrong.
        reason: base64::DecodeError,
    },
    /// Bytes behind the JSON are not a tensor.
    #[error(transparent)]
    Binary(#[from] binary::BinaryError),
    /// More rows than the upstream takes, with their copies.
    #[error(
        "the request holds {rows} rows, which makes {} with the {copies} perturbed copies that the model server has to predict as well, expected at most {limit} (upstream.max_rows)",
        rows + copies
    )]
    Copies {
        /// Rows of the request.
        rows: usize,
        /// Copies of them.
        copies: usize,
        /// Most rows that the upstream takes.
        limit: usize,
    },
    /// A number of data values that the shape does not give.
    #[error("inputs[0].data holds {received} values, expected {expected} for its shape")]
    Count {
        /// Values in the body.
        received: usize,
        /// Values that the shape gives.
        expected: usize,
    },
    /// A datatype whose values cannot be judged.
    #[error("inputs[0].datatype is {received:?}, expected BF16, FP16, FP32, FP64, INT8 or UINT8")]
    Datatype {
        /// What was sent.
        received: String,
    },
    /// A body that is not what its content coding says.
    #[error("the body cannot be decoded as {coding}: {reason}")]
    Coded {
        /// The coding.
        coding: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A decoded body that is too large.
    #[error("the body, decoded as {coding}, is larger than {limit} bytes")]
    CodedTooLarge {
        /// The coding.
        coding: &'static str,
        /// Most bytes allowed.
        limit: usize,
    },
    /// Another content coding, or several.
    #[error(
        "the content coding {received:?} is not supported, expected one of gzip, deflate, zstd"
    )]
    Encoding {
        /// What was sent.
        received: String,
    },
    /// Numbers inside of bytes.
    #[error("{field} holds {{\"b64\": ...}}: encoded bytes are not supported here, send numbers")]
    EncodedBytes {
        /// The key of the document.
        field: &'static str,
    },
    /// An encoded image in a document that is not taken.
    #[error("{field}[{index}].b64: {reason}")]
    FieldImage {
        /// The key of the document.
        field: &'static str,
        /// Which of the instances.
        index: usize,
        /// Why not.
        reason: EncodedError,
    },
    /// V1 arrays that are not rows of the model's shape.
    #[error("{field} is nested as {received:?}, expected [n, {}, {}, {}]", row[0], row[1], row[2])]
    FieldShape {
        /// The key of the document.
        field: &'static str,
        /// Lengths of the nested arrays, outermost first.
        received: Vec<usize>,
        /// Shape of one row.
        row: [usize; 3],
    },
    /// A V1 value outside the range that the model's preprocessing can give.
    #[error(
        "{field}, flattened, holds {value} at {index}, expected a number from {lower} to {upper}"
    )]
    FieldRange {
        /// The key of the document.
        field: &'static str,
        /// Position in the flat data.
        index: usize,
        /// The value.
        value: f32,
        /// The channel's smallest value.
        lower: f32,
        /// The channel's largest value.
        upper: f32,
    },
    /// A V1 number that does not fit FP32.
    #[error("{field}, flattened, holds {value} at {index}, which does not fit FP32")]
    FieldValue {
        /// The key of the document.
        field: &'static str,
        /// Position in the flat data.
        index: usize,
        /// The number.
        value: f64,
    },
    /// A form that does not hold one image.
    #[error(transparent)]
    Form(#[from] form::FormError),
    /// Not a gRPC message of the protocol's form.
    #[error(transparent)]
    Grpc(#[from] oip_grpc::GrpcError),
    /// A header that the protocol does not have.
    #[error("header {name} is not part of this protocol")]
    Header {
        /// The header.
        name: &'static str,
    },
    /// An image that is not taken.
    #[error(transparent)]
    Image(#[from] EncodedError),
    /// An image of another format than its content type says.
    #[error("content-type says {}, but the image is a {kind}", declared.media_type())]
    ImageType {
        /// What was said.
        declared: Kind,
        /// What it is.
        kind: Kind,
    },
    /// Not one JSON document of the protocol's form.
    #[error("the body is not an inference request: {0}")]
    Json(#[from] serde_json::Error),
    /// A content type that is not the protocol's.
    #[error("content-type {received:?} is not supported, expected {expected}")]
    MediaType {
        /// What was sent.
        received: String,
        /// What would be taken.
        expected: &'static str,
    },
    /// Images and numbers.
    #[error("{field} holds images and numbers, expected one image in each, or rows of numbers")]
    Mixed {
        /// The key of the document.
        field: &'static str,
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
    /// A request that is not for here; its message is what says so.
    #[error(transparent)]
    Refused(Refusal),
    /// A shape that is not the model's.
    #[error("inputs[0].shape is {received:?}, expected [n, {}, {}, {}]", row[0], row[1], row[2])]
    Shape {
        /// What was sent.
        received: Vec<usize>,
        /// Shape of one row.
        row: [usize; 3],
    },
    /// A tensor that lies outside the body.
    #[error("parameter {key:?}: shared memory is not supported, send the tensor in the request")]
    SharedMemory {
        /// The parameter that asks for it.
        key: String,
    },
    /// A number that the datatype does not have.
    #[error("inputs[0].data[{index}] is {value}, which does not fit {datatype}")]
    Value {
        /// Position in the flat data.
        index: usize,
        /// The number.
        value: f64,
        /// The tensor's datatype.
        datatype: &'static str,
    },
}

// === impl Protocol ===

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 4] = [Self::KserveV1, Self::OipGrpc, Self::OipHttp, Self::RawImage];

    /// The label value.
    pub fn label(self) -> &'static str {
        match self {
            Self::KserveV1 => "kserve_v1",
            Self::OipGrpc => "oip_grpc",
            Self::OipHttp => "oip_http",
            Self::RawImage => "raw_image",
        }
    }
}
