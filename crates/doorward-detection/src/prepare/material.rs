//! The images of preparation, and how they are divided.

use candle_core::Tensor;
use doorward_engine::{Classifier, rows};
use doorward_images::{Frame, Images, Misfit};

use super::digests::data_digest;
use super::error::{Error, Which};
use crate::conformal::images_needed;
use crate::join::MIN_REFERENCE;
use crate::settings::{Preprocess, Settings};

/// The images of the offline flow; no image serves two parts.
#[derive(Clone, Debug)]
pub struct Material {
    /// Fit the perturbations.
    pub fit: Images,
    /// Fit the statistics of activations, together with those before, and the scales of all
    /// signals.
    pub reference: Images,
    /// Fit the thresholds.
    pub holdout: Images,
    /// Are what an inspection compares training images with; none without training images.
    pub probe: Images,
    /// Are inspected.
    pub training: Option<Images>,
    /// The digest of the files they came from.
    pub data_digest: String,
}

/// Reads the images that a configuration names.
pub fn material(settings: &Settings, shape: [usize; 3]) -> Result<Material, Error> {
    let calibration = &settings.calibration;
    let clean = Images::read_all(&calibration.clean_images, frame(&settings.preprocess, shape)?)
        .map_err(|source| Error::Images { which: Which::Clean, source })?;
    let fit = calibration.fit_images.get();
    let rate = settings.policy.max_false_rejection_rate.value();
    let holdout = images_needed(rate).min(calibration.holdout_images.get());
    // So many are needed to know what is usual.
    let least = MIN_REFERENCE.saturating_sub(fit);
    if clean.len() < fit + least + holdout {
        let expected = fit + least + holdout;
        return Err(Error::TooFewImages { got: clean.len(), expected, fit, holdout, rate });
    }
    let end = clean.len().min(fit + least + calibration.holdout_images.get());
    let training = match calibration.training_images.as_slice() {
        [] => None,
        _ => Some(training_images(settings, shape)?),
    };
    // Thresholds keep what they need.
    let probe = match training {
        None => 0,
        Some(_) => ((end - fit) / PROBE_PART).min(MAX_PROBE).min(end - fit - least - holdout),
    };
    let reference = ((end - fit) / REFERENCE_PART).clamp(least, MAX_REFERENCE);
    let reference = reference.min(end - fit - probe - holdout);
    Ok(Material {
        fit: clean.slice(0..fit),
        reference: clean.slice(fit..fit + reference),
        holdout: clean.slice(fit + reference..end - probe),
        probe: clean.slice(end - probe..end),
        training,
        data_digest: data_digest(calibration)?.unwrap_or_default(),
    })
}

/// Reads the training images that a configuration names.
pub fn training_images(settings: &Settings, shape: [usize; 3]) -> Result<Images, Error> {
    Images::read_all(&settings.calibration.training_images, frame(&settings.preprocess, shape)?)
        .map_err(|source| Error::Images { which: Which::Training, source })
}

/// The way of pictures into the model's shape. Fails where there is none.
pub fn frame(preprocess: &Preprocess, shape: [usize; 3]) -> Result<Frame, Misfit> {
    Frame::new(shape, preprocess.pictures)
}

/// Images as a batch of the model's input.
pub(super) fn tensor(
    model: &dyn Classifier,
    images: &Images,
) -> Result<Tensor, doorward_engine::Error> {
    let pixels = (0..images.len()).map(|index| images.image(index));
    rows(model.domain(), pixels, model.device())
}

/// One in so many of the held-out images is a reference instead...
const REFERENCE_PART: usize = 4;

/// ...up to this many.
const MAX_REFERENCE: usize = 600;

/// One in so many of the held-out images is a probe of the inspection instead...
const PROBE_PART: usize = 5;

/// ...up to this many.
const MAX_PROBE: usize = 400;
