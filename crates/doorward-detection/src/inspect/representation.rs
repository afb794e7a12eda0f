//! Between a label's clean images and those that carry its trigger, as the model represents them.
//!
//! A triggered image lies apart from the label's clean ones in the space that the last layer sees
//! (Chen et al. 2018, "Detecting Backdoor Attacks on Deep Neural Networks by Activation
//! Clustering"), also where the trigger is spread over the image and survives no perturbation.

use candle_core::Tensor;

use super::space::Space;
use super::suspects::MIN_CLEAN;
use crate::representation::Representation;
use doorward_engine::{Classifier, Error};

impl Representation {
    /// From images of a label, `[n, C, H, W]` each. `None` where they are too few to tell the
    /// places apart.
    pub fn learn(
        model: &dyn Classifier,
        space: &Space,
        clean: &Tensor,
        triggered: &Tensor,
    ) -> Result<Option<Self>, Error> {
        if clean.dim(0)? < MIN_CLEAN || triggered.dim(0)? == 0 {
            return Ok(None);
        }
        let clean = space.mean(model, clean)?;
        let difference = (space.mean(model, triggered)? - &clean)?;
        let direction = space.separating(&difference)?;
        let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let (clean, difference, direction) = (flat(&clean)?, flat(&difference)?, flat(&direction)?);
        Ok(Self::along(&clean, &difference, &direction, &space.scale()?))
    }

    /// Along `direction`, from a place to another one which differs by `difference`, in a space
    /// where features are multiplied by `scale`. `None` where they do not differ.
    fn along(clean: &[f32], difference: &[f32], direction: &[f32], scale: &[f32]) -> Option<Self> {
        let products = difference.iter().zip(direction);
        let length: f64 = products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        (length > 0.0).then(|| Self {
            clean: clean.iter().zip(scale).map(|(place, scale)| place / scale).collect(),
            way: direction
                .iter()
                .zip(scale)
                .map(|(&way, &scale)| (f64::from(way) / length * f64::from(scale)) as f32)
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_the_share_of_the_way_and_blind_to_what_lies_across() {
        let difference = [2.0, 0.0, 4.0];
        let way =
            Representation::along(&[1.0, 2.0, 0.0], &difference, &difference, &[1.0; 3]).unwrap();
        let score = |features: [f32; 3]| (way.score(&features) * 1e6).round() / 1e6;
        assert_eq!(score([1.0, 2.0, 0.0]), 0.0);
        assert_eq!(score([3.0, 2.0, 4.0]), 1.0);
        // Half of the way, and one across it.
        assert_eq!(score([2.0, 9.0, 2.0]), 0.5);
        assert_eq!(score([-1.0, 2.0, -4.0]), -1.0);
    }

    #[test]
    fn what_scatters_more_counts_less() {
        // The second feature deviates ten times as much; in units of that the triggered mean is as
        // far in both.
        let way =
            Representation::along(&[1.0, 1.0], &[1.0, 1.0], &[1.0, 1.0], &[1.0, 0.1]).unwrap();
        assert_eq!(way.clean, [1.0, 10.0]);
        assert_eq!(way.score(&[2.0, 20.0]), 1.0);
        assert_eq!([way.score(&[2.0, 10.0]), way.score(&[1.0, 20.0])], [0.5, 0.5]);
    }

    #[test]
    fn along_another_direction_the_triggered_mean_is_at_one_all_the_same() {
        let way = Representation::along(&[0.0, 0.0], &[1.0, 1.0], &[1.0, 0.25], &[1.0; 2]).unwrap();
        assert_eq!([way.score(&[1.0, 1.0]), way.score(&[0.0, 1.0])], [1.0, 0.2]);
        assert_eq!(Representation::along(&[1.0], &[0.0], &[0.0], &[1.0]), None);
    }
}
