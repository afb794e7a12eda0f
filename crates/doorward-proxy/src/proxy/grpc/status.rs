//! Every failure to its gRPC status. The one place besides `respond` that knows status codes.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use crate::proxy::grpc_body::{GRPC, GrpcAnswer, whole};
use crate::proxy::respond::{Failure, message};
use crate::verdict::UpstreamError;
use doorward_protocol::GrpcError;
use doorward_protocol::grpc_frame::FrameError;
use doorward_protocol::{DecodeError, Refusal};

/// The statuses that the firewall gives, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");

pub(super) const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The table. Clients may retry what is unavailable, and nothing else.
pub(super) fn code(failure: &Failure) -> Code {
    match failure {
        Failure::Artifact | Failure::Internal | Failure::Unready => Code::Unavailable,
        Failure::BodyBroken => Code::InvalidArgument,
        Failure::BodyTimeout | Failure::Deadline => Code::DeadlineExceeded,
        Failure::BodyTooLarge { .. } | Failure::Overload => Code::ResourceExhausted,
        Failure::Decode(error) => decode_code(error),
        Failure::Draining => Code::Unavailable,
        Failure::Refused(Refusal::Model | Refusal::Version) => Code::NotFound,
        Failure::Refused(_) => Code::Unimplemented,
        Failure::Rejected { .. } => Code::PermissionDenied,
        Failure::Upstream(UpstreamError::Timeout) => Code::DeadlineExceeded,
        Failure::Uncut(_) => Code::Internal,
        Failure::Upstream(
            UpstreamError::Broken | UpstreamError::Open | UpstreamError::Unreachable,
        ) => Code::Unavailable,
    }
}

fn decode_code(error: &DecodeError) -> Code {
    match error {
        // As gRPC has it for a compression that the server does not know.
        DecodeError::Encoding { .. } => Code::Unimplemented,
        DecodeError::CodedTooLarge { .. }
        | DecodeError::Grpc(GrpcError::Frame(FrameError::TooLarge { .. })) => {
            Code::ResourceExhausted
        }
        DecodeError::Rows { received, limit } if received > limit => Code::ResourceExhausted,
        _ => Code::InvalidArgument,
    }
}

/// An answer that is nothing but a status.
pub(super) fn answer(failure: &Failure, request_id: &str) -> GrpcAnswer {
    let mut answer = Response::new(whole(Default::default(), None));
    if let Failure::Refused(Refusal::MediaType) = failure {
        // The client may not speak gRPC.
        *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    }
    *answer.headers_mut() = trailers(failure, request_id);
    answer.headers_mut().insert(CONTENT_TYPE, GRPC);
    answer
}

/// An answer of one message, in its frame.
pub(super) fn success(frame: Bytes) -> GrpcAnswer {
    let trailers = HeaderMap::from_iter([(STATUS, HeaderValue::from_static("0"))]);
    let mut answer = Response::new(whole(frame, Some(trailers)));
    answer.headers_mut().insert(CONTENT_TYPE, GRPC);
    answer
}

/// The status, as what follows the last message.
pub(super) fn trailers(failure: &Failure, request_id: &str) -> HeaderMap {
    let code = code(failure);
    tracing::debug!(request_id, ?code, "answered by the firewall");
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from(code as u16));
    trailers.insert(MESSAGE, percent_encode(&message(failure, request_id)));
    trailers
}

/// As gRPC writes messages: printable ASCII but the percent sign stays, other bytes are escaped.
fn percent_encode(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&encoded).expect("printable ASCII is a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_what_clients_act_on() {
        let cases = [
            (Failure::Artifact, 14),
            (Failure::Overload, 8),
            (Failure::Deadline, 4),
            (Failure::BodyTooLarge { limit: 1 }, 8),
            (Failure::Refused(Refusal::Call), 12),
            (Failure::Refused(Refusal::Model), 5),
            (Failure::Rejected { rows: vec![1] }, 7),
            (Failure::Upstream(UpstreamError::Timeout), 4),
            (Failure::Upstream(UpstreamError::Unreachable), 14),
            (Failure::Decode(DecodeError::Rows { received: 0, limit: 1 }), 3),
            (Failure::Decode(DecodeError::Rows { received: 2, limit: 1 }), 8),
        ];
        for (failure, number) in cases {
            let answer = answer(&failure, "id-1");
            assert_eq!(answer.headers()[STATUS], number.to_string().as_str(), "{failure}");
            let text = answer.headers()[MESSAGE].to_str().expect("text");
            assert!(text.contains("id-1"), "{text}");
        }
    }

    #[test]
    fn messages_are_escaped() {
        assert_eq!(percent_encode("50 % \"ä\"\n"), "50 %25 \"%C3%A4\"%0A");
    }
}
