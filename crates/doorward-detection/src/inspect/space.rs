//! The space in which a model represents images.
//!
//! A place is what the last layer sees, each feature in units of its deviation among clean images
//! of one label: features differ in scale, and a direction in which clean images of a label scatter
//! says less than one in which they do not (Lee et al. 2018, "A Simple Unified Framework for
//! Detecting Out-of-Distribution Samples and Adversarial Attacks", equation 1, with a diagonal
//! covariance: a few hundred images do not tell that of hundreds of features). Only the direction
//! between two places also takes into account how features deviate together.

use candle_core::{DType, Tensor};

use doorward_engine::{Batch, Classifier, Error, gather};

/// The space of a model's representations.
#[derive(Clone, Debug)]
pub struct Space {
    /// `[1, features]`, one over the deviations.
    scale: Tensor,
    /// `[images, features]`: how far the images lie from their labels' means, divided such that the
    /// square of this is the covariance within a label.
    within: Tensor,
}

impl Space {
    /// From clean images of all labels, with their predicted labels. `None` where the model does
    /// not end in a fully connected layer, or its features are the same for all images of a label.
    pub fn new(model: &dyn Classifier, clean: &Batch) -> Result<Option<Self>, Error> {
        let mut deviations = Vec::new();
        let mut freedom = 0;
        for label in 0..model.labels() {
            let members = clean.members(label);
            if members.len() < 2 {
                continue;
            }
            let Some(features) = features(model, &clean.rows, &members)? else { return Ok(None) };
            deviations.push(features.broadcast_sub(&features.mean_keepdim(0)?)?);
            freedom += members.len() - 1;
        }
        if deviations.is_empty() {
            return Ok(None);
        }
        let within = (Tensor::cat(&deviations, 0)? / (freedom as f64).sqrt())?;
        let variances = within.sqr()?.sum_keepdim(0)?;
        let mean = f64::from(variances.mean_all()?.to_scalar::<f32>()?);
        if mean.is_nan() || mean <= 0.0 {
            return Ok(None);
        }
        let scale = (variances + SHRINKAGE * mean)?.sqrt()?.recip()?;
        Ok(Some(Self { within: within.broadcast_mul(&scale)?, scale }))
    }

    /// The direction that best separates two places which differ by `difference`, `[1, features]`,
    /// when images scatter around both as around the labels' means.
    ///
    /// Fisher's linear discriminant, with a covariance halfway to a diagonal one (Schaefer and
    /// Strimmer 2005, "A Shrinkage Approach to Large-Scale Covariance Matrix Estimation"): `x` of
    /// `(S + I) x = difference`, by conjugate gradients.
    pub(super) fn separating(&self, difference: &Tensor) -> Result<Tensor, Error> {
        let dot = |a: &Tensor, b: &Tensor| -> Result<f64, Error> {
            Ok((a * b)?.sum_all()?.to_scalar::<f32>()?.into())
        };
        let mut found = difference.zeros_like()?;
        let (mut left, mut along) = (difference.clone(), difference.clone());
        let mut remaining = dot(&left, &left)?;
        let enough = remaining * TOLERANCE * TOLERANCE;
        for _ in 0..MOST_STEPS {
            if remaining <= enough {
                break;
            }
            let scattered = along.matmul(&self.within.t()?)?.matmul(&self.within)?;
            let image = (scattered + &along)?;
            let step = remaining / dot(&along, &image)?;
            found = (found + (&along * step)?)?;
            left = (left - (image * step)?)?;
            let next = dot(&left, &left)?;
            along = (&left + (along * (next / remaining))?)?;
            remaining = next;
        }
        Ok(found)
    }

    /// The places of some rows of `images`: `[rows, features]`. Fails where the model does.
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

    /// The place of the mean of `images`, `[n, C, H, W]` with n above 0: `[1, features]`. Fails
    /// where the model does.
    pub(super) fn mean(&self, model: &dyn Classifier, images: &Tensor) -> Result<Tensor, Error> {
        let all: Vec<usize> = (0..images.dim(0)?).collect();
        Ok(self.places(model, images, &all)?.mean_keepdim(0)?)
    }

    /// One over the deviations of the features.
    pub(super) fn scale(&self) -> Result<Vec<f32>, Error> {
        Ok(self.scale.flatten_all()?.to_vec1()?)
    }
}

/// The features of some rows of `images`, as the model computes them. `None` of no rows, or where
/// it does not end in a fully connected layer.
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

/// The share of their mean that is added to the variances.
const SHRINKAGE: f64 = 0.1;

/// A direction is found when what is left of the difference is this share of it.
const TOLERANCE: f64 = 1e-4;

/// Steps of conjugate gradients; victims of 90 to 512 features took 13 to 22.
const MOST_STEPS: usize = 100;

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
    fn what_deviates_together_counts_less_than_what_deviates_alone() {
        // Pixels 0 and 1 deviate together, pixel 2 alone.
        let rows = [(0.1, 0.1, 0.2), (-0.1, -0.1, 0.2), (0.1, 0.1, -0.2), (-0.1, -0.1, -0.2)];
        let values: Vec<f32> =
            rows.iter().flat_map(|&(a, b, c)| [3.0 + a, 1.0 + b, c, 0.0, 0.0]).collect();
        let images =
            Tensor::from_vec(values, (4, 1, 1, LABELS), &candle_core::Device::Cpu).unwrap();
        let model = Weighed::new([1.0; LABELS]);
        let space = Space::new(&model, &Batch::predict(&model, images).unwrap()).unwrap().unwrap();
        let difference =
            Tensor::new(&[[1f32, 1.0, 1.0, 1.0, 1.0]], &candle_core::Device::Cpu).unwrap();
        let found = space.separating(&difference).unwrap().to_vec2::<f32>().unwrap();
        // Variances 0.04 / 3 of the first two, 0.16 / 3 of the third, and 0 of what does not move.
        let (both, alone) = (0.04f64 / 3.0, 0.16 / 3.0);
        let added = 0.1 * (2.0 * both + alone) / 5.0;
        let together = 1.0 / (1.0 + 2.0 * both / (both + added));
        let expected = [together, together, 1.0 / (1.0 + alone / (alone + added)), 1.0, 1.0];
        for (found, expected) in found[0].iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn there_is_no_space_where_nothing_varies() {
        let model = Weighed::new([1.0; LABELS]);
        for rows in [&[][..], &[(0, 0.5)], &[(0, 0.5), (0, 0.5), (1, 0.7)]] {
            assert!(Space::new(&model, &batch(rows)).unwrap().is_none(), "{rows:?}");
        }
    }
}
