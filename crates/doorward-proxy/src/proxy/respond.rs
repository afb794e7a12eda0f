//! Every failure to its answer, in one table: status, who is at fault, whether a retry makes sense.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::verdict::UpstreamError;
use doorward_images::EncodedError;
use doorward_protocol::CutError;
use doorward_protocol::Format;
use doorward_protocol::ImageProtocol;
use doorward_protocol::{DecodeError, Refusal};

/// Why a request gets an answer of the firewall's own.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There is no detector yet.
    #[error("the firewall is not calibrated yet")]
    Artifact,
    /// The client broke off.
    #[error("the request body broke off")]
    BodyBroken,
    /// The body takes too long.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// The body is too large.
    #[error("the request body is larger than {limit} bytes")]
    BodyTooLarge {
        /// Most bytes allowed.
        limit: usize,
    },
    /// Detection takes too long.
    #[error("the request could not be inspected in time")]
    Deadline,
    /// The body is not a request that the firewall understands.
    #[error(transparent)]
    Decode(DecodeError),
    /// The firewall stops, and a stream with it.
    #[error("the firewall is shutting down")]
    Draining,
    /// Detection failed.
    #[error("the request could not be inspected")]
    Internal,
    /// The queue or the concurrency limit is full.
    #[error("too many requests wait for inspection")]
    Overload,
    /// The route is not open.
    #[error(transparent)]
    Refused(Refusal),
    /// The rule turns rows away.
    #[error("input rejected by the firewall: {}", name_rows(rows))]
    Rejected {
        /// The rows, from 0.
        rows: Vec<usize>,
    },
    /// The upstream answered to perturbed copies in a form that they cannot be taken out of.
    #[error("the upstream's answer cannot be cut back to the rows of the request: {0}")]
    Uncut(CutError),
    /// Inference requests would be turned away for want of a detector.
    #[error("not ready: the firewall is not calibrated yet")]
    Unready,
    /// The upstream gave no answer.
    #[error("{}", name_upstream_error(*.0))]
    Upstream(UpstreamError),
}

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    status: StatusCode,
    fault: Fault,
    retry: Retry,
}

/// The party that would have to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The sender of the request.
    Client,
    /// The firewall, or who runs it.
    Firewall,
    /// The model server.
    Upstream,
}

/// True if the same request may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// After some seconds.
    After(u16),
    /// The answer will be the same.
    Never,
    /// Possibly, but nobody knows when.
    Unknown,
}

/// An error as a protocol's clients know it.
#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    /// FastAPI's, which LitServe is made with.
    Detail {
        detail: &'a str,
    },
    Error {
        error: &'a str,
    },
    /// The answer to a question for readiness.
    Ready {
        ready: bool,
        error: &'a str,
    },
    TorchServe {
        code: u16,
        r#type: &'static str,
        message: &'a str,
    },
}

/// The table.
fn line(failure: &Failure) -> Line {
    use Fault::{Client, Firewall, Upstream};
    use Retry::{After, Never, Unknown};
    let (status, fault, retry) = match failure {
        Failure::Artifact | Failure::Unready => {
            (StatusCode::SERVICE_UNAVAILABLE, Firewall, After(5))
        }
        Failure::BodyBroken => (StatusCode::BAD_REQUEST, Client, Unknown),
        Failure::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, Client, Unknown),
        Failure::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Client, Never),
        Failure::Deadline => (StatusCode::GATEWAY_TIMEOUT, Firewall, Unknown),
        Failure::Decode(error) => (decode_status(error), Client, Never),
        Failure::Draining => (StatusCode::SERVICE_UNAVAILABLE, Firewall, After(1)),
        Failure::Internal => (StatusCode::SERVICE_UNAVAILABLE, Firewall, After(5)),
        Failure::Overload => (StatusCode::SERVICE_UNAVAILABLE, Firewall, After(1)),
        Failure::Refused(refusal) => (refusal_status(*refusal), Client, Never),
        Failure::Rejected { .. } => (StatusCode::FORBIDDEN, Client, Never),
        Failure::Upstream(UpstreamError::Open) => {
            (StatusCode::SERVICE_UNAVAILABLE, Upstream, After(1))
        }
        Failure::Upstream(UpstreamError::Timeout) => {
            (StatusCode::GATEWAY_TIMEOUT, Upstream, Unknown)
        }
        Failure::Uncut(_) => (StatusCode::BAD_GATEWAY, Upstream, Never),
        Failure::Upstream(UpstreamError::Broken | UpstreamError::Unreachable) => {
            (StatusCode::BAD_GATEWAY, Upstream, Unknown)
        }
    };
    Line { status, fault, retry }
}

fn decode_status(error: &DecodeError) -> StatusCode {
    match error {
        DecodeError::Encoding { .. } | DecodeError::MediaType { .. } => {
            StatusCode::UNSUPPORTED_MEDIA_TYPE
        }
        DecodeError::CodedTooLarge { .. }
        | DecodeError::Copies { .. }
        | DecodeError::FieldImage { reason: EncodedError::TooLarge { .. }, .. }
        | DecodeError::Image(EncodedError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        DecodeError::Rows { received, limit } if received > limit => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    }
}

fn refusal_status(refusal: Refusal) -> StatusCode {
    match refusal {
        Refusal::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
        Refusal::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Refusal::Query => StatusCode::BAD_REQUEST,
        Refusal::Call | Refusal::Model | Refusal::Path | Refusal::Version => StatusCode::NOT_FOUND,
    }
}

/// The answer in the protocol's error shape, mostly `{"error": "..."}`.
pub(super) fn respond(
    format: Format,
    failure: &Failure,
    request_id: &str,
) -> Response<Full<Bytes>> {
    let Line { status, fault, retry } = line(failure);
    tracing::debug!(request_id, %status, ?fault, ?retry, "answered by the firewall");
    let message = message(failure, request_id);
    let body = match format {
        Format::Image(ImageProtocol::LitServe) => Body::Detail { detail: &message },
        Format::Image(ImageProtocol::TorchServe) => {
            Body::TorchServe { code: status.as_u16(), r#type: exception(status), message: &message }
        }
        Format::Oip | Format::KserveV1 if matches!(failure, Failure::Unready) => {
            Body::Ready { ready: false, error: &message }
        }
        _ => Body::Error { error: &message },
    };
    let body =
        serde_json::to_vec(&body).expect("a string is JSON and writing to memory cannot fail");
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Retry::After(seconds) = retry {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Failure::Refused(Refusal::Method { allow }) = failure {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    if let Failure::BodyBroken | Failure::BodyTimeout | Failure::BodyTooLarge { .. } = failure {
        // The rest of the body still is, or never will be, on this connection.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// TorchServe's name of an error; errors that it does not have are called likewise.
fn exception(status: StatusCode) -> &'static str {
    match status {
        StatusCode::FORBIDDEN => "InputRejectedException",
        StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowedException",
        StatusCode::NOT_FOUND => "ResourceNotFoundException",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableException",
        status if status.is_client_error() => "BadRequestException",
        _ => "InternalServerException",
    }
}

/// The message of a failure, with the request's id. Never a score: it would guide an attacker.
pub(super) fn message(failure: &Failure, request_id: &str) -> String {
    format!("{} (request {request_id})", shorten(failure.to_string()))
}

/// Errors quote what was sent, and that may be the whole body.
pub(super) fn shorten(mut text: String) -> String {
    if text.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push_str("...");
    }
    text
}

const LONGEST_MESSAGE: usize = 400;

fn name_rows(rows: &[usize]) -> String {
    let numbers: Vec<String> = rows.iter().map(usize::to_string).collect();
    match numbers.as_slice() {
        [single] => format!("row {single}"),
        several => format!("rows {}", several.join(", ")),
    }
}

fn name_upstream_error(error: UpstreamError) -> &'static str {
    match error {
        UpstreamError::Broken => "the upstream broke off its answer",
        UpstreamError::Open => "the upstream failed too often and is not asked for a while",
        UpstreamError::Timeout => "the upstream did not answer in time",
        UpstreamError::Unreachable => "the upstream cannot be reached",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_blames_whom_it_should() {
        let failures = [
            Failure::Artifact,
            Failure::BodyBroken,
            Failure::BodyTimeout,
            Failure::BodyTooLarge { limit: 1 },
            Failure::Deadline,
            Failure::Draining,
            Failure::Internal,
            Failure::Overload,
            Failure::Refused(Refusal::Path),
            Failure::Refused(Refusal::Method { allow: "GET" }),
            Failure::Rejected { rows: vec![0] },
            Failure::Uncut(CutError::Coded),
            Failure::Upstream(UpstreamError::Broken),
            Failure::Upstream(UpstreamError::Open),
            Failure::Upstream(UpstreamError::Timeout),
            Failure::Upstream(UpstreamError::Unreachable),
        ];
        for failure in failures {
            let Line { status, fault, retry } = line(&failure);
            assert_eq!(status.is_client_error(), fault == Fault::Client, "{failure}");
            let promised = matches!(retry, Retry::After(_));
            assert_eq!(promised, status == StatusCode::SERVICE_UNAVAILABLE, "{failure}");
            let response = respond(Format::Oip, &failure, "id-1");
            assert_eq!(response.status(), status);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), promised);
        }
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let cut = shorten("ä".repeat(LONGEST_MESSAGE));
        assert!(cut.len() <= LONGEST_MESSAGE + 3);
        assert!(cut.ends_with("ä..."));
        assert_eq!(shorten("short".to_owned()), "short");
    }
}
