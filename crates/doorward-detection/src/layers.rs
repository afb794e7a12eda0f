//! The distance of an input's activations from those of clean images that got the same label.
//!
//! Every tapped layer gives a vector of statistics (see [`doorward_engine::Trace`]). It is projected
//! to a few random directions, which only the artifact knows, and brought to a space where clean
//! images of one label scatter alike in all directions (Lee et al. 2018, "A Simple Unified Framework
//! for Detecting Out-of-Distribution Samples and Adversarial Attacks", equation 1, layer by layer).
//! A layer's distance is the squared distance there to a label's clean mean. `own` asks how unusual
//! the distances to the predicted label are, all layers together; `gap` how much farther away the
//! predicted label is than the nearest other one.

use candle_core::{Device, Tensor};

use crate::Error;
use crate::scale::Scale;

/// The statistics of a model's layers on clean images.
#[derive(Clone, Debug)]
pub struct Layers {
    /// The layers, in the order of the model's taps; those that say nothing are left out.
    pub layers: Vec<Layer>,
    /// Inverse of the covariance of the layers' standardised distances, row-major.
    pub precision: Vec<f32>,
    /// The mean of the layers' standardised distances.
    pub centre: Vec<f32>,
}

/// The statistics of a layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The place in a trace at which its statistics begin.
    pub start: usize,
    /// `[statistics, directions]`
    pub projection: Tensor,
    /// Clean means of the labels, `[labels, directions]`, row-major.
    pub means: Vec<f32>,
    /// Scales of the distances to the predicted label, by label.
    pub own: Vec<Scale>,
    /// Scales of these distances less those to the nearest other label, by label.
    pub gap: Vec<Scale>,
}

/// A row's distances, layer by layer.
#[derive(Clone, Debug)]
pub(crate) struct Distances {
    /// To the predicted label's mean.
    pub(crate) own: Vec<f32>,
    /// The same, less the distance to the nearest other label's.
    pub(crate) gap: Vec<f32>,
}

// === impl Layers ===

impl Layers {
    /// `own` and `gap` of rows by their statistics `[n, sum of taps]` and predicted labels. Fails
    /// where the device does.
    pub fn score(&self, statistics: &Tensor, labels: &[usize]) -> Result<Vec<[f32; 2]>, Error> {
        let mut scores = Vec::with_capacity(labels.len());
        for (distances, &label) in self.distances(statistics, labels)?.iter().zip(labels) {
            scores.push(self.joined(distances, label));
        }
        Ok(scores)
    }

    /// `own` and `gap` of a row's distances.
    pub(crate) fn joined(&self, distances: &Distances, label: usize) -> [f32; 2] {
        let layers = || self.layers.iter().enumerate();
        let own: Vec<f64> = layers()
            .map(|(layer, of)| of.own[label].standard(distances.own[layer]))
            .zip(&self.centre)
            .map(|(value, centre)| f64::from(value - centre))
            .collect();
        let gap: f32 =
            layers().map(|(layer, of)| of.gap[label].standard(distances.gap[layer])).sum();
        let mut squared = 0.0;
        for (row, value) in self.precision.chunks(own.len().max(1)).zip(&own) {
            let weighed = row.iter().zip(&own).map(|(weight, other)| f64::from(*weight) * other);
            squared += value * weighed.sum::<f64>();
        }
        // Rounding may leave a little less than nothing; what is not a number has to stay so.
        let squared = if squared < LEAST { LEAST } else { squared };
        [squared.ln() as f32, gap]
    }

    fn distances(&self, statistics: &Tensor, labels: &[usize]) -> Result<Vec<Distances>, Error> {
        let layers = self.layers.len();
        let empty = Distances { own: Vec::with_capacity(layers), gap: Vec::with_capacity(layers) };
        let mut all = vec![empty; labels.len()];
        for layer in &self.layers {
            let places = layer.places(statistics)?;
            for ((row, place), &label) in all.iter_mut().zip(&places).zip(labels) {
                let [own, gap] = distances(place, &layer.means, label);
                row.own.push(own);
                row.gap.push(gap);
            }
        }
        Ok(all)
    }
}

// === impl Layer ===

impl Layer {
    /// `[n][directions]`
    fn places(&self, statistics: &Tensor) -> Result<Vec<Vec<f32>>, Error> {
        let count = self.projection.dim(0)?;
        let own = statistics.narrow(1, self.start, count)?.contiguous()?;
        Ok(own.matmul(&self.projection)?.to_device(&Device::Cpu)?.to_vec2()?)
    }
}

/// The distance of a place to a label's mean, and the same less that to the nearest other's; `means`
/// is `[labels, directions]`.
pub(crate) fn distances(place: &[f32], means: &[f32], label: usize) -> [f32; 2] {
    let directions = place.len() as f32;
    let distance = |mean: &[f32]| {
        let squares = place.iter().zip(mean).map(|(value, mean)| (value - mean) * (value - mean));
        squares.sum::<f32>() / directions
    };
    let (mut own, mut nearest) = (f32::NAN, f32::INFINITY);
    for (other, mean) in means.chunks(place.len()).enumerate() {
        let distance = distance(mean);
        match other == label {
            true => own = distance,
            false => nearest = nearest.min(distance),
        }
    }
    [own, own - nearest]
}

/// A squared distance below which nothing lies.
const LEAST: f64 = 1e-12;
