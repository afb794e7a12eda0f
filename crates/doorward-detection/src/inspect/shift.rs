//! Training images that the model represents unlike clean images of their label.
//!
//! A trigger that is spread over the image, a reflection or a sinusoid, may survive no
//! perturbation; but the model has learned to see it, so that the last layer sees the poisoned
//! training images of its target elsewhere than clean ones (Tran et al. 2018, "Spectral Signatures
//! in Backdoor Attacks", for the clean images that are known here). Training images are a little
//! unlike others on every label, so that a label's difference is compared with the other labels'.

use candle_core::Tensor;

use super::space::Space;
use super::survival::Probe;
use super::suspects::{MIN_CLEAN, some};
use crate::stats::{auroc, median, scaled_mad};
use doorward_engine::{Batch, Classifier, Error, gather};

/// The separation of one label's training images from its clean ones, as the model represents them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shift {
    /// Probability that a training image lies further along the way from the clean images to the
    /// training images than a clean one does; that way is learned on other images of both. 0.5
    /// where they are alike, or too few to tell.
    pub auroc: f64,
    /// Its distance above the other labels', in scaled median absolute deviations, or in its own
    /// standard errors where these are larger.
    pub anomaly_index: f64,
}

/// The shift of every label in `labels`. Fails where the model does.
pub(super) fn shifts(
    model: &dyn Classifier,
    probe: &Probe<'_>,
    training: &Batch,
    labels: &[usize],
) -> Result<Vec<Shift>, Error> {
    let mut found = Vec::with_capacity(labels.len());
    for &label in labels {
        found.push(match probe.space {
            Some(space) => of_label(model, space, probe, training, label)?,
            None => None,
        });
    }
    let known: Vec<f64> = found.iter().flatten().map(|&(auroc, _)| auroc).collect();
    let (centre, spread) = (median(&known), scaled_mad(&known).max(MAD_FLOOR));
    let shift = |found: Option<(f64, f64)>| match found {
        Some((auroc, error)) => {
            Shift { auroc, anomaly_index: ((auroc - centre) / spread.max(error)).max(0.0) }
        }
        None => Shift { auroc: 0.5, anomaly_index: 0.0 },
    };
    Ok(found.into_iter().map(shift).collect())
}

/// The AUROC and its standard error where images are alike; `None` with too few images.
fn of_label(
    model: &dyn Classifier,
    space: &Space,
    probe: &Probe<'_>,
    training: &Batch,
    label: usize,
) -> Result<Option<(f64, f64)>, Error> {
    let of = |batch: &Batch| space.places(model, &batch.rows, &batch.members(label));
    let clean = Tensor::cat(&[of(probe.fitted)?, of(probe.clean)?], 0)?;
    let places = space.places(model, &training.rows, &some(&training.members(label)))?;
    let (count, of_training) = (clean.dim(0)?, places.dim(0)?);
    if count.min(of_training) < 2 * MIN_CLEAN {
        return Ok(None);
    }
    let (clean, places) = (halves(&clean)?, halves(&places)?);
    let mut sum = 0.0;
    for (learn, measure) in [(0, 1), (1, 0)] {
        let way = (places[learn].mean(0)? - clean[learn].mean(0)?)?.unsqueeze(1)?;
        let along = |places: &Tensor| -> Result<Vec<f64>, Error> {
            let along = places.matmul(&way)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(along.into_iter().map(f64::from).collect())
        };
        sum += auroc(&along(&clean[measure])?, &along(&places[measure])?) / 2.0;
    }
    // Mann and Whitney 1947, for two equal distributions.
    let error = (1.0 / (12.0 * count as f64) + 1.0 / (12.0 * of_training as f64)).sqrt();
    Ok(Some((sum, error)))
}

/// Every other row, and the rest.
fn halves(places: &Tensor) -> Result<[Tensor; 2], Error> {
    let count = places.dim(0)?;
    let from = |first: usize| gather(places, &(first..count).step_by(2).collect::<Vec<_>>());
    Ok([from(0)?, from(1)?])
}

/// Labels of clean models differ by this much.
const MAD_FLOOR: f64 = 0.04;
