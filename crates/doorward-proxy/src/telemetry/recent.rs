//! The last requests that the rule turned away, for the status page: what the audit log says of
//! them, as far as it is short and holds nothing of the input.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use super::outcome::Outcome;

/// A request with rows that the rule turns away, in either mode.
#[derive(Clone, Debug)]
pub struct Rejection {
    /// When it ended.
    pub time: SystemTime,
    /// The id that the client and the upstream saw.
    pub request_id: String,
    /// The wire format.
    pub protocol: &'static str,
    /// Its end.
    pub verdict: &'static str,
    /// The number of of its rows were turned away, by predicted label.
    pub labels: BTreeMap<usize, usize>,
    /// The number of rows it had.
    pub rows: usize,
}

/// The newest ones.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<Rejection>);

/// As many as a page shows.
const KEPT: usize = 10;

// === impl Recent ===

impl Recent {
    pub(super) fn note(&mut self, outcome: &Outcome<'_>) {
        let mut labels = BTreeMap::new();
        for judgement in outcome.judgements.iter().filter(|judgement| judgement.rejected) {
            *labels.entry(judgement.label).or_default() += 1;
        }
        self.0.truncate(KEPT - 1);
        self.0.push_front(Rejection {
            time: SystemTime::now(),
            request_id: outcome.request_id.to_owned(),
            protocol: outcome.protocol.label(),
            verdict: outcome.verdict.label(),
            labels,
            rows: outcome.rows,
        });
    }

    pub(super) fn newest(&self) -> Vec<Rejection> {
        self.0.iter().cloned().collect()
    }
}
