//! Judging by predictions that the serving model server makes, of rows and of their perturbed copies
//! in one batch.
//!
//! The copies have to be there before the server has said what the rows' labels are, and which
//! `eta_y` or patch a row gets depends on its label. So the local model predicts the label that copies
//! are made for, and the verdict rests on the server's predictions. Where the server's label is another
//! one, which between two builds of one model happens to rows near a boundary, its copies are of no use:
//! such a row is judged locally, as both labels, and turned away if either judgement says so.
//!
//! Thresholds are fitted to margins of logits. Probabilities are turned into logarithms, which differ
//! from logits by one number a row, so that margins are the same. Of a probability of zero the logarithm
//! is not known, only that it lies below what the datatype holds (-103 for FP32, -17 for FP16): it counts
//! as further away than any threshold. Labels alone have no margins: what survives counts, no threshold.

use candle_core::Tensor;

use super::signals::{Kind, RowSignals};
use super::{Detector, Error, Judge, Judgement, Scores, apply, needed};
use crate::settings::Rule;
use doorward_engine::{Predictions, labels};

/// A judge that can do with somebody else's predictions.
pub trait Remote: Judge {
    /// How many labels a prediction is over.
    fn labels(&self) -> usize;

    /// What the model's file calls the output with the logits.
    fn output_name(&self) -> Option<&str>;

    /// The copies that have to be predicted together with the rows; `None` if this rule's cannot.
    fn copies(&self, rows: &[f32]) -> Result<Option<Copies>, Error>;

    /// One judgement per row by predictions of the rows and, behind them, of the copies.
    fn conclude(
        &self,
        rows: &[f32],
        copies: &Copies,
        predictions: &Predictions,
    ) -> Result<Concluded, Error>;
}

/// Perturbed copies of a request's rows.
#[derive(Clone, Debug)]
pub struct Copies {
    values: Vec<f32>,
    of: Vec<(usize, Kind)>,
    /// What the copies were made for, per row; empty where that does not depend on a label.
    labels: Vec<usize>,
}

/// Judgements by somebody else's predictions.
#[derive(Clone, Debug)]
pub struct Concluded {
    /// One per row.
    pub judgements: Vec<Judgement>,
    /// How many rows had another label than the local model's.
    pub disagreements: usize,
}

// === impl Copies ===

impl Copies {
    /// Number of copies.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// The copies, one after another, row-major CHW.
    pub fn take_values(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.values)
    }
}

// === impl Detector ===

impl Remote for Detector {
    fn labels(&self) -> usize {
        self.signals.model().labels()
    }

    fn output_name(&self) -> Option<&str> {
        self.signals.model().output_name()
    }

    fn copies(&self, rows: &[f32]) -> Result<Option<Copies>, Error> {
        let needed = needed(self.rule);
        if matches!(self.rule, Rule::CarliniWagner | Rule::DeepFool | Rule::Pgd | Rule::Strip) {
            return Ok(None);
        }
        let rows = self.tensor(rows)?;
        let mut copied = self.signals.universal_copies(&rows, needed)?;
        let mut own = Vec::new();
        if self.signals.needs_labels(needed) {
            own = labels(&self.signals.model().logits(&rows)?)?;
            let labelled = self.signals.labelled_copies(&rows, needed, &own)?;
            copied.parts.extend(labelled.parts);
            copied.of.extend(labelled.of);
        }
        let values = match copied.parts.as_slice() {
            [] => Vec::new(),
            parts => Tensor::cat(parts, 0)?.flatten_all()?.to_vec1()?,
        };
        Ok(Some(Copies { values, of: copied.of, labels: own }))
    }

    fn conclude(
        &self,
        rows: &[f32],
        copies: &Copies,
        predictions: &Predictions,
    ) -> Result<Concluded, Error> {
        let count = rows.len() / self.domain().len();
        let mut signals: Vec<RowSignals> =
            (0..count).map(|row| RowSignals::new(predictions.label(row))).collect();
        for (copy, &(row, kind)) in copies.of.iter().enumerate() {
            let margin = predictions.margin(count + copy, signals[row].label);
            signals[row].note(kind, margin);
        }
        if matches!(predictions, Predictions::Logits(_)) {
            // How the model represents a row only the local one tells.
            self.signals.represent(&self.tensor(rows)?, needed(self.rule), &mut signals)?;
        }
        let mut judgements: Vec<Judgement> =
            signals.iter().map(|row| self.apply_remote(row, predictions)).collect();
        let disputed: Vec<usize> = (0..copies.labels.len())
            .filter(|&row| copies.labels[row] != signals[row].label)
            .collect();
        if !disputed.is_empty() {
            self.settle(rows, &disputed, &copies.labels, &mut judgements)?;
        }
        Ok(Concluded { judgements, disagreements: disputed.len() })
    }
}

impl Detector {
    fn apply_remote(&self, row: &RowSignals, predictions: &Predictions) -> Judgement {
        let judgement = apply(self.rule, row, &self.thresholds);
        match predictions {
            Predictions::Logits(_) => judgement,
            // The calibrated rule without thresholds: all that a trigger survives is survived.
            Predictions::Labels(_) => {
                let signals = [row.universal, row.class_conditional, row.patch];
                let survives = signals.into_iter().flatten().all(|signal| signal > 0.0);
                let rejected =
                    if self.rule == Rule::Calibrated { survives } else { judgement.rejected };
                Judgement { label: row.label, rejected, scores: Scores::default() }
            }
        }
    }

    /// Judges rows whose labels are disputed by the local model.
    fn settle(
        &self,
        rows: &[f32],
        disputed: &[usize],
        local: &[usize],
        judgements: &mut [Judgement],
    ) -> Result<(), Error> {
        let length = self.domain().len();
        let some: Vec<f32> = (disputed.iter())
            .flat_map(|&row| rows[row * length..(row + 1) * length].iter().copied())
            .collect();
        let some = self.tensor(&some)?;
        let served: Vec<usize> = disputed.iter().map(|&row| judgements[row].label).collect();
        let local: Vec<usize> = disputed.iter().map(|&row| local[row]).collect();
        let judge = |labels: &[usize]| -> Result<Vec<Judgement>, Error> {
            let scored = self.signals.score_as(&some, needed(self.rule), labels)?;
            Ok(scored.iter().map(|row| apply(self.rule, row, &self.thresholds)).collect())
        };
        for ((&row, served), local) in disputed.iter().zip(judge(&served)?).zip(judge(&local)?) {
            judgements[row] = Judgement { rejected: served.rejected || local.rejected, ..served };
        }
        Ok(())
    }
}
