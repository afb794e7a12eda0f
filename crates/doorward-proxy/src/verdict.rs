//! The ends that a request can come to.

/// The end that a request came to. Exactly one holds for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not an inference route; forwarded without inspection.
    Bypassed,
    /// Forwarded although the rule turns it away: mode `monitor`.
    Flagged,
    /// Inspected and forwarded.
    Passed,
    /// Never a candidate for inspection: unknown route, body too large or too slow, client gone.
    Refused,
    /// Turned away by the rule.
    Rejected,
    /// Forwarded without a verdict.
    UnverifiedPassed(Reason),
    /// Turned away for want of a verdict.
    UnverifiedRejected(Reason),
}

/// Why there is no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No detector yet.
    Artifact,
    /// Detection took too long.
    Deadline,
    /// Detection failed.
    Internal,
    /// The queue or the concurrency limit is full.
    Overload,
    /// A value lies further outside the model's range than the slack.
    Range,
    /// The request is not one the firewall understands.
    Undecodable,
    /// The method and path are not of an inference or a read that the firewall knows.
    Unrecognised,
}

/// Why the upstream gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// The connection ended before a complete answer, or the answer was not HTTP.
    Broken,
    /// Not asked: it had failed too often just before.
    Open,
    /// No answer in time.
    Timeout,
    /// No connection.
    Unreachable,
}

// === impl Verdict ===

impl Verdict {
    /// Every label value.
    pub const LABELS: [&str; 7] = [
        "bypassed",
        "flagged",
        "passed",
        "refused",
        "rejected",
        "unverified_passed",
        "unverified_rejected",
    ];

    /// The label value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Bypassed => "bypassed",
            Self::Flagged => "flagged",
            Self::Passed => "passed",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::UnverifiedPassed(_) => "unverified_passed",
            Self::UnverifiedRejected(_) => "unverified_rejected",
        }
    }

    /// Why there is no verdict, where there is none.
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::UnverifiedPassed(reason) | Self::UnverifiedRejected(reason) => Some(reason),
            _ => None,
        }
    }
}

// === impl Reason ===

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Artifact,
        Self::Deadline,
        Self::Internal,
        Self::Overload,
        Self::Range,
        Self::Undecodable,
        Self::Unrecognised,
    ];

    /// The label value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Artifact => "artifact",
            Self::Deadline => "deadline",
            Self::Internal => "internal",
            Self::Overload => "overload",
            Self::Range => "range",
            Self::Undecodable => "undecodable",
            Self::Unrecognised => "unrecognised",
        }
    }
}

// === impl UpstreamError ===

impl UpstreamError {
    /// Every error.
    pub const ALL: [Self; 4] = [Self::Broken, Self::Open, Self::Timeout, Self::Unreachable];

    /// The label value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::Open => "open",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
        }
    }
}
