//! Judges of rows, and their judgements.

use doorward_engine::{InputDomain, OutputKind, Predictions};

use crate::Error;
use crate::row::RowSignals;
use crate::signal::{Scores, Signal};

/// A judge of rows: the detector in the program, a fake in tests of a proxy.
pub trait Judge: Send + Sync + 'static {
    /// The model's input.
    fn domain(&self) -> &InputDomain;

    /// One judgement per row. `rows` holds whole rows of `domain().len()` values, row-major CHW.
    /// Fails where the model does.
    fn judge(&self, rows: &[f32]) -> Result<Vec<Judgement>, Error>;

    /// The same by somebody else's predictions, where this judge can do that.
    fn remote(&self) -> Option<&dyn Remote> {
        None
    }
}

/// A judge that can do with somebody else's predictions.
pub trait Remote: Judge {
    /// The number of labels a prediction is over.
    fn labels(&self) -> usize;

    /// The name of the output with the logits in the model's file.
    fn output_name(&self) -> Option<&str>;

    /// What that output holds.
    fn output_kind(&self) -> OutputKind;

    /// The copies that have to be predicted together with the rows; `None` if this rule's cannot.
    /// Fails where the model does.
    fn copies(&self, rows: &[f32]) -> Result<Option<Copies>, Error>;

    /// One judgement per row by predictions of the rows and, behind them, of the copies. Fails
    /// where the model does.
    fn conclude(
        &self,
        rows: &[f32],
        copies: &Copies,
        predictions: &Predictions,
    ) -> Result<Concluded, Error>;
}

/// The judgement on one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// The label predicted for the unperturbed row.
    pub label: usize,
    /// True if the rule turns the row away.
    pub rejected: bool,
    /// The signals that it was judged by.
    pub scores: Scores,
    /// The distance of the standardised joined score above the calibrated rule's threshold.
    pub joined: Option<f32>,
}

/// Perturbed copies of a request's rows.
#[derive(Clone, Debug)]
pub struct Copies {
    pub(crate) values: Vec<f32>,
    /// The row of each copy, and the signal that it is for.
    pub(crate) of: Vec<(usize, Signal)>,
    /// The local model's word on each row by itself: the label that its copies were made for,
    /// and the signals that take no copy. Empty where the copies do not depend on a label.
    pub(crate) local: Vec<RowSignals>,
}

/// Judgements by somebody else's predictions.
#[derive(Clone, Debug)]
pub struct Concluded {
    /// One per row.
    pub judgements: Vec<Judgement>,
    /// The number of rows had another label than the local model's.
    pub disagreements: usize,
}

// === impl Copies ===

impl Copies {
    /// Number of copies.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// The copies, one after another, row-major CHW.
    pub fn take_values(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.values)
    }
}
