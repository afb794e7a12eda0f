//! The audit log: one JSON object a line on what became of inputs, apart from the program's own
//! log.
//!
//! Requests hand over what is known of them and go on: a thread of its own makes the lines, hashes
//! the inputs and writes. The queue to it is bounded by requests and by bytes of inputs; what does
//! not fit, or cannot be written, is dropped and counted, and no request waits or fails for it.

mod lines;
mod quarantine;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use rand::TryRngCore;
use tokio::sync::{mpsc, oneshot};

use super::outcome::Outcome;
use crate::settings::{self, AuditEvents};
use crate::verdict::Verdict;
use doorward_detection::Scores;
use writer::Writer;

pub use quarantine::{Kept, newest as newest_quarantined};
pub use writer::Sink;

/// The audit log of a process. It outlives every reload.
#[derive(Debug)]
pub struct Audit {
    sender: mpsc::Sender<Message>,
    /// The sink that the thread writes to from the next line on.
    next: Arc<Mutex<Option<Sink>>>,
    /// The salt of this process, where no file holds one.
    salt: [u8; SALT_BYTES],
    queued_bytes: Arc<AtomicUsize>,
    dropped: IntCounter,
}

/// A way into the audit log, with settings that no longer change.
#[derive(Debug)]
pub struct Tap {
    sender: mpsc::Sender<Message>,
    queued_bytes: Arc<AtomicUsize>,
    dropped: IntCounter,
    events: AuditEvents,
    scores: bool,
    rule: &'static str,
}

/// The rows of a request as they are judged.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Row-major CHW, row after row.
    pub values: Arc<Vec<f32>>,
    /// Channels, height, width of a row.
    pub shape: [usize; 3],
}

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be opened.
    #[error("{key} = {}: cannot be opened for writing", path.display())]
    Open {
        /// The setting that names it.
        key: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system's random generator failed.
    #[error("no random numbers can be had")]
    Random(#[from] rand::rand_core::OsError),
    /// The salt is not usable.
    #[error("audit.salt_file = {}: {received}, expected a file of 16 bytes or more", path.display())]
    Salt {
        /// The file.
        path: PathBuf,
        /// The fault in it.
        received: String,
    },
    /// No thread.
    #[error("the audit log's thread cannot be started")]
    Thread(#[source] io::Error),
}

#[derive(Debug)]
enum Message {
    Event(Box<Event>),
    /// Look for another sink.
    Reopened,
    /// Tell when everything before is written.
    Flush(oneshot::Sender<()>),
}

/// The end of one request, for the audit log.
#[derive(Debug)]
struct Event {
    time: SystemTime,
    request_id: String,
    trace_id: Option<String>,
    protocol: &'static str,
    model: Option<String>,
    rule: &'static str,
    verdict: Verdict,
    /// Empty where no row was judged.
    rows: Vec<Row>,
    inputs: Option<Held>,
}

#[derive(Debug)]
struct Row {
    index: usize,
    label: usize,
    rejected: bool,
    /// With the joined score.
    scores: Option<(Scores, Option<f32>)>,
}

/// Inputs that count as queued until they are dropped.
#[derive(Debug)]
struct Held {
    inputs: Inputs,
    bytes: usize,
    queued_bytes: Arc<AtomicUsize>,
}

/// A second of a busy sidecar.
const QUEUED_REQUESTS: usize = 4096;

/// The bytes of inputs that may wait to be hashed.
const QUEUED_BYTES: usize = 64 << 20;

const SALT_BYTES: usize = 32;

/// A disk that takes longer has failed.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

// === impl Audit ===

impl Audit {
    /// Opens what the settings name, and starts the thread. `dropped` counts lines that are lost.
    pub fn start(settings: &settings::Audit, dropped: IntCounter) -> Result<Self, Error> {
        let mut salt = [0; SALT_BYTES];
        rand::rngs::OsRng.try_fill_bytes(&mut salt)?;
        let sink = Sink::open(settings, &salt)?;
        let (sender, receiver) = mpsc::channel(QUEUED_REQUESTS);
        let next = Arc::new(Mutex::new(None));
        let writer = Writer::new(sink, Arc::clone(&next), dropped.clone());
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(|| writer.run(receiver))
            .map_err(Error::Thread)?;
        Ok(Self { sender, next, salt, queued_bytes: Arc::default(), dropped })
    }

    /// Opens what new settings name; also a file of the same name anew, which may have been moved.
    pub fn open(&self, settings: &settings::Audit) -> Result<Sink, Error> {
        Sink::open(settings, &self.salt)
    }

    /// From the next line on writes to `sink`.
    pub fn replace(&self, sink: Sink) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(sink);
        // Where the queue is full the thread has something else to wake for.
        let _ = self.sender.try_send(Message::Reopened);
    }

    /// The way in for requests under these settings; `None` if they want no audit log.
    pub fn tap(&self, settings: &settings::Audit, rule: &'static str) -> Option<Tap> {
        settings.target.as_ref()?;
        Some(Tap {
            sender: self.sender.clone(),
            queued_bytes: Arc::clone(&self.queued_bytes),
            dropped: self.dropped.clone(),
            events: settings.events,
            scores: settings.scores,
            rule,
        })
    }

    /// Waits until everything so far is written; a disk that hangs is not waited for long.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.sender.send(Message::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        if tokio::time::timeout(FLUSH_TIMEOUT, flush).await.is_err() {
            tracing::error!("the audit log could not be written in time");
        }
    }
}

// === impl Tap ===

impl Tap {
    /// Hands over what became of a request; never waits.
    pub fn record(&self, outcome: &Outcome<'_>, model: Option<&str>, inputs: Option<&Inputs>) {
        let all = self.events == AuditEvents::All;
        let rows: Vec<Row> = (outcome.judgements.iter().enumerate())
            .filter(|(_, judgement)| all || judgement.rejected)
            .map(|(index, judgement)| Row {
                index,
                label: judgement.label,
                rejected: judgement.rejected,
                scores: self.scores.then_some((judgement.scores, judgement.joined)),
            })
            .collect();
        let routine = matches!(outcome.verdict, Verdict::Bypassed | Verdict::Passed);
        if rows.is_empty() && routine && !all {
            return;
        }
        let lines = rows.len().max(1) as u64;
        let held = match inputs.filter(|_| !rows.is_empty()).map(|inputs| self.hold(inputs)) {
            None => None,
            Some(Some(held)) => Some(held),
            Some(None) => return self.dropped.inc_by(lines),
        };
        let event = Event {
            time: SystemTime::now(),
            request_id: outcome.request_id.to_owned(),
            trace_id: outcome.trace_id.map(str::to_owned),
            protocol: outcome.protocol.label(),
            model: model.map(str::to_owned),
            rule: self.rule,
            verdict: outcome.verdict,
            rows,
            inputs: held,
        };
        if self.sender.try_send(Message::Event(Box::new(event))).is_err() {
            self.dropped.inc_by(lines);
        }
    }

    /// `None` if too many bytes wait already.
    fn hold(&self, inputs: &Inputs) -> Option<Held> {
        let bytes = size_of_val(inputs.values.as_slice());
        let more = |queued: usize| queued.checked_add(bytes).filter(|&sum| sum <= QUEUED_BYTES);
        self.queued_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        let queued_bytes = Arc::clone(&self.queued_bytes);
        Some(Held { inputs: inputs.clone(), bytes, queued_bytes })
    }
}

// === impl Held ===

impl Drop for Held {
    fn drop(&mut self) {
        self.queued_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
