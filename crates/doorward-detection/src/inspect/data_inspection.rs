//! Data inspection, a baseline that DTInspector is compared with in its table 5.
//!
//! An infected label's confident images carry the trigger and its others do not, and the model may
//! represent them differently: per label the Kullback-Leibler divergence between the averaged
//! representations of both, from the layer before the last, made distributions by a softmax.

use candle_core::Tensor;

use crate::stats::low_anomaly_indices;
use doorward_engine::{Classifier, Error, gather};

/// The difference between a label's most and least confident samples as the model represents them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Diverging {
    /// The label.
    pub label: usize,
    /// From the most to the least confident ones, nats.
    pub divergence: f64,
    /// Its distance above the other labels', in scaled median absolute deviations.
    pub anomaly_index: f64,
    /// True if that is above the threshold.
    pub infected: bool,
}

/// Compares labels, each with the rows of its most and of its least confident samples in
/// `training`.
///
/// `None` where the model does not end in a fully connected layer.
pub fn data_inspection<'a>(
    model: &dyn Classifier,
    training: &Tensor,
    splits: impl Iterator<Item = (usize, &'a [usize], &'a [usize])>,
    threshold: f64,
) -> Result<Option<Vec<Diverging>>, Error> {
    let mut found = Vec::new();
    for (label, top, bottom) in splits {
        let (Some(top), Some(bottom)) =
            (representation(model, training, top)?, representation(model, training, bottom)?)
        else {
            return Ok(None);
        };
        let divergence = top.iter().zip(&bottom).map(|(p, q)| p.exp() * (p - q)).sum();
        found.push(Diverging { label, divergence, anomaly_index: 0.0, infected: false });
    }
    let below: Vec<f64> = found.iter().map(|diverging| -diverging.divergence).collect();
    for (diverging, index) in found.iter_mut().zip(low_anomaly_indices(&below, MAD_FLOOR)) {
        diverging.anomaly_index = index;
        diverging.infected = index > threshold;
    }
    Ok(Some(found))
}

/// The logarithm of the softmax of the mean representation of some rows.
fn representation(
    model: &dyn Classifier,
    training: &Tensor,
    rows: &[usize],
) -> Result<Option<Vec<f64>>, Error> {
    let Some(features) = model.features(&gather(training, rows)?)? else { return Ok(None) };
    let mean: Vec<f64> = features.mean(0)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
    let most = mean.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = mean.iter().map(|value| (value - most).exp()).sum();
    Ok(Some(mean.iter().map(|value| value - most - sum.ln()).collect()))
}

/// Nats; keeps equal divergences apart from a division by zero.
const MAD_FLOOR: f64 = 1e-9;
