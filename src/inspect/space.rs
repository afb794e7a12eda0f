//! Where a model puts images.
//!
//! What the last layer sees, each feature in units of its deviation among clean images of one label: features differ
//! in scale, and a direction in which clean images of a label scatter says less than one in which they do not (Lee et al.
//! 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", equation 1,
//! with a diagonal covariance: a few hundred images do not tell that of hundreds of features).

use candle_core::{DType, Tensor};

use crate::model::{Classifier, Error};
use crate::perturb::{Batch, gather};

/// The space of a model's representations.
#[derive(Clone, Debug)]
pub struct Space {
    /// `[1, features]`, one over the deviations.
    scale: Tensor,
}

impl Space {
    /// From clean images of all labels, with their predicted labels. `None` where the model does not end in a fully connected layer, or
    /// its features are the same for all images of a label.
    pub fn new(model: &dyn Classifier, clean: &Batch) -> Result<Option<Self>, Error> {
        let mut squares = Vec::new();
        let mut freedom = 0;
        for label in 0..model.labels() {
            let members = clean.members(label);
            if members.len() < 2 {
                continue;
            }
            let Some(features) = features(model, &clean.rows, &members)? else { return Ok(None) };
            let deviations = features.broadcast_sub(&features.mean_keepdim(0)?)?;
            squares.push(deviations.sqr()?.sum_keepdim(0)?);
            freedom += members.len() - 1;
        }
        if squares.is_empty() {
            return Ok(None);
        }
        let variances = (Tensor::cat(&squares, 0)?.sum_keepdim(0)? / freedom as f64)?;
        let mean = f64::from(variances.mean_all()?.to_scalar::<f32>()?);
        if mean.is_nan() || mean <= 0.0 {
            return Ok(None);
        }
        Ok(Some(Self { scale: (variances + SHRINKAGE * mean)?.sqrt()?.recip()? }))
    }

    /// Where it puts some rows of `images`: `[rows, features]`.
    pub(super) fn places(
        &self,
        model: &dyn Classifier,
        images: &Tensor,
        rows: &[usize],
    ) -> Result<Tensor, Error> {
        match features(model, images, rows)? {
            Some(features) => Ok(features.broadcast_mul(&self.scale)?),
            // There is a space, so there are no rows.
            None => Ok(Tensor::zeros((0, self.scale.dim(1)?), DType::F32, images.device())?),
        }
    }

    /// Where it puts the mean of `images`, `[n, C, H, W]` with n above 0: `[1, features]`.
    pub(super) fn mean(&self, model: &dyn Classifier, images: &Tensor) -> Result<Tensor, Error> {
        let all: Vec<usize> = (0..images.dim(0)?).collect();
        Ok(self.places(model, images, &all)?.mean_keepdim(0)?)
    }

    /// One over the deviations of the features.
    pub(super) fn scale(&self) -> Result<Vec<f32>, Error> {
        Ok(self.scale.flatten_all()?.to_vec1()?)
    }
}

/// Of some rows of `images`, as the model computes them. `None` of no rows, or where it does not end in a fully connected layer.
fn features(
    model: &dyn Classifier,
    images: &Tensor,
    rows: &[usize],
) -> Result<Option<Tensor>, Error> {
    let mut found = Vec::with_capacity(rows.len().div_ceil(AT_ONCE));
    for rows in rows.chunks(AT_ONCE) {
        let Some(features) = model.features(&gather(images, rows)?)? else { return Ok(None) };
        found.push(features);
    }
    Ok(if found.is_empty() { None } else { Some(Tensor::cat(&found, 0)?) })
}

/// Images whose representations are computed at a time.
const AT_ONCE: usize = 128;

/// What is added to the variances, as a share of their mean.
const SHRINKAGE: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::super::tests::{LABELS, Weighed, batch};
    use super::*;

    #[test]
    fn features_are_in_units_of_their_deviations_within_a_label() {
        // Of labels 0 and 1 one pixel each varies, by 0.1 and 0.4 around unlike means.
        let clean = batch(&[(0, 0.4), (0, 0.6), (0, 0.5), (1, 2.0), (1, 2.8), (1, 2.4)]);
        let model = Weighed::new([1.0; LABELS]);
        let space = Space::new(&model, &clean).unwrap().unwrap();
        let variances = [0.02 / 4.0, 0.32 / 4.0, 0.0, 0.0, 0.0];
        let mean = variances.iter().sum::<f64>() / 5.0;
        for (scale, variance) in space.scale().unwrap().iter().zip(variances) {
            let expected = (variance + 0.1 * mean).sqrt().recip();
            assert!((f64::from(*scale) / expected - 1.0).abs() < 1e-5, "{scale} {expected}");
        }
        let places = space.places(&model, &clean.rows, &[4]).unwrap().to_vec2::<f32>().unwrap();
        assert!((f64::from(places[0][1]) - 2.8 / (0.08 + 0.1 * mean).sqrt()).abs() < 1e-4);
        assert_eq!(space.places(&model, &clean.rows, &[]).unwrap().dims(), [0, LABELS]);
    }

    #[test]
    fn there_is_no_space_where_nothing_varies() {
        let model = Weighed::new([1.0; LABELS]);
        for rows in [&[][..], &[(0, 0.5)], &[(0, 0.5), (0, 0.5), (1, 0.7)]] {
            assert!(Space::new(&model, &batch(rows)).unwrap().is_none(), "{rows:?}");
        }
    }
}
