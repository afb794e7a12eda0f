//! Fitting the ranges of a model's features.

use super::activations::{Activations, FOLDS};
use crate::ranges::Ranges;
use crate::stats::median;

/// Fitted ranges, and what they say of the images that they were fitted on.
pub(super) struct Fitted {
    pub(super) ranges: Ranges,
    /// `range` of every image, by ranges of the others.
    pub(super) scores: Vec<f32>,
}

/// Fits the ranges to what clean images gave. `None` where the model does not tell its features, or
/// there are too few images.
pub(super) fn fit(read: &Activations, labels: usize) -> Option<Fitted> {
    let count = read.predicted.len();
    if read.features.is_empty() || count < 2 * FOLDS {
        return None;
    }
    let width = read.features.len() / count;
    let mut scores = vec![0.0; count];
    for fold in 0..FOLDS {
        let others: Vec<usize> = (0..count).filter(|image| image % FOLDS != fold).collect();
        let ranges = of(read, &others, labels);
        for image in (fold..count).step_by(FOLDS) {
            let features = &read.features[image * width..][..width];
            scores[image] = ranges.score(features, read.predicted[image]);
        }
    }
    let all: Vec<usize> = (0..count).collect();
    Some(Fitted { ranges: of(read, &all, labels), scores })
}

/// The ranges of some of the images.
fn of(read: &Activations, images: &[usize], labels: usize) -> Ranges {
    let width = read.features.len() / read.predicted.len();
    let everywhere = bounds(read, images, width);
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for label in 0..labels {
        let own: Vec<usize> =
            images.iter().copied().filter(|&image| read.predicted[image] == label).collect();
        let known = (own.len() >= FEWEST).then(|| bounds(read, &own, width));
        for &[least, most] in known.as_ref().unwrap_or(&everywhere) {
            low.push(least);
            high.push(most);
        }
    }
    let sum: f64 = read.features.iter().map(|feature| f64::from(feature.abs())).sum();
    let mean = (sum / read.features.len() as f64) as f32;
    Ranges { low, high, floor: (FLOOR * mean).max(f32::MIN_POSITIVE) }
}

/// The range of each feature over some of the images.
fn bounds(read: &Activations, images: &[usize], width: usize) -> Vec<[f32; 2]> {
    let bounds = |feature: usize| {
        let of = images.iter().map(|image| f64::from(read.features[image * width + feature]));
        let values: Vec<f64> = of.collect();
        let middle = median(&values);
        let deviations: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
        let reach = DEVIATIONS * median(&deviations);
        [(middle - reach) as f32, (middle + reach) as f32]
    };
    (0..width).map(bounds).collect()
}

/// Median absolute deviations from the median to a bound: Beatrix's.
const DEVIATIONS: f64 = 10.0;

/// A label with fewer images has the range of all.
const FEWEST: usize = 5;

/// What is added to a bound, as a share of the mean feature.
const FLOOR: f32 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    /// Label 0 uses the first feature, label 1 the second, and label 2 is seen twice.
    fn read() -> Activations {
        let predicted: Vec<usize> = (0..42).map(|i| if i < 40 { i % 2 } else { 2 }).collect();
        let features = predicted.iter().enumerate().flat_map(|(i, &label)| {
            let used = 2.0 + (i / 2 % 5) as f32 / 10.0;
            if label == 0 { [used, 0.0] } else { [0.0, used] }
        });
        Activations { features: features.collect(), layers: Vec::new(), predicted }
    }

    #[test]
    fn a_label_has_the_range_of_its_own_images() {
        let Fitted { ranges, scores } = fit(&read(), 3).expect("ranges");
        assert_eq!([ranges.low[1], ranges.high[1]], [0.0, 0.0]);
        assert_eq!([ranges.low[2], ranges.high[2]], [0.0, 0.0]);
        assert!((ranges.low[0] - 1.2).abs() < 1e-5 && (ranges.high[0] - 3.2).abs() < 1e-5);
        // Two images are no range: label 2 has that of all images.
        let all: Vec<usize> = (0..42).collect();
        let low: Vec<f32> = bounds(&read(), &all, 2).iter().map(|[low, _]| *low).collect();
        assert_eq!(ranges.low[4..], low);
        // What label 0 never uses stands out from all that was seen of clean images.
        let stranger = ranges.score(&[2.2, 0.1], 0);
        assert!(scores.iter().all(|&score| score < stranger - 5.0), "{scores:?}, {stranger}");
    }

    #[test]
    fn too_little_is_no_range() {
        let Activations { predicted, features, .. } = read();
        let few = |count: usize| Activations {
            predicted: predicted[..count].to_vec(),
            layers: Vec::new(),
            features: features[..2 * count].to_vec(),
        };
        assert!(fit(&few(2 * FOLDS), 3).is_some());
        assert!(fit(&few(2 * FOLDS - 1), 3).is_none());
        assert!(fit(&Activations { features: Vec::new(), ..few(20) }, 3).is_none());
    }
}
