//! The ports of sidecar and app, so that Services reach the sidecar without iptables.
//!
//! Two ways. *Taking over*: the app moves to another port and the sidecar listens on the one it
//! had, so that Services by name and by number, Knative's proxy and probes all find the sidecar
//! there. It takes a server that can be told to move, or an author who did it. *Renaming*: the app
//! stays, and its port's name goes to the sidecar's port; a Service that names the port by its
//! number would pass the sidecar by, so that a NetworkPolicy has to keep clients off it.

use serde_json::{Map, Value, json};

use super::options::{Options, PortName, ServerChoice, Wanted};
use super::probes::{self, Probed};
use super::refusal::Refusal;
use super::server::{ModelServer, Protocol, Reach};

/// The ports of sidecar and app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// One for each protocol.
    pub(super) inspected: Vec<Inspected>,
    /// The others that reach the app.
    pub(super) reach: Reach,
}

/// One port that clients use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inspected {
    pub(super) protocol: Protocol,
    /// The port at which clients reach the sidecar.
    pub(super) public: u16,
    /// The port at which the sidecar reaches the app.
    pub(super) app: u16,
    /// The way in which the app gets there.
    pub(super) way: Way,
    /// The name of the port that clients use in the app's container.
    name: Option<String>,
}

/// The division of the ports between sidecar and app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The author has moved the app.
    Moved,
    /// The app is told to listen elsewhere.
    Move(ModelServer),
    /// The name of the app's port goes to the sidecar's.
    Rename(String),
}

/// The distance of a moved app from its own port, so that a reader sees which port it was.
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
        let mut inspected = Vec::new();
        for &protocol in &options.protocols {
            let choice = Choice { protocol, spec, app, options, server };
            inspected.push(choice.make(&inspected)?);
        }
        let model = options.model_name.as_deref();
        let probed: Vec<Probed<'_>> = inspected.iter().map(|port| port.probed(model)).collect();
        let loopback = inspected.iter().all(|port| match port.way {
            Way::Move(server) => server.binds_loopback(),
            Way::Moved | Way::Rename(_) => false,
        });
        let reach = match loopback && probes::all_pass(app, &probed) {
            true => Reach::Loopback,
            false => Reach::PodNetwork,
        };
        Ok(Self { inspected, reach })
    }

    /// The ports at which clients reach the sidecar: HTTP first.
    pub(super) fn public(&self) -> Vec<u16> {
        self.inspected.iter().rev().map(|port| port.public).collect()
    }

    /// The one that takes a protocol.
    pub(super) fn of(&self, protocol: Protocol) -> Option<&Inspected> {
        self.inspected.iter().find(|port| port.protocol == protocol)
    }

    /// Changes the app's container accordingly.
    pub(super) fn apply(&self, app: &mut Map<String, Value>, model: Option<&str>) {
        for port in &self.inspected {
            // Bound to loopback it has no probe that would not pass.
            if port.way != Way::Moved && self.reach == Reach::PodNetwork {
                let probed = Probed { port: port.before(), ..port.probed(model) };
                probes::follow(app, &probed, port.app);
            }
            match &port.way {
                Way::Moved => {}
                Way::Move(server) => {
                    server.move_to(port.protocol, app, port.app);
                    if self.reach == Reach::Loopback {
                        server.bind_loopback(app);
                    }
                }
                Way::Rename(name) => rename(app, name, port.public, port.app),
            }
        }
    }
}

// === impl Inspected ===

impl Inspected {
    /// The port where the app listened before.
    fn before(&self) -> u16 {
        match self.way {
            Way::Rename(_) => self.app,
            Way::Moved | Way::Move(_) => self.public,
        }
    }

    fn probed<'a>(&'a self, model: Option<&'a str>) -> Probed<'a> {
        let (protocol, port, name) = (self.protocol, self.public, self.name.as_deref());
        Probed { protocol, port, name, model }
    }
}

/// The facts that one protocol's ports are chosen from.
struct Choice<'a> {
    protocol: Protocol,
    spec: &'a Map<String, Value>,
    app: &'a Map<String, Value>,
    options: &'a Options,
    server: Option<ModelServer>,
}

// === impl Choice ===

impl Choice<'_> {
    /// Beside what was chosen for another protocol.
    fn make(&self, others: &[Inspected]) -> Result<Inspected, Refusal> {
        let Self { protocol, spec, app, options, server } = *self;
        if let Some(server) = server.filter(|server| server.port(protocol, app).is_none()) {
            return Err(Refusal::Annotation {
                name: "doorward.dev/protocol".to_owned(),
                received: "grpc".to_owned(),
                expected: format!("http: gRPC of {} is not understood", server.name()),
            });
        }
        let (port, name) = self.inspected(others)?;
        let admin = options.sidecar.admin_port;
        if let Some(container) = owner(spec, admin) {
            return Err(Refusal::PortTaken { port: admin, container });
        }
        let container = || app.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let taken: Vec<u16> =
            others.iter().flat_map(|other| [other.public, other.app]).chain([admin]).collect();
        let chosen =
            |public, app, way| Inspected { protocol, public, app, way, name: name.clone() };
        if let Some(moved) = self.wanted().app_port {
            if moved == port || taken.contains(&moved) {
                let name = match protocol {
                    Protocol::Grpc => "doorward.dev/grpc-app-port",
                    Protocol::Http => "doorward.dev/app-port",
                };
                return Err(Refusal::Annotation {
                    name: name.to_owned(),
                    received: moved.to_string(),
                    expected: "another port than those of clients and of the sidecar".to_owned(),
                });
            }
            return Ok(chosen(port, moved, Way::Moved));
        }
        if let Some(server) = server.filter(|server| server.is_movable(app)) {
            return Ok(chosen(port, free(spec, port, &taken)?, Way::Move(server)));
        }
        if containers(spec).any(|container| container["name"] == "queue-proxy") {
            return Err(Refusal::QueueProxy { port });
        }
        let Some(name) = name.clone() else {
            return Err(Refusal::NumericPort { container: container(), port });
        };
        let public = match protocol {
            Protocol::Grpc => options.sidecar.grpc_port,
            Protocol::Http => options.sidecar.port,
        };
        if let Some(container) = owner(spec, public) {
            return Err(Refusal::PortTaken { port: public, container });
        }
        Ok(chosen(public, port, Way::Rename(name)))
    }

    fn wanted(&self) -> &Wanted {
        match self.protocol {
            Protocol::Grpc => &self.options.grpc,
            Protocol::Http => &self.options.http,
        }
    }

    /// The port to inspect, and its name.
    fn inspected(&self, others: &[Inspected]) -> Result<(u16, Option<String>), Refusal> {
        let mut ports = declared(self.app);
        let container =
            || self.app.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        match &self.wanted().port {
            Some(PortName::Number(number)) => {
                let name = ports.iter().find(|(port, _)| port == number);
                return Ok((*number, name.and_then(|(_, name)| name.clone())));
            }
            Some(PortName::Name(wanted)) => {
                let found = ports.iter().find(|(_, name)| name.as_ref() == Some(wanted));
                return found.cloned().ok_or_else(|| Refusal::Annotation {
                    name: format!("doorward.dev/{}", self.annotation()),
                    received: wanted.clone(),
                    expected: format!(
                        "a port of container {}: {}",
                        container(),
                        spell(&ports).join(", ")
                    ),
                });
            }
            None => {}
        }
        let own = self.server.and_then(|server| server.port(self.protocol, self.app));
        ports.retain(|(port, _)| others.iter().all(|other| other.before() != *port));
        if let Some(found) = ports.iter().find(|(port, _)| Some(*port) == own) {
            return Ok(found.clone());
        }
        // Where HTTP is inspected too, the one port that is declared may be HTTP's.
        let only = self.protocol == Protocol::Http || self.options.protocols.len() == 1;
        match (ports.as_slice(), own) {
            ([port], _) if only => return Ok(port.clone()),
            // Servers listen on ports that nobody declares.
            (_, Some(own)) if ports.is_empty() || !only => return Ok((own, None)),
            _ => {}
        }
        let container = container();
        let annotation = self.annotation();
        if self.protocol == Protocol::Grpc && own.is_none() {
            let mut named = ports.iter().filter(|(_, name)| name.as_deref().is_some_and(is_grpc));
            if let (Some(port), None) = (named.next(), named.next()) {
                return Ok(port.clone());
            }
        }
        if ports.is_empty() {
            return Err(Refusal::NoPort { container, annotation });
        }
        Err(Refusal::AmbiguousPort { container, ports: spell(&ports), annotation })
    }

    fn annotation(&self) -> &'static str {
        match self.protocol {
            Protocol::Grpc => "grpc-port",
            Protocol::Http => "port",
        }
    }
}

/// As Knative and meshes read the names of ports.
fn is_grpc(name: &str) -> bool {
    ["grpc", "h2c"].iter().any(|protocol| {
        name.strip_prefix(protocol).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
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

/// A port for the app to move to, none of `taken`.
fn free(spec: &Map<String, Value>, port: u16, taken: &[u16]) -> Result<u16, Refusal> {
    let start = port.checked_add(DISTANCE).unwrap_or(DISTANCE);
    let fits = |candidate: &u16| {
        *candidate != port && !taken.contains(candidate) && owner(spec, *candidate).is_none()
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
