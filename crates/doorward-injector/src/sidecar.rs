//! The sidecar's container.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::files::{Files, STATE};
use super::options::{ARTIFACT, CLEAN_IMAGES, MODEL, Options, TRAINING_IMAGES};
use super::ports::Ports;
use super::refusal::Refusal;
use super::server::Protocol;
use super::settings::{Kind, Resources, Sidecar};

/// The name of the container.
pub(super) const NAME: &str = "doorward";

/// The user of the image; the pod's own user may be root.
const USER: u32 = 65532;

/// True if the container may declare ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Declare {
    /// Knative takes one container with ports.
    Nothing,
    /// For those who look ports up by name.
    Ports,
}

/// The container and what it mounts.
pub(super) fn container(
    options: &Options,
    ports: &Ports,
    app: &Map<String, Value>,
    declare: Declare,
) -> Result<(Value, Files), Refusal> {
    let mut files = Files::new();
    let mut environment = listeners(options, ports);
    let model = files.resolve(MODEL, &options.model, app)?;
    environment.insert("DOORWARD_MODEL__PATH".to_owned(), model);
    let artifact = match &options.artifact {
        Some(location) => files.resolve(ARTIFACT, location, app)?,
        None => format!("{STATE}/doorward.safetensors"),
    };
    environment.insert("DOORWARD_CALIBRATION__ARTIFACT".to_owned(), artifact);
    let key = "DOORWARD_CALIBRATION__CLEAN_IMAGES";
    match &options.clean_images {
        Some(location) => {
            environment.insert(key.to_owned(), files.resolve(CLEAN_IMAGES, location, app)?);
        }
        None if options.config_map.is_some() => {}
        None if options.artifact.is_none() => return Err(Refusal::NoArtifact),
        // An artifact needs no images; the key has to be there, the file has not.
        None => {
            environment.insert(key.to_owned(), format!("{STATE}/clean-images"));
        }
    }
    if let Some(location) = &options.training_images {
        let key = "DOORWARD_CALIBRATION__TRAINING_IMAGES";
        environment.insert(key.to_owned(), files.resolve(TRAINING_IMAGES, location, app)?);
    }
    environment.extend(options.environment.clone());
    let has_file = options.config_map.is_some();
    (options.sidecar.check)(&environment, has_file)
        .map_err(|reason| Refusal::Settings { reason })?;

    let mut arguments = vec!["serve".to_owned()];
    if let Some(config_map) = &options.config_map {
        arguments.extend(["-c".to_owned(), files.settings(config_map)]);
    }
    let sidecar = &options.sidecar;
    let mut container = json!({"name": NAME, "image": sidecar.image});
    if let Some(policy) = sidecar.image_pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    if sidecar.kind == Kind::Native {
        container["restartPolicy"] = json!("Always");
    }
    container["args"] = json!(arguments);
    container["env"] = environment
        .into_iter()
        .map(|(name, value)| json!({"name": name, "value": escaped(&value)}))
        .collect();
    if let Some(secret) = &options.storage_secret {
        container["envFrom"] = json!([{"secretRef": {"name": secret}}]);
    }
    if declare == Declare::Ports {
        container["ports"] = json!([
            {"name": "doorward-admin", "containerPort": sidecar.admin_port, "protocol": "TCP"},
        ]);
    }
    container["startupProbe"] = probe(sidecar, "/livez", 1, 60);
    container["livenessProbe"] = probe(sidecar, "/livez", 10, 3);
    container["readinessProbe"] = probe(sidecar, "/readyz", 2, 1);
    container["resources"] = resources(&sidecar.resources);
    container["securityContext"] = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsGroup": USER,
        "runAsNonRoot": true,
        "runAsUser": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    container["volumeMounts"] = json!(files.mounts);
    Ok((container, files))
}

/// The variables with the sidecar's listeners and the app's addresses.
fn listeners(options: &Options, ports: &Ports) -> BTreeMap<String, String> {
    let any = |port: u16| format!("0.0.0.0:{port}");
    let app = |port: u16| format!("http://127.0.0.1:{port}");
    let mut variables = vec![("DOORWARD_ADMIN__LISTEN", any(options.sidecar.admin_port))];
    let grpc = ports.of(Protocol::Grpc);
    if let Some(grpc) = grpc {
        variables.push(("DOORWARD_LISTEN__GRPC", any(grpc.public)));
        variables.push(("DOORWARD_UPSTREAM__GRPC_URL", app(grpc.app)));
    }
    match (ports.of(Protocol::Http), grpc) {
        (Some(http), _) => {
            variables.push(("DOORWARD_LISTEN__HTTP", any(http.public)));
            variables.push(("DOORWARD_UPSTREAM__URL", app(http.app)));
        }
        // It listens for HTTP in any case: here where no client gets to.
        (None, grpc) => {
            variables.push(("DOORWARD_LISTEN__HTTP", "127.0.0.1:0".to_owned()));
            variables.extend(grpc.map(|grpc| ("DOORWARD_UPSTREAM__URL", app(grpc.app))));
        }
    }
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Kubernetes would replace `$(NAME)`.
fn escaped(value: &str) -> String {
    value.replace("$(", "$$(")
}

fn probe(sidecar: &Sidecar, path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": sidecar.admin_port},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 2,
    })
}

fn resources(resources: &Resources) -> Value {
    let quantities = |cpu: &str, memory: &str| {
        let both = [("cpu", cpu), ("memory", memory)].into_iter();
        let given = both.filter(|(_, quantity)| !quantity.is_empty());
        given.map(|(name, quantity)| (name.to_owned(), json!(quantity))).collect::<Map<_, _>>()
    };
    let requests = quantities(&resources.cpu_request, &resources.memory_request);
    let limits = quantities(&resources.cpu_limit, &resources.memory_limit);
    let both = [("requests", requests), ("limits", limits)].into_iter();
    let given = both.filter(|(_, quantities)| !quantities.is_empty());
    Value::Object(given.map(|(name, map)| (name.to_owned(), Value::Object(map))).collect())
}
