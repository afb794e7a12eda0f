//! One input, one verdict.

use crate::model::InputDomain;

/// What judges rows: the detector in the program, a fake in tests of the proxy.
pub trait Judge: Send + Sync + 'static {
    /// What the model takes.
    fn domain(&self) -> &InputDomain;

    /// One judgement per row. `rows` holds whole rows of `domain().len()` values, row-major CHW.
    fn judge(&self, rows: &[f32]) -> Result<Vec<Judgement>, Error>;
}

/// What detection says of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// The label predicted for the unperturbed row.
    pub label: usize,
    /// Whether the rule turns the row away.
    pub rejected: bool,
    /// What it was judged by.
    pub scores: Scores,
}

/// The signals of one row; larger is more like a trigger. Absent where the rule did not need it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scores {
    /// `s_u`, the margin that is left under the universal perturbation.
    pub universal: Option<f32>,
    /// `s_c`, the margin that is left under the predicted label's own perturbation.
    pub class_conditional: Option<f32>,
    /// `s_p`, how far the patch of the predicted, infected label moves the label.
    pub patch: Option<f32>,
    /// The standardised joined score that the calibrated rule compares with its threshold.
    pub joined: Option<f32>,
}

/// Why no judgement can be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine failed.
    #[error("the model could not be evaluated")]
    Model(#[from] crate::model::Error),
}
