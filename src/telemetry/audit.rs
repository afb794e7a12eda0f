//! The audit log: one JSON object a line on what became of inputs, apart from the program's own log.
//!
//! Requests hand over what is known of them and go on: a thread of its own makes the lines, hashes
//! the inputs and writes. The queue to it is bounded by requests and by bytes of inputs; what does not
//! fit, or cannot be written, is dropped and counted, and no request waits or fails for it.

mod lines;
mod quarantine;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;
use rand::TryRngCore;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::{Outcome, Reason, Verdict};
use crate::config::{self, AuditEvents, Config};
use crate::detect::Scores;
use crate::digest::hex;
use lines::Lines;
use quarantine::Quarantine;

/// The audit log of a process. It outlives every reload.
#[derive(Debug)]
pub struct Audit {
    sender: mpsc::Sender<Message>,
    /// What the thread writes to from the next line on.
    next: Arc<Mutex<Option<Sink>>>,
    /// Of this process, where no file holds a salt.
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

/// Opened for writing, before the settings that name it take effect.
#[derive(Debug)]
pub struct Sink {
    lines: Option<Lines>,
    quarantine: Option<Quarantine>,
    salt: Vec<u8>,
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
        /// What is wrong with it.
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

/// What became of one request.
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
    scores: Option<Scores>,
}

/// Inputs that count as queued until they are dropped.
#[derive(Debug)]
struct Held {
    inputs: Inputs,
    bytes: usize,
    queued_bytes: Arc<AtomicUsize>,
}

/// The keys of a line. What is not known is left out.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    rule: &'static str,
    #[serde(flatten)]
    row: Option<RowLine>,
}

#[derive(Serialize)]
struct RowLine {
    row: usize,
    label: usize,
    rejected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantined: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<ScoresLine>,
}

#[derive(Serialize)]
struct ScoresLine {
    universal: Option<f32>,
    class_conditional: Option<f32>,
    patch: Option<f32>,
    joined: Option<f32>,
}

struct Writer {
    sink: Sink,
    next: Arc<Mutex<Option<Sink>>>,
    dropped: IntCounter,
    /// Said once, until writing works again.
    failing: bool,
}

/// A second of a busy sidecar.
const QUEUED_REQUESTS: usize = 4096;

/// Of inputs that wait to be hashed.
const QUEUED_BYTES: usize = 64 << 20;

const SALT_BYTES: usize = 32;

/// A disk that takes longer has failed.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

// === impl Audit ===

impl Audit {
    /// Opens what the settings name, and starts the thread. `dropped` counts lines that are lost.
    pub fn start(settings: &config::Audit, dropped: IntCounter) -> Result<Self, Error> {
        let mut salt = [0; SALT_BYTES];
        rand::rngs::OsRng.try_fill_bytes(&mut salt)?;
        let sink = Sink::open(settings, &salt)?;
        let (sender, receiver) = mpsc::channel(QUEUED_REQUESTS);
        let next = Arc::new(Mutex::new(None));
        let mut writer =
            Writer { sink, next: Arc::clone(&next), dropped: dropped.clone(), failing: false };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(Error::Thread)?;
        Ok(Self { sender, next, salt, queued_bytes: Arc::default(), dropped })
    }

    /// Opens what new settings name; also a file of the same name anew, which may have been moved.
    pub fn open(&self, settings: &config::Audit) -> Result<Sink, Error> {
        Sink::open(settings, &self.salt)
    }

    /// From the next line on writes to `sink`.
    pub fn replace(&self, sink: Sink) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(sink);
        // Where the queue is full the thread has something else to wake for.
        let _ = self.sender.try_send(Message::Reopened);
    }

    /// The way in for requests under these settings; `None` if they want no audit log.
    pub fn tap(&self, config: &Config) -> Option<Tap> {
        config.audit.target.as_ref()?;
        Some(Tap {
            sender: self.sender.clone(),
            queued_bytes: Arc::clone(&self.queued_bytes),
            dropped: self.dropped.clone(),
            events: config.audit.events,
            scores: config.audit.scores,
            rule: config.policy.rule.name(),
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
                scores: self.scores.then_some(judgement.scores),
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

// === impl Sink ===

impl Sink {
    fn open(settings: &config::Audit, own_salt: &[u8]) -> Result<Self, Error> {
        let salt = match &settings.salt_file {
            None => own_salt.to_vec(),
            Some(path) => read_salt(path)?,
        };
        let lines = settings.target.as_ref().map(|target| Lines::open(target, settings));
        let quarantine = settings.quarantine.as_ref().map(Quarantine::open);
        Ok(Self { lines: lines.transpose()?, quarantine: quarantine.transpose()?, salt })
    }

    /// A hash that tells equal inputs and, without the salt, nothing else.
    fn hash(&self, row: &[f32]) -> String {
        let mut hash = Sha256::new();
        hash.update((self.salt.len() as u64).to_le_bytes());
        hash.update(&self.salt);
        for value in row {
            hash.update(value.to_le_bytes());
        }
        hex(&hash.finalize())
    }
}

fn read_salt(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    let wrong = |received: String| Error::Salt { path: path.to_owned(), received };
    let salt = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    // A salt that can be guessed lets who reads the log test guesses of inputs.
    if salt.len() < 16 { Err(wrong(format!("{} bytes", salt.len()))) } else { Ok(salt) }
}

// === impl Writer ===

impl Writer {
    fn run(&mut self, mut receiver: mpsc::Receiver<Message>) {
        while let Some(message) = receiver.blocking_recv() {
            let next = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(sink) = next {
                self.finish();
                self.sink = sink;
            }
            match message {
                Message::Event(event) => self.write(&event),
                Message::Reopened => {}
                Message::Flush(done) => {
                    self.finish();
                    // Fails when nobody waits any more.
                    let _ = done.send(());
                }
            }
        }
    }

    fn finish(&mut self) {
        if let Some(lines) = &mut self.sink.lines
            && let Err(error) = lines.sync()
        {
            tracing::error!(%error, "the audit log could not be written to the disk");
        }
    }

    fn write(&mut self, event: &Event) {
        if event.rows.is_empty() {
            self.write_line(&event.line(None));
        }
        for row in &event.rows {
            let line = self.row(event, row);
            self.write_line(&event.line(Some(line)));
        }
    }

    fn row(&mut self, event: &Event, row: &Row) -> RowLine {
        let mut line = RowLine {
            row: row.index,
            label: row.label,
            rejected: row.rejected,
            input_hash: None,
            quarantined: None,
            scores: row.scores.map(ScoresLine::from),
        };
        let Some(held) = &event.inputs else { return line };
        let shape = held.inputs.shape;
        let values = held.inputs.values.chunks_exact(shape.iter().product()).nth(row.index);
        let Some(values) = values else { return line };
        line.input_hash = Some(self.sink.hash(values));
        if let Some(quarantine) = self.sink.quarantine.as_mut().filter(|_| row.rejected) {
            let stored = quarantine.store(event.time, &event.request_id, row.index, shape, values);
            match stored {
                Ok(name) => line.quarantined = Some(name),
                Err(error) => self.failed("an input could not be quarantined", &error),
            }
        }
        line
    }

    fn write_line(&mut self, line: &Line<'_>) {
        let Some(lines) = &mut self.sink.lines else { return };
        let written = serde_json::to_vec(line).map_err(io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            lines.write(&bytes)
        });
        match written {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.dropped.inc();
                self.failed("audit lines are dropped", &error);
            }
        }
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        if !self.failing {
            tracing::error!(%error, "{what}");
        }
        self.failing = true;
    }
}

// === impl Event ===

impl Event {
    fn line(&self, row: Option<RowLine>) -> Line<'_> {
        Line {
            time: humantime::format_rfc3339_millis(self.time).to_string(),
            request_id: &self.request_id,
            trace_id: self.trace_id.as_deref(),
            protocol: self.protocol,
            model: self.model.as_deref(),
            verdict: self.verdict.label(),
            reason: self.verdict.reason().map(Reason::label),
            rule: self.rule,
            row,
        }
    }
}

// === impl ScoresLine ===

impl From<Scores> for ScoresLine {
    fn from(scores: Scores) -> Self {
        let Scores { universal, class_conditional, patch, joined } = scores;
        Self { universal, class_conditional, patch, joined }
    }
}
