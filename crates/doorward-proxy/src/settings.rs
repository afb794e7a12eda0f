//! What the sidecar runs on: typed, complete and already valid.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use doorward_detection::Probability;
use doorward_images::Pictures;
use doorward_protocol::ImageRoutes;
use serde::Deserialize;
use url::Url;

use crate::address::{Address, Origin};

/// What the sidecar of one model runs on.
#[derive(Clone, Debug)]
pub struct Settings {
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
    /// Whose image requests are taken.
    pub images: ImageRoutes,
    /// From a picture to bytes in the model's shape.
    pub pictures: Pictures,
    /// By what rule inputs are judged.
    pub judging: doorward_detection::Policy,
    /// What a verdict does.
    pub policy: Policy,
    /// Bounds on everything a client can send or occupy.
    pub limits: Limits,
    /// What is noted of inputs.
    pub audit: Audit,
    /// Logs.
    pub telemetry: Telemetry,
}

/// What judging the requests of one model takes.
#[derive(Clone, Copy, Debug)]
pub struct Screening<'a> {
    /// The only model name taken; `None` takes any.
    pub model: Option<&'a str>,
    /// Whose predictions a verdict rests on.
    pub predictions: Predictions,
    /// Most rows that the model server takes in one request; `None`: not known.
    pub max_rows: Option<NonZeroUsize>,
    /// Whose image requests are taken.
    pub images: &'a ImageRoutes,
    /// From a picture to bytes in the model's shape.
    pub pictures: Pictures,
    /// What a verdict does.
    pub policy: &'a Policy,
    /// Bounds on everything a client can send or occupy.
    pub limits: &'a Limits,
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

/// `[tls]`: how clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// What the firewall shows.
    pub identity: Identity,
    /// Who signs the certificates that clients must show; `None`: they need none.
    pub client_ca: Option<PathBuf>,
}

/// `[upstream.tls]`: how the firewall connects to an `https://` upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Who signs the upstream's certificate.
    pub ca: PathBuf,
    /// What the firewall shows; `None`: nothing.
    pub identity: Option<Identity>,
}

/// A certificate and its key, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
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

/// What a verdict does, and what becomes of a request without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether a verdict changes an answer.
    pub mode: Mode,
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Where the lines go; `None`: nowhere.
    pub target: Option<AuditTarget>,
    /// What gets a line.
    pub events: AuditEvents,
    /// Whether a line holds the scores.
    pub scores: bool,
    /// Size at which the file is renamed and a new one begun, bytes.
    pub rotate_bytes: NonZeroUsize,
    /// How many renamed files are kept.
    pub rotated_files: NonZeroUsize,
    /// Holds the salt of the inputs' hashes; `None` draws one for the process.
    pub salt_file: Option<PathBuf>,
    /// Where rejected inputs are kept; `None`: nowhere.
    pub quarantine: Option<Quarantine>,
}

/// Where the audit lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// A file, appended to.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// What gets an audit line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditEvents {
    /// Every row, and every request without judged rows.
    All,
    /// Rows that the rule turns away, and requests without a verdict.
    Rejections,
}

/// `[audit.quarantine]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The folder.
    pub directory: PathBuf,
    /// Most files in it.
    pub files: NonZeroUsize,
    /// Most bytes in it.
    pub bytes: NonZeroUsize,
}

/// `[telemetry]`
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// A tracing filter such as `info` or `doorward=debug`.
    pub log: String,
    /// How log lines look.
    pub format: LogFormat,
    /// Where spans of requests go; `None`: nowhere.
    pub otlp: Option<Otlp>,
}

/// `[telemetry.otlp]`
#[derive(Clone, Debug)]
pub struct Otlp {
    /// The collector's URL for spans.
    pub endpoint: Url,
    /// The share of traces recorded, of those that no caller has decided on.
    pub sample_ratio: Probability,
    /// The authority of the collector's certificate; `None`: the public ones.
    pub ca: Option<PathBuf>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

// === impl Settings ===

impl Settings {
    /// The part that judging takes.
    pub fn screening(&self) -> Screening<'_> {
        Screening {
            model: self.model.name.as_deref(),
            predictions: self.model.predictions,
            max_rows: self.upstream.max_rows,
            images: &self.images,
            pictures: self.pictures,
            policy: &self.policy,
            limits: &self.limits,
        }
    }
}

// === impl Policy ===

impl Default for Policy {
    /// Enforces; without a verdict nothing passes.
    fn default() -> Self {
        Self { mode: Mode::Enforce, unverified: Unverified::all(Action::Reject) }
    }
}

// === impl Unverified ===

impl Unverified {
    /// The same for every reason.
    pub fn all(action: Action) -> Self {
        Self {
            artifact: action,
            deadline: action,
            internal: action,
            overload: action,
            undecodable: action,
        }
    }
}

// === impl Limits ===

impl Default for Limits {
    /// Those of the shipped settings file.
    fn default() -> Self {
        let count = |count| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        Self {
            body_bytes: 16 << 20,
            rows: count(64),
            image_pixels: count(16 << 20),
            queue_rows: count(512),
            batch_rows: count(64),
            concurrency: count(256),
            body_timeout: Duration::from_secs(10),
            detection_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
