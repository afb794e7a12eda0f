//! Who listens where, so that Services reach the sidecar without iptables.
//!
//! Two ways. *Taking over*: the app moves to another port and the sidecar listens on the one it had, so
//! that Services by name and by number, Knative's proxy and probes all find the sidecar there. It takes a
//! server that can be told to move, or an author who did it. *Renaming*: the app stays, and its port's
//! name goes to the sidecar's port; a Service that names the port by its number would pass the sidecar
//! by, so that a NetworkPolicy has to keep clients off it.

use serde_json::{Map, Value, json};

use super::options::{Options, PortName, ServerChoice};
use super::probes;
use super::refusal::Refusal;
use super::server::{ModelServer, Reach};

/// Who listens where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// Where clients reach the sidecar.
    pub(super) public: u16,
    /// Where the sidecar reaches the app.
    pub(super) app: u16,
    /// Who else reaches the app.
    pub(super) reach: Reach,
    /// How the app gets there.
    pub(super) way: Way,
}

/// How sidecar and app share the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The author has moved the app.
    Moved,
    /// The app is told to listen elsewhere.
    Move(ModelServer),
    /// The name of the app's port goes to the sidecar's.
    Rename(String),
}

/// How far a moved app goes from its own port, so that a reader sees which port it was.
const DISTANCE: u16 = 10_000;

/// The longest name of a port.
const NAME_LENGTH: usize = 15;

// === impl Ports ===

impl Ports {
    /// `app` is the app's container, `spec` the pod's.
    pub(super) fn choose(
        spec: &Map<String, Value>,
        app: &Map<String, Value>,
        options: &Options,
    ) -> Result<Self, Refusal> {
        let server = match options.server {
            None => ModelServer::of(app),
            Some(ServerChoice::Known(server)) => Some(server),
            Some(ServerChoice::Other) => None,
        };
        let (port, name) = inspected(app, options, server)?;
        let admin = options.sidecar.admin_port;
        if let Some(container) = owner(spec, admin) {
            return Err(Refusal::PortTaken { port: admin, container });
        }
        let model = options.model_name.as_deref();
        if let Some(moved) = options.app_port {
            if moved == port {
                return Err(Refusal::Annotation {
                    name: "doorward.dev/app-port".to_owned(),
                    received: moved.to_string(),
                    expected: "another port than the one that clients use".to_owned(),
                });
            }
            let reach = Reach::PodNetwork;
            return Ok(Self { public: port, app: moved, reach, way: Way::Moved });
        }
        if let Some(server) = server.filter(|server| server.is_movable(app)) {
            let probed = probes::all_pass(app, port, name.as_deref(), model);
            let reach = match server.binds_loopback() && probed {
                true => Reach::Loopback,
                false => Reach::PodNetwork,
            };
            let app = free(spec, port, admin)?;
            return Ok(Self { public: port, app, reach, way: Way::Move(server) });
        }
        if containers(spec).any(|container| container["name"] == "queue-proxy") {
            return Err(Refusal::QueueProxy { port });
        }
        let container = app.get("name").and_then(Value::as_str).unwrap_or_default();
        let Some(name) = name else {
            return Err(Refusal::NumericPort { container: container.to_owned(), port });
        };
        let public = options.sidecar.port;
        if let Some(container) = owner(spec, public) {
            return Err(Refusal::PortTaken { port: public, container });
        }
        Ok(Self { public, app: port, reach: Reach::PodNetwork, way: Way::Rename(name) })
    }

    /// Changes the app's container accordingly.
    pub(super) fn apply(&self, app: &mut Map<String, Value>, model: Option<&str>) {
        let name = match &self.way {
            Way::Rename(name) => Some(name.clone()),
            Way::Moved | Way::Move(_) => {
                let ports = declared(app);
                ports.into_iter().find(|(port, _)| *port == self.public).and_then(|(_, name)| name)
            }
        };
        if self.way != Way::Moved {
            let now = match &self.way {
                Way::Rename(_) => self.app,
                Way::Moved | Way::Move(_) => self.public,
            };
            probes::follow(app, now, name.as_deref(), self.app, model, self.reach);
        }
        match &self.way {
            Way::Moved => {}
            Way::Move(server) => server.move_to(app, self.app, self.reach),
            Way::Rename(name) => rename(app, name, self.public, self.app),
        }
    }
}

/// The port to inspect, and its name.
fn inspected(
    app: &Map<String, Value>,
    options: &Options,
    server: Option<ModelServer>,
) -> Result<(u16, Option<String>), Refusal> {
    let ports = declared(app);
    let container = app.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    match &options.port {
        Some(PortName::Number(number)) => {
            let name = ports.iter().find(|(port, _)| port == number);
            return Ok((*number, name.and_then(|(_, name)| name.clone())));
        }
        Some(PortName::Name(wanted)) => {
            let found = ports.iter().find(|(_, name)| name.as_ref() == Some(wanted));
            return found.cloned().ok_or_else(|| Refusal::Annotation {
                name: "doorward.dev/port".to_owned(),
                received: wanted.clone(),
                expected: format!("a port of container {container}: {}", spell(&ports).join(", ")),
            });
        }
        None => {}
    }
    match ports.as_slice() {
        [] => match server {
            Some(server) => Ok((server.port(app), None)),
            None => Err(Refusal::NoPort { container }),
        },
        [only] => Ok(only.clone()),
        _ => {
            let own = server.map(|server| server.port(app));
            let found = ports.iter().find(|(port, _)| Some(*port) == own);
            let ambiguous = || Refusal::AmbiguousPort { container, ports: spell(&ports) };
            found.cloned().ok_or_else(ambiguous)
        }
    }
}

/// TCP ports that a container declares.
pub(super) fn declared(container: &Map<String, Value>) -> Vec<(u16, Option<String>)> {
    let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
    ports
        .filter(|port| port.get("protocol").is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| {
            let number = port.get("containerPort")?.as_u64()?.try_into().ok()?;
            Some((number, port.get("name").and_then(Value::as_str).map(str::to_owned)))
        })
        .collect()
}

/// Ports as a person reads them.
pub(super) fn spell(ports: &[(u16, Option<String>)]) -> Vec<String> {
    let spell = |(port, name): &(u16, Option<String>)| match name {
        Some(name) => format!("{port} ({name})"),
        None => port.to_string(),
    };
    ports.iter().map(spell).collect()
}

fn containers(spec: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let list = |key: &str| spec.get(key).and_then(Value::as_array).into_iter().flatten();
    list("containers").chain(list("initContainers"))
}

/// The container that declares a port.
fn owner(spec: &Map<String, Value>, port: u16) -> Option<String> {
    let owns = |container: &&Value| {
        container.as_object().is_some_and(|map| declared(map).iter().any(|(own, _)| *own == port))
    };
    let container = containers(spec).find(owns)?;
    Some(container["name"].as_str().unwrap_or_default().to_owned())
}

/// A port for the app to move to.
fn free(spec: &Map<String, Value>, port: u16, admin: u16) -> Result<u16, Refusal> {
    let start = port.checked_add(DISTANCE).unwrap_or(DISTANCE);
    let fits = |candidate: &u16| {
        *candidate != port && *candidate != admin && owner(spec, *candidate).is_none()
    };
    (start..=u16::MAX).find(fits).ok_or_else(|| Refusal::PortTaken {
        port: start,
        container: owner(spec, start).unwrap_or_default(),
    })
}

/// The name is the sidecar's now. It stays in the app's list of ports, which says only what a name
/// stands for: Kubernetes before 1.32 does not look for names among the ports of init containers
/// (kubernetes/kubernetes#127958).
fn rename(app: &mut Map<String, Value>, name: &str, public: u16, own: u16) {
    let Some(ports) = app.get_mut("ports").and_then(Value::as_array_mut) else { return };
    let taken: Vec<String> =
        ports.iter().filter_map(|port| Some(port["name"].as_str()?.to_owned())).collect();
    if let Some(port) = ports.iter_mut().find(|port| port["name"] == name) {
        port["containerPort"] = json!(public);
    }
    let mut port = json!({"containerPort": own, "protocol": "TCP"});
    let shortened: String = name.chars().take(NAME_LENGTH - "app-".len()).collect();
    let renamed = format!("app-{}", shortened.trim_end_matches('-'));
    if !taken.contains(&renamed) {
        port["name"] = json!(renamed);
    }
    ports.push(port);
}
