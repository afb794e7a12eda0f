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
use crate::config::Rule;
use crate::perturb::{label, labels, margin};

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

/// Predictions of some rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// A label per row.
    Labels(Vec<usize>),
    /// Logits, or what has their margins, row by row.
    Logits(Vec<Vec<f32>>),
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

// === impl Predictions ===

impl Predictions {
    /// From scores, `labels` a row; `None` if they are not whole rows of finite numbers.
    ///
    /// Rows without a negative number that all add up to one are probabilities.
    pub fn of_scores(values: &[f32], labels: usize) -> Option<Self> {
        if labels < 2 || !values.len().is_multiple_of(labels) {
            return None;
        }
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let rows = values.chunks_exact(labels);
        let adds_up = |row: &[f32]| {
            let sum: f64 = row.iter().map(|&value| f64::from(value)).sum();
            row.iter().all(|&value| value >= 0.0) && (sum - 1.0).abs() < SUM_TOLERANCE
        };
        if !rows.clone().all(adds_up) {
            return Some(Self::Logits(rows.map(<[f32]>::to_vec).collect()));
        }
        let logarithm = |&value: &f32| if value > 0.0 { value.ln() } else { BELOW_ALL };
        Some(Self::Logits(rows.map(|row| row.iter().map(logarithm).collect()).collect()))
    }

    /// From labels; `None` if one is not below `labels`.
    pub fn of_labels(found: Vec<usize>, labels: usize) -> Option<Self> {
        found.iter().all(|&label| label < labels).then_some(Self::Labels(found))
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Labels(labels) => labels.len(),
            Self::Logits(rows) => rows.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn label(&self, row: usize) -> usize {
        match self {
            Self::Labels(labels) => labels[row],
            Self::Logits(rows) => label(&rows[row]),
        }
    }

    /// `m_y` of a row; of a label alone no more than its sign.
    fn margin(&self, row: usize, label: usize) -> f32 {
        match self {
            Self::Labels(labels) if labels[row] == label => 1.0,
            Self::Labels(_) => -1.0,
            Self::Logits(rows) => margin(&rows[row], label),
        }
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

/// Softmax in half precision is off by some thousandths.
const SUM_TOLERANCE: f64 = 0.02;

/// Stands for the logarithm of zero; finite, so that differences are numbers.
const BELOW_ALL: f32 = -1e6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_have_the_margins_of_their_logits() {
        let logits = [[3.0f32, -1.5, 0.25], [0.0, 0.0, -20.0]];
        let softmax: Vec<f32> = logits
            .iter()
            .flat_map(|row| {
                let sum: f32 = row.iter().map(|value| value.exp()).sum();
                row.map(|value| value.exp() / sum)
            })
            .collect();
        let found = Predictions::of_scores(&softmax, 3).unwrap();
        for (row, logits) in logits.iter().enumerate() {
            for label in 0..3 {
                let expected = margin(logits, label);
                assert!((found.margin(row, label) - expected).abs() < 1e-4, "{row} {label}");
            }
        }
        assert_eq!(found.label(1), 0);
    }

    #[test]
    fn a_probability_of_zero_is_further_than_any_threshold_and_still_a_number() {
        let found = Predictions::of_scores(&[1.0, 0.0, 0.0, 0.5, 0.5, 0.0], 3).unwrap();
        assert!(found.margin(0, 0) > 1e5 && found.margin(0, 1) < -1e5);
        assert_eq!(found.margin(0, 1) - found.margin(0, 2), 0.0);
        assert!(found.margin(1, 2) < -1e5);
    }

    #[test]
    fn logits_stay_as_they_are_and_nonsense_is_none() {
        let logits = [0.5f32, 0.75, -0.25, 0.1];
        let expected = Predictions::Logits(vec![vec![0.5, 0.75], vec![-0.25, 0.1]]);
        assert_eq!(Predictions::of_scores(&logits, 2), Some(expected));
        for wrong in [&[f32::NAN, 1.0][..], &[f32::INFINITY, 0.0], &[1.0, 2.0, 3.0]] {
            assert_eq!(Predictions::of_scores(wrong, 2), None, "{wrong:?}");
        }
        assert_eq!(Predictions::of_labels(vec![0, 10], 10), None);
        let labels = Predictions::of_labels(vec![3, 7], 10).unwrap();
        assert_eq!((labels.margin(0, 3), labels.margin(1, 3)), (1.0, -1.0));
    }
}
