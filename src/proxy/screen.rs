//! Asks for a verdict on a request and says what it means for it.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use hyper::HeaderMap;

use super::batch::{Queue, Reply};
use super::coding;
use super::respond::Failure;
use crate::config::{Action, Limits, Mode, Policy};
use crate::detect::{Judge, Judgement};
use crate::protocol::rest::Rest;
use crate::protocol::{Bounds, Checked, DecodeError, Encoded};
use crate::telemetry::audit::Inputs;
use crate::telemetry::{Reason, Verdict};

/// The part of the path that knows the policy.
#[derive(Debug)]
pub(super) struct Screen {
    policy: Policy,
    limits: Limits,
    queue: OnceLock<Arc<Queue>>,
}

/// A decoded request that waits for its verdict.
#[derive(Debug)]
pub(super) struct Pending {
    /// What goes to the upstream.
    pub(super) encoded: Encoded,
    pub(super) rows: usize,
    /// What is judged.
    pub(super) inputs: Inputs,
    reply: Reply,
    since: Instant,
}

/// A request without a verdict.
#[derive(Debug)]
pub(super) struct Unverified {
    pub(super) reason: Reason,
    pub(super) failure: Failure,
    /// As far as it was decoded.
    pub(super) rows: usize,
}

/// What the policy makes of a request.
#[derive(Debug)]
pub(super) enum Decision {
    Forward(Verdict),
    Reject(Verdict, Failure),
}

/// A larger body is parsed on a thread that may block. Parsing and encoding ran at some 200 MB/s when
/// measured, so this one takes a third of a millisecond, which a worker can spare.
const INLINE_BYTES: usize = 64 * 1024;

// === impl Screen ===

impl Screen {
    /// Without a detector, which comes later.
    pub(super) fn new(policy: Policy, limits: Limits) -> Self {
        Self { policy, limits, queue: OnceLock::new() }
    }

    /// The detector is there. `false` if there was one before.
    pub(super) fn open(&self, queue: Queue) -> bool {
        self.queue.set(Arc::new(queue)).is_ok()
    }

    /// The detector, where there is one.
    pub(super) fn judge(&self) -> Option<Arc<dyn Judge>> {
        self.queue.get().map(|queue| queue.judge())
    }

    /// Whether verdicts leave answers alone.
    pub(super) fn monitors(&self) -> bool {
        self.policy.mode == Mode::Monitor
    }

    /// Decodes a request and queues its rows.
    pub(super) async fn submit(
        &self,
        format: Rest,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Pending, Unverified> {
        let Some(queue) = self.queue.get() else {
            return Err(Unverified::new(Failure::Artifact, Reason::Artifact));
        };
        let Checked { encoded, values, rows } = self.decode(queue, format, headers, body).await?;
        let inputs = Inputs { values: Arc::new(values), shape: queue.domain().shape };
        let reply = queue
            .submit(Arc::clone(&inputs.values), rows)
            .map_err(|_| Unverified { rows, ..Unverified::overload() })?;
        Ok(Pending { encoded, rows, inputs, reply, since: Instant::now() })
    }

    /// Waits for the verdict, up to the deadline.
    pub(super) async fn judgements(&self, pending: Pending) -> Result<Vec<Judgement>, Unverified> {
        let rows = pending.rows;
        let deadline = pending.since + self.limits.detection_timeout;
        match tokio::time::timeout_at(deadline.into(), pending.reply).await {
            Ok(Ok(judgements)) => Ok(judgements),
            Ok(Err(_)) => {
                Err(Unverified { rows, ..Unverified::new(Failure::Internal, Reason::Internal) })
            }
            Err(_) => {
                Err(Unverified { rows, ..Unverified::new(Failure::Deadline, Reason::Deadline) })
            }
        }
    }

    /// What a verdict, or its absence, means for the request.
    pub(super) fn decide(&self, verdict: Result<&[Judgement], Unverified>) -> Decision {
        let judgements = match verdict {
            Ok(judgements) => judgements,
            Err(unverified) => return self.decide_unverified(unverified),
        };
        let rows: Vec<usize> = (judgements.iter().enumerate())
            .filter(|(_, judgement)| judgement.rejected)
            .map(|(row, _)| row)
            .collect();
        match self.policy.mode {
            _ if rows.is_empty() => Decision::Forward(Verdict::Passed),
            Mode::Enforce => Decision::Reject(Verdict::Rejected, Failure::Rejected { rows }),
            Mode::Monitor => Decision::Forward(Verdict::Flagged),
        }
    }

    fn decide_unverified(&self, unverified: Unverified) -> Decision {
        let Unverified { reason, failure, .. } = unverified;
        let actions = &self.policy.unverified;
        let action = match reason {
            Reason::Artifact => actions.artifact,
            Reason::Deadline => actions.deadline,
            Reason::Internal => actions.internal,
            Reason::Overload => actions.overload,
            Reason::Undecodable => actions.undecodable,
        };
        match action {
            Action::Pass => Decision::Forward(Verdict::UnverifiedPassed(reason)),
            Action::Reject => Decision::Reject(Verdict::UnverifiedRejected(reason), failure),
        }
    }

    async fn decode(
        &self,
        queue: &Arc<Queue>,
        format: Rest,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Checked, Unverified> {
        let (rows, limit) = (self.limits.rows.get(), self.limits.body_bytes);
        let decode = move |queue: &Queue, headers: &HeaderMap, body: &Bytes| {
            let body = coding::decode(headers, body, limit)?;
            check(format, queue, rows, headers, &body)
        };
        // A few coded bytes may be a long text.
        let decoded = if body.len() <= INLINE_BYTES && !coding::is_coded(headers) {
            decode(queue, headers, body)
        } else {
            let (queue, headers, body) = (Arc::clone(queue), headers.clone(), body.clone());
            tokio::task::spawn_blocking(move || decode(&queue, &headers, &body))
                .await
                .map_err(|_| Unverified::new(Failure::Internal, Reason::Internal))?
        };
        decoded.map_err(|error| Unverified::new(Failure::Decode(error), Reason::Undecodable))
    }
}

/// The request, with its rows as the detector takes them.
fn check(
    format: Rest,
    queue: &Queue,
    rows: usize,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Checked, DecodeError> {
    let bounds = Bounds { domain: queue.domain(), rows };
    let checked = format.check(headers, body, bounds)?;
    Ok(Checked { values: bounds.domain.rows_of_sent(checked.values), ..checked })
}

// === impl Pending ===

impl Pending {
    /// Since when the request waits.
    pub(super) fn since(&self) -> Instant {
        self.since
    }
}

// === impl Unverified ===

impl Unverified {
    /// The queue or the concurrency limit is full.
    pub(super) fn overload() -> Self {
        Self::new(Failure::Overload, Reason::Overload)
    }

    fn new(failure: Failure, reason: Reason) -> Self {
        Self { reason, failure, rows: 0 }
    }
}
