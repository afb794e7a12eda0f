//! One input, one verdict.

mod remote;
mod signals;
mod specific;
pub mod strip;
pub mod thresholds;
mod weights;

use std::collections::BTreeSet;

use candle_core::Tensor;

use crate::artifact::Thresholds;
use crate::settings::Rule;
use doorward_engine::InputDomain;

pub use doorward_engine::Predictions;
pub use remote::{Concluded, Copies, Remote};
pub use signals::{Needed, RowSignals, Signals};
pub use specific::{Generator, Left, Specific};
pub use weights::weights;

/// What judges rows: the detector in the program, a fake in tests of the proxy.
pub trait Judge: Send + Sync + 'static {
    /// What the model takes.
    fn domain(&self) -> &InputDomain;

    /// One judgement per row. `rows` holds whole rows of `domain().len()` values, row-major CHW.
    fn judge(&self, rows: &[f32]) -> Result<Vec<Judgement>, Error>;

    /// The same by somebody else's predictions, where this judge can do that.
    fn remote(&self) -> Option<&dyn Remote> {
        None
    }
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
    /// `s_r`, how far along the way to the triggered images of the predicted, infected label the model represents it.
    pub representation: Option<f32>,
    /// How far the standardised joined score lies above the calibrated rule's threshold.
    pub joined: Option<f32>,
}

/// Judges rows by one rule.
pub struct Detector {
    signals: Signals,
    rule: Rule,
    thresholds: Thresholds,
}

/// Why no judgement can be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine failed.
    #[error("the model could not be evaluated")]
    Model(#[from] doorward_engine::Error),
    /// The artifact was made for other rules than STRIP.
    #[error(
        "the artifact holds no overlays for the rule \"strip\": set policy.rule = \"strip\" and run `doorward calibrate`"
    )]
    NoOverlays,
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

// === impl Detector ===

impl Detector {
    /// A detector that follows `rule`.
    pub fn new(signals: Signals, rule: Rule, thresholds: Thresholds) -> Self {
        Self { signals, rule, thresholds }
    }

    /// Whole rows as a batch.
    fn tensor(&self, rows: &[f32]) -> candle_core::Result<Tensor> {
        let [channels, height, width] = self.domain().shape;
        let count = rows.len() / self.domain().len();
        let device = self.signals.model().device();
        Tensor::from_slice(rows, (count, channels, height, width), device)
    }

    /// The labels that inspection named.
    pub fn infected(&self) -> BTreeSet<usize> {
        self.signals.infected().collect()
    }
}

impl Judge for Detector {
    fn domain(&self) -> &InputDomain {
        self.signals.model().domain()
    }

    fn judge(&self, rows: &[f32]) -> Result<Vec<Judgement>, Error> {
        let scored = self.signals.score(&self.tensor(rows)?, needed(self.rule))?;
        Ok(scored.iter().map(|row| apply(self.rule, row, &self.thresholds)).collect())
    }

    fn remote(&self) -> Option<&dyn Remote> {
        Some(self)
    }
}

/// The signals a rule reads.
pub fn needed(rule: Rule) -> Needed {
    match rule {
        Rule::Both | Rule::Either => Needed::UniversalAndPatch,
        Rule::Calibrated => Needed::All,
        Rule::CarliniWagner => Needed::Specific(Generator::CarliniWagner),
        Rule::DeepFool => Needed::Specific(Generator::DeepFool),
        Rule::Patch => Needed::Patch,
        Rule::Pgd => Needed::Specific(Generator::Pgd),
        Rule::Strip => Needed::Strip,
        Rule::Uap => Needed::Universal,
    }
}

/// How far a row's standardised joined score lies above its label's threshold.
pub fn excess(row: &RowSignals, thresholds: &Thresholds) -> f32 {
    excess_of(row.label, row.joined(&thresholds.weights), thresholds)
}

/// The same, of a joined score.
pub fn excess_of(label: usize, joined: f32, thresholds: &Thresholds) -> f32 {
    let label = &thresholds.labels[label];
    (joined - label.location) / label.spread - label.threshold
}

/// The verdict of a rule on a row.
pub fn apply(rule: Rule, row: &RowSignals, thresholds: &Thresholds) -> Judgement {
    let joined = (rule == Rule::Calibrated).then(|| excess(row, thresholds));
    let above = |score: Option<f32>| score.is_some_and(|score| score > 0.0);
    let rejected = match rule {
        Rule::Both => above(row.universal) && above(row.patch),
        Rule::Calibrated => above(joined),
        Rule::CarliniWagner | Rule::DeepFool | Rule::Pgd => above(row.specific),
        Rule::Either => above(row.universal) || above(row.patch),
        Rule::Patch => above(row.patch),
        Rule::Strip => row.strip.is_some_and(|entropy| entropy.low),
        Rule::Uap => above(row.universal),
    };
    let scores = Scores {
        universal: row.universal,
        class_conditional: row.class_conditional,
        patch: row.patch,
        representation: row.representation,
        joined,
    };
    Judgement { label: row.label, rejected, scores }
}
