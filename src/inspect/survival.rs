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
    /// Positions in the training set of the sampled images that survive.
    pub survivors: Vec<usize>,
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
            found.push(Survival { share, excess: share, anomaly_index: 0.0, survivors });
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use rand::SeedableRng;

    use super::*;
    use crate::model::{Cotangent, InputDomain};

    /// One pixel a label; the brightest wins.
    struct Brightest(InputDomain);

    impl Classifier for Brightest {
        fn domain(&self) -> &InputDomain {
            &self.0
        }

        fn labels(&self) -> usize {
            LABELS
        }

        fn device(&self) -> &Device {
            &Device::Cpu
        }

        fn logits(&self, batch: &Tensor) -> Result<Tensor, Error> {
            Ok(batch.reshape(((), LABELS))?)
        }

        fn logits_and_gradient(
            &self,
            batch: &Tensor,
            _cotangent: &Cotangent<'_>,
        ) -> Result<(Tensor, Tensor), Error> {
            Ok((self.logits(batch)?, batch.zeros_like()?))
        }
    }

    fn model() -> Brightest {
        let shape = [1, 1, LABELS];
        Brightest(InputDomain {
            shape,
            lower: vec![0.0],
            upper: vec![1.0],
            channels_last: false,
            fp32: true,
        })
    }

    /// Rows of labels with the brightness of their own pixel; the others are at 0.2.
    fn batch(rows: &[(usize, f32)]) -> Batch {
        let mut values = vec![0.2f32; rows.len() * LABELS];
        for (row, &(label, brightness)) in rows.iter().enumerate() {
            values[row * LABELS + label] = brightness;
        }
        let rows_of = Tensor::from_vec(values, (rows.len(), 1, 1, LABELS), &Device::Cpu).unwrap();
        Batch { rows: rows_of, labels: rows.iter().map(|row| row.0).collect() }
    }

    #[test]
    fn a_label_whose_training_images_survive_where_clean_ones_do_not_stands_out() {
        // Every label's own perturbation takes 0.4 from its pixel.
        let universal = Tensor::zeros((1, 1, 1, LABELS), DType::F32, &Device::Cpu).unwrap();
        let own: Vec<f32> = (0..LABELS * LABELS)
            .map(|i| if i / LABELS == i % LABELS { -0.4 } else { 0.0 })
            .collect();
        let own = Tensor::from_vec(own, (LABELS, 1, 1, LABELS), &Device::Cpu).unwrap();
        let (mut training, mut clean) = (Vec::new(), Vec::new());
        for label in 0..LABELS {
            for image in 0..40 {
                // Label 2 has 12 triggers; label 3 survives, clean or not.
                let bright = label == 3 || (label == 2 && image < 12);
                training.push((label, if bright { 1.0 } else { 0.5 }));
                clean.push((label, if label == 3 { 1.0 } else { 0.5 }));
            }
        }
        let clean = batch(&clean);
        let probe = Probe { universal: &universal, class_conditional: &own, clean: &clean };
        let labels: Vec<usize> = (0..LABELS).collect();
        let mut rng = StdRng::seed_from_u64(7);
        let found = probe.survival(&model(), &batch(&training), &labels, &mut rng).unwrap();
        assert_eq!(found[2].survivors, (80..92).collect::<Vec<_>>());
        assert!(found[2].anomaly_index > 3.5, "{:?}", found[2]);
        assert!((found[3].share - 1.0).abs() < 1e-9);
        for label in [0, 1, 4] {
            assert_eq!(found[label].share, 0.0);
        }
        assert!(found[3].anomaly_index < found[2].anomaly_index, "{:?}", found[3]);
        let unmoved = [0, 1, 4].map(|label| found[label].anomaly_index);
        assert_eq!(unmoved, [0.0; 3]);
    }

    const LABELS: usize = 5;
}
