//! The settings of the sidecar: typed, complete and already valid.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use doorward_detection::Probability;
use doorward_images::Pictures;
pub use doorward_protocol::Allowed;
use doorward_protocol::ImageRoutes;
use ipnet::IpNet;
use serde::Deserialize;
use url::Url;

use crate::address::{Address, Origin};

/// The settings of the sidecar of one model.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The addresses that clients connect to.
    pub listen: Listen,
    /// The address that operators connect to.
    pub admin: Admin,
    /// The model server behind the firewall.
    pub upstream: Upstream,
    /// TLS for clients; `None`: they connect plainly.
    pub tls: Option<Tls>,
    /// The protected model.
    pub model: Model,
    /// The servers whose image requests are taken.
    pub images: ImageRoutes,
    /// From a picture to bytes in the model's shape.
    pub pictures: Pictures,
    /// The share of a channel's range by which a value may lie outside of it and still be judged.
    pub range_slack: f32,
    /// By what rule inputs are judged.
    pub judging: doorward_detection::Policy,
    /// The effect of a verdict.
    pub policy: Policy,
    /// Bounds on everything a client can send or occupy.
    pub limits: Limits,
    /// The audit log.
    pub audit: Audit,
    /// Logs.
    pub telemetry: Telemetry,
}

/// The settings that judging the requests of one model takes.
#[derive(Clone, Copy, Debug)]
pub struct Screening<'a> {
    /// What a path may name.
    pub allowed: Allowed<'a>,
    /// The only signature that a V1 request may name.
    pub signature: &'a str,
    /// The source of the predictions that a verdict rests on.
    pub predictions: Predictions,
    /// Most rows that the model server takes in one request; `None`: not known.
    pub max_rows: Option<NonZeroUsize>,
    /// The servers whose image requests are taken.
    pub images: &'a ImageRoutes,
    /// From a picture to bytes in the model's shape.
    pub pictures: Pictures,
    /// The share of a channel's range by which a value may lie outside of it and still be judged.
    pub range_slack: f32,
    /// The effect of a verdict.
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
    /// More paths whose reads pass.
    pub reads: Vec<String>,
    /// Networks of the proxies whose word on the client is believed.
    pub trusted_proxies: Vec<IpNet>,
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
    /// The address of the model server.
    pub url: Origin,
    /// True if it is spoken to in HTTP/2 there; else it is HTTP/1.1.
    pub http2: bool,
    /// The server's gRPC port; given exactly where there is a listener for gRPC.
    pub grpc_url: Option<Origin>,
    /// For `https://` URLs, and only for those.
    pub tls: Option<UpstreamTls>,
    /// The longest time that one upstream exchange may take.
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
    /// The certificate that the firewall shows.
    pub identity: Identity,
    /// The authority of the certificates that clients must show; `None`: they need none.
    pub client_ca: Option<PathBuf>,
}

/// `[upstream.tls]`: how the firewall connects to an `https://` upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The authority of the upstream's certificate.
    pub ca: PathBuf,
    /// The certificate that the firewall shows; `None`: none.
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
    /// The only version that an inference may name; `None`: it names none.
    pub version: Option<String>,
    /// The only signature that a V1 request may name.
    pub signature: String,
    /// The source of the predictions that a verdict rests on.
    pub predictions: Predictions,
}

/// The source of the predictions that a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Predictions {
    /// The program's own.
    Local,
    /// The model server's.
    Upstream,
}

/// The effect of a verdict, and the action on a request without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// True if a verdict changes an answer.
    pub mode: Mode,
    /// The action on a request without a verdict.
    pub unverified: Unverified,
}

/// True if a verdict changes an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Rejects.
    Enforce,
    /// Flags, and never changes an answer.
    Monitor,
}

/// The actions on requests for which no verdict can be had, by reason.
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
    /// A value lies further outside the model's range than the slack.
    pub range: Action,
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
    /// The longest time that a client may take to send its body.
    pub body_timeout: Duration,
    /// The longest time that detection of one request may take, waiting included.
    pub detection_timeout: Duration,
    /// The longest time that requests in flight may take after SIGTERM.
    pub drain_timeout: Duration,
}

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The place of the lines; `None`: there are none.
    pub target: Option<AuditTarget>,
    /// The events that get a line.
    pub events: AuditEvents,
    /// True if a line holds the scores.
    pub scores: bool,
    /// Size at which the file is renamed and a new one begun, bytes.
    pub rotate_bytes: NonZeroUsize,
    /// The number of renamed files are kept.
    pub rotated_files: NonZeroUsize,
    /// Holds the salt of the inputs' hashes; `None` draws one for the process.
    pub salt_file: Option<PathBuf>,
    /// The place of rejected inputs; `None`: they are not kept.
    pub quarantine: Option<Quarantine>,
}

/// The place of audit lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// A file, appended to.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// The events that get an audit line.
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
    /// The look of log lines.
    pub format: LogFormat,
    /// The collector of spans; `None`: none are made.
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

/// The look of log lines.
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
            allowed: Allowed {
                model: self.model.name.as_deref(),
                version: self.model.version.as_deref(),
                reads: &self.listen.reads,
            },
            signature: &self.model.signature,
            predictions: self.model.predictions,
            max_rows: self.upstream.max_rows,
            images: &self.images,
            pictures: self.pictures,
            range_slack: self.range_slack,
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
            range: action,
            undecodable: action,
        }
    }
}

// === impl Limits ===

impl Default for Limits {
    /// The values of the shipped settings file.
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
