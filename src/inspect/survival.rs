//! Training images that survive the perturbations: an infected label has too many.
//!
//! A trigger keeps its label under a universal perturbation ("Detecting Backdoor in Deep Neural
//! Networks via Intentional Adversarial Perturbations", section III-C, the training stage), and a
//! poisoned training set holds many triggers under one label. Clean images of some labels survive as
//! well, the more so where the perturbation's own sink is; so a label's share of survivors is
//! compared with that of clean images of the same label, and the difference with the other labels'.

use candle_core::Tensor;
use rand::rngs::StdRng;
use rand::seq::index::sample;

use crate::model::{Classifier, Error};
use crate::perturb::{Batch, kept};
use crate::stats::{low_anomaly_indices, median};

/// The perturbations, and clean images that they were not fitted on.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// `[1, C, H, W]`
    pub universal: &'a Tensor,
    /// `[labels, C, H, W]`
    pub class_conditional: &'a Tensor,
    /// With their predicted labels.
    pub clean: &'a Batch,
}

/// The survivors of one label.
#[derive(Clone, Debug, PartialEq)]
pub struct Survival {
    /// Share of the label's sampled training images that keep their label under both perturbations.
    pub share: f64,
    /// That share less the share of clean images.
    pub excess: f64,
    /// How far the excess lies above the other labels', in scaled median absolute deviations.
    pub anomaly_index: f64,
    /// Positions in the training set of the sampled images.
    pub sampled: Vec<usize>,
    /// Those that survive.
    pub survivors: Vec<usize>,
}

impl Survival {
    /// Every other survivor: those that a perturbation may be fitted on.
    pub fn spared(&self) -> impl Iterator<Item = &usize> {
        self.survivors.iter().step_by(2)
    }
}

impl Probe<'_> {
    /// Which rows keep their label under both perturbations.
    pub fn survives(&self, model: &dyn Classifier, batch: &Batch) -> Result<Vec<bool>, Error> {
        let index: Vec<u32> = batch.labels.iter().map(|&label| label as u32).collect();
        let index = Tensor::from_vec(index, batch.len(), batch.rows.device())?;
        let own = self.class_conditional.index_select(&index, 0)?;
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
        let clean = self.survives(model, self.clean)?;
        let mut found = Vec::with_capacity(labels.len());
        for &label in labels {
            let members: Vec<usize> =
                (0..training.len()).filter(|&row| training.labels[row] == label).collect();
            let count = members.len().min(SAMPLED);
            let mut sampled: Vec<usize> =
                sample(rng, members.len(), count).into_iter().map(|index| members[index]).collect();
            sampled.sort_unstable();
            let survives = self.survives(model, &training.select(&sampled)?)?;
            let survivors: Vec<usize> = sampled
                .iter()
                .zip(&survives)
                .filter(|(_, survives)| **survives)
                .map(|(&row, _)| row)
                .collect();
            let share = survivors.len() as f64 / count.max(1) as f64;
            let excess = share;
            found.push(Survival { share, excess, anomaly_index: 0.0, sampled, survivors });
        }
        let typical = median(&found.iter().map(|label| label.share).collect::<Vec<_>>());
        for (found, &label) in found.iter_mut().zip(labels) {
            let own: Vec<bool> = (0..clean.len())
                .filter(|&row| self.clean.labels[row] == label)
                .map(|row| clean[row])
                .collect();
            let survive = own.iter().filter(|survives| **survives).count() as f64;
            // A handful of clean images is no share: the typical label's counts as some more.
            found.excess -= (survive + typical * PRIOR_IMAGES) / (own.len() as f64 + PRIOR_IMAGES);
        }
        let below: Vec<f64> = found.iter().map(|label| -label.excess).collect();
        for (found, index) in found.iter_mut().zip(low_anomaly_indices(&below, MAD_FLOOR)) {
            found.anomaly_index = index;
        }
        Ok(found)
    }
}

/// Training images looked at per label.
const SAMPLED: usize = 300;

/// Weight of the typical label's share of survivors in the share of a label's clean images.
const PRIOR_IMAGES: f64 = 10.0;

/// A share of 300 images comes with a standard error of up to this.
const MAD_FLOOR: f64 = 0.03;
