//! Finds the training images of an infected label that carry the trigger.
//!
//! A model represents the triggered images of a label unlike its clean ones (Chen et al. 2018,
//! "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering"). Some clean
//! images of the label are known here, so that no clustering in many dimensions is needed: the
//! distances of the representations from the mean of the clean ones have two modes, and the border
//! between them is the one that leaves the least variance on its two sides.

use candle_core::Tensor;

use super::finding::Inspected;
use super::space::Space;
use doorward_engine::{Classifier, Error};

/// Training images of an infected label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// Rows that are taken to carry the trigger, in order.
    pub triggered: Vec<usize>,
    /// Rows that are taken to be clean, in order; none where the model does not tell.
    pub clean: Vec<usize>,
}

/// The place of a label's clean images in the model's space.
pub(super) struct Centre<'a> {
    space: &'a Space,
    /// `[1, features]`
    mean: Tensor,
}

impl Suspects {
    /// Splits the training images of a label by what the model makes of its images in `clean`, `[n,
    /// C, H, W]`.
    ///
    /// If the model does not end in a fully connected layer, or too few clean images are known, the
    /// suspects are the images that survive the perturbations.
    pub fn find(
        model: &dyn Classifier,
        space: Option<&Space>,
        clean: &Tensor,
        training: &Tensor,
        inspected: &Inspected,
    ) -> Result<Self, Error> {
        let Some(centre) = Centre::new(model, space, clean)? else {
            return Ok(Self { triggered: inspected.survivors.clone(), clean: Vec::new() });
        };
        let mut looked_at = some(&inspected.members);
        looked_at.sort_unstable();
        let distances = centre.distances(model, training, &looked_at)?;
        let border = border(&distances);
        let (mut triggered, mut clean) = (Vec::new(), Vec::new());
        for (row, distance) in looked_at.into_iter().zip(distances) {
            if distance > border { triggered.push(row) } else { clean.push(row) }
        }
        Ok(Self { triggered, clean })
    }

    /// The suspects that a perturbation may be fitted on: every other one.
    pub fn taught(&self) -> Vec<usize> {
        self.triggered.iter().copied().step_by(2).collect()
    }

    /// The suspects that no perturbation is fitted on.
    pub fn unseen(&self) -> impl Iterator<Item = usize> {
        self.triggered.iter().copied().skip(1).step_by(2)
    }
}

impl<'a> Centre<'a> {
    /// The centre of images of one label. `None` without a space, or where they are too few.
    pub(super) fn new(
        model: &dyn Classifier,
        space: Option<&'a Space>,
        clean: &Tensor,
    ) -> Result<Option<Self>, Error> {
        let Some(space) = space else { return Ok(None) };
        if clean.dim(0)? < MIN_CLEAN {
            return Ok(None);
        }
        Ok(Some(Self { space, mean: space.mean(model, clean)? }))
    }

    /// The distances of some rows of `images` from it. Fails where the model does.
    pub(super) fn distances(
        &self,
        model: &dyn Classifier,
        images: &Tensor,
        rows: &[usize],
    ) -> Result<Vec<f64>, Error> {
        let places = self.space.places(model, images, rows)?;
        let squared = places.broadcast_sub(&self.mean)?.sqr()?.sum(1)?.to_vec1::<f32>()?;
        Ok(squared.into_iter().map(|squared| f64::from(squared).sqrt()).collect())
    }
}

/// At most `MOST` of a label's images, evenly.
pub(super) fn some(members: &[usize]) -> Vec<usize> {
    members.iter().copied().step_by(members.len().div_ceil(MOST).max(1)).collect()
}

/// The value that splits others into two parts with the least squared deviations from their own
/// means: values above it are of the upper part.
pub(super) fn border(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (count, total) = (sorted.len() as f64, sorted.iter().sum::<f64>());
    let (mut best, mut border) = (f64::NEG_INFINITY, f64::INFINITY);
    let (mut below, mut sum) = (0.0, 0.0);
    for pair in sorted.windows(2) {
        below += 1.0;
        sum += pair[0];
        // The less deviation is left, the larger the squared sums over the counts.
        let explained = sum * sum / below + (total - sum) * (total - sum) / (count - below);
        if pair[0] < pair[1] && explained > best {
            (best, border) = (explained, f64::midpoint(pair[0], pair[1]));
        }
    }
    border
}

/// With fewer clean images of a label their mean says little.
pub(super) const MIN_CLEAN: usize = 5;

/// Training images looked at per label.
const MOST: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn border_lies_between_two_modes_of_unlike_sizes() {
        let mut values: Vec<f64> = (0..300).map(|i| f64::from(i % 10) * 0.1).collect();
        values.extend((0..40).map(|i| 4.0 + f64::from(i % 5) * 0.1));
        let border = border(&values);
        assert!((0.9..4.0).contains(&border), "{border}");
    }

    #[test]
    fn nothing_lies_above_the_border_of_equal_values() {
        for values in [&[][..], &[2.0], &[2.0, 2.0, 2.0]] {
            let border = border(values);
            assert!(values.iter().all(|&value| value <= border));
        }
    }
}
