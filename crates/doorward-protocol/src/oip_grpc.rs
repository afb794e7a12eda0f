//! The Open Inference Protocol, version 2, over gRPC: `inference.GRPCInferenceService`.
//!
//! One input of shape `[n, C, H, W]` is taken, as raw contents or as contents of its datatype. The
//! upstream gets the firewall's own encoding of the message: each field once, and none that the
//! protocol does not have. Protobuf lets a message say things twice, and its readers agree on what
//! then holds, but nothing is left for them to agree on. Raw contents are the client's bytes.

use bytes::Bytes;
use prost::Message;

use super::datatype::Datatype;
use super::grpc_fields;
use super::grpc_frame;
use crate::bounds::Bounds;
use crate::checks::{check_range, check_shape};
use crate::error::{DecodeError, GrpcError};
use crate::request::{Checked, Encoded};
use crate::route::{Allowed, Refusal};
use messages::{InferTensorContents, ModelInferRequest, ModelStreamInferResponse};

/// The protocol's messages.
#[allow(missing_docs, clippy::pedantic, reason = "generated from proto/inference.proto")]
pub mod messages {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

/// The request that a path makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// One inference; its input is inspected.
    Infer,
    /// A health or metadata read; it carries no input and passes.
    Read(Read),
    /// A stream of inferences; the input of each is inspected.
    StreamInfer,
}

/// A read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The path.
    pub path: &'static str,
    /// The message that it takes.
    pub request: ReadMessage,
    /// The answer where inference requests are not answered; `None`: the read is about something
    /// else.
    pub readiness: Option<Readiness>,
}

/// The messages that reads take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMessage {
    /// The filter of a list of models: a repository, and whether only those that are ready.
    Index,
    /// A model and a version.
    Model,
    /// At most the name of a service.
    Server,
}

/// How a read says that inference requests are not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// `ready` is false, which is how an empty message reads.
    Ready,
    /// The status of `grpc.health.v1` is `NOT_SERVING`.
    Serving,
}

/// The fields that all requests that name a model begin with.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

/// Path of the inferences.
pub const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Path of the statistics.
const STATISTICS: &str = "/inference.GRPCInferenceService/ModelStatistics";

/// Path of the streams of inferences.
pub const STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// The fields of the filter of a list of models.
#[derive(Clone, PartialEq, Message)]
struct Index {
    #[prost(string, tag = "1")]
    repository: String,
    #[prost(bool, tag = "2")]
    ready: bool,
}

/// The reads. Kubernetes' probes use the last one.
const READS: [(&str, ReadMessage, Option<Readiness>); 9] = [
    ("/inference.GRPCInferenceService/ServerLive", ReadMessage::Server, None),
    ("/inference.GRPCInferenceService/ServerReady", ReadMessage::Server, Some(Readiness::Ready)),
    ("/inference.GRPCInferenceService/ServerMetadata", ReadMessage::Server, None),
    ("/inference.GRPCInferenceService/ModelReady", ReadMessage::Model, Some(Readiness::Ready)),
    ("/inference.GRPCInferenceService/ModelMetadata", ReadMessage::Model, None),
    ("/inference.GRPCInferenceService/ModelConfig", ReadMessage::Model, None),
    (STATISTICS, ReadMessage::Model, None),
    ("/inference.GRPCInferenceService/RepositoryIndex", ReadMessage::Index, None),
    ("/grpc.health.v1.Health/Check", ReadMessage::Server, Some(Readiness::Serving)),
];

/// The call that a request makes. `path` is the whole of it, also what follows a question mark.
pub fn call(method: &str, path: &str, media_types: &[&[u8]]) -> Result<Call, Refusal> {
    let call = match path {
        INFER => Call::Infer,
        STREAM_INFER => Call::StreamInfer,
        _ => {
            let read = READS.into_iter().find(|(read, ..)| *read == path);
            let (path, request, readiness) = read.ok_or(Refusal::Call)?;
            Call::Read(Read { path, request, readiness })
        }
    };
    if method != "POST" {
        return Err(Refusal::Method { allow: "POST" });
    }
    // Another one may be another encoding.
    match media_types {
        [b"application/grpc" | b"application/grpc+proto"] => Ok(call),
        _ => Err(Refusal::MediaType),
    }
}

/// Checks the message of a read, without its frame, and writes it again. A statistics read without a
/// name asks about all models.
pub fn check_read(message: Bytes, read: Read, allowed: Allowed<'_>) -> Result<Bytes, DecodeError> {
    if read.request == ReadMessage::Index {
        let index = Index::decode(message).map_err(GrpcError::Protobuf)?;
        return Ok(grpc_frame::encode(&index));
    }
    let named = Named::decode(message).map_err(GrpcError::Protobuf)?;
    if read.request == ReadMessage::Model && !(named.name.is_empty() && read.path == STATISTICS) {
        check_model(&named.name, allowed)?;
    }
    Ok(grpc_frame::encode(&named))
}

// === impl Readiness ===

impl Readiness {
    /// The message, in its frame, that says no.
    pub fn refusal(self) -> Bytes {
        /// The status is the only field of the answers of `grpc.health.v1`.
        #[derive(Clone, PartialEq, Message)]
        struct Health {
            #[prost(int32, tag = "1")]
            status: i32,
        }
        const NOT_SERVING: i32 = 2;
        match self {
            Self::Ready => grpc_frame::encode(&Health::default()),
            Self::Serving => grpc_frame::encode(&Health { status: NOT_SERVING }),
        }
    }
}

/// The model that an inference request names, where it can be read.
pub fn model_in(message: &[u8]) -> Option<String> {
    Named::decode(message).ok().map(|named| named.name)
}

/// Reads an inference request, without its frame, and writes it again, in one.
pub fn check(
    message: Bytes,
    bounds: Bounds<'_>,
    allowed: Allowed<'_>,
) -> Result<Checked, DecodeError> {
    grpc_fields::check(&message)?;
    let request = ModelInferRequest::decode(message).map_err(GrpcError::Protobuf)?;
    check_model(&request.model_name, allowed)?;
    let version = request.model_version.as_str();
    if !version.is_empty() && allowed.version != Some(version) {
        return Err(DecodeError::Refused(Refusal::Version));
    }
    let outputs = request.outputs.iter().map(|output| &output.parameters);
    let inputs = request.inputs.iter().map(|input| &input.parameters);
    for key in inputs.chain(outputs).chain([&request.parameters]).flat_map(|map| map.keys()) {
        if key.starts_with("shared_memory") {
            return Err(DecodeError::SharedMemory { key: key.clone() });
        }
    }
    let [input] = request.inputs.as_slice() else {
        return Err(GrpcError::Inputs { received: request.inputs.len() }.into());
    };
    let Some(datatype) = Datatype::parse(&input.datatype) else {
        return Err(DecodeError::Datatype { received: input.datatype.clone() });
    };
    let sizes: Result<Vec<usize>, _> = input.shape.iter().copied().map(usize::try_from).collect();
    let shape = sizes.map_err(|_| GrpcError::Shape { received: input.shape.clone() })?;
    check_shape(&shape, bounds)?;
    let expected = shape.iter().product::<usize>();
    let values = match (&input.contents, request.raw_input_contents.as_slice()) {
        (Some(_), [_, ..]) => return Err(GrpcError::Both.into()),
        (None, [raw]) => {
            let (received, expected) = (raw.len(), expected * datatype.size());
            if received != expected {
                return Err(GrpcError::Size { received, expected }.into());
            }
            datatype.read(raw)
        }
        (None, raw) => return Err(GrpcError::Raw { received: raw.len() }.into()),
        (Some(contents), []) => {
            let values = typed(contents, datatype)?;
            let received = values.len();
            if received != expected {
                return Err(GrpcError::Count { received, expected }.into());
            }
            values
        }
    };
    check_range(&values, bounds)?;
    let body = grpc_frame::encode(&request);
    // As the detector takes them.
    let values = bounds.input.rows_of_sent(values);
    Ok(Checked {
        encoded: Encoded { body, json_length: None, media_type: None },
        rows: shape[0],
        values,
        dropped: Vec::new(),
    })
}

/// A message of a stream, in its frame, that says why there is no reply to the request in `frame`.
pub fn stream_error(error_message: String, message: &[u8]) -> Bytes {
    // Clients that send several at once tell the replies by their id.
    let request = Ids::decode(message).unwrap_or_default();
    let infer_response = messages::ModelInferResponse {
        model_name: request.model_name,
        id: request.id,
        ..Default::default()
    };
    grpc_frame::encode(&ModelStreamInferResponse {
        error_message,
        infer_response: Some(infer_response),
    })
}

/// The part of a request that a reply repeats.
#[derive(Clone, PartialEq, Message)]
struct Ids {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "3")]
    id: String,
}

fn check_model(name: &str, allowed: Allowed<'_>) -> Result<(), DecodeError> {
    if allowed.model.is_some_and(|model| model != name) {
        return Err(DecodeError::Refused(Refusal::Model));
    }
    Ok(())
}

/// The values of the datatype's field; there may be none in another one.
fn typed(contents: &InferTensorContents, datatype: Datatype) -> Result<Vec<f32>, DecodeError> {
    let name = datatype.name();
    let unfit = |(index, value): (usize, f64)| DecodeError::Value { index, value, datatype: name };
    let integers = |values: &mut dyn Iterator<Item = f64>| -> Result<Vec<f32>, DecodeError> {
        let narrow = |(index, value)| datatype.narrow(value).ok_or_else(|| unfit((index, value)));
        values.enumerate().map(narrow).collect()
    };
    let (values, expected) = match datatype {
        Datatype::Bf16 | Datatype::Fp16 => return Err(GrpcError::NoField { datatype: name }.into()),
        Datatype::Fp32 => (contents.fp32_contents.clone(), "fp32_contents"),
        Datatype::Fp64 => {
            (contents.fp64_contents.iter().map(|&value| value as f32).collect(), "fp64_contents")
        }
        Datatype::Int8 => {
            (integers(&mut contents.int_contents.iter().copied().map(f64::from))?, "int_contents")
        }
        Datatype::Uint8 => {
            (integers(&mut contents.uint_contents.iter().copied().map(f64::from))?, "uint_contents")
        }
    };
    // The other four have been refused.
    let all = contents.int_contents.len()
        + contents.uint_contents.len()
        + contents.fp32_contents.len()
        + contents.fp64_contents.len();
    if all != values.len() {
        return Err(GrpcError::Field { datatype: name, expected }.into());
    }
    Ok(values)
}
