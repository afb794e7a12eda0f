//! All that perturbations, inspections and detections ask of a model.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::domain::InputDomain;
use crate::error::Error;

/// A differentiable classifier of images.
pub trait Classifier: Send + Sync {
    /// What it takes.
    fn domain(&self) -> &InputDomain;

    /// Number of labels.
    fn labels(&self) -> usize;

    /// What its file calls its output, where there is a file.
    fn output_name(&self) -> Option<&str> {
        None
    }

    /// Where its tensors live.
    fn device(&self) -> &Device;

    /// `f(x)`: `[n, C, H, W] -> [n, labels]`.
    fn logits(&self, batch: &Tensor) -> Result<Tensor, Error>;

    /// The logits, and the gradient to the input of `sum(logits * cotangent)`.
    ///
    /// The batch is cut into parts that run in parallel; `cotangent` is asked for each with the
    /// rows it stands for and their logits, and returns as many rows of `[labels]`.
    fn logits_and_gradient(
        &self,
        batch: &Tensor,
        cotangent: &Cotangent<'_>,
    ) -> Result<(Tensor, Tensor), Error>;

    /// The representations that the last layer sees, `[n, features]`; `None` where the model does not
    /// end in a fully connected layer.
    fn features(&self, batch: &Tensor) -> Result<Option<Tensor>, Error> {
        let _ = batch;
        Ok(None)
    }
}

/// See [`Classifier::logits_and_gradient`].
pub type Cotangent<'a> = dyn Fn(Range<usize>, &Tensor) -> candle_core::Result<Tensor> + Sync + 'a;
