//! Between a label's clean images and those that carry its trigger, as the model represents them.
//!
//! What the last layer sees of a triggered image lies apart from what it sees of the label's clean ones (Chen et al.
//! 2018, "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering"), also where the trigger is
//! spread over the image and survives no perturbation.

use candle_core::Tensor;

use super::suspects::{AT_ONCE, MIN_CLEAN};
use crate::model::{Classifier, Error};

/// Two places in the space of representations.
#[derive(Clone, Debug, PartialEq)]
pub struct Representation {
    /// The mean of the label's clean images.
    pub clean: Vec<f32>,
    /// The mean of those that carry the trigger.
    pub triggered: Vec<f32>,
}

impl Representation {
    /// From images of a label, `[n, C, H, W]` each. `None` where the model does not end in a fully connected layer, or
    /// the images are too few to tell the places apart.
    pub fn learn(
        model: &dyn Classifier,
        clean: &Tensor,
        triggered: &Tensor,
    ) -> Result<Option<Self>, Error> {
        if clean.dim(0)? < MIN_CLEAN || triggered.dim(0)? == 0 {
            return Ok(None);
        }
        let (Some(clean), Some(triggered)) = (mean(model, clean)?, mean(model, triggered)?) else {
            return Ok(None);
        };
        Ok((clean != triggered).then_some(Self { clean, triggered }))
    }

    /// `s_r`, how far along the way from the clean mean to the triggered one a representation lies: 0 at the one, 1 at
    /// the other.
    pub fn score(&self, features: &[f32]) -> f32 {
        let (mut along, mut length) = (0.0, 0.0);
        for ((feature, clean), triggered) in features.iter().zip(&self.clean).zip(&self.triggered) {
            let way = f64::from(triggered - clean);
            along += f64::from(feature - clean) * way;
            length += way * way;
        }
        (along / length) as f32
    }
}

fn mean(model: &dyn Classifier, images: &Tensor) -> Result<Option<Vec<f32>>, Error> {
    let count = images.dim(0)?;
    let mut sums = Vec::new();
    for first in (0..count).step_by(AT_ONCE) {
        let some = images.narrow(0, first, AT_ONCE.min(count - first))?;
        let Some(features) = model.features(&some)? else { return Ok(None) };
        sums.push(features.sum_keepdim(0)?);
    }
    let sum = Tensor::cat(&sums, 0)?.sum(0)?;
    Ok(Some((sum / count as f64)?.to_vec1()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_the_share_of_the_way_and_blind_to_what_lies_across() {
        let places = Representation { clean: vec![1.0, 2.0, 0.0], triggered: vec![3.0, 2.0, 4.0] };
        assert_eq!(places.score(&places.clean), 0.0);
        assert_eq!(places.score(&places.triggered), 1.0);
        // Half of the way, and one across it.
        assert_eq!(places.score(&[2.0, 9.0, 2.0]), 0.5);
        assert_eq!(places.score(&[-1.0, 2.0, -4.0]), -1.0);
    }
}
