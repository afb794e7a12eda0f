//! The reasons for which a body is not an inference request.

use doorward_images::{EncodedError, Kind};

use crate::grpc_frame::FrameError;
use crate::route::Refusal;

/// Why a body is not an inference request that the firewall understands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Text that is not base64.
    #[error("{field}[{index}].b64 is not base64: {reason}")]
    Base64 {
        /// The key of the document.
        field: &'static str,
        /// The index of the instance.
        index: usize,
        /// The fault.
        reason: base64::DecodeError,
    },
    /// Bytes behind the JSON are not a tensor.
    #[error(transparent)]
    Binary(#[from] BinaryError),
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
        /// The value that was sent.
        received: String,
    },
    /// A body that is not what its content coding says.
    #[error("the body cannot be decoded as {coding}: {reason}")]
    Coded {
        /// The coding.
        coding: &'static str,
        /// The fault.
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
        /// The value that was sent.
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
        /// The index of the instance.
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
        "{field}, flattened, holds {value} at {index}, expected a number from {lower} to {upper}{}",
        advise(*value, *slack)
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
        /// The share of the range by which a value may lie outside of it.
        slack: f32,
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
    Form(#[from] FormError),
    /// Not a gRPC message of the protocol's form.
    #[error(transparent)]
    Grpc(#[from] GrpcError),
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
        /// The format that was declared.
        declared: Kind,
        /// Its kind.
        kind: Kind,
    },
    /// Not one JSON document of the protocol's form.
    #[error("the body is not an inference request: {0}")]
    Json(#[from] serde_json::Error),
    /// A content type that is not the protocol's.
    #[error("content-type {received:?} is not supported, expected {expected}")]
    MediaType {
        /// The value that was sent.
        received: String,
        /// The values that would be taken.
        expected: &'static str,
    },
    /// Images and numbers.
    #[error("{field} holds images and numbers, expected one image in each, or rows of numbers")]
    Mixed {
        /// The key of the document.
        field: &'static str,
    },
    /// A model in the body that is not the path's.
    #[error("{key} is {received}, but the path names {expected:?}: expected the same, or no {key}")]
    Named {
        /// The key of the document.
        key: &'static str,
        /// The JSON value.
        received: String,
        /// The name in the path.
        expected: String,
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
    #[error(
        "inputs[0].data[{index}] is {value}, expected a number from {lower} to {upper}{}",
        advise(*value, *slack)
    )]
    Range {
        /// Position in the flat data.
        index: usize,
        /// The value.
        value: f32,
        /// The channel's smallest value.
        lower: f32,
        /// The channel's largest value.
        upper: f32,
        /// The share of the range by which a value may lie outside of it.
        slack: f32,
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
        /// The value that was sent.
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
    /// A V1 signature that is not the protected one.
    #[error(
        "signature_name is {received:?}, but Doorward judges for {expected:?} alone: see model.signature"
    )]
    Signature {
        /// The value that was sent.
        received: String,
        /// The only one that is taken.
        expected: String,
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

/// What would help against a value outside the range: nothing, where it is no number.
fn advise(value: f32, slack: f32) -> String {
    if !value.is_finite() {
        return String::new();
    }
    format!(", or outside by at most {slack} of that range (preprocess.range_slack)")
}

impl DecodeError {
    /// True if the request was understood, but a number lies outside the range that is judged.
    pub fn is_out_of_range(&self) -> bool {
        match self {
            Self::Range { value, .. } | Self::FieldRange { value, .. } => value.is_finite(),
            _ => false,
        }
    }
}

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
        /// The value that was sent; several headers are joined by a comma.
        received: String,
        /// Bytes of the body.
        body: usize,
    },
    /// The JSON says where its tensor is not.
    #[error("parameter binary_data_size belongs to inputs[0].parameters, found it in {place}")]
    Place {
        /// The place where it was.
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

/// Why a form is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormError {
    /// Not a form.
    #[error("the body is not a form: {0}")]
    Malformed(#[from] multer::Error),
    /// The part is called otherwise.
    #[error("the form's part is called {received:?}, expected {expected:?}")]
    Name {
        /// Its name.
        received: String,
        /// `images.part`.
        expected: String,
    },
    /// No part, or several.
    #[error("the form has {received} parts, expected 1")]
    Parts {
        /// "no" or "several".
        received: &'static str,
    },
    /// It ends too early.
    #[error("the form ends before its last boundary")]
    Unfinished,
}

/// Why a message is not an inference request that the firewall understands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrpcError {
    /// Typed contents and raw ones.
    #[error("both inputs[0].contents and raw_input_contents are given, expected one of them")]
    Both,
    /// Contents whose number the shape does not give.
    #[error("inputs[0].contents holds {received} values, expected {expected} for its shape")]
    Count {
        /// Values in the message.
        received: usize,
        /// Values that the shape gives.
        expected: usize,
    },
    /// Contents in a field of another datatype.
    #[error("inputs[0].contents has values outside of {expected}, the field of {datatype}")]
    Field {
        /// The tensor's datatype.
        datatype: &'static str,
        /// Its field.
        expected: &'static str,
    },
    /// More fields than a request has.
    #[error("the message has more than {limit} fields")]
    Fields {
        /// Most fields of a message and those in it.
        limit: usize,
    },
    /// Not one message in its frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Not one input.
    #[error("the request holds {received} inputs, expected 1")]
    Inputs {
        /// Inputs in the message.
        received: usize,
    },
    /// Typed contents for a datatype that has none.
    #[error("{datatype} has no typed contents, send raw_input_contents")]
    NoField {
        /// The tensor's datatype.
        datatype: &'static str,
    },
    /// Not the bytes of such a message.
    #[error("the message cannot be read: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// Raw contents that are not one for the input, or no contents at all.
    #[error("raw_input_contents holds {received} tensors, expected 1, that of inputs[0]")]
    Raw {
        /// Raw contents in the message.
        received: usize,
    },
    /// A negative size.
    #[error("inputs[0].shape is {received:?}, expected sizes of 1 or more")]
    Shape {
        /// The value that was sent.
        received: Vec<i64>,
    },
    /// A shape of many sizes.
    #[error("inputs[0].shape takes {received} bytes, expected at most {limit}")]
    ShapeBytes {
        /// In the message.
        received: usize,
        /// Most bytes of a shape.
        limit: usize,
    },
    /// Raw contents of another length than shape and datatype give.
    #[error(
        "raw_input_contents[0] has {received} bytes, expected {expected} for its shape and datatype"
    )]
    Size {
        /// Bytes in the message.
        received: usize,
        /// Bytes of the tensor.
        expected: usize,
    },
    /// A field that is longer than the rest of the message.
    #[error("the message breaks off")]
    Truncated,
    /// A list that no datatype here uses.
    #[error("inputs[0].contents has {field}, which no datatype that is judged uses")]
    Unused {
        /// The list.
        field: &'static str,
    },
}
