//! Training images that survive the perturbations: an infected label has too many.
//!
//! A trigger keeps its label under a universal perturbation ("Detecting Backdoor in Deep Neural
//! Networks via Intentional Adversarial Perturbations", section III-C, the training stage), and a
//! poisoned training set holds many triggers under one label. Clean images of some labels survive
//! as well, the more so where the perturbation's own sink is; so only those survivors count that
//! the model also represents apart from the label's clean images, a label's share of them is
//! compared with that of clean images of the same label, and the difference with the other labels'.

use candle_core::Tensor;
use rand::rngs::StdRng;
use rand::seq::index::sample;

use super::space::Space;
use super::suspects::{Centre, border};
use crate::perturb::kept;
use crate::stats::low_anomaly_indices;
use doorward_engine::{Batch, Classifier, Error, gather};

/// The perturbations, and clean images that they were not fitted on.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// `[1, C, H, W]`
    pub universal: &'a Tensor,
    /// `[labels, C, H, W]`
    pub class_conditional: &'a Tensor,
    /// With their predicted labels.
    pub clean: &'a Batch,
    /// Other clean images, which the perturbations may have been fitted on.
    pub fitted: &'a Batch,
    /// The space of their representations; `None` where the model does not tell.
    pub space: Option<&'a Space>,
}

/// The survivors of one label.
#[derive(Clone, Debug, PartialEq)]
pub struct Survival {
    /// Share of the label's sampled training images that keep their label under both perturbations
    /// and that the model, where it tells, represents apart from clean ones.
    pub share: f64,
    /// The share less that of clean images, nearer to zero the fewer those are.
    pub excess: f64,
    /// The distance of the excess above the other labels', in scaled median absolute deviations.
    pub anomaly_index: f64,
    /// Positions in the training set of those images.
    pub survivors: Vec<usize>,
}

impl Probe<'_> {
    /// Tells which rows keep their label under both perturbations. Fails where the model does.
    pub fn survives(&self, model: &dyn Classifier, batch: &Batch) -> Result<Vec<bool>, Error> {
        let own = gather(self.class_conditional, &batch.labels)?;
        let both = kept(model, batch, self.universal)?.into_iter().zip(kept(model, batch, &own)?);
        Ok(both.map(|(universal, own)| universal && own).collect())
    }

    /// The survival of every label in `labels` among the training images.
    pub fn survival(
        &self,
        model: &dyn Classifier,
        training: &Batch,
        labels: &[usize],
        rng: &mut StdRng,
    ) -> Result<Vec<Survival>, Error> {
        let survives = self.survives(model, self.clean)?;
        let mut counted = Vec::with_capacity(labels.len());
        for &label in labels {
            let members = training.members(label);
            let count = members.len().min(SAMPLED);
            let mut sampled: Vec<usize> =
                sample(rng, members.len(), count).into_iter().map(|index| members[index]).collect();
            sampled.sort_unstable();
            let mut kept = self.survives(model, &training.select(&sampled)?)?;
            let clean = self.clean.members(label);
            let mut clean_kept: Vec<bool> = clean.iter().map(|&row| survives[row]).collect();
            let fitted = self.fitted.of_label(label)?;
            if let Some(centre) = Centre::new(model, self.space, &fitted.rows)? {
                let distances = centre.distances(model, &training.rows, &sampled)?;
                let border = border(&distances);
                let apart = |kept: &mut [bool], distances: Vec<f64>| {
                    kept.iter_mut().zip(distances).for_each(|(kept, far)| *kept &= far > border);
                };
                apart(&mut kept, distances);
                apart(&mut clean_kept, centre.distances(model, &self.clean.rows, &clean)?);
            }
            let of = |kept: &[bool]| kept.iter().filter(|kept| **kept).count() as f64;
            let share = of(&kept) / count.max(1) as f64;
            // A handful of clean images is no share: the training images' own counts as some more.
            let expected =
                (of(&clean_kept) + share * PRIOR_IMAGES) / (clean.len() as f64 + PRIOR_IMAGES);
            let survivors =
                sampled.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(row, _)| row);
            counted.push((share, share - expected, survivors.collect()));
        }
        let below: Vec<f64> = counted.iter().map(|&(_, excess, _)| -excess).collect();
        let indices = low_anomaly_indices(&below, MAD_FLOOR);
        let survival = |((share, excess, survivors), anomaly_index)| Survival {
            share,
            excess,
            anomaly_index,
            survivors,
        };
        Ok(counted.into_iter().zip(indices).map(survival).collect())
    }
}

/// Training images looked at per label.
const SAMPLED: usize = 300;

/// Weight of a label's share among its training images in that among its clean ones.
const PRIOR_IMAGES: f64 = 10.0;

/// A share of 300 images comes with a standard error of up to this.
const MAD_FLOOR: f64 = 0.03;
