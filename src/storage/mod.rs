//! Reads and writes artifacts where they are kept: in a file, or in S3-compatible storage.
//!
//! Both are read whole and replaced in one step, so that no reader sees half of one. Every wait has
//! an end. Who can write there can put another artifact in its place: what it has to be is checked
//! by whoever reads it (`calibration.artifact_sha256`). The functions block; not for an async
//! worker.

mod file;
mod s3;

use doorward_detection::prepare::{self, StoreError};

use crate::config::Location;

/// Why an artifact cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no way to the storage.
    #[error("cannot use the storage of artifact {location}")]
    Open {
        /// The place of the artifact.
        location: String,
        /// Why.
        source: Cause,
    },
    /// It cannot be read.
    #[error("cannot read artifact {location}")]
    Read {
        /// The place of the artifact.
        location: String,
        /// Why.
        source: Cause,
    },
    /// It cannot be written.
    #[error("cannot write artifact {location}")]
    Write {
        /// The place of the artifact.
        location: String,
        /// Why.
        source: Cause,
    },
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The place of one artifact.
#[derive(Debug)]
pub struct Store {
    location: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    File(file::File),
    S3(Box<s3::Object>),
}

impl prepare::Store for Store {
    fn name(&self) -> String {
        self.location.clone()
    }

    fn read(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.read()?)
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        Ok(self.check_writable()?)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), StoreError> {
        Ok(self.write(bytes)?)
    }
}

// === impl Store ===

impl Store {
    /// Connects to nothing yet. Credentials and endpoint of S3 are the usual `AWS_...` variables in
    /// `environment`.
    pub fn open(
        location: &Location,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let place = match location {
            Location::File(path) => Place::File(file::File::new(path)),
            Location::S3 { bucket, key } => {
                let object = s3::Object::open(bucket, key, environment)
                    .map_err(|source| Error::Open { location: location.to_string(), source })?;
                Place::S3(Box::new(object))
            }
        };
        Ok(Self { location: location.to_string(), place })
    }

    /// The bytes; `None` if there is no artifact.
    pub fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        let read = match &self.place {
            Place::File(file) => file.read(),
            Place::S3(object) => object.read(),
        };
        read.map_err(|source| Error::Read { location: self.location.clone(), source })
    }

    /// True if an artifact can be written, known before the work that it takes to make it. Leaves
    /// nothing behind.
    pub fn check_writable(&self) -> Result<(), Error> {
        let checked = match &self.place {
            Place::File(file) => file.check_writable(),
            Place::S3(object) => object.check_writable(),
        };
        checked.map_err(|source| self.unwritten(source))
    }

    /// Writes or replaces the artifact in one step; a file is readable for its owner alone.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        let written = match &self.place {
            Place::File(file) => file.write(bytes),
            Place::S3(object) => object.write(bytes),
        };
        written.map_err(|source| self.unwritten(source))
    }

    fn unwritten(&self, source: Cause) -> Error {
        Error::Write { location: self.location.clone(), source }
    }
}
