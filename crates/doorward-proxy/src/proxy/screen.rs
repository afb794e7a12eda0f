//! Asks for a verdict on a request and says what it means for it.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use hyper::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::batch::{Queue, Reply};
use super::coding;
use super::respond::Failure;
use crate::settings::{Action, Limits, Mode, Policy, Screening};
use crate::telemetry::audit::Inputs;
use crate::verdict::{Reason, Verdict};
use doorward_detection::{self as detection, Judge, Judgement};
use doorward_engine::InputDomain;
use doorward_images::{EncodedError, Frame};
use doorward_protocol::Format;
use doorward_protocol::GrpcError;
use doorward_protocol::ImageProtocol;
use doorward_protocol::{
    Allowed, Bounds, Checked, DecodeError, Encoded, Input, Pictures, grpc_frame, oip_grpc,
};

/// The part of the path that knows the policy.
#[derive(Debug)]
pub(super) struct Screen {
    policy: Policy,
    limits: Limits,
    names: Arc<Names>,
    images: Arc<Images>,
    /// Keys that were dropped so far.
    dropped: Arc<Dropped>,
    queue: OnceLock<Arc<Queue>>,
}

/// What requests may name; it stays as it was at the start.
#[derive(Debug)]
struct Names {
    model: Option<String>,
    version: Option<String>,
    reads: Vec<String>,
    signature: String,
    range_slack: f32,
}

/// The keys that were dropped from requests, each of which is logged once.
#[derive(Debug, Default)]
struct Dropped(Mutex<BTreeSet<String>>);

/// The settings on images; they stay as they were at the start.
#[derive(Debug)]
struct Images {
    settings: doorward_protocol::ImageRoutes,
    pictures: doorward_images::Pictures,
    /// Decoding takes memory and a processor, so no more go on at once than there are processors.
    decoding: Arc<Semaphore>,
}

/// The wire form of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// A gRPC message in its frame.
    Grpc,
    Rest(Format),
}

/// A decoded request that waits for its verdict.
#[derive(Debug)]
pub(super) struct Pending {
    /// The request that goes to the upstream.
    pub(super) encoded: Encoded,
    pub(super) rows: usize,
    /// The rows that are judged.
    pub(super) inputs: Inputs,
    reply: Reply,
    since: Instant,
}

/// A decoded request that nobody has been asked about yet.
#[derive(Debug)]
pub(super) struct Understood {
    /// The request that goes to the upstream.
    pub(super) encoded: Encoded,
    pub(super) rows: usize,
    /// The rows that are judged.
    pub(super) inputs: Inputs,
    pub(super) since: Instant,
}

/// A request without a verdict.
#[derive(Debug)]
pub(super) struct Unverified {
    pub(super) reason: Reason,
    pub(super) failure: Failure,
    /// As far as it was decoded.
    pub(super) rows: usize,
}

/// The policy's decision on a request.
#[derive(Debug)]
pub(super) enum Decision {
    Forward(Verdict),
    Reject(Verdict, Failure),
}

/// Most keys that are remembered, for clients make them up.
const MOST_DROPPED: usize = 100;

/// Most characters of a key that are logged.
const LONGEST_KEY: usize = 64;

/// A larger body is parsed on a thread that may block. Parsing and encoding ran at some 200 MB/s
/// when measured, so this one takes a third of a millisecond, which a worker can spare.
const INLINE_BYTES: usize = 64 * 1024;

// === impl Screen ===

impl Screen {
    /// Without a detector, which comes later.
    pub(super) fn new(settings: Screening<'_>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let images = Arc::new(Images {
            settings: settings.images.clone(),
            pictures: settings.pictures,
            decoding: Arc::new(Semaphore::new(processors)),
        });
        let (policy, limits) = (settings.policy.clone(), settings.limits.clone());
        let names = Arc::new(Names {
            model: settings.allowed.model.map(str::to_owned),
            version: settings.allowed.version.map(str::to_owned),
            reads: settings.allowed.reads.to_vec(),
            signature: settings.signature.to_owned(),
            range_slack: settings.range_slack,
        });
        let dropped = Arc::default();
        Self { policy, limits, names, images, dropped, queue: OnceLock::new() }
    }

    /// The same with another policy and limits, and without a detector.
    pub(super) fn successor(&self, settings: Screening<'_>) -> Self {
        let (policy, limits) = (settings.policy.clone(), settings.limits.clone());
        let (names, images) = (Arc::clone(&self.names), Arc::clone(&self.images));
        let dropped = Arc::clone(&self.dropped);
        Self { policy, limits, names, images, dropped, queue: OnceLock::new() }
    }

    /// The format of a path.
    pub(super) fn format(&self, path: &str) -> Format {
        Format::of(path, &self.images.settings)
    }

    /// What paths may name.
    pub(super) fn allowed(&self) -> Allowed<'_> {
        self.names.allowed()
    }

    /// False while inference requests are turned away for want of a detector.
    pub(super) fn is_open(&self) -> bool {
        self.queue.get().is_some() || self.policy.unverified.artifact == Action::Pass
    }

    /// Logs, once, that a part of requests does not reach the upstream.
    pub(super) fn drops(&self, key: &str) {
        let key: String = key.chars().take(LONGEST_KEY).collect();
        let mut keys = self.dropped.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() < MOST_DROPPED && keys.insert(key.clone()) {
            tracing::info!(key, "dropped from requests: the protocol has no such key");
        }
    }

    /// The detector is there. `false` if there was one before.
    pub(super) fn open(&self, queue: Queue) -> bool {
        self.queue.set(Arc::new(queue)).is_ok()
    }

    /// The detector, where there is one.
    pub(super) fn judge(&self) -> Option<Arc<dyn Judge>> {
        self.queue.get().map(|queue| queue.judge())
    }

    /// True if verdicts leave answers alone.
    pub(super) fn monitors(&self) -> bool {
        self.policy.mode == Mode::Monitor
    }

    /// True if requests pass that are for no model here, and those that nobody understands. What is
    /// less is stricter.
    pub(super) fn leniency(&self) -> (bool, bool) {
        (self.monitors(), self.policy.unverified.undecodable == Action::Pass)
    }

    /// Decodes a request and queues its rows.
    pub(super) async fn submit(
        &self,
        format: Wire,
        path: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Pending, Unverified> {
        self.queue_rows(self.understand(format, path, headers, body).await?)
    }

    /// Decodes a request.
    pub(super) async fn understand(
        &self,
        format: Wire,
        path: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Understood, Unverified> {
        let Some(queue) = self.queue.get() else {
            return Err(Unverified::new(Failure::Artifact, Reason::Artifact));
        };
        let Checked { encoded, values, rows, dropped } =
            self.decode(queue, format, path, headers, body).await?;
        for key in &dropped {
            self.drops(key);
        }
        let inputs = Inputs { values: Arc::new(values), shape: queue.domain().shape };
        Ok(Understood { encoded, rows, inputs, since: Instant::now() })
    }

    /// Queues the rows of a request to be judged.
    pub(super) fn queue_rows(&self, request: Understood) -> Result<Pending, Unverified> {
        let Understood { encoded, rows, inputs, since } = request;
        let Some(queue) = self.queue.get() else {
            return Err(Unverified::new(Failure::Artifact, Reason::Artifact));
        };
        let reply = queue
            .submit(Arc::clone(&inputs.values), rows)
            .map_err(|_| Unverified { rows, ..Unverified::overload() })?;
        Ok(Pending { encoded, rows, inputs, reply, since })
    }

    /// Asks the detector something else about a request's rows and waits for the answer, up to the
    /// deadline.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        rows: usize,
        question: impl FnOnce(&dyn Judge) -> Result<T, detection::Error> + Send + 'static,
    ) -> Result<T, Unverified> {
        let unverified = |failure, reason| Unverified { rows, ..Unverified::new(failure, reason) };
        let Some(queue) = self.queue.get() else {
            return Err(unverified(Failure::Artifact, Reason::Artifact));
        };
        let reply = queue.ask(rows, question);
        let reply = reply.map_err(|_| unverified(Failure::Overload, Reason::Overload))?;
        match tokio::time::timeout(self.limits.detection_timeout, reply).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(unverified(Failure::Internal, Reason::Internal)),
            Err(_) => Err(unverified(Failure::Deadline, Reason::Deadline)),
        }
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

    /// The decision on a request after a verdict, or without one.
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
            Reason::Range => actions.range,
            Reason::Undecodable => actions.undecodable,
            // No setting: it would open every path.
            Reason::Unrecognised if self.monitors() => Action::Pass,
            Reason::Unrecognised => Action::Reject,
        };
        match action {
            Action::Pass => Decision::Forward(Verdict::UnverifiedPassed(reason)),
            Action::Reject => Decision::Reject(Verdict::UnverifiedRejected(reason), failure),
        }
    }

    /// Waits its turn, up to the deadline.
    async fn place_to_decode(&self) -> Result<OwnedSemaphorePermit, Unverified> {
        let turn = Arc::clone(&self.images.decoding).acquire_owned();
        let place = timeout(self.limits.detection_timeout, turn).await;
        let late = |_| Unverified::new(Failure::Deadline, Reason::Deadline);
        place.map_err(late)?.map_err(|_| Unverified::new(Failure::Internal, Reason::Internal))
    }

    async fn decode(
        &self,
        queue: &Arc<Queue>,
        format: Wire,
        path: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Checked, Unverified> {
        let (limits, images) = (self.limits.clone(), Arc::clone(&self.images));
        let (names, path) = (Arc::clone(&self.names), path.to_owned());
        let of_images = images.taken_by(format);
        let decode = move |queue: &Queue, headers: &HeaderMap, body: &Bytes| {
            let body = format.uncoded(headers, body, limits.body_bytes)?;
            check(format, queue, &limits, &images, &names, &path, headers, body)
        };
        let place = if of_images { Some(self.place_to_decode().await?) } else { None };
        // A few coded bytes may be a long text, or a large image.
        let small = body.len() <= INLINE_BYTES && !format.is_coded(headers, body) && !of_images;
        let decoded = if small {
            decode(queue, headers, body)
        } else {
            let (queue, headers, body) = (Arc::clone(queue), headers.clone(), body.clone());
            let decode = move || {
                // Kept to the end, whether or not anybody still waits for it.
                let _place = place;
                decode(&queue, &headers, &body)
            };
            tokio::task::spawn_blocking(decode)
                .await
                .map_err(|_| Unverified::new(Failure::Internal, Reason::Internal))?
        };
        decoded.map_err(|error| match error {
            DecodeError::Refused(refusal) => {
                Unverified::new(Failure::Refused(refusal), Reason::Unrecognised)
            }
            error if error.is_out_of_range() => {
                Unverified::new(Failure::Decode(error), Reason::Range)
            }
            error => Unverified::new(Failure::Decode(error), Reason::Undecodable),
        })
    }
}

/// The request, with its rows as the detector takes them.
#[expect(clippy::too_many_arguments, reason = "what a decoder needs comes from as many places")]
fn check(
    format: Wire,
    queue: &Queue,
    limits: &Limits,
    images: &Images,
    names: &Names,
    path: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Checked, DecodeError> {
    let domain = queue.domain();
    let frame = Frame::new(domain.shape, images.pictures).map_err(EncodedError::from)?;
    let pictures = Pictures {
        frame: &frame,
        normalise: &|image| domain.normalise(image),
        pixels: limits.image_pixels.get(),
        part: &images.settings.part,
        in_instances: images.taken_by(Wire::Rest(Format::KserveV1)),
    };
    let bounds = Bounds {
        input: input(domain),
        rows: limits.rows.get(),
        slack: names.range_slack,
        signature: &names.signature,
        pictures,
    };
    match format {
        Wire::Grpc => oip_grpc::check(body, bounds, names.allowed()),
        Wire::Rest(format) => format.check(path, headers, &body, bounds),
    }
}

/// The tensor that a model takes, as requests spell it.
pub(super) fn input(domain: &InputDomain) -> Input<'_> {
    let InputDomain { shape, lower, upper, channels_last, fp32 } = domain;
    Input { shape: *shape, lower, upper, channels_last: *channels_last, fp32: *fp32 }
}

// === impl Names ===

impl Names {
    fn allowed(&self) -> Allowed<'_> {
        let Self { model, version, reads, .. } = self;
        Allowed { model: model.as_deref(), version: version.as_deref(), reads }
    }
}

// === impl Images ===

impl Images {
    /// True if requests in this format may hold images.
    fn taken_by(&self, format: Wire) -> bool {
        match format {
            Wire::Rest(Format::Image(_)) => true,
            Wire::Rest(Format::KserveV1) => {
                self.settings.protocols.contains(&ImageProtocol::KserveV1)
            }
            Wire::Grpc | Wire::Rest(Format::Oip) => false,
        }
    }
}

/// The gRPC message in a frame, without its compression.
pub(super) fn unframed(
    headers: &HeaderMap,
    body: &Bytes,
    limit: usize,
) -> Result<Bytes, DecodeError> {
    let framed = grpc_frame::single(body).map_err(GrpcError::Frame)?;
    match framed.compressed {
        false => Ok(framed.message),
        true => coding::decompress(headers, &framed.message, limit),
    }
}

// === impl Wire ===

impl Wire {
    /// The text of a body: without its content coding, or frame and compression.
    fn uncoded(
        self,
        headers: &HeaderMap,
        body: &Bytes,
        limit: usize,
    ) -> Result<Bytes, DecodeError> {
        match self {
            Self::Grpc => unframed(headers, body, limit),
            Self::Rest(_) => coding::decode(headers, body, limit),
        }
    }

    /// True if the body is anything but itself.
    fn is_coded(self, headers: &HeaderMap, body: &Bytes) -> bool {
        match self {
            Self::Grpc => body.first() == Some(&1),
            Self::Rest(_) => coding::is_coded(headers),
        }
    }
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

    pub(super) fn new(failure: Failure, reason: Reason) -> Self {
        Self { reason, failure, rows: 0 }
    }
}
