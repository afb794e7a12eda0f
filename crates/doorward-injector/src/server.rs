//! Model servers that can be told to listen elsewhere, by arguments or environment variables of
//! theirs.
//!
//! The variables and arguments were looked up in the servers' sources: MLServer 1.7
//! (`settings.py`), KServe 0.21 (`model_server.py`; it always listens on all interfaces), Triton
//! (`command_line_parser.cc`) and TensorFlow Serving (its REST port has no address of its own; of a
//! flag given twice it takes the last).

use serde_json::{Map, Value, json};

/// A known model server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModelServer {
    /// KServe's Python servers.
    Kserve,
    /// Seldon's.
    MlServer,
    /// TensorFlow's.
    TensorFlowServing,
    /// NVIDIA's.
    Triton,
}

/// The protocols that clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    Http,
}

/// The port of a moved server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Only the pod's own containers get there.
    Loopback,
    /// The pod's address; a NetworkPolicy has to keep others out.
    PodNetwork,
}

/// The ways to tell a server its port.
enum Way {
    Argument(&'static str),
    Variable(&'static str),
}

// === impl ModelServer ===

impl ModelServer {
    pub(super) const ALL: [Self; 4] =
        [Self::Kserve, Self::MlServer, Self::TensorFlowServing, Self::Triton];

    /// As annotations name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kserve => "kserve",
            Self::MlServer => "mlserver",
            Self::TensorFlowServing => "tensorflow-serving",
            Self::Triton => "triton",
        }
    }

    /// By what the container runs.
    pub(super) fn of(container: &Map<String, Value>) -> Option<Self> {
        let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
        let image = image.split(['@']).next().unwrap_or_default().to_lowercase();
        let image = match image.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => &image,
        };
        let words = words(container);
        let runs = |program: &str| {
            words.iter().any(|word| word.rsplit('/').next().is_some_and(|last| last == program))
        };
        let last = image.rsplit('/').next().unwrap_or_default();
        if last == "tritonserver" || runs("tritonserver") {
            Some(Self::Triton)
        } else if last.contains("mlserver") || runs("mlserver") {
            Some(Self::MlServer)
        } else if image.ends_with("tensorflow/serving") || runs("tensorflow_model_server") {
            Some(Self::TensorFlowServing)
        } else if (image.contains("kserve/") && last.ends_with("server"))
            || words.iter().any(|word| word.split('=').next() == Some("--http_port"))
        {
            Some(Self::Kserve)
        } else {
            None
        }
    }

    /// The way to tell it its port, and its default port; `None`: it does not speak that.
    fn listens(self, protocol: Protocol) -> Option<(Way, u16)> {
        match (self, protocol) {
            (Self::Kserve, Protocol::Http) => Some((Way::Argument("--http_port"), 8080)),
            (Self::Kserve, Protocol::Grpc) => Some((Way::Argument("--grpc_port"), 8081)),
            (Self::MlServer, Protocol::Http) => Some((Way::Variable("MLSERVER_HTTP_PORT"), 8080)),
            (Self::MlServer, Protocol::Grpc) => Some((Way::Variable("MLSERVER_GRPC_PORT"), 8081)),
            (Self::TensorFlowServing, Protocol::Http) => {
                Some((Way::Argument("--rest_api_port"), 8501))
            }
            // It has a gRPC protocol of its own.
            (Self::TensorFlowServing, Protocol::Grpc) => None,
            (Self::Triton, Protocol::Http) => Some((Way::Argument("--http-port"), 8000)),
            (Self::Triton, Protocol::Grpc) => Some((Way::Argument("--grpc-port"), 8001)),
        }
    }

    /// The port where it listens now; `None`: it does not speak that protocol.
    pub(super) fn port(self, protocol: Protocol, container: &Map<String, Value>) -> Option<u16> {
        let (way, default) = self.listens(protocol)?;
        let value = match way {
            Way::Argument(flag) => argument(container, flag),
            Way::Variable(name) => variable(container, name),
        };
        Some(value.and_then(|value| value.parse().ok()).unwrap_or(default))
    }

    /// True if [`ModelServer::move_to`] has an effect: arguments behind `sh -c` would go to the
    /// shell.
    pub(super) fn is_movable(self, container: &Map<String, Value>) -> bool {
        let shell = words(container).iter().any(|word| word == "-c" || word == "-ec");
        match self {
            Self::MlServer => true,
            Self::Kserve | Self::Triton => {
                // Without arguments or a command the image's own would be replaced.
                !shell && !words(container).is_empty()
            }
            // The image's entry point adds what it is given to its own arguments.
            Self::TensorFlowServing => !shell,
        }
    }

    /// True if it can be kept to the pod's own containers.
    pub(super) fn binds_loopback(self) -> bool {
        matches!(self, Self::MlServer | Self::Triton)
    }

    /// Has it listen on `port` for that protocol.
    pub(super) fn move_to(self, protocol: Protocol, container: &mut Map<String, Value>, port: u16) {
        match self.listens(protocol) {
            Some((Way::Argument(flag), _)) => set_argument(container, flag, &port.to_string()),
            Some((Way::Variable(name), _)) => set_variable(container, name, &port.to_string()),
            None => {}
        }
    }

    /// Keeps it to the pod's own containers, for every protocol, if it can be.
    pub(super) fn bind_loopback(self, container: &mut Map<String, Value>) {
        match self {
            Self::Kserve | Self::TensorFlowServing => {}
            Self::MlServer => set_variable(container, "MLSERVER_HOST", LOOPBACK),
            Self::Triton => {
                for flag in ["--http-address", "--grpc-address"] {
                    set_argument(container, flag, LOOPBACK);
                }
                // It would follow the HTTP address, and carries no input.
                if argument(container, "--metrics-address").is_none() {
                    set_argument(container, "--metrics-address", "0.0.0.0");
                }
            }
        }
    }
}

const LOOPBACK: &str = "127.0.0.1";

// === arguments and variables ===

/// Command and arguments.
fn words(container: &Map<String, Value>) -> Vec<String> {
    let list = |key: &str| container.get(key).and_then(Value::as_array).into_iter().flatten();
    list("command").chain(list("args")).filter_map(|word| Some(word.as_str()?.to_owned())).collect()
}

/// The value of the last `--flag=value` or `--flag value`.
fn argument(container: &Map<String, Value>, flag: &str) -> Option<String> {
    let words = words(container);
    let mut found = None;
    for (index, word) in words.iter().enumerate() {
        match word.split_once('=') {
            Some((name, value)) if name == flag => found = Some(value.to_owned()),
            None if word == flag => found = words.get(index + 1).cloned(),
            _ => {}
        }
    }
    found
}

/// Sets a flag wherever it stands, else adds it to the arguments.
fn set_argument(container: &mut Map<String, Value>, flag: &str, value: &str) {
    let mut found = false;
    for key in ["command", "args"] {
        let Some(words) = container.get_mut(key).and_then(Value::as_array_mut) else { continue };
        let mut follows = false;
        for word in words {
            let Some(text) = word.as_str() else { continue };
            if follows {
                (*word, follows) = (json!(value), false);
            } else if text == flag {
                (found, follows) = (true, true);
            } else if text.split_once('=').is_some_and(|(name, _)| name == flag) {
                (*word, found) = (json!(format!("{flag}={value}")), true);
            }
        }
    }
    if !found {
        let words = container.entry("args").or_insert_with(|| json!([]));
        if !words.is_array() {
            *words = json!([]);
        }
        if let Some(words) = words.as_array_mut() {
            words.push(json!(format!("{flag}={value}")));
        }
    }
}

fn variable(container: &Map<String, Value>, name: &str) -> Option<String> {
    let variables = container.get("env")?.as_array()?;
    // Of equal names the last one counts.
    let found = variables.iter().rev().find(|variable| variable["name"] == name)?;
    Some(found.get("value")?.as_str()?.to_owned())
}

fn set_variable(container: &mut Map<String, Value>, name: &str, value: &str) {
    let variables = container.entry("env").or_insert_with(|| json!([]));
    if !variables.is_array() {
        *variables = json!([]);
    }
    if let Some(variables) = variables.as_array_mut() {
        let variable = json!({"name": name, "value": value});
        let mut equal = variables.iter_mut().filter(|variable| variable["name"] == name);
        match equal.next() {
            Some(first) => {
                *first = variable;
                equal.for_each(|other| other["value"] = json!(value));
            }
            None => variables.push(variable),
        }
    }
}
