//! Fitting the statistics of a model's layers.

use std::collections::HashMap;

use candle_core::Tensor;

use super::activations::{Activations, FOLDS, Projected};
use crate::Error;
use crate::layers::{Distances, Layer, Layers, distances};
use crate::linear::{inverse, shrink, whitening};
use crate::scale::{Scale, scales};

/// Fitted statistics, and what they say of the images that they were fitted on.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    pub(super) layers: Layers,
    /// `own` and `gap` of every image, by statistics of the others.
    pub(super) scores: Vec<[f32; 2]>,
}

/// The statistics of one layer on some of the images.
struct Moments {
    /// `[labels, directions]`
    means: Vec<f32>,
    /// `[directions, directions]`, see [`whitening`].
    whitening: Vec<f64>,
}

/// Fits the statistics to what clean images gave. `None` where there are no layers, or too few
/// images.
pub(super) fn fit(read: &Activations, labels: usize) -> Result<Option<Fitted>, Error> {
    let Activations { predicted, layers: projected, .. } = read;
    if projected.is_empty() || predicted.len() < 2 * FOLDS {
        return Ok(None);
    }
    let among = held_out_distances(projected, predicted, labels);
    let layers = projected
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let all: Vec<usize> = (0..predicted.len()).collect();
            let Moments { means, whitening } = moments(layer, &all, predicted, labels);
            let scale_of = |of: fn(&Distances) -> &Vec<f32>| -> Vec<Scale> {
                let values = among.iter().zip(predicted);
                let values: Vec<(usize, f32)> =
                    values.map(|(row, &label)| (label, of(row)[index])).collect();
                scales(labels, &values)
            };
            let n = layer.directions;
            let transposed: Vec<f32> =
                (0..n * n).map(|i| whitening[i % n * n + i / n] as f32).collect();
            let whitening = Tensor::from_vec(transposed, (n, n), layer.projection.device())?;
            Ok(Layer {
                start: layer.start,
                projection: layer.projection.matmul(&whitening)?,
                means,
                own: scale_of(|row| &row.own),
                gap: scale_of(|row| &row.gap),
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let mut layers = Layers { centre: vec![0.0; layers.len()], precision: Vec::new(), layers };
    (layers.centre, layers.precision) = one_class(&layers, &among, predicted);
    let scores = among.iter().zip(predicted);
    let scores = scores.map(|(row, &label)| layers.joined(row, label)).collect();
    Ok(Some(Fitted { layers, scores }))
}

/// Every image's distances by moments of images that it is not among.
fn held_out_distances(
    projected: &[Projected],
    predicted: &[usize],
    labels: usize,
) -> Vec<Distances> {
    let empty = Distances { own: Vec::new(), gap: Vec::new() };
    let mut all = vec![empty; predicted.len()];
    for layer in projected {
        let n = layer.directions;
        for fold in 0..FOLDS {
            let others: Vec<usize> =
                (0..predicted.len()).filter(|image| image % FOLDS != fold).collect();
            let Moments { means, whitening } = moments(layer, &others, predicted, labels);
            for image in (fold..predicted.len()).step_by(FOLDS) {
                let place = white(&layer.places[image * n..][..n], &whitening);
                let [own, gap] = distances(&place, &means, predicted[image]);
                all[image].own.push(own);
                all[image].gap.push(gap);
            }
        }
    }
    all
}

/// Means by label and the covariance within a label, of some images. A label of few images has
/// nearly the mean of all.
fn moments(layer: &Projected, images: &[usize], predicted: &[usize], labels: usize) -> Moments {
    let n = layer.directions;
    let place = |image: usize| &layer.places[image * n..][..n];
    let mut total = vec![0f64; n];
    let mut sums = vec![0f64; labels * n];
    let mut counts: HashMap<usize, f64> = HashMap::new();
    for &image in images {
        *counts.entry(predicted[image]).or_default() += 1.0;
        for (i, &value) in place(image).iter().enumerate() {
            total[i] += f64::from(value);
            sums[predicted[image] * n + i] += f64::from(value);
        }
    }
    for label in 0..labels {
        let count = counts.get(&label).copied().unwrap_or_default();
        for (sum, total) in sums[label * n..][..n].iter_mut().zip(&total) {
            *sum = (*sum + PRIOR_IMAGES * total / images.len() as f64) / (count + PRIOR_IMAGES);
        }
    }
    let mut covariance = vec![0f64; n * n];
    for &image in images {
        let mean = &sums[predicted[image] * n..][..n];
        let off: Vec<f64> =
            place(image).iter().zip(mean).map(|(value, mean)| f64::from(*value) - mean).collect();
        for row in 0..n {
            for column in 0..n {
                covariance[row * n + column] += off[row] * off[column] / images.len() as f64;
            }
        }
    }
    shrink(&mut covariance, n, SHRINKAGE, RIDGE);
    let whitening = whitening(&covariance, n);
    let means = sums.chunks(n).flat_map(|mean| {
        let mean: Vec<f32> = mean.iter().map(|value| *value as f32).collect();
        white(&mean, &whitening)
    });
    Moments { means: means.collect(), whitening }
}

/// `whitening * place`
fn white(place: &[f32], whitening: &[f64]) -> Vec<f32> {
    let row = |row: &[f64]| -> f64 {
        row.iter().zip(place).map(|(weight, value)| weight * f64::from(*value)).sum()
    };
    whitening.chunks(place.len()).map(|weights| row(weights) as f32).collect()
}

/// Mean and inverse covariance of the layers' standardised distances to the predicted label.
fn one_class(layers: &Layers, among: &[Distances], predicted: &[usize]) -> (Vec<f32>, Vec<f32>) {
    let n = layers.layers.len();
    let standard = |row: &Distances, label: usize, layer: usize| -> f64 {
        layers.layers[layer].own[label].standard(row.own[layer]).into()
    };
    let vectors: Vec<Vec<f64>> = among
        .iter()
        .zip(predicted)
        .map(|(row, &label)| (0..n).map(|layer| standard(row, label, layer)).collect())
        .collect();
    let count = vectors.len() as f64;
    let centre: Vec<f64> =
        (0..n).map(|i| vectors.iter().map(|vector| vector[i]).sum::<f64>() / count).collect();
    let mut covariance = vec![0f64; n * n];
    for vector in &vectors {
        for row in 0..n {
            for column in 0..n {
                let product = (vector[row] - centre[row]) * (vector[column] - centre[column]);
                covariance[row * n + column] += product / count;
            }
        }
    }
    shrink(&mut covariance, n, SHRINKAGE_OF_LAYERS, RIDGE);
    let precision = inverse(&covariance, n);
    let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    (narrow(centre), narrow(precision))
}

/// Images' worth of weight that the mean of all images has in a label's.
const PRIOR_IMAGES: f64 = 3.0;

/// The share of the covariances between directions that is left away...
const SHRINKAGE: f64 = 0.3;

/// ...and between layers.
const SHRINKAGE_OF_LAYERS: f64 = 0.2;

/// The share of the mean variance that is added to every one.
const RIDGE: f64 = 1e-3;

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use doorward_engine::{Classifier, Cotangent, InputDomain, Trace, labels, rows};
    use rand::Rng;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::activations::{DIRECTIONS, read};
    use super::*;

    /// The first three pixels are logits; the first 38 are statistics of one layer, which is more
    /// than there are directions, four more are of another, and the last of a third.
    struct Pixels(InputDomain);

    const TAPS: [usize; 3] = [38, 4, 1];
    const PIXELS: usize = 43;

    impl Pixels {
        fn new() -> Self {
            let (lower, upper) = (vec![0.0], vec![1.0]);
            let shape = [1, 1, PIXELS];
            Self(InputDomain { shape, lower, upper, channels_last: false, fp32: true })
        }
    }

    impl Classifier for Pixels {
        fn domain(&self) -> &InputDomain {
            &self.0
        }

        fn labels(&self) -> usize {
            3
        }

        fn device(&self) -> &Device {
            &Device::Cpu
        }

        fn logits(&self, batch: &Tensor) -> Result<Tensor, doorward_engine::Error> {
            Ok(batch.reshape(((), PIXELS))?.narrow(1, 0, 3)?.contiguous()?)
        }

        fn logits_and_gradient(
            &self,
            batch: &Tensor,
            _: &Cotangent<'_>,
        ) -> Result<(Tensor, Tensor), doorward_engine::Error> {
            Ok((self.logits(batch)?, batch.zeros_like()?))
        }

        fn taps(&self) -> Vec<usize> {
            TAPS.to_vec()
        }

        fn trace(&self, batch: &Tensor) -> Result<Trace, doorward_engine::Error> {
            let statistics = Some(batch.reshape(((), PIXELS))?);
            Ok(Trace { logits: self.logits(batch)?, features: None, statistics })
        }
    }

    /// Images of three labels, each with a place of its own; the last pixel is the same in all.
    fn images(count: usize) -> Vec<Vec<u8>> {
        let mut rng = StdRng::seed_from_u64(4);
        let image = |label: usize| -> Vec<u8> {
            let mut image: Vec<u8> = (0..PIXELS)
                .map(|at| if at % 3 == label { 150 } else { 50 })
                .map(|mean: u8| mean + rng.random_range(0..40))
                .collect();
            image[PIXELS - 1] = 77;
            image
        };
        (0..count).map(|index| index % 3).map(image).collect()
    }

    fn fitted(images: &[Vec<u8>]) -> Option<Fitted> {
        let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
        let mut rng = StdRng::seed_from_u64(1);
        let model = Pixels::new();
        fit(&read(&model, &images, &mut rng, &|_| {}).unwrap(), model.labels()).unwrap()
    }

    fn score(layers: &Layers, image: &[u8]) -> [f32; 2] {
        let model = Pixels::new();
        let batch = rows(model.domain(), std::iter::once(image), &Device::Cpu).unwrap();
        let trace = model.trace(&batch).unwrap();
        let labels = labels(&trace.logits).unwrap();
        layers.score(&trace.statistics.unwrap(), &labels).unwrap()[0]
    }

    #[test]
    fn activations_of_another_label_stand_out() {
        let fitted = fitted(&images(300)).expect("layers");
        // The third layer is constant, and left out.
        assert_eq!(fitted.layers.layers.len(), 2);
        assert_eq!(fitted.layers.layers[0].projection.dims(), [38, DIRECTIONS]);
        assert_eq!(fitted.layers.layers[1].projection.dims(), [4, 4]);
        let [own, gap] = [0, 1].map(|signal| {
            let scores = fitted.scores.iter().map(|scores| scores[signal]);
            scores.fold(f32::NEG_INFINITY, f32::max)
        });
        // Predicted as label 0 by its logits, and like label 1 in all that follows.
        let mut triggered = images(2)[1].clone();
        triggered[..3].copy_from_slice(&[200, 60, 60]);
        let [own_of_it, gap_of_it] = score(&fitted.layers, &triggered);
        assert!(own_of_it > own, "{own_of_it}, clean ones up to {own}");
        assert!(gap_of_it > gap, "{gap_of_it}, clean ones up to {gap}");
        // An unseen clean image does not.
        let [own_of_it, gap_of_it] = score(&fitted.layers, &images(301)[300]);
        assert!(own_of_it < own && gap_of_it < gap);
    }

    #[test]
    fn images_are_scored_by_the_others() {
        let images = images(300);
        let fitted = fitted(&images).expect("layers");
        let mean =
            |scores: &mut dyn Iterator<Item = f32>| scores.sum::<f32>() / images.len() as f32;
        let held_out = mean(&mut fitted.scores.iter().map(|[own, _]| *own));
        let seen = mean(&mut images.iter().map(|image| score(&fitted.layers, image)[0]));
        assert!(held_out > seen, "{held_out} and {seen}");
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let fitted = fitted(&images(60)).expect("layers");
        let mut statistics = vec![0.3f32; PIXELS];
        statistics[5] = f32::NAN;
        let statistics = Tensor::from_vec(statistics, (1, PIXELS), &Device::Cpu).unwrap();
        let [own, gap] = fitted.layers.score(&statistics, &[0]).unwrap()[0];
        assert!(own.is_nan() && gap.is_nan());
    }

    #[test]
    fn what_never_varies_has_no_statistics() {
        let one = images(1);
        assert!(fitted(&vec![one[0].clone(); 60]).is_none());
        assert!(fitted(&images(2 * FOLDS - 1)).is_none());
    }
}
