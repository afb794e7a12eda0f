//! The files of the sidecar: from the volumes that the app mounts, or from volumes of its own.

use serde_json::{Map, Value, json};

use super::options::ARTIFACT;
use super::refusal::Refusal;

/// Volumes and mounts that the sidecar needs.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) volumes: Vec<Value>,
    pub(super) mounts: Vec<Value>,
}

/// The folder of volumes that only the sidecar mounts.
const ROOT: &str = "/mnt/doorward";

/// The sidecar's own place to write.
pub(super) const STATE: &str = "/var/lib/doorward";

/// The folder where a ConfigMap with settings is mounted.
const SETTINGS: &str = "/etc/doorward";

/// The key of that ConfigMap.
const SETTINGS_KEY: &str = "doorward.toml";

// === impl Files ===

impl Files {
    /// With the place to write.
    pub(super) fn new() -> Self {
        let mut files = Self::default();
        files.add("state", json!({"emptyDir": {}}), json!({"mountPath": STATE}));
        files
    }

    /// Mounts the settings in a ConfigMap and returns their path.
    pub(super) fn settings(&mut self, config_map: &str) -> String {
        let source = json!({"configMap": {"name": config_map}});
        self.add("settings", source, json!({"mountPath": SETTINGS, "readOnly": true}));
        format!("{SETTINGS}/{SETTINGS_KEY}")
    }

    /// Mounts what an annotation names and returns its path in the sidecar.
    ///
    /// `/path` is a file of a volume that `app` mounts, `pvc://CLAIM/PATH` one of a claim, and
    /// `secret://NAME/KEY` one of a Secret. The artifact may be `s3://BUCKET/KEY`, which mounts
    /// nothing.
    pub(super) fn resolve(
        &mut self,
        annotation: &'static str,
        location: &str,
        app: &Map<String, Value>,
    ) -> Result<String, Refusal> {
        let part = annotation.rsplit('/').next().unwrap_or(annotation);
        let root = format!("{ROOT}/{part}");
        let unfit = |expected: &str| Refusal::Annotation {
            name: annotation.to_owned(),
            received: location.to_owned(),
            expected: expected.to_owned(),
        };
        let plain = |path: &str| {
            !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        };
        if let Some(rest) = location.strip_prefix("pvc://") {
            let Some((claim, path)) = rest
                .split_once('/')
                .filter(|(claim, path)| is_name(claim) && plain(path.trim_end_matches('/')))
            else {
                return Err(unfit("pvc://CLAIM/PATH"));
            };
            let source = json!({"persistentVolumeClaim": {"claimName": claim, "readOnly": true}});
            self.add(part, source, json!({"mountPath": root, "readOnly": true}));
            return Ok(format!("{root}/{path}"));
        }
        if let Some(rest) = location.strip_prefix("secret://") {
            let Some((name, key)) = rest
                .split_once('/')
                .filter(|(name, key)| is_name(name) && plain(key) && !key.contains('/'))
            else {
                return Err(unfit("secret://NAME/KEY"));
            };
            let items = json!([{"key": key, "path": key}]);
            let source = json!({"secret": {"secretName": name, "items": items}});
            self.add(part, source, json!({"mountPath": root, "readOnly": true}));
            return Ok(format!("{root}/{key}"));
        }
        if location.starts_with("s3://") && annotation == ARTIFACT {
            return Ok(location.to_owned());
        }
        let Some(inside) = location.strip_prefix('/') else {
            let here = "/PATH, pvc://CLAIM/PATH or secret://NAME/KEY";
            return Err(match annotation {
                ARTIFACT => unfit(&format!("{here}, or s3://BUCKET/KEY")),
                _ => unfit(here),
            });
        };
        if !plain(inside.trim_end_matches('/')) {
            return Err(unfit("a path without //, . and .."));
        }
        self.share(location, app).ok_or_else(|| Refusal::NotMounted {
            annotation,
            path: location.to_owned(),
            container: app.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
        })?;
        Ok(location.to_owned())
    }

    /// Mounts the app's volume that holds `path`, to read, in the same place.
    fn share(&mut self, path: &str, app: &Map<String, Value>) -> Option<()> {
        let mounts = app.get("volumeMounts")?.as_array()?;
        let point = |mount: &Value| {
            mount["mountPath"].as_str().map(|point| point.trim_end_matches('/').to_owned())
        };
        let holds = |mount: &&Value| {
            point(mount).is_some_and(|point| {
                let rest = path.strip_prefix(&point);
                !point.is_empty()
                    && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let mount =
            mounts.iter().filter(holds).max_by_key(|mount| point(mount).map(|p| p.len()))?;
        // It is made of the app's variables, which the sidecar does not have.
        if mount.get("subPathExpr").is_some() {
            return None;
        }
        let mut shared = json!({
            "name": mount["name"], "mountPath": mount["mountPath"], "readOnly": true,
        });
        if let Some(inside) = mount.get("subPath") {
            shared["subPath"] = inside.clone();
        }
        let same = |other: &Value| other["mountPath"] == shared["mountPath"];
        if !self.mounts.iter().any(same) {
            self.mounts.push(shared);
        }
        Some(())
    }

    fn add(&mut self, part: &str, source: Value, mount: Value) {
        let name = format!("doorward-{part}");
        let named = |value: Value| {
            let mut object = Map::from_iter([("name".to_owned(), json!(name))]);
            if let Value::Object(fields) = value {
                object.extend(fields);
            }
            Value::Object(object)
        };
        self.volumes.push(named(source));
        self.mounts.push(named(mount));
    }
}

/// A name that Kubernetes gives to objects.
fn is_name(text: &str) -> bool {
    let sane = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !text.is_empty() && text.len() <= 253 && text.chars().all(sane)
}
