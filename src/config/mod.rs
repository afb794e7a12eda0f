//! The settings a program runs on: typed, complete and already valid.
//!
//! What a user writes is read in `layers` and checked in `raw`; after that no invalid state can be
//! expressed.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod address;
mod layers;
mod location;
mod operations;
mod pictures;
mod raw;
mod telemetry;
mod value;

pub use doorward_images::{ChannelOrder, ExifOrientation, Interpolation, Pictures, Resize};
pub use doorward_protocol::{ImageProtocol, Images};

pub use address::{Address, Origin};
pub use layers::{EMBEDDED, Settings};
pub use location::Location;
pub use operations::{Audit, AuditEvents, AuditTarget, Identity, Quarantine, Tls, UpstreamTls};
pub use pictures::Preprocess;
pub use telemetry::{LogFormat, Otlp, Telemetry};

/// Everything `doorward.toml` says.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// Where operators connect.
    pub admin: Admin,
    /// The model server behind the firewall.
    pub upstream: Upstream,
    /// How clients connect; `None`: plainly.
    pub tls: Option<Tls>,
    /// The protected model.
    pub model: Model,
    /// From image bytes to model input.
    pub preprocess: Preprocess,
    /// Whose image requests are taken.
    pub images: Images,
    /// The offline flow.
    pub calibration: Calibration,
    /// How the universal perturbations are learned.
    pub perturbation: Perturbation,
    /// How DTInspector runs.
    pub inspection: Inspection,
    /// What is rejected.
    pub policy: Policy,
    /// Bounds on everything a client can send or occupy.
    pub limits: Limits,
    /// What is noted of inputs.
    pub audit: Audit,
    /// Logs.
    pub telemetry: Telemetry,
}

/// `[listen]`
#[derive(Clone, Debug)]
pub struct Listen {
    /// Address of the inspected HTTP listener.
    pub http: Address,
    /// Address of the inspected gRPC listener; `None`: there is none.
    pub grpc: Option<Address>,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct Admin {
    /// Address of the metrics and probes listener.
    pub listen: SocketAddr,
}

/// `[upstream]`
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where the model server listens.
    pub url: Origin,
    /// Whether it is spoken to in HTTP/2 there; else it is HTTP/1.1.
    pub http2: bool,
    /// Where it listens for gRPC; given where `listen.grpc` is, and only there.
    pub grpc_url: Option<Origin>,
    /// For `https://` URLs, and only for those.
    pub tls: Option<UpstreamTls>,
    /// How long one upstream exchange may take.
    pub timeout: Duration,
    /// When an upstream that fails is left alone; `None`: never.
    pub breaker: Option<Breaker>,
    /// Most rows that the model server takes in one request; `None`: not known.
    pub max_rows: Option<NonZeroUsize>,
}

/// When an upstream that fails is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// After this many failures in a row ...
    pub failures: NonZeroU32,
    /// ... for so long.
    pub pause: Duration,
}

/// `[model]`
#[derive(Clone, Debug)]
pub struct Model {
    /// The ONNX file.
    pub path: PathBuf,
    /// The model's name on the upstream; `None` takes any name.
    pub name: Option<String>,
    /// Whose predictions a verdict rests on.
    pub predictions: Predictions,
}

/// Whose predictions a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Predictions {
    /// The program's own.
    Local,
    /// The model server's.
    Upstream,
}

/// `[calibration]`
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Sources of clean images, read in order.
    pub clean_images: Vec<PathBuf>,
    /// Sources of training images, read in order; empty: no inspection.
    pub training_images: Vec<PathBuf>,
    /// How many clean images fit the perturbations.
    pub fit_images: NonZeroUsize,
    /// At most how many of the following clean images fit the thresholds.
    pub holdout_images: NonZeroUsize,
    /// What the offline flow writes and the online flow reads.
    pub artifact: Location,
    /// SHA-256 that the online flow wants it to have.
    pub artifact_sha256: Option<String>,
    /// Seed of the offline flow; `None` draws one from the system.
    pub seed: Option<u64>,
}

/// `[perturbation]`
#[derive(Clone, Debug)]
pub struct Perturbation {
    /// Share of the fit images whose label the universal perturbation must change.
    pub fooling_rate: Probability,
    /// Largest l-infinity radius tried, in units of the full pixel range.
    pub max_epsilon: f32,
    /// Optimisation steps per radius.
    pub steps: NonZeroUsize,
    /// Images per step.
    pub batch: NonZeroUsize,
    /// How the universal perturbation is searched for.
    pub algorithm: Algorithm,
    /// How many universal perturbations; each costs a prediction an input.
    pub count: NonZeroUsize,
}

/// How the universal perturbation is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// As published, image by image; `steps` and `batch` play no part.
    DeepFool,
    /// Sign steps on the margins of a batch.
    Gradient,
}

/// `[inspection]`
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Samples with the highest, and as many with the lowest, confidence per label (the paper's K).
    pub samples: NonZeroUsize,
    /// Optimisation steps of the patches.
    pub steps: NonZeroUsize,
    /// High-confidence samples per label and step.
    pub batch: NonZeroUsize,
    /// Start value of the mask's weight lambda.
    pub lambda: f32,
    /// Share of the high-confidence samples whose label the patch must change.
    pub success_rate: Probability,
    /// Anomaly index above which a label counts as infected.
    pub anomaly_threshold: f32,
    /// A model whose transfer ratios are all above this is clean.
    pub clean_ratio: Probability,
}

/// `[policy]`
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether a verdict changes an answer.
    pub mode: Mode,
    /// How signals become a verdict.
    pub rule: Rule,
    /// The false-rejection budget of the calibrated rule.
    pub max_false_rejection_rate: Probability,
    /// How many times the per-input budget of the other labels an infected label gets.
    pub infected_budget: f32,
    /// What becomes of a request without a verdict.
    pub unverified: Unverified,
}

/// Whether a verdict changes an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Rejects.
    Enforce,
    /// Flags, and never changes an answer.
    Monitor,
}

/// How signals become a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Reject when `Uap` and `Patch` both do.
    Both,
    /// Joined margins against split-conformal thresholds per predicted label.
    Calibrated,
    /// Reject when the label survives the perturbation that Carlini and Wagner's attack finds for this input.
    CarliniWagner,
    /// Reject when the label survives the perturbation that DeepFool finds for this input.
    #[serde(rename = "deepfool")]
    DeepFool,
    /// Reject when `Uap` or `Patch` does.
    Either,
    /// DTInspector's: reject when the patch of the predicted, infected label changes the label.
    Patch,
    /// Reject when the label survives the perturbation that PGD finds for this input.
    Pgd,
    /// Reject when the predictions of blends with clean images are too certain.
    Strip,
    /// Intentional adversarial perturbations: reject when the label survives the universal perturbation.
    Uap,
}

/// What becomes of a request for which no verdict can be had, by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unverified {
    /// The artifact is not there yet.
    pub artifact: Action,
    /// Detection took too long.
    pub deadline: Action,
    /// Detection itself failed.
    pub internal: Action,
    /// The queue or the concurrency limit is full.
    pub overload: Action,
    /// The body is not a request the firewall understands.
    pub undecodable: Action,
}

/// Pass or reject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forward the request unchecked.
    Pass,
    /// Answer with an error.
    Reject,
}

/// `[limits]`
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest request body, bytes.
    pub body_bytes: usize,
    /// Most rows in one request.
    pub rows: NonZeroUsize,
    /// Most pixels of one request's images.
    pub image_pixels: NonZeroUsize,
    /// Most rows that wait for, or are under, detection.
    pub queue_rows: NonZeroUsize,
    /// Most rows that one detection batch joins.
    pub batch_rows: NonZeroUsize,
    /// Most requests in flight.
    pub concurrency: NonZeroUsize,
    /// How long a client may take to send its body.
    pub body_timeout: Duration,
    /// How long detection of one request may take, waiting included.
    pub detection_timeout: Duration,
    /// How long requests in flight may take after SIGTERM.
    pub drain_timeout: Duration,
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
        /// What the parser says.
        reason: String,
    },
    /// A value is outside its range.
    #[error("{key} = {received}: expected {expected}")]
    Invalid {
        /// Path of the key, `section.key`.
        key: &'static str,
        /// What was written.
        received: String,
        /// What would have been taken.
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
        /// Which of them, from 1.
        number: usize,
        /// Why not.
        source: Box<Error>,
    },
    /// A file is not TOML, or holds an unknown key or a value of the wrong type.
    #[error("{file} cannot be used: {reason}")]
    Parse {
        /// Where the text came from.
        file: String,
        /// What the parser says, with line and column.
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

/// What reading the settings gives.
pub type Result<T> = std::result::Result<T, Error>;

/// A number in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Probability(f64);

// === impl Probability ===

impl Probability {
    /// `None` outside [0, 1] and for NaN.
    pub fn new(value: f64) -> Option<Self> {
        (0.0..=1.0).contains(&value).then_some(Self(value))
    }

    /// The number.
    pub fn value(self) -> f64 {
        self.0
    }
}

// === impl Rule ===

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 9] = [
        Self::Both,
        Self::Calibrated,
        Self::CarliniWagner,
        Self::DeepFool,
        Self::Either,
        Self::Patch,
        Self::Pgd,
        Self::Strip,
        Self::Uap,
    ];

    /// Those of at most four predictions an input.
    pub const CHEAP: [Self; 5] =
        [Self::Both, Self::Calibrated, Self::Either, Self::Patch, Self::Uap];

    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Calibrated => "calibrated",
            Self::CarliniWagner => "carlini_wagner",
            Self::DeepFool => "deepfool",
            Self::Either => "either",
            Self::Patch => "patch",
            Self::Pgd => "pgd",
            Self::Strip => "strip",
            Self::Uap => "uap",
        }
    }
}

impl std::str::FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|rule| rule.name() == text)
            .ok_or_else(|| format!("{text:?} is no rule, expected one of {}", known()))
    }
}
