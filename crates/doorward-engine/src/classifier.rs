//! All that perturbations, inspections and detections ask of a model.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::domain::InputDomain;
use crate::error::Error;
use crate::onnx::ending::OutputKind;

/// A differentiable classifier of images.
///
/// [`Model`][crate::Model] is one; a test can write another.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use doorward_engine::{Classifier, Cotangent, Error, InputDomain};
///
/// /// The sum of an image is the logit of label 0, the negative sum that of label 1.
/// struct Sum(InputDomain);
///
/// impl Classifier for Sum {
///     fn domain(&self) -> &InputDomain {
///         &self.0
///     }
///     fn labels(&self) -> usize {
///         2
///     }
///     fn device(&self) -> &Device {
///         &Device::Cpu
///     }
///     fn logits(&self, batch: &Tensor) -> Result<Tensor, Error> {
///         let sums = batch.flatten_from(1)?.sum_keepdim(1)?;
///         Ok(Tensor::cat(&[&sums, &sums.neg()?], 1)?)
///     }
///     fn logits_and_gradient(
///         &self,
///         batch: &Tensor,
///         cotangent: &Cotangent<'_>,
///     ) -> Result<(Tensor, Tensor), Error> {
///         let logits = self.logits(batch)?;
///         let rows = cotangent(0..batch.dim(0)?, &logits)?;
///         let slopes = (rows.narrow(1, 0, 1)? - rows.narrow(1, 1, 1)?)?;
///         Ok((logits, slopes.reshape(((), 1, 1, 1))?.broadcast_as(batch.shape())?.contiguous()?))
///     }
/// }
/// ```
pub trait Classifier: Send + Sync {
    /// The input that the classifier takes.
    fn domain(&self) -> &InputDomain;

    /// Number of labels.
    fn labels(&self) -> usize;

    /// The output's name in the model file, if there is a file.
    fn output_name(&self) -> Option<&str> {
        None
    }

    /// What that output holds; the classifier itself gives logits in any case.
    fn output_kind(&self) -> OutputKind {
        OutputKind::Logits
    }

    /// The device that inputs and outputs are on.
    fn device(&self) -> &Device;

    /// The logits of a batch: `f(x)`, `[n, C, H, W] -> [n, labels]`.
    ///
    /// Fails if rows are not of the domain's shape, or if the device fails.
    fn logits(&self, batch: &Tensor) -> Result<Tensor, Error>;

    /// The logits, and the gradient to the input of `sum(logits * cotangent)`.
    ///
    /// The batch is cut into parts that run in parallel; `cotangent` is asked for each with the
    /// rows it stands for and their logits, and returns as many rows of `[labels]`.
    ///
    /// Fails as [`Classifier::logits`] does, if an operator has no gradient, or if `cotangent`
    /// fails.
    fn logits_and_gradient(
        &self,
        batch: &Tensor,
        cotangent: &Cotangent<'_>,
    ) -> Result<(Tensor, Tensor), Error>;

    /// The number of statistics that [`Classifier::trace`] has of each activation that it reads, in
    /// the order of the layers; empty where it reads none.
    fn taps(&self) -> Vec<usize> {
        Vec::new()
    }

    /// The logits, with what the forward pass tells beside them.
    ///
    /// Fails as [`Classifier::logits`] does.
    fn trace(&self, batch: &Tensor) -> Result<Trace, Error> {
        let features = self.features(batch)?;
        Ok(Trace { logits: self.logits(batch)?, features, statistics: None })
    }

    /// The representations that the last layer sees, `[n, features]`; `None` where the model does
    /// not end in a fully connected layer.
    ///
    /// Fails as [`Classifier::logits`] does.
    fn features(&self, batch: &Tensor) -> Result<Option<Tensor>, Error> {
        let _ = batch;
        Ok(None)
    }
}

/// All that is read of one forward pass.
#[derive(Clone, Debug)]
pub struct Trace {
    /// `[n, labels]`
    pub logits: Tensor,
    /// The representations that the last layer sees, `[n, features]`; `None` where the model does
    /// not end in a fully connected layer.
    pub features: Option<Tensor>,
    /// Mean, standard deviation and maximum of the channels of each tapped activation, layer after
    /// layer: `[n, sum of taps]`; `None` where there is no activation to read.
    pub statistics: Option<Tensor>,
}

// === impl Trace ===

impl Trace {
    /// The traces of the parts of a batch as one.
    pub(crate) fn join(parts: &[Self]) -> Result<Self, Error> {
        let all = |of: fn(&Self) -> Option<&Tensor>| {
            let parts: Option<Vec<&Tensor>> = parts.iter().map(of).collect();
            parts.map(|parts| Tensor::cat(&parts, 0)).transpose()
        };
        let logits: Vec<&Tensor> = parts.iter().map(|part| &part.logits).collect();
        Ok(Self {
            logits: Tensor::cat(&logits, 0)?,
            features: all(|part| part.features.as_ref())?,
            statistics: all(|part| part.statistics.as_ref())?,
        })
    }
}

/// The gradient that [`Classifier::logits_and_gradient`] begins with: a function of a range of rows
/// and of their logits.
///
/// ```
/// use doorward_engine::{Cotangent, margin_cotangent};
///
/// let toward_label_3: &Cotangent<'_> =
///     &|rows, logits| margin_cotangent(logits, &vec![3; rows.len()], |_| 1.0);
/// # let _ = toward_label_3;
/// ```
pub type Cotangent<'a> = dyn Fn(Range<usize>, &Tensor) -> candle_core::Result<Tensor> + Sync + 'a;
