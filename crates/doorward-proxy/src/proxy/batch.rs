//! The bounded queue in front of a [`Judge`], and the thread that works it off.
//!
//! Detection is arithmetic: it has its own thread, so that it never holds up the async workers.
//! Waiting requests are judged together, because one pass over a batch costs less than many passes
//! over single rows. Both ends are bounded by rows, not requests: rows are what costs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;

use crate::settings::Limits;
use crate::telemetry::metrics::Metrics;
use doorward_detection::{self as detection, Judge, Judgement};
use doorward_engine::InputDomain;

/// The queue's open end. The thread ends when the last one is dropped.
pub(super) struct Queue {
    sender: mpsc::Sender<Work>,
    occupied: Arc<AtomicUsize>,
    limit: usize,
    judge: Arc<dyn Judge>,
    metrics: Arc<Metrics>,
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Gets one judgement per row, or an error if detection failed.
pub(super) type Reply = oneshot::Receiver<Vec<Judgement>>;

/// The work that waits.
enum Work {
    Batched(Entry),
    /// A question that no other can be joined with.
    Single(Box<Question>),
}

type Question = dyn FnOnce(&dyn Judge) + Send;

/// One request's rows.
#[derive(Debug)]
struct Entry {
    values: Arc<Vec<f32>>,
    places: Places,
    reply: oneshot::Sender<Vec<Judgement>>,
}

/// The places in the queue that some rows occupy; vacated when dropped.
#[derive(Debug)]
struct Places {
    rows: usize,
    occupied: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

struct Worker {
    judge: Arc<dyn Judge>,
    receiver: mpsc::Receiver<Work>,
    /// Did not fit into the previous batch.
    left_over: Option<Entry>,
    batch_rows: usize,
    metrics: Arc<Metrics>,
}

// === impl Queue ===

impl Queue {
    /// Starts the thread.
    pub(super) fn start(
        judge: Arc<dyn Judge>,
        limits: &Limits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let mut worker = Worker {
            judge: Arc::clone(&judge),
            receiver,
            left_over: None,
            batch_rows: limits.batch_rows.get(),
            metrics: Arc::clone(&metrics),
        };
        std::thread::Builder::new().name("detect".to_owned()).spawn(move || worker.run())?;
        Ok(Self {
            sender,
            occupied: Arc::new(AtomicUsize::new(0)),
            limit: limits.queue_rows.get(),
            judge,
            metrics,
        })
    }

    /// The model's input.
    pub(super) fn domain(&self) -> &InputDomain {
        self.judge.domain()
    }

    /// The judge.
    pub(super) fn judge(&self) -> Arc<dyn Judge> {
        Arc::clone(&self.judge)
    }

    /// Asks for a judgement of `rows` rows. Dropping the reply takes the question back.
    pub(super) fn submit(&self, values: Arc<Vec<f32>>, rows: usize) -> Result<Reply, Full> {
        let places = self.occupy(rows)?;
        let (reply, receiver) = oneshot::channel();
        let entry = Entry { values, places, reply };
        // Fails only when the thread is gone, and then drops the entry: the reply says so.
        let _ = self.sender.send(Work::Batched(entry));
        Ok(receiver)
    }

    /// Asks something else about `rows` rows. Dropping the reply takes the question back.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        rows: usize,
        question: impl FnOnce(&dyn Judge) -> Result<T, detection::Error> + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Full> {
        let places = self.occupy(rows)?;
        let (reply, receiver) = oneshot::channel();
        let work = Box::new(move |judge: &dyn Judge| {
            if reply.is_closed() {
                return;
            }
            let answer = attempt(rows, || question(judge));
            drop(places);
            if let Some(answer) = answer {
                let _ = reply.send(answer);
            }
        });
        let _ = self.sender.send(Work::Single(work));
        Ok(receiver)
    }

    fn occupy(&self, rows: usize) -> Result<Places, Full> {
        let more = |occupied: usize| {
            let occupied = occupied.checked_add(rows)?;
            (occupied <= self.limit).then_some(occupied)
        };
        self.occupied.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).map_err(|_| Full)?;
        self.metrics.enqueued(rows);
        Ok(Places {
            rows,
            occupied: Arc::clone(&self.occupied),
            metrics: Arc::clone(&self.metrics),
        })
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("limit", &self.limit).finish_non_exhaustive()
    }
}

// === impl Places ===

impl Drop for Places {
    fn drop(&mut self) {
        self.occupied.fetch_sub(self.rows, Ordering::AcqRel);
        self.metrics.dequeued(self.rows);
    }
}

// === impl Worker ===

impl Worker {
    fn run(&mut self) {
        while let Some(batch) = self.next_batch() {
            self.judge(batch);
        }
    }

    /// Waits for a request and joins those that wait already; `None` when no more can come.
    fn next_batch(&mut self) -> Option<Vec<Entry>> {
        let mut batch: Vec<Entry> = Vec::new();
        let mut rows = 0;
        loop {
            let next = match self.left_over.take() {
                Some(entry) => Some(Work::Batched(entry)),
                None if batch.is_empty() => Some(self.receiver.recv().ok()?),
                None => self.receiver.try_recv().ok(),
            };
            let entry = match next {
                None => return Some(batch),
                Some(Work::Batched(entry)) => entry,
                Some(Work::Single(work)) => {
                    work(&*self.judge);
                    continue;
                }
            };
            if entry.reply.is_closed() {
                continue;
            }
            if !batch.is_empty() && rows + entry.places.rows > self.batch_rows {
                self.left_over = Some(entry);
                return Some(batch);
            }
            rows += entry.places.rows;
            batch.push(entry);
        }
    }

    fn judge(&self, batch: Vec<Entry>) {
        let rows = batch.iter().map(|entry| entry.places.rows).sum();
        self.metrics.record_batch(rows);
        let judgements = match batch.as_slice() {
            [single] => self.judgements(&single.values, rows),
            entries => {
                let values: Vec<&[f32]> =
                    entries.iter().map(|entry| entry.values.as_slice()).collect();
                self.judgements(&values.concat(), rows)
            }
        };
        // Without judgements the replies are dropped with the batch, which tells the requests.
        let Some(judgements) = judgements else { return };
        let mut judgements = judgements.into_iter();
        for entry in batch {
            let own = judgements.by_ref().take(entry.places.rows).collect();
            // First, so that who has its answer no longer occupies a place.
            drop(entry.places);
            // Fails when the request is gone.
            let _ = entry.reply.send(own);
        }
    }

    fn judgements(&self, values: &[f32], rows: usize) -> Option<Vec<Judgement>> {
        let judgements = attempt(rows, || self.judge.judge(values))?;
        if judgements.len() != rows {
            tracing::error!(rows, judgements = judgements.len(), "incomplete detection");
            return None;
        }
        Some(judgements)
    }
}

/// The answer, unless there is none; then the log says why.
fn attempt<T>(rows: usize, question: impl FnOnce() -> Result<T, detection::Error>) -> Option<T> {
    // A judge is only read from, so a panic leaves nothing half-written behind.
    match catch_unwind(AssertUnwindSafe(question)) {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => {
            tracing::error!(rows, error = &error as &dyn std::error::Error, "detection failed");
        }
        Err(_) => tracing::error!(rows, "detection panicked"),
    }
    None
}
