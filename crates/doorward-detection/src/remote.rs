//! Judging by predictions that the serving model server makes, of rows and of their perturbed
//! copies in one batch.
//!
//! The copies have to be there before the server has said what the rows' labels are, and which
//! `eta_y` or patch a row gets depends on its label. So the local model predicts the label that
//! copies are made for, and the verdict rests on the server's predictions. Where the server's label
//! is another one, which between two builds of one model happens to rows near a boundary, its
//! copies are of no use: such a row is judged locally, as both labels, and turned away if either
//! judgement says so.
//!
//! Thresholds are fitted to margins of logits. Probabilities are turned into logarithms, which
//! differ from logits by one number a row, so that margins are the same. Of a probability of zero
//! the logarithm is not known, only that it lies below what the datatype holds (-103 for FP32, -17
//! for FP16): it counts as further away than any threshold. Labels alone have no margins: what
//! survives counts, no threshold.

use candle_core::Tensor;
use doorward_engine::{OutputKind, Predictions};

use crate::Error;
use crate::detector::Detector;
use crate::judge::{Concluded, Copies, Judge, Judgement, Remote};
use crate::row::RowSignals;
use crate::rule::Rule;
use crate::signal::{Scores, Signal};

impl Remote for Detector {
    fn labels(&self) -> usize {
        self.scorer.model().labels()
    }

    fn output_name(&self) -> Option<&str> {
        self.scorer.model().output_name()
    }

    fn output_kind(&self) -> OutputKind {
        self.scorer.model().output_kind()
    }

    fn copies(&self, rows: &[f32]) -> Result<Option<Copies>, Error> {
        if self.rule.is_baseline() {
            return Ok(None);
        }
        let needs = self.rule.needs();
        let rows = self.tensor(rows)?;
        let mut copied = self.scorer.universal_copies(&rows, needs)?;
        let mut local = Vec::new();
        if self.scorer.needs_labels(needs) {
            local = self.scorer.score_alone(&rows, needs)?;
            let assumed: Vec<usize> = local.iter().map(|row| row.label).collect();
            let labelled = self.scorer.labelled_copies(&rows, needs, &assumed)?;
            copied.parts.extend(labelled.parts);
            copied.of.extend(labelled.of);
        }
        let values = match copied.parts.as_slice() {
            [] => Vec::new(),
            parts => Tensor::cat(parts, 0)?.flatten_all()?.to_vec1()?,
        };
        Ok(Some(Copies { values, of: copied.of, local }))
    }

    fn conclude(
        &self,
        rows: &[f32],
        copies: &Copies,
        predictions: &Predictions,
    ) -> Result<Concluded, Error> {
        let count = rows.len() / self.domain().len();
        let disputed: Vec<usize> = (0..copies.local.len())
            .filter(|&row| copies.local[row].label != predictions.label(row))
            .collect();
        let mut signals: Vec<RowSignals> =
            (0..count).map(|row| RowSignals::new(predictions.label(row))).collect();
        if matches!(predictions, Predictions::Logits(_)) {
            // How the model represents a row only the local one tells; rows of another label are
            // judged once more below.
            for (row, local) in signals.iter_mut().zip(&copies.local) {
                row.scores = local.scores;
                row.undefined = local.undefined;
            }
        }
        for (copy, &(row, signal)) in copies.of.iter().enumerate() {
            let margin = predictions.margin(count + copy, signals[row].label);
            signals[row].note(signal, margin);
        }
        self.scorer.join(&mut signals);
        let mut judgements: Vec<Judgement> =
            signals.iter().map(|row| self.apply_remote(row, predictions)).collect();
        if !disputed.is_empty() {
            self.settle(rows, &disputed, &copies.local, &mut judgements)?;
        }
        Ok(Concluded { judgements, disagreements: disputed.len() })
    }
}

impl Detector {
    fn apply_remote(&self, row: &RowSignals, predictions: &Predictions) -> Judgement {
        let judgement = self.apply(row);
        match predictions {
            Predictions::Logits(_) => judgement,
            // The calibrated rule without thresholds: all that a trigger survives is survived.
            Predictions::Labels(_) => {
                let copied = [Signal::Universal, Signal::ClassConditional, Signal::Patch];
                let scores = copied.into_iter().filter_map(|signal| row.scores[signal]);
                let survives = scores.into_iter().all(|score| score > 0.0);
                let rejected =
                    if self.rule == Rule::Calibrated { survives } else { judgement.rejected };
                Judgement { label: row.label, rejected, scores: Scores::default(), joined: None }
            }
        }
    }

    /// Judges rows whose labels are disputed by the local model.
    fn settle(
        &self,
        rows: &[f32],
        disputed: &[usize],
        local: &[RowSignals],
        judgements: &mut [Judgement],
    ) -> Result<(), Error> {
        let length = self.domain().len();
        let some: Vec<f32> = (disputed.iter())
            .flat_map(|&row| rows[row * length..(row + 1) * length].iter().copied())
            .collect();
        let some = self.tensor(&some)?;
        let served: Vec<usize> = disputed.iter().map(|&row| judgements[row].label).collect();
        let local: Vec<usize> = disputed.iter().map(|&row| local[row].label).collect();
        let judge = |labels: &[usize]| -> Result<Vec<Judgement>, Error> {
            let scored = self.scorer.score_as(&some, self.rule.needs(), labels)?;
            Ok(scored.iter().map(|row| self.apply(row)).collect())
        };
        for ((&row, served), local) in disputed.iter().zip(judge(&served)?).zip(judge(&local)?) {
            judgements[row] = Judgement { rejected: served.rejected || local.rejected, ..served };
        }
        Ok(())
    }
}
