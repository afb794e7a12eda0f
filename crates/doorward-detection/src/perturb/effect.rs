//! The effect of a perturbation on the labels of rows.

use candle_core::Tensor;
use doorward_engine::{Batch, Bounds, Classifier, Error, labels};

/// Tells which rows keep their label under a perturbation that broadcasts over them.
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
