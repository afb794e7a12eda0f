//! From a pod and settings to the pod with the sidecar: a pure function.
//!
//! The pod stays JSON: what a later Kubernetes adds to pods is kept, and nothing that injection
//! does not change is written again in another way.

use serde_json::{Map, Value, json};

use super::options::{INJECTED, ISOLATE, OptIn, Options, asks};
use super::ports::{Ports, Way, declared, spell};
use super::refusal::Refusal;
use super::server::Reach;
use super::settings::{Kind, Sidecar};
use super::sidecar::{self, Declare, NAME};

/// The outcome for a pod.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// It has the sidecar.
    Injected(Injected),
    /// It stays as it is.
    Unchanged(Unchanged),
}

/// A pod with the sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// The pod.
    pub pod: Value,
    /// The peers that a NetworkPolicy has to keep from the app.
    pub isolate: Option<Isolation>,
    /// Notes for its author.
    pub warnings: Vec<String>,
}

/// The ports that a NetworkPolicy has to let through; everything else stays out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isolation {
    /// The sidecar's ports for clients.
    pub public: Vec<u16>,
    /// The sidecar's port for operators.
    pub admin: u16,
}

/// Why a pod stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unchanged {
    /// It has the sidecar already.
    #[error("has the sidecar already")]
    AlreadyInjected,
    /// Nobody asked for it, or the pod says no.
    #[error("does not ask for the sidecar by doorward.dev/inject: \"true\"")]
    NotAsked,
}

// === impl Isolation ===

impl Isolation {
    /// Value of the label, and end of the policy's name: `8080`, or `8080-8081`.
    pub fn label(&self) -> String {
        self.public.iter().map(u16::to_string).collect::<Vec<_>>().join("-")
    }
}

/// The object that the pod is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A pod or a template of one.
    Pod,
    /// A custom predictor, which Knative may run.
    Predictor,
}

/// Containers that others inject, which serve no model.
const SIDECARS: [&str; 4] = ["istio-proxy", "linkerd-proxy", "queue-proxy", "agent"];

/// The container of KServe's predictors.
const KSERVE: &str = "kserve-container";

/// Gives a pod the sidecar, if it asks for it. `pod` has `metadata` and `spec`, as pods and their
/// templates do.
pub fn inject(pod: &Value, opt_in: OptIn, settings: &Sidecar) -> Result<Outcome, Refusal> {
    inject_from(Origin::Pod, pod, opt_in, settings)
}

pub(super) fn inject_from(
    origin: Origin,
    pod: &Value,
    opt_in: OptIn,
    settings: &Sidecar,
) -> Result<Outcome, Refusal> {
    let nothing = Map::new();
    let metadata = match pod.get("metadata") {
        None | Some(Value::Null) => &nothing,
        Some(metadata) => object(metadata, "metadata")?,
    };
    if !asks(metadata, opt_in)? {
        return Ok(Outcome::Unchanged(Unchanged::NotAsked));
    }
    let spec = object(pod.get("spec").unwrap_or(&Value::Null), "spec")?;
    let marked = metadata.get("annotations").is_some_and(|map| map.get(INJECTED).is_some());
    if has(spec, NAME) {
        return match marked {
            true => Ok(Outcome::Unchanged(Unchanged::AlreadyInjected)),
            false => Err(Refusal::NameTaken { what: "container", name: NAME.to_owned() }),
        };
    }
    let mut options = Options::read(metadata, settings)?;
    if origin == Origin::Predictor {
        // Knative refuses init containers unless a feature of it is switched on.
        options.sidecar.kind = Kind::Container;
    }
    admissible(spec, options.sidecar.kind)?;
    let index = app(spec, options.container.as_deref())?;
    let app = object(&spec["containers"][index], "spec.containers")?;
    let ports = Ports::choose(spec, app, &options)?;
    let declare = match origin {
        Origin::Pod => Declare::Ports,
        Origin::Predictor => Declare::Nothing,
    };
    let (container, files) = sidecar::container(&options, &ports, app, declare)?;

    let mut patched = pod.clone();
    let isolate = isolate(&mut patched, &ports, options.sidecar.admin_port);
    let spec = &mut patched["spec"];
    if let Some(app) = spec["containers"][index].as_object_mut() {
        ports.apply(app, options.model_name.as_deref());
    }
    for volume in files.volumes {
        let volumes = list(spec, "volumes")?;
        if volumes.iter().any(|other| other["name"] == volume["name"]) {
            let name = volume["name"].as_str().unwrap_or_default().to_owned();
            return Err(Refusal::NameTaken { what: "volume", name });
        }
        volumes.push(volume);
    }
    // Last: what comes before may be what fetches the model.
    let place = match options.sidecar.kind {
        Kind::Container => "containers",
        Kind::Native => "initContainers",
    };
    list(spec, place)?.push(container);
    let warnings = warnings(app, &ports, isolate.as_ref());
    Ok(Outcome::Injected(Injected { pod: patched, isolate, warnings }))
}

/// Notes on the pod what was done.
fn isolate(pod: &mut Value, ports: &Ports, admin: u16) -> Option<Isolation> {
    if !pod["metadata"].is_object() {
        pod["metadata"] = json!({});
    }
    for kind in ["annotations", "labels"] {
        if !pod["metadata"][kind].is_object() {
            pod["metadata"][kind] = json!({});
        }
    }
    pod["metadata"]["annotations"][INJECTED] = json!(env!("CARGO_PKG_VERSION"));
    pod["metadata"]["labels"][INJECTED] = json!("true");
    if ports.reach == Reach::Loopback {
        return None;
    }
    let isolation = Isolation { public: ports.public(), admin };
    pod["metadata"]["labels"][ISOLATE] = json!(isolation.label());
    Some(isolation)
}

/// The kinds of pod that cannot have the sidecar.
fn admissible(spec: &Map<String, Value>, kind: Kind) -> Result<(), Refusal> {
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        return Err(Refusal::HostNetwork);
    }
    let system = spec.get("os").and_then(|os| os.get("name")).and_then(Value::as_str);
    if let Some(name) = system.filter(|name| *name != "linux") {
        return Err(Refusal::System { name: name.to_owned() });
    }
    let policy = spec.get("restartPolicy").and_then(Value::as_str).unwrap_or("Always");
    if kind == Kind::Container && policy != "Always" {
        return Err(Refusal::NeverEnds { policy: policy.to_owned() });
    }
    Ok(())
}

/// The index of the model server's container.
fn app(spec: &Map<String, Value>, wanted: Option<&str>) -> Result<usize, Refusal> {
    let containers = spec.get("containers").and_then(Value::as_array);
    let names: Vec<&str> = containers
        .into_iter()
        .flatten()
        .map(|container| container["name"].as_str().unwrap_or_default())
        .collect();
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<String>>();
    let position = |name: &str| names.iter().position(|other| *other == name);
    if let Some(name) = wanted {
        let missing =
            || Refusal::NoContainer { name: name.to_owned(), names: owned(names.clone()) };
        return position(name).ok_or_else(missing);
    }
    if let Some(index) = position(KSERVE) {
        return Ok(index);
    }
    let servers: Vec<&str> =
        names.iter().copied().filter(|name| !SIDECARS.contains(name)).collect();
    match servers.as_slice() {
        [] => Err(Refusal::NotAPod {
            path: "spec.containers".to_owned(),
            received: "without a container that could be the model server",
            expected: "one",
        }),
        [only] => Ok(position(only).unwrap_or_default()),
        _ => Err(Refusal::AmbiguousContainer { names: owned(servers) }),
    }
}

fn has(spec: &Map<String, Value>, name: &str) -> bool {
    let list = |key: &str| spec.get(key).and_then(Value::as_array).into_iter().flatten();
    list("containers").chain(list("initContainers")).any(|container| container["name"] == name)
}

fn warnings(app: &Map<String, Value>, ports: &Ports, isolation: Option<&Isolation>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut others = declared(app);
    for port in &ports.inspected {
        if let Some(isolation) = isolation {
            warnings.push(format!(
                "the app stays reachable on port {} of the pod: needs the NetworkPolicy doorward-isolate-{}",
                port.app,
                isolation.label()
            ));
        }
        if port.public < 1024 {
            warnings.push(format!(
                "the sidecar is no root user: port {} takes a container runtime that lets it listen there",
                port.public
            ));
        }
        others.retain(|(other, _)| *other != port.public && *other != port.app);
    }
    if !others.is_empty() {
        let others = spell(&others).join(", ");
        warnings.push(format!("not inspected: port {others}; it must take no inference requests"));
    }
    for port in &ports.inspected {
        if let Way::Rename(name) = &port.way {
            warnings.push(format!(
                "Services have to target the port by its name, {name}: port {} is not inspected",
                port.app
            ));
        }
    }
    warnings
}

// === JSON ===

pub(super) fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, Refusal> {
    value.as_object().ok_or_else(|| Refusal::NotAPod {
        path: path.to_owned(),
        received: kind(value),
        expected: "an object",
    })
}

fn list<'a>(spec: &'a mut Value, key: &str) -> Result<&'a mut Vec<Value>, Refusal> {
    if spec[key].is_null() {
        spec[key] = json!([]);
    }
    let received = kind(&spec[key]);
    let path = || format!("spec.{key}");
    let expected = "a list";
    spec[key].as_array_mut().ok_or_else(|| Refusal::NotAPod { path: path(), received, expected })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "a list",
        Value::Bool(_) => "true or false",
        Value::Null => "missing",
        Value::Number(_) => "a number",
        Value::Object(_) => "an object",
        Value::String(_) => "a string",
    }
}
