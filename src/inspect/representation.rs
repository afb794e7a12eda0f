//! Between a label's clean images and those that carry its trigger, as the model represents them.
//!
//! What the last layer sees of a triggered image lies apart from what it sees of the label's clean ones (Chen et al.
//! 2018, "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering"), also where the trigger is
//! spread over the image and survives no perturbation.

use candle_core::Tensor;

use super::space::Space;
use super::suspects::MIN_CLEAN;
use crate::model::{Classifier, Error};

/// A direction among representations, and where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Representation {
    /// The mean of the label's clean images.
    pub clean: Vec<f32>,
    /// What the features count along the way from there to the mean of those that carry the trigger.
    pub way: Vec<f32>,
}

impl Representation {
    /// From images of a label, `[n, C, H, W]` each. `None` where they are too few to tell the places apart.
    pub fn learn(
        model: &dyn Classifier,
        space: &Space,
        clean: &Tensor,
        triggered: &Tensor,
    ) -> Result<Option<Self>, Error> {
        if clean.dim(0)? < MIN_CLEAN || triggered.dim(0)? == 0 {
            return Ok(None);
        }
        let mean = |images: &Tensor| -> Result<Vec<f32>, Error> {
            Ok(space.mean(model, images)?.flatten_all()?.to_vec1()?)
        };
        let (clean, triggered) = (mean(clean)?, mean(triggered)?);
        if clean == triggered {
            return Ok(None);
        }
        Ok(Some(Self::between(&clean, &triggered, &space.scale()?)))
    }

    /// Of two places in a space where features are multiplied by `scale`.
    fn between(clean: &[f32], triggered: &[f32], scale: &[f32]) -> Self {
        let ways = clean
            .iter()
            .zip(triggered)
            .map(|(&clean, &triggered)| f64::from(triggered) - f64::from(clean));
        let length: f64 = ways.clone().map(|way| way * way).sum();
        Self {
            clean: clean.iter().zip(scale).map(|(place, scale)| place / scale).collect(),
            way: ways
                .zip(scale)
                .map(|(way, &scale)| (way / length * f64::from(scale)) as f32)
                .collect(),
        }
    }

    /// `s_r`, how far along the way from the clean mean to the triggered one a representation lies: 0 at the one, 1 at
    /// the other.
    pub fn score(&self, features: &[f32]) -> f32 {
        let from_clean = features.iter().zip(&self.clean).map(|(feature, clean)| feature - clean);
        let along = from_clean.zip(&self.way).map(|(far, way)| f64::from(far) * f64::from(*way));
        along.sum::<f64>() as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_the_share_of_the_way_and_blind_to_what_lies_across() {
        let way = Representation::between(&[1.0, 2.0, 0.0], &[3.0, 2.0, 4.0], &[1.0; 3]);
        let score = |features: [f32; 3]| (way.score(&features) * 1e6).round() / 1e6;
        assert_eq!(score([1.0, 2.0, 0.0]), 0.0);
        assert_eq!(score([3.0, 2.0, 4.0]), 1.0);
        // Half of the way, and one across it.
        assert_eq!(score([2.0, 9.0, 2.0]), 0.5);
        assert_eq!(score([-1.0, 2.0, -4.0]), -1.0);
    }

    #[test]
    fn what_scatters_more_counts_less() {
        // The second feature deviates ten times as much; in units of that the triggered mean is as far in both.
        let way = Representation::between(&[1.0, 1.0], &[2.0, 2.0], &[1.0, 0.1]);
        assert_eq!(way.clean, [1.0, 10.0]);
        assert_eq!(way.score(&[2.0, 20.0]), 1.0);
        assert_eq!([way.score(&[2.0, 10.0]), way.score(&[1.0, 20.0])], [0.5, 0.5]);
    }
}
