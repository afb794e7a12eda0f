//! Digests that tell whether an artifact was made for these settings and images.

use doorward_engine::Model;
use doorward_images::{Pictures, digest_sources};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::error::{Error, Which};
use crate::artifact::Expected;
use crate::rule::Rule;
use crate::settings::{Calibration, Settings};

/// Over the files of the images; `None` where they are not at hand.
pub(super) fn data_digest(calibration: &Calibration) -> Result<Option<String>, Error> {
    let Calibration { clean_images, training_images, .. } = calibration;
    let sources = [clean_images.as_slice(), training_images].concat();
    digest_sources(&sources).map_err(|source| Error::Images { which: Which::All, source })
}

/// Over every setting that shapes an artifact.
///
/// The policy counts only as far as STRIP's overlays go: see [`crate::open::thresholds`].
pub(super) fn settings_digest(settings: &Settings) -> String {
    let Settings { preprocess, calibration, perturbation, inspection, policy } = settings;
    let mut shaping = json!({
        "mean": preprocess.mean,
        "std": preprocess.std,
        "fit_images": calibration.fit_images,
        "holdout_images": calibration.holdout_images,
        "seed": calibration.seed,
        "algorithm": perturbation.algorithm,
        "fooling_rate": perturbation.fooling_rate.value(),
        "max_epsilon": perturbation.max_epsilon,
        "perturbation_steps": perturbation.steps,
        "perturbation_batch": perturbation.batch,
        "samples": inspection.samples,
        "inspection_steps": inspection.steps,
        "inspection_batch": inspection.batch,
        "lambda": inspection.lambda,
        "success_rate": inspection.success_rate.value(),
        "anomaly_threshold": inspection.anomaly_threshold,
        "clean_ratio": inspection.clean_ratio.value(),
        "strip": policy.rule == Rule::Strip,
    });
    // Apart, so that artifacts from before these settings stay valid where they have their
    // defaults.
    if perturbation.count.get() != 1 {
        shaping["perturbations"] = json!(perturbation.count);
    }
    let pictures = preprocess.pictures;
    if pictures != Pictures::default() {
        shaping["pictures"] = json!(pictures);
    }
    hex::encode(Sha256::digest(shaping.to_string()))
}

/// The digests that an artifact for these settings and this model must have; `artifact_digest` pins
/// one. Fails where the images cannot be read.
pub fn expected(
    settings: &Settings,
    model: &Model,
    artifact_digest: Option<String>,
) -> Result<Expected, Error> {
    Ok(Expected {
        artifact_digest,
        model_digest: model.digest().to_owned(),
        settings_digest: settings_digest(settings),
        data_digest: data_digest(&settings.calibration)?,
    })
}
