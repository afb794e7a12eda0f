//! The verdicts of the last hour, minute by minute.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::numbers::{Counts, time};
use crate::telemetry::metrics::Metrics;

/// The requests that ended in one minute.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Minute {
    pub(super) end: String,
    pub(super) verdicts: Counts,
}

/// The last minutes' verdicts.
#[derive(Debug)]
pub(in crate::server) struct History(Mutex<Past>);

#[derive(Debug)]
struct Past {
    minutes: VecDeque<Minute>,
    /// The counters as the last of them ended.
    counted: Counts,
}

/// The length of the history.
pub(super) const MINUTES: usize = 60;

// === impl History ===

impl History {
    /// Nothing yet.
    pub(in crate::server) fn new(metrics: &Metrics) -> Self {
        Self(Mutex::new(Past { minutes: VecDeque::new(), counted: metrics.verdicts() }))
    }

    /// Looks at the counters once a minute, as long as somebody else holds the history.
    pub(in crate::server) async fn run(history: Weak<Self>, metrics: Arc<Metrics>) {
        loop {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let Some(history) = history.upgrade() else { return };
            history.past().end_minute(&metrics);
        }
    }

    pub(super) fn minutes(&self) -> Vec<Minute> {
        self.past().minutes.iter().cloned().collect()
    }

    /// The counts of the minute that is not over.
    pub(super) fn minute_so_far(&self, metrics: &Metrics) -> Counts {
        self.past().since(&metrics.verdicts())
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Past ===

impl Past {
    fn end_minute(&mut self, metrics: &Metrics) {
        let counted = metrics.verdicts();
        let verdicts = self.since(&counted);
        if self.minutes.len() == MINUTES {
            self.minutes.pop_front();
        }
        self.minutes.push_back(Minute { end: time(SystemTime::now()), verdicts });
        self.counted = counted;
    }

    fn since(&self, now: &Counts) -> Counts {
        let more = |(verdict, count): (&&'static str, &u64)| {
            (*verdict, count.saturating_sub(*self.counted.get(verdict).unwrap_or(&0)))
        };
        now.iter().map(more).collect()
    }
}
