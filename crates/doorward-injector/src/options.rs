//! The options that a pod's annotations ask for.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::refusal::Refusal;
use super::server::{ModelServer, Protocol};
use super::settings::{Kind, Resources, Sidecar};

/// True if a pod asks for the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptIn {
    /// The namespace does, for all its pods; a pod can say no.
    Namespace,
    /// Each pod does, by annotation or label.
    Pod,
}

/// The options of one pod.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) container: Option<String>,
    /// The protocols that are inspected; not empty. gRPC before HTTP.
    pub(super) protocols: Vec<Protocol>,
    pub(super) http: Wanted,
    pub(super) grpc: Wanted,
    pub(super) server: Option<ServerChoice>,
    pub(super) model: String,
    pub(super) artifact: Option<String>,
    /// The Secret with credentials for storage.
    pub(super) storage_secret: Option<String>,
    pub(super) clean_images: Option<String>,
    pub(super) training_images: Option<String>,
    pub(super) config_map: Option<String>,
    pub(super) sidecar: Sidecar,
    /// `DOORWARD_SECTION__KEY` of the settings that annotations give.
    pub(super) environment: BTreeMap<String, String>,
    /// The model's name on the server.
    pub(super) model_name: Option<String>,
}

/// The annotations of one protocol's ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The one that clients use.
    pub(super) port: Option<PortName>,
    /// The one to which the author has moved the app.
    pub(super) app_port: Option<u16>,
}

/// A port by number or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortName {
    Name(String),
    Number(u16),
}

/// The model server by the annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerChoice {
    /// One whose port can be moved.
    Known(ModelServer),
    /// One that stays where it is, whatever its image is called.
    Other,
}

/// The prefix of all annotations and labels.
pub(super) const PREFIX: &str = "doorward.dev/";

/// The prefix of annotations that set keys of `doorward.toml`.
const SETTING: &str = "config.doorward.dev/";

pub(super) const INJECT: &str = "doorward.dev/inject";
pub(super) const INJECTED: &str = "doorward.dev/injected";
pub(super) const ISOLATE: &str = "doorward.dev/isolate";
pub(super) const MODEL: &str = "doorward.dev/model";
pub(super) const ARTIFACT: &str = "doorward.dev/artifact";
pub(super) const CLEAN_IMAGES: &str = "doorward.dev/clean-images";
pub(super) const TRAINING_IMAGES: &str = "doorward.dev/training-images";

/// The sections that injection itself decides, so that the sidecar stands in its place.
const RESERVED: [&str; 5] = ["admin", "calibration", "listen", "tls", "upstream"];

/// Keys of reserved sections that annotations may set.
const NOT_RESERVED: [&str; 4] = [
    "calibration.fit_images",
    "calibration.holdout_images",
    "calibration.seed",
    "upstream.timeout_seconds",
];

// === opting in ===

/// True if the pod asks for the sidecar.
pub(super) fn asks(metadata: &Map<String, Value>, opt_in: OptIn) -> Result<bool, Refusal> {
    let text = |kind: &str| metadata.get(kind).and_then(|map| map.get(INJECT));
    match (text("annotations").or(text("labels")), opt_in) {
        (None, OptIn::Namespace) => Ok(true),
        (None, OptIn::Pod) => Ok(false),
        (Some(Value::String(value)), _) if value == "true" => Ok(true),
        (Some(Value::String(value)), _) if value == "false" => Ok(false),
        (Some(value), _) => Err(unfit(INJECT, value, "\"true\" or \"false\"")),
    }
}

// === impl Options ===

impl Options {
    pub(super) fn read(metadata: &Map<String, Value>, defaults: &Sidecar) -> Result<Self, Refusal> {
        let mut given = given(metadata)?;
        let mut take = |name: &str| given.remove(&format!("{PREFIX}{name}"));
        // Read by others.
        let (_, _) = (take("inject"), take("injected"));
        let mut environment = BTreeMap::new();
        if let Some(mode) = take("mode") {
            one_of("mode", &mode, &["enforce", "monitor"])?;
            environment.insert("DOORWARD_POLICY__MODE".to_owned(), mode);
        }
        if let Some(budget) = take("max-false-rejection-rate") {
            environment.insert("DOORWARD_POLICY__MAX_FALSE_REJECTION_RATE".to_owned(), budget);
        }
        let mut sidecar = defaults.clone();
        if let Some(image) = take("image") {
            sidecar.image = image;
        }
        if let Some(kind) = take("sidecar") {
            one_of("sidecar", &kind, &["native", "container"])?;
            sidecar.kind = if kind == "native" { Kind::Native } else { Kind::Container };
        }
        let resources = Resources {
            cpu_request: take("cpu-request").unwrap_or(sidecar.resources.cpu_request),
            cpu_limit: take("cpu-limit").unwrap_or(sidecar.resources.cpu_limit),
            memory_request: take("memory-request").unwrap_or(sidecar.resources.memory_request),
            memory_limit: take("memory-limit").unwrap_or(sidecar.resources.memory_limit),
        };
        sidecar.resources = resources;
        let protocols = protocols(take("protocol"))?;
        let mut wanted = |protocol: Protocol, [port, app_port]: [&str; 2]| {
            let (named, moved) = (take(port), take(app_port));
            if let Some((name, received)) =
                [(port, &named), (app_port, &moved)].into_iter().find_map(|(name, value)| {
                    Some((name, value.clone()?)).filter(|_| !protocols.contains(&protocol))
                })
            {
                return Err(Refusal::Annotation {
                    name: format!("{PREFIX}{name}"),
                    received,
                    expected: "no such annotation for what doorward.dev/protocol says".to_owned(),
                });
            }
            let port = named.map(|port| match port.parse() {
                Ok(number) if number > 0 => PortName::Number(number),
                _ => PortName::Name(port),
            });
            Ok(Wanted { port, app_port: moved.map(|port| number(app_port, &port)).transpose()? })
        };
        let http = wanted(Protocol::Http, ["port", "app-port"])?;
        let grpc = wanted(Protocol::Grpc, ["grpc-port", "grpc-app-port"])?;
        let server = take("server").map(|name| server(&name)).transpose()?;
        let artifact_sha256 = take("artifact-sha256");
        let mut options = Self {
            container: take("container"),
            protocols,
            http,
            grpc,
            server,
            model: take("model").ok_or(Refusal::NoModel)?,
            artifact: take("artifact"),
            storage_secret: take("storage-secret"),
            clean_images: take("clean-images"),
            training_images: take("training-images"),
            config_map: take("config-map"),
            sidecar,
            environment,
            model_name: take("model-name"),
        };
        if let Some(digest) = artifact_sha256 {
            let variable = "DOORWARD_CALIBRATION__ARTIFACT_SHA256".to_owned();
            options.environment.insert(variable, digest);
        }
        if let Some(name) = &options.model_name {
            options.environment.insert("DOORWARD_MODEL__NAME".to_owned(), name.clone());
        }
        for (name, value) in given {
            let Some(key) = name.strip_prefix(SETTING) else {
                return Err(Refusal::Annotation {
                    name,
                    received: value,
                    expected: "a known annotation; docs/kubernetes.md lists them".to_owned(),
                });
            };
            options.environment.insert(variable(&name, key, &value)?, value);
        }
        Ok(options)
    }
}

/// The annotations that are ours.
fn given(metadata: &Map<String, Value>) -> Result<BTreeMap<String, String>, Refusal> {
    let Some(annotations) = metadata.get("annotations").and_then(Value::as_object) else {
        return Ok(BTreeMap::new());
    };
    let ours = annotations
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX) || name.starts_with(SETTING));
    ours.map(|(name, value)| match value {
        Value::String(text) => Ok((name.clone(), text.clone())),
        other => Err(unfit(name, other, "a string in quotes")),
    })
    .collect()
}

/// `policy.unverified.overload` is `DOORWARD_POLICY__UNVERIFIED__OVERLOAD`.
fn variable(name: &str, key: &str, value: &str) -> Result<String, Refusal> {
    let refuse = |expected: &str| {
        Err(Refusal::Annotation {
            name: name.to_owned(),
            received: value.to_owned(),
            expected: expected.to_owned(),
        })
    };
    let Some((section, _)) = key.split_once('.') else {
        return refuse("an annotation config.doorward.dev/SECTION.KEY");
    };
    if RESERVED.contains(&section) && !NOT_RESERVED.contains(&key) {
        return refuse("no such annotation: injection decides this key by itself");
    }
    Ok(format!("DOORWARD_{}", key.replace('.', "__").to_uppercase()))
}

fn protocols(value: Option<String>) -> Result<Vec<Protocol>, Refusal> {
    let Some(value) = value else { return Ok(vec![Protocol::Http]) };
    match value.as_str() {
        "grpc" => Ok(vec![Protocol::Grpc]),
        "http" => Ok(vec![Protocol::Http]),
        "http,grpc" | "grpc,http" => Ok(vec![Protocol::Grpc, Protocol::Http]),
        _ => Err(Refusal::Annotation {
            name: format!("{PREFIX}protocol"),
            received: value,
            expected: "http, grpc or http,grpc".to_owned(),
        }),
    }
}

fn server(name: &str) -> Result<ServerChoice, Refusal> {
    if name == "other" {
        return Ok(ServerChoice::Other);
    }
    match ModelServer::ALL.iter().find(|server| server.name() == name) {
        Some(server) => Ok(ServerChoice::Known(*server)),
        None => {
            let names = ModelServer::ALL.map(ModelServer::name).join(", ");
            Err(Refusal::Annotation {
                name: format!("{PREFIX}server"),
                received: name.to_owned(),
                expected: format!("one of {names}, other"),
            })
        }
    }
}

fn number(name: &str, value: &str) -> Result<u16, Refusal> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Refusal::Annotation {
            name: format!("{PREFIX}{name}"),
            received: value.to_owned(),
            expected: "a port, 1 to 65535".to_owned(),
        }),
    }
}

fn one_of(name: &str, value: &str, choices: &[&str]) -> Result<(), Refusal> {
    if choices.contains(&value) {
        return Ok(());
    }
    Err(Refusal::Annotation {
        name: format!("{PREFIX}{name}"),
        received: value.to_owned(),
        expected: choices.join(" or "),
    })
}

fn unfit(name: &str, value: &Value, expected: &str) -> Refusal {
    let received = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Refusal::Annotation { name: name.to_owned(), received, expected: expected.to_owned() }
}
