//! The app's own probes: they stay as they are wherever the sidecar passes them on.
//!
//! A probe of a route that the firewall takes for a read reaches the app through the sidecar. Any
//! other one would be answered, or refused, by the sidecar itself and say nothing of the app; its
//! port becomes the app's. So does one of readiness that does not decide on readiness: while the
//! sidecar is not calibrated it says no there, which is no reason to restart the app.

use serde_json::{Map, Value, json};

use doorward_protocol::ImageRoutes;
use doorward_protocol::Route;
use doorward_protocol::{Allowed, Format};

use super::server::Protocol;

const READINESS: &str = "readinessProbe";
const PROBES: [&str; 3] = ["livenessProbe", READINESS, "startupProbe"];
const HOOKS: [&str; 2] = ["postStart", "preStop"];
const ACTIONS: [&str; 3] = ["grpc", "httpGet", "tcpSocket"];

/// A port of the sidecar's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probed<'a> {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) name: Option<&'a str>,
    /// The only model whose reads pass.
    pub(super) model: Option<&'a str>,
}

/// True if all probes by network would reach the app through one of the sidecar's ports.
pub(super) fn all_pass(app: &Map<String, Value>, ports: &[Probed<'_>]) -> bool {
    actions(app).all(|(handler, kind, action)| {
        ports.iter().any(|probed| meets(action, probed) && passes(handler, kind, action, probed))
    })
}

/// Points probes that the sidecar would not pass on to `new`.
pub(super) fn follow(app: &mut Map<String, Value>, old: &Probed<'_>, new: u16) {
    for (name, handler) in handlers_mut(app) {
        for kind in ACTIONS {
            let Some(action) = handler.get_mut(kind) else { continue };
            let here = action.get("host").is_none();
            if here && meets(action, old) && !passes(name, kind, action, old) {
                action["port"] = json!(new);
            }
        }
    }
}

/// By gRPC nothing does: the health that kubelets ask for is no call of the inference protocol.
fn passes(handler: &str, kind: &str, action: &Value, probed: &Probed<'_>) -> bool {
    let plain = action.get("scheme").is_none_or(|scheme| scheme == "HTTP");
    if kind != "httpGet" || !plain || probed.protocol == Protocol::Grpc {
        return false;
    }
    let path = action.get("path").and_then(Value::as_str).unwrap_or("/");
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    // Whether the sidecar takes images is not known here; without it, such probes go to the app
    // itself.
    let allowed = Allowed { model: probed.model, ..Allowed::default() };
    let route = Format::of(path, &ImageRoutes::default()).route("GET", path, query, allowed);
    match route {
        Route::Read => true,
        Route::Ready => handler == READINESS,
        _ => false,
    }
}

fn meets(action: &Value, probed: &Probed<'_>) -> bool {
    match action.get("port") {
        Some(Value::Number(number)) => number.as_u64() == Some(probed.port.into()),
        Some(Value::String(text)) => {
            Some(text.as_str()) == probed.name || text.parse() == Ok(probed.port)
        }
        _ => false,
    }
}

/// Each with the key of its handler and of its kind.
fn actions(app: &Map<String, Value>) -> impl Iterator<Item = (&'static str, &'static str, &Value)> {
    let probes = PROBES.into_iter().filter_map(|probe| Some((probe, app.get(probe)?)));
    let lifecycle = app.get("lifecycle");
    let hooks = HOOKS.into_iter().filter_map(move |hook| Some((hook, lifecycle?.get(hook)?)));
    let handlers = probes.chain(hooks);
    handlers
        .flat_map(|(name, handler)| {
            ACTIONS.into_iter().filter_map(move |kind| Some((name, kind, handler.get(kind)?)))
        })
        // Of another host: not of this pod.
        .filter(|(.., action)| action.get("host").is_none())
}

/// Each with its key.
fn handlers_mut(app: &mut Map<String, Value>) -> Vec<(&str, &mut Value)> {
    let mut handlers = Vec::new();
    for (key, value) in app {
        if PROBES.contains(&key.as_str()) {
            handlers.push((key.as_str(), value));
        } else if key == "lifecycle"
            && let Some(hooks) = value.as_object_mut()
        {
            handlers.extend(hooks.iter_mut().map(|(key, value)| (key.as_str(), value)));
        }
    }
    handlers
}
