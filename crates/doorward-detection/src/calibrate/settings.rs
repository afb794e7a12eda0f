//! What a configuration says of the offline flow.

use serde_json::json;
use sha2::{Digest, Sha256};

use super::Error;
use crate::inspect::Settings;
use crate::perturb::Search;
use crate::settings::{Rule, Settings as Config};
use doorward_images::{Pictures, digest_sources};

/// The perturbations' settings in a configuration.
pub(super) fn search(config: &Config) -> Search {
    let settings = &config.perturbation;
    Search {
        fooling_rate: settings.fooling_rate.value(),
        max_epsilon: settings.max_epsilon,
        steps: settings.steps.get(),
        batch: settings.batch.get(),
    }
}

/// The inspection's settings in a configuration.
pub fn inspection_settings(config: &Config) -> Settings {
    let settings = &config.inspection;
    Settings {
        samples: settings.samples.get(),
        steps: settings.steps.get(),
        batch: settings.batch.get(),
        lambda: settings.lambda,
        success_rate: settings.success_rate.value(),
        anomaly_threshold: settings.anomaly_threshold.into(),
        clean_ratio: settings.clean_ratio.value(),
    }
}

/// Over the files of the images; `None` where they are not at hand.
pub(super) fn data_digest(config: &Config) -> Result<Option<String>, Error> {
    let settings = &config.calibration;
    let sources = [settings.clean_images.as_slice(), settings.training_images.as_slice()].concat();
    digest_sources(&sources).map_err(|source| Error::Images { key: "the images", source })
}

/// Over every setting that shapes an artifact.
///
/// Of the policy only whether STRIP's overlays are in it: see [`super::thresholds`].
pub(super) fn settings_digest(config: &Config) -> String {
    let (perturbation, inspection) = (&config.perturbation, &config.inspection);
    let mut settings = json!({
        "mean": config.preprocess.mean,
        "std": config.preprocess.std,
        "fit_images": config.calibration.fit_images,
        "holdout_images": config.calibration.holdout_images,
        "seed": config.calibration.seed,
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
        "strip": config.policy.rule == Rule::Strip,
    });
    // Apart, so that artifacts from before these settings stay valid where they have their defaults.
    if perturbation.count.get() != 1 {
        settings["perturbations"] = json!(perturbation.count);
    }
    let pictures = config.preprocess.pictures;
    if pictures != Pictures::default() {
        settings["pictures"] = json!(pictures);
    }
    hex::encode(Sha256::digest(settings.to_string()))
}
