//! The methods that the papers compare with; they are measured, and can be chosen as a rule.
//!
//! Each asks the model much more often than the signals do, and judges a row by itself.

mod carlini_wagner;
mod pgd;
mod specific;
pub mod strip;

use candle_core::Tensor;
use doorward_engine::{Batch, Classifier};

use crate::Error;
use crate::row::{BaselineScore, RowSignals};
pub use carlini_wagner::{CarliniWagner, Nearest, carlini_wagner};
pub use pgd::{Pgd, pgd, random_start};
pub use specific::{Attack, Left, Specific};
pub use strip::Strip;

/// A method to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Baseline {
    /// The margin of the label that Carlini and Wagner's attack leaves.
    CarliniWagner,
    /// The margin that DeepFool leaves.
    DeepFool,
    /// The margin that projected gradient descent leaves.
    Pgd,
    /// The entropy of blends with clean images.
    Strip,
}

/// All that the baselines were given.
#[derive(Clone, Debug)]
pub struct Baselines {
    specific: Specific,
    /// STRIP, where the artifact holds its overlays.
    strip: Option<Strip>,
}

// === impl Baselines ===

impl Baselines {
    /// Without `strip`, that baseline is an error.
    pub fn new(specific: Specific, strip: Option<Strip>) -> Self {
        Self { specific, strip }
    }

    /// Scores rows `[n, C, H, W]`. Fails where the model does, and for STRIP without overlays.
    pub fn score(
        &self,
        baseline: Baseline,
        model: &dyn Classifier,
        rows: &Tensor,
    ) -> Result<Vec<RowSignals>, Error> {
        match baseline {
            Baseline::CarliniWagner => self.attack(Attack::CarliniWagner, model, rows),
            Baseline::DeepFool => self.attack(Attack::DeepFool, model, rows),
            Baseline::Pgd => self.attack(Attack::Pgd, model, rows),
            Baseline::Strip => self.blend(model, rows),
        }
    }

    /// The margin that is left under a perturbation made for each row.
    fn attack(
        &self,
        attack: Attack,
        model: &dyn Classifier,
        rows: &Tensor,
    ) -> Result<Vec<RowSignals>, Error> {
        let batch = Batch::predict(model, rows.clone())?;
        let left = self.specific.attack(attack, model, &batch)?;
        let rows = batch.labels.iter().zip(left).map(|(&label, Left { margin, passes })| {
            let baseline = Some(BaselineScore { score: margin, rejects: margin > 0.0 });
            RowSignals { baseline, forwards: 1 + passes, ..RowSignals::new(label) }
        });
        Ok(rows.collect())
    }

    fn blend(&self, model: &dyn Classifier, rows: &Tensor) -> Result<Vec<RowSignals>, Error> {
        let strip = self.strip.as_ref().ok_or(Error::NoOverlays)?;
        let predicted = Batch::predict(model, rows.clone())?;
        let judged = strip.judge(model, rows)?;
        let rows = predicted.labels.iter().zip(judged).map(|(&label, judged)| RowSignals {
            baseline: Some(judged),
            forwards: 1 + strip.forwards(),
            ..RowSignals::new(label)
        });
        Ok(rows.collect())
    }
}
