//! One pass over clean images, for everything that is fitted to what it tells of their activations.

use candle_core::Tensor;
use doorward_engine::{Classifier, labels, rows};
use rand::Rng;
use rand::rngs::StdRng;

use crate::Error;

/// What a pass tells of images.
pub(super) struct Activations {
    /// The predicted labels.
    pub(super) predicted: Vec<usize>,
    /// The layers' statistics in random directions; empty where the model has no activation to
    /// read, or none that differs among images.
    pub(super) layers: Vec<Projected>,
    /// What the last layer sees, `[images, features]`, row-major; empty where the model does not
    /// tell.
    pub(super) features: Vec<f32>,
}

/// The projection of a layer, before its covariance is known.
pub(super) struct Projected {
    pub(super) start: usize,
    /// `[statistics, directions]`
    pub(super) projection: Tensor,
    pub(super) directions: usize,
    /// `[images, directions]`, row-major.
    pub(super) places: Vec<f32>,
}

/// Reads clean images, bytes of the model's shape. Fails where the model does.
pub(super) fn read(
    model: &dyn Classifier,
    images: &[&[u8]],
    rng: &mut StdRng,
    progress: &dyn Fn(f64),
) -> Result<Activations, Error> {
    let taps = model.taps();
    let mut read = Activations { predicted: Vec::new(), layers: Vec::new(), features: Vec::new() };
    for some in images.chunks(AT_ONCE) {
        let batch = rows(model.domain(), some.iter().copied(), model.device())?;
        let trace = model.trace(&batch)?;
        if let Some(statistics) = &trace.statistics {
            if read.predicted.is_empty() {
                read.layers = project(&taps, statistics, rng)?;
            }
            for layer in &mut read.layers {
                let count = layer.projection.dim(0)?;
                let own = statistics.narrow(1, layer.start, count)?.contiguous()?;
                let places = own.matmul(&layer.projection)?;
                layer.places.extend(places.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        if let Some(features) = &trace.features {
            read.features.extend(features.flatten_all()?.to_vec1::<f32>()?);
        }
        read.predicted.extend(labels(&trace.logits)?);
        progress(read.predicted.len() as f64 / images.len() as f64);
    }
    Ok(read)
}

/// Random directions among the statistics of each layer, in units of their deviations among the
/// first images; what does not vary has no say.
fn project(taps: &[usize], first: &Tensor, rng: &mut StdRng) -> Result<Vec<Projected>, Error> {
    let mean = first.mean_keepdim(0)?;
    let deviations = first.broadcast_sub(&mean)?.sqr()?.mean(0)?.sqrt()?.to_vec1::<f32>()?;
    let mean = mean.flatten_all()?.to_vec1::<f32>()?;
    let mut projected = Vec::with_capacity(taps.len());
    let mut start = 0;
    for &count in taps {
        let varies =
            |at: &usize| deviations[*at] > LEAST_DEVIATION.max(LEAST_SHARE * mean[*at].abs());
        let varying: Vec<usize> = (start..start + count).filter(varies).collect();
        let directions = varying.len().min(DIRECTIONS);
        let mut projection = vec![0f32; count * directions];
        for (number, &at) in varying.iter().enumerate() {
            let row = &mut projection[(at - start) * directions..][..directions];
            if varying.len() == directions {
                row[number] = 1.0 / deviations[at];
                continue;
            }
            let weight = 1.0 / deviations[at] / (varying.len() as f32).sqrt();
            row.fill_with(|| if rng.random::<bool>() { weight } else { -weight });
        }
        if directions > 0 {
            let projection = Tensor::from_vec(projection, (count, directions), first.device())?;
            projected.push(Projected { start, projection, directions, places: Vec::new() });
        }
        start += count;
    }
    Ok(projected)
}

/// Images that go through the model at once.
const AT_ONCE: usize = 128;

/// Random directions of a layer: with 32 the artifact of a ResNet-50 with 1,000 labels keeps to some
/// megabytes, and little is lost.
pub(super) const DIRECTIONS: usize = 32;

/// A statistic that varies less is taken to be constant...
const LEAST_DEVIATION: f32 = 1e-9;

/// ...as is one whose deviation is rounding, as a share of its mean.
const LEAST_SHARE: f32 = 1e-5;

/// Parts of the images; each is scored by the others.
pub(super) const FOLDS: usize = 5;
