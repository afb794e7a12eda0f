//! The settings by which pods get the sidecar, as `config/injection.toml` has them.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use doorward_injector::{
    Kind, PullPolicy, Resources, SelfManaged, Settings, Sidecar, WebhookSettings as Webhook,
};
use serde::Deserialize;

use super::{Error, LogFormat, Result, Telemetry};

/// The shipped settings: every key, its documentation and its default.
pub const EMBEDDED: &str = include_str!("../../config/injection.toml");

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    sidecar: RawSidecar,
    webhook: RawWebhook,
    telemetry: RawTelemetry,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSidecar {
    image: Option<String>,
    image_pull_policy: Option<PullPolicy>,
    kind: Option<Kind>,
    port: Option<NonZeroU16>,
    grpc_port: Option<NonZeroU16>,
    admin_port: Option<NonZeroU16>,
    cpu_request: Option<String>,
    cpu_limit: Option<String>,
    memory_request: Option<String>,
    memory_limit: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawWebhook {
    listen: Option<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    self_managed: RawSelfManaged,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSelfManaged {
    namespace: Option<String>,
    secret: Option<String>,
    service: Option<String>,
    configuration: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawTelemetry {
    log: Option<String>,
    format: Option<LogFormat>,
}

/// Reads the user's file, if any, over the embedded one.
pub fn load(path: Option<&Path>) -> Result<Settings> {
    let Some(path) = path else { return parse("no file", "") };
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&path.display().to_string(), &text)
}

/// As [`load`], for the text of a file. `name` stands for the file in errors.
pub fn parse(name: &str, text: &str) -> Result<Settings> {
    let below = read("the embedded injection.toml", EMBEDDED)?;
    let above = read(name, text)?;
    let (upper, lower) = (above.sidecar, below.sidecar);
    let port = port("sidecar.port", upper.port.or(lower.port))?;
    let admin_port = self::port("sidecar.admin_port", upper.admin_port.or(lower.admin_port))?;
    let grpc_port = self::port("sidecar.grpc_port", upper.grpc_port.or(lower.grpc_port))?;
    if grpc_port == port {
        return invalid("sidecar.grpc_port", grpc_port, "another port than sidecar.port");
    }
    if [port, grpc_port].contains(&admin_port) {
        let expected = "another port than sidecar.port and sidecar.grpc_port";
        return invalid("sidecar.admin_port", admin_port, expected);
    }
    let kind = upper.kind.or(lower.kind);
    let sidecar = Sidecar {
        image: text_of("sidecar.image", upper.image.or(lower.image))?,
        image_pull_policy: upper.image_pull_policy.or(lower.image_pull_policy),
        kind: kind.map_or_else(|| invalid("sidecar.kind", "", "a kind"), Ok)?,
        port,
        grpc_port,
        admin_port,
        resources: Resources {
            cpu_request: upper.cpu_request.or(lower.cpu_request).unwrap_or_default(),
            cpu_limit: upper.cpu_limit.or(lower.cpu_limit).unwrap_or_default(),
            memory_request: upper.memory_request.or(lower.memory_request).unwrap_or_default(),
            memory_limit: upper.memory_limit.or(lower.memory_limit).unwrap_or_default(),
        },
        check,
    };
    let (upper, lower) = (above.webhook, below.webhook);
    let listen = text_of("webhook.listen", upper.listen.or(lower.listen))?;
    let webhook = Webhook {
        listen: listen.parse().or_else(|_| {
            invalid("webhook.listen", listen, "an address and port such as 0.0.0.0:8443")
        })?,
        certificate: upper.certificate.or(lower.certificate).unwrap_or_default(),
        key: upper.key.or(lower.key).unwrap_or_default(),
        self_managed: self_managed(upper.self_managed, lower.self_managed)?,
    };
    let (upper, lower) = (above.telemetry, below.telemetry);
    let telemetry = Telemetry {
        log: text_of("telemetry.log", upper.log.or(lower.log))?,
        format: upper.format.or(lower.format).unwrap_or(LogFormat::Text),
        otlp: None,
    };
    Ok(Settings { sidecar, webhook, telemetry })
}

/// Checks a sidecar's settings: a fault is better known now than from a crashing container.
fn check(
    environment: &BTreeMap<String, String>,
    has_file: bool,
) -> std::result::Result<(), String> {
    // TOML's errors span lines and quote the value.
    let on_one_line =
        |error: Error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let settings = super::Settings::load(None, environment).map_err(on_one_line)?;
    if !has_file {
        settings.configs().map_err(on_one_line)?;
    }
    Ok(())
}

fn self_managed(upper: RawSelfManaged, lower: RawSelfManaged) -> Result<Option<SelfManaged>> {
    let Some(secret) = upper.secret.or(lower.secret) else { return Ok(None) };
    let namespace = upper.namespace.or(lower.namespace);
    let namespace = text_of("webhook.self_managed.namespace", namespace)?;
    let service = upper.service.or(lower.service);
    let service = text_of("webhook.self_managed.service", service)?;
    let configuration = upper.configuration.or(lower.configuration);
    Ok(Some(SelfManaged {
        host: format!("{service}.{namespace}.svc"),
        namespace,
        secret: text_of("webhook.self_managed.secret", Some(secret))?,
        configuration: text_of("webhook.self_managed.configuration", configuration)?,
    }))
}

fn read(name: &str, text: &str) -> Result<Raw> {
    toml::from_str(text)
        .map_err(|error| Error::Parse { file: name.to_owned(), reason: error.to_string() })
}

fn port(key: &'static str, value: Option<NonZeroU16>) -> Result<u16> {
    value.map_or_else(|| invalid(key, "", "a port"), |port| Ok(port.get()))
}

fn text_of(key: &'static str, value: Option<String>) -> Result<String> {
    match value {
        Some(text) if !text.trim().is_empty() => Ok(text),
        value => invalid(key, value.unwrap_or_default(), "a text that is not empty"),
    }
}

fn invalid<T>(key: &'static str, received: impl ToString, expected: &'static str) -> Result<T> {
    Err(Error::Invalid { key, received: received.to_string(), expected })
}
