//! The settings by which pods get the sidecar.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use doorward_proxy::settings::Telemetry;

/// The settings for all pods.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The sidecar.
    pub sidecar: Sidecar,
    /// The admission webhook.
    pub webhook: Webhook,
    /// Logs of the webhook.
    pub telemetry: Telemetry,
}

/// `[sidecar]`
#[derive(Clone, Debug)]
pub struct Sidecar {
    /// The container image.
    pub image: String,
    /// `None`: Kubernetes decides by the image's tag.
    pub image_pull_policy: Option<PullPolicy>,
    /// The kind of container.
    pub kind: Kind,
    /// The port for clients when the app cannot leave its own port.
    pub port: u16,
    /// The same for gRPC.
    pub grpc_port: u16,
    /// The port for operators.
    pub admin_port: u16,
    /// The resources that it asks for and may use.
    pub resources: Resources,
    /// True if it starts with these environment variables.
    pub check: Check,
}

/// Says why a sidecar does not start with these environment variables, where that can be told: a
/// file of settings may add to them.
pub type Check = fn(environment: &BTreeMap<String, String>, has_file: bool) -> Result<(), String>;

/// The kind of container that the sidecar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Beside the app's containers.
    Container,
    /// An init container that keeps running.
    Native,
}

/// When a node pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum PullPolicy {
    /// Before each start.
    Always,
    /// When the node has none.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// Quantities as Kubernetes writes them; an empty one is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// `requests.cpu`
    pub cpu_request: String,
    /// `limits.cpu`
    pub cpu_limit: String,
    /// `requests.memory`
    pub memory_request: String,
    /// `limits.memory`
    pub memory_limit: String,
}

/// `[webhook]`
#[derive(Clone, Debug)]
pub struct Webhook {
    /// The address that the API server connects to.
    pub listen: SocketAddr,
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// `None`: somebody else looks after both.
    pub self_managed: Option<SelfManaged>,
}

/// `[webhook.self_managed]`
#[derive(Clone, Debug)]
pub struct SelfManaged {
    /// The namespace of the Secret and the Service.
    pub namespace: String,
    /// The Secret that replicas share.
    pub secret: String,
    /// The name in the certificate: `service.namespace.svc`.
    pub host: String,
    /// The MutatingWebhookConfiguration.
    pub configuration: String,
}
