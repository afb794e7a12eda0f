//! A patch: a mask and a pattern that take the place of a part of an image.

use candle_core::{Result as CandleResult, Tensor};
use doorward_engine::{Batch, Classifier, Error, labels};

/// A mask and a pattern: `x' = (1 - mask) * x + mask * pattern`.
#[derive(Clone, Debug)]
pub struct Patch {
    /// `[1, 1, H, W]` in [0, 1].
    pub mask: Tensor,
    /// `[1, C, H, W]`, inside the input domain.
    pub pattern: Tensor,
}

/// The effect of a patch on the label that its batch names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Rows of the label get another one.
    Leave,
    /// All rows get the label.
    Reach,
}

// === impl Patch ===

impl Patch {
    /// The patched rows.
    pub fn apply(&self, rows: &Tensor) -> CandleResult<Tensor> {
        let kept = rows.broadcast_mul(&self.mask.affine(-1.0, 1.0)?)?;
        kept.broadcast_add(&self.pattern.broadcast_mul(&self.mask)?)
    }

    /// Share of the rows that reach a goal for the labels they come with.
    pub fn reached(&self, model: &dyn Classifier, goal: Goal, batch: &Batch) -> Result<f64, Error> {
        let after = labels(&model.logits(&self.apply(&batch.rows)?)?)?;
        let reached = after.iter().zip(&batch.labels).filter(|&(label, z)| match goal {
            Goal::Leave => label != z,
            Goal::Reach => label == z,
        });
        Ok(reached.count() as f64 / batch.len() as f64)
    }

    /// Share of the rows whose label changes.
    pub fn changed(&self, model: &dyn Classifier, batch: &Batch) -> Result<f64, Error> {
        self.reached(model, Goal::Leave, batch)
    }

    /// `|M|_1` in pixels.
    pub fn mask_l1(&self) -> CandleResult<f64> {
        Ok(f64::from(self.mask.sum_all()?.to_scalar::<f32>()?))
    }
}
