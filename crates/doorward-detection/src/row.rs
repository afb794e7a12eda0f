//! One row with what it was judged by.

use crate::signal::{Scores, Signal};

/// A row's prediction and its signals.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSignals {
    /// `y`, the label predicted for the unperturbed row.
    pub label: usize,
    /// The signals that were asked for.
    pub scores: Scores,
    /// The signals as one score, where all lines of evidence were asked for.
    pub joined: Option<Joined>,
    /// True if the model answered with what is no number: there is no verdict but to turn the row
    /// away.
    pub undefined: bool,
    /// The score of a baseline, where one was asked.
    pub baseline: Option<BaselineScore>,
    /// Passes through the model this row took, forward and backward.
    pub forwards: usize,
}

/// A row's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Joined {
    /// The predicted label.
    pub label: usize,
    /// The sum of the lines' surprises.
    pub evidence: f32,
    /// The weighted sum of the signals, where the label has weights.
    pub weighed: Option<f32>,
}

/// The score of a row by a baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BaselineScore {
    /// Larger is more like a trigger.
    pub score: f32,
    /// True if it turns the row away.
    pub rejects: bool,
}

// === impl RowSignals ===

impl RowSignals {
    /// A row predicted as `label`.
    pub fn new(label: usize) -> Self {
        Self { label, forwards: 1, ..Self::default() }
    }

    /// A copy of the row that was perturbed for `signal`, predicted, has this margin `m_y`. Of
    /// several copies the least signal counts.
    pub fn note(&mut self, signal: Signal, margin: f32) {
        // A patch speaks of a trigger where it moves the label away, a perturbation where it does
        // not.
        let value = if signal == Signal::Patch { -margin } else { margin };
        self.undefined |= margin.is_nan();
        let score = &mut self.scores[signal];
        *score = Some(score.map_or(value, |least| least.min(value)));
        self.forwards += 1;
    }
}
