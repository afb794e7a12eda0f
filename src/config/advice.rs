//! Errors of the crates below, with the keys and commands that a user can do something about.

use doorward_detection::artifact;
use doorward_detection::prepare::{Error, Which};

use super::Location;

/// A reason for which there is no detector, with the key to look at.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Advised {
    text: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Names the key that a failed preparation is about; other errors stay as they are.
pub fn of_preparation(
    error: Error,
    location: &Location,
) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        Error::Absent { sha256, .. } => {
            let text = format!(
                "artifact {location} is not there, and a fresh one would not have calibration.artifact_sha256 {sha256}"
            );
            Advised { text, source: None }.into()
        }
        Error::Artifact(artifact::Error::Replaced { artifact, got, expected }) => {
            let text = format!(
                "artifact {artifact} has SHA-256 {got}, expected calibration.artifact_sha256 {expected}: somebody has replaced it, or another one is meant"
            );
            Advised { text, source: None }.into()
        }
        Error::Artifact(unfit) => {
            let text = format!("run `doorward calibrate` to replace {location}, or remove it");
            Advised { text, source: Some(Box::new(unfit)) }.into()
        }
        Error::Images { which, source } => {
            let key = match which {
                Which::All => "the images",
                Which::Clean => "calibration.clean_images",
                Which::Training => "calibration.training_images",
            };
            Advised { text: format!("cannot use {key}"), source: Some(Box::new(source)) }.into()
        }
        Error::Store(error) => error,
        Error::TooFewImages { got, expected, fit, holdout, rate } => {
            let text = format!(
                "calibration.clean_images holds {got} images, expected at least {expected}: {fit} to fit the perturbations and {holdout} held out, without which a false-rejection rate of {rate} cannot be kept"
            );
            Advised { text, source: None }.into()
        }
        error => error.into(),
    }
}
