//! The judge of the program: a scorer, a rule and its thresholds.

use std::collections::BTreeSet;

use candle_core::Tensor;
use doorward_engine::InputDomain;

use crate::Error;
use crate::conformal::Thresholds;
use crate::judge::{Judge, Judgement, Remote};
use crate::row::RowSignals;
use crate::rule::Rule;
use crate::scorer::Scorer;
use crate::signal::PerSignal;

/// Judges rows by one rule.
pub struct Detector {
    pub(crate) scorer: Scorer,
    pub(crate) rule: Rule,
    thresholds: Thresholds,
}

// === impl Detector ===

impl Detector {
    /// A detector that follows `rule`.
    pub fn new(scorer: Scorer, rule: Rule, thresholds: Thresholds) -> Self {
        Self { scorer, rule, thresholds }
    }

    /// The labels that inspection named.
    pub fn infected(&self) -> BTreeSet<usize> {
        self.scorer.infected().collect()
    }

    /// Whole rows as a batch.
    pub(crate) fn tensor(&self, rows: &[f32]) -> candle_core::Result<Tensor> {
        let [channels, height, width] = self.domain().shape;
        let count = rows.len() / self.domain().len();
        let device = self.scorer.model().device();
        Tensor::from_slice(rows, (count, channels, height, width), device)
    }

    /// The verdict on a row.
    pub(crate) fn apply(&self, row: &RowSignals) -> Judgement {
        let excess = |joined| self.thresholds.excess(&joined);
        let joined = row.joined.filter(|_| self.rule == Rule::Calibrated).map(excess);
        let rejected = self.rule.rejects(row, &self.thresholds);
        let finite = |score: &f32| score.is_finite();
        let scores = PerSignal::from_fn(|signal| row.scores[signal].filter(finite));
        Judgement { label: row.label, rejected, scores, joined: joined.filter(finite) }
    }
}

impl Judge for Detector {
    fn domain(&self) -> &InputDomain {
        self.scorer.model().domain()
    }

    fn judge(&self, rows: &[f32]) -> Result<Vec<Judgement>, Error> {
        let scored = self.scorer.score(&self.tensor(rows)?, self.rule.needs())?;
        Ok(scored.iter().map(|row| self.apply(row)).collect())
    }

    fn remote(&self) -> Option<&dyn Remote> {
        Some(self)
    }
}
