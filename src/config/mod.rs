//! The settings a program runs on: typed, complete and already valid.
//!
//! The text of a user is read in `layers` and checked in `raw`; after that no invalid state can be
//! expressed.

use std::path::PathBuf;

pub mod advice;
pub mod injection;
mod layers;
mod location;
mod operations;
mod pictures;
mod raw;
mod telemetry;
mod value;

pub use doorward_detection::{
    Algorithm, Calibration, Inspection, Perturbation, Preprocess, Probability, Rule,
};
pub use doorward_engine::Choice;
pub use doorward_images::{ChannelOrder, ExifOrientation, Interpolation, Pictures, Resize};
pub use doorward_protocol::{ImageProtocol, ImageRoutes};
pub use doorward_proxy::settings::{
    Action, Admin, Audit, AuditEvents, AuditTarget, Breaker, Identity, Limits, Listen, LogFormat,
    Mode, Model, Otlp, Policy, Predictions, Quarantine, Telemetry, Tls, Unverified, Upstream,
    UpstreamTls,
};
pub use doorward_proxy::{Address, Origin};

pub use layers::{EMBEDDED, Settings};
pub use location::Location;

/// Everything `doorward.toml` says.
#[derive(Clone, Debug)]
pub struct Config {
    /// The settings of the sidecar.
    pub server: doorward_proxy::Settings,
    /// The settings of preparation and judging.
    pub detection: doorward_detection::Settings,
    /// What the model's file leaves open.
    pub choice: Choice,
    /// The place of the artifact.
    pub artifact: Artifact,
}

/// The place of the artifact.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The place that preparation writes to and the sidecar reads from.
    pub location: Location,
    /// SHA-256 that the online flow wants it to have.
    pub sha256: Option<String>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An environment variable names no key, or its value has the wrong type.
    #[error("environment variable {variable} = {received:?} cannot be used: {reason}")]
    Environment {
        /// The variable's name.
        variable: String,
        /// Its value.
        received: String,
        /// The parser's message.
        reason: String,
    },
    /// A value is outside its range.
    #[error("{key} = {received}: expected {expected}")]
    Invalid {
        /// Path of the key, `section.key`.
        key: &'static str,
        /// The text that was written.
        received: String,
        /// The values that would have been taken.
        expected: &'static str,
    },
    /// A key without default was left out.
    #[error("{key} is not set: it has no default")]
    Missing {
        /// Path of the key, `section.key`.
        key: &'static str,
    },
    /// The settings of one of several models cannot be used.
    #[error("[[models]], number {number}")]
    Model {
        /// The number of it, from 1.
        number: usize,
        /// Why not.
        source: Box<Error>,
    },
    /// A file is not TOML, or holds an unknown key or a value of the wrong type.
    #[error("{file} cannot be used: {reason}")]
    Parse {
        /// The origin of the text.
        file: String,
        /// The parser's message, with line and column.
        reason: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// The result of reading the settings.
pub type Result<T> = std::result::Result<T, Error>;
