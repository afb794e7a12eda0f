//! Perturbations of clean images, and what they do to a classifier's margins.
//!
//! A radius `epsilon` is a share of the full pixel range: 8/255 moves a pixel by at most eight grey
//! levels, whatever the model's normalisation.

mod adam;
mod carlini_wagner;
mod deepfool;
mod pgd;
mod separating;
mod uap;
mod uap_deepfool;

use candle_core::Tensor;

pub use doorward_engine::{
    Batch, Bounds, gather, label, labels, margin, margin_cotangent, margins, rows,
};
use doorward_engine::{Classifier, Error};

pub(crate) use adam::Adam;
pub use carlini_wagner::{CarliniWagner, Nearest, carlini_wagner};
pub use deepfool::{DeepFool, Fooling, deepfool};
pub use pgd::{Pgd, pgd, random_start};
pub use separating::separating;
pub use uap::{Search, Universal, class_conditional, several, universal};
pub use uap_deepfool::universal_by_deepfool;

/// Which rows keep their label under a perturbation that broadcasts over them.
pub fn kept(
    model: &dyn Classifier,
    batch: &Batch,
    perturbation: &Tensor,
) -> Result<Vec<bool>, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let after = labels(&model.logits(&bounds.moved(&batch.rows, perturbation)?)?)?;
    Ok(after.iter().zip(&batch.labels).map(|(label, original)| label == original).collect())
}

/// Share of rows whose label changes under a perturbation that broadcasts over them.
pub fn fooling_rate(
    model: &dyn Classifier,
    batch: &Batch,
    perturbation: &Tensor,
) -> Result<f64, Error> {
    let kept = kept(model, batch, perturbation)?.into_iter().filter(|kept| *kept).count();
    Ok(1.0 - kept as f64 / batch.labels.len() as f64)
}
