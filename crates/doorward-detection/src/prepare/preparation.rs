//! Read the artifact, or make it.

use std::sync::Arc;

use doorward_engine::{Classifier, Model};
use rand::Rng;
use sha2::{Digest, Sha256};

use super::calibrate::calibrate;
use super::digests::expected;
use super::error::Error;
use super::material::material;
use super::stage::{Seconds, Stage};
use super::store::Store;
use crate::artifact::Artifact;
use crate::settings::Settings;

/// All that an artifact is made from, and the place where it is kept.
pub struct Preparation<'a> {
    /// The model that is protected.
    pub model: &'a Arc<Model>,
    /// The settings of preparation.
    pub settings: &'a Settings,
    /// The place.
    pub store: &'a dyn Store,
    /// The SHA-256 that the artifact must have, if it is pinned.
    pub pinned: Option<&'a str>,
}

/// An artifact that is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The artifact.
    pub artifact: Artifact,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

// === impl Preparation ===

impl Preparation<'_> {
    /// The artifact if a valid one is there, else a fresh one, stored, and the time that making it
    /// took. `progress` is told the stage of a fresh one and the share of it that is done.
    ///
    /// Fails for an artifact of something else, for a pinned one that is not there, and where none
    /// can be made.
    pub fn read_or_make(
        &self,
        progress: &dyn Fn(Stage, f64),
    ) -> Result<(Stored, Option<Seconds>), Error> {
        if let Some(stored) = self.read()? {
            return Ok((stored, None));
        }
        match self.pinned {
            Some(sha256) => {
                Err(Error::Absent { artifact: self.store.name(), sha256: sha256.to_owned() })
            }
            None => self.make(progress).map(|(stored, seconds)| (stored, Some(seconds))),
        }
    }

    /// The artifact that is there, checked. Fails for one of something else, or of another digest
    /// than the pinned one.
    pub fn read(&self) -> Result<Option<Stored>, Error> {
        let Some(bytes) = self.store.read().map_err(Error::Store)? else { return Ok(None) };
        let expected = expected(self.settings, self.model, self.pinned.map(str::to_owned))?;
        let artifact =
            Artifact::decode(&bytes, &self.store.name(), &expected, self.model.device())?;
        Ok(Some(Stored { artifact, sha256: hex::encode(Sha256::digest(&bytes)) }))
    }

    /// A fresh artifact, stored, and the time that it took. Fails where the images, the model or
    /// the place do.
    pub fn make(&self, progress: &dyn Fn(Stage, f64)) -> Result<(Stored, Seconds), Error> {
        self.store.check_writable().map_err(Error::Store)?;
        let material = material(self.settings, self.model.domain().shape)?;
        let seed = self.settings.calibration.seed.unwrap_or_else(|| rand::rng().random());
        let (artifact, seconds) = calibrate(self.model, self.settings, &material, seed, progress)?;
        let bytes = artifact.encode()?;
        self.store.write(&bytes).map_err(Error::Store)?;
        Ok((Stored { artifact, sha256: hex::encode(Sha256::digest(&bytes)) }, seconds))
    }
}
