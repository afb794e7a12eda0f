//! The reasons for which there is no artifact.

use doorward_images::Misfit;

use super::accuracy::Fit;
use super::store::StoreError;
use crate::artifact::Accuracy;

/// Why there is no artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The artifact that is pinned is not there, and a fresh one would be another.
    #[error("artifact {artifact} is not there, and a fresh one would not have SHA-256 {sha256}")]
    Absent {
        /// Its place.
        artifact: String,
        /// The digest that is pinned.
        sha256: String,
    },
    /// The artifact cannot be written or read.
    #[error(transparent)]
    Artifact(#[from] crate::artifact::Error),
    /// The detection failed.
    #[error(transparent)]
    Detect(#[from] crate::Error),
    /// The images cannot be read.
    #[error("cannot use the {which}")]
    Images {
        /// The images that they are.
        which: Which,
        /// Why.
        source: doorward_images::Error,
    },
    /// The model does not see images as it was trained to see them.
    #[error(
        "the model is right on {accuracy}, and on {fits}: it is not given what it was trained on"
    )]
    Mistaken {
        /// How often it is right.
        accuracy: Accuracy,
        /// What makes it right more often.
        fits: Fit,
    },
    /// `preprocess` cannot bring pictures into the model's shape.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The model cannot be evaluated.
    #[error(transparent)]
    Model(#[from] doorward_engine::Error),
    /// The artifact's place cannot be read or written.
    #[error(transparent)]
    Store(StoreError),
    /// There are not enough clean images.
    #[error(
        "there are {got} clean images, expected at least {expected}: {fit} to fit the perturbations and {holdout} held out, without which a false-rejection rate of {rate} cannot be kept"
    )]
    TooFewImages {
        /// Images found.
        got: usize,
        /// Images needed.
        expected: usize,
        /// The images among them that fit the perturbations.
        fit: usize,
        /// The images among them that are held out.
        holdout: usize,
        /// The budget.
        rate: f64,
    },
}

/// Images that settings name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Both kinds.
    All,
    /// The clean ones.
    Clean,
    /// The training images.
    Training,
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::All => "images",
            Self::Clean => "clean images",
            Self::Training => "training images",
        })
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
