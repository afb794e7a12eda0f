//! The one event that a request ends in.

use std::time::Duration;

use doorward_detection::Judgement;
use doorward_protocol::Protocol;

use crate::verdict::{UpstreamError, Verdict};

/// The end of one request.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The id that the client and the upstream see.
    pub request_id: &'a str,
    /// The trace that the client's `traceparent` names.
    pub trace_id: Option<&'a str>,
    /// The wire format.
    pub protocol: Protocol,
    /// The verdict on the request.
    pub verdict: Verdict,
    /// Rows in the request, as far as it was decoded.
    pub rows: usize,
    /// One judgement per row, where detection gave any.
    pub judgements: &'a [Judgement],
    /// The time that detection took, waiting included.
    pub detection: Option<Duration>,
    /// The time that the upstream took to answer.
    pub upstream: Option<Duration>,
    /// Why the upstream gave no answer.
    pub upstream_error: Option<UpstreamError>,
    /// The fault, in words, where there was one.
    pub detail: Option<&'a str>,
}

/// The uses of rows where the upstream predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteRows {
    /// Perturbed copies that it was sent.
    Copied,
    /// It labels them otherwise than the local model.
    Disputed,
    /// Judged by its predictions.
    Judged,
    /// Its answer told nothing.
    Untold,
}

// === impl RemoteRows ===

impl RemoteRows {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Copied, Self::Disputed, Self::Judged, Self::Untold];

    /// The label value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Disputed => "disputed",
            Self::Judged => "judged",
            Self::Untold => "untold",
        }
    }
}
