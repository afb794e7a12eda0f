//! The thread that makes the lines, hashes the inputs and writes.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntCounter;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::lines::Lines;
use super::quarantine::Quarantine;
use super::{Error, Event, Message, Row};
use crate::settings;
use crate::verdict::Reason;
use doorward_detection::{Scores, Signal};

/// Opened for writing, before the settings that name it take effect.
#[derive(Debug)]
pub struct Sink {
    lines: Option<Lines>,
    quarantine: Option<Quarantine>,
    salt: Vec<u8>,
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

/// A row's scores, each under its signal's name.
struct ScoresLine {
    scores: Scores,
    joined: Option<f32>,
}

/// Works the queue off.
pub(super) struct Writer {
    sink: Sink,
    next: Arc<Mutex<Option<Sink>>>,
    dropped: IntCounter,
    /// Said once, until writing works again.
    failing: bool,
}

// === impl Sink ===

impl Sink {
    pub(super) fn open(settings: &settings::Audit, own_salt: &[u8]) -> Result<Self, Error> {
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
        hex::encode(hash.finalize())
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
    pub(super) fn new(sink: Sink, next: Arc<Mutex<Option<Sink>>>, dropped: IntCounter) -> Self {
        Self { sink, next, dropped, failing: false }
    }

    /// Until the last way in is gone.
    pub(super) fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        while let Some(message) = receiver.blocking_recv() {
            let next = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(sink) = next {
                self.reopen(sink);
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

    /// Both sinks may be the same file and folder, written to since the new one was opened.
    fn reopen(&mut self, sink: Sink) {
        self.finish();
        self.sink = sink;
        if let Some(Err(error)) = self.sink.lines.as_mut().map(Lines::resume) {
            tracing::error!(%error, "the audit log could not be opened again");
        }
        if let Some(Err(error)) = self.sink.quarantine.as_mut().map(Quarantine::resume) {
            tracing::error!(%error, "the quarantine could not be opened again");
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
            scores: row.scores.map(|(scores, joined)| ScoresLine { scores, joined }),
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

impl Serialize for ScoresLine {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(Signal::COUNT + 1))?;
        for signal in Signal::ALL {
            map.serialize_entry(signal.name(), &self.scores[signal])?;
        }
        map.serialize_entry("joined", &self.joined)?;
        map.end()
    }
}
