//! Manifests: streams of YAML documents, of which those with pods that ask for it get the sidecar.
//!
//! A document that does not change is passed on as it was written, comments included. One that does
//! is written anew: its data is kept, its comments and its layout are not.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::inject::{Injected, Isolation, Origin, Outcome, inject_from};
use super::options::{ISOLATE, OptIn};
use super::refusal::Refusal;
use super::settings::Sidecar;

/// A manifest with the sidecar in its pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The stream.
    pub text: String,
    /// Notes for its author, document by document.
    pub notes: Vec<String>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A pod that asks for the sidecar cannot have it.
    #[error("{object}: {refusal}")]
    Refused {
        /// Kind and name.
        object: String,
        /// Why not.
        refusal: Refusal,
    },
    /// The patched object cannot be written.
    #[error("{object} cannot be written as YAML: {reason}")]
    Write {
        /// Kind and name.
        object: String,
        /// Why not.
        reason: String,
    },
    /// A document is not YAML.
    #[error("document {document}, from line {line} on, is not YAML: {reason}")]
    Yaml {
        /// Counted from 1.
        document: usize,
        /// The place where it begins.
        line: usize,
        /// The thing, and its place.
        reason: String,
    },
}

/// One document as it was written.
struct Document<'a> {
    line: usize,
    text: &'a str,
}

/// Injects into every pod of a manifest that asks for it. One refusal refuses the manifest: half of
/// it, applied, would run pods without the sidecar that they asked for.
pub fn inject_manifest(text: &str, settings: &Sidecar) -> Result<Manifest, Error> {
    let mut documents = Vec::new();
    let mut notes = Vec::new();
    for (index, document) in split(text).into_iter().enumerate() {
        let yaml =
            |reason: String| Error::Yaml { document: index + 1, line: document.line, reason };
        // For line numbers of the whole stream in errors.
        let placed = "\n".repeat(document.line - 1) + document.text;
        let value: Value = serde_saphyr::from_str_with_options(&placed, options())
            .map_err(|error| yaml(error.to_string()))?;
        let items = match (value["kind"].as_str(), value["items"].as_array()) {
            (Some("List"), Some(items)) => items.clone(),
            _ => vec![value.clone()],
        };
        let mut patched = Vec::new();
        let mut policies = BTreeSet::new();
        let mut changed = false;
        for item in items {
            let object = name_of(&item);
            let outcome = inject_object(&item, settings)
                .map_err(|refusal| Error::Refused { object: object.clone(), refusal })?;
            let Some(outcome) = outcome else {
                patched.push(item);
                continue;
            };
            match outcome {
                Outcome::Injected(Injected { pod, isolate, warnings }) => {
                    changed = true;
                    notes.push(format!("{object}: has the sidecar now"));
                    notes.extend(warnings.iter().map(|warning| format!("{object}: {warning}")));
                    let namespace = item["metadata"]["namespace"].as_str().map(str::to_owned);
                    policies.extend(isolate.map(|isolate| (namespace, isolate)));
                    patched.push(pod);
                }
                Outcome::Unchanged(reason) => {
                    notes.push(format!("{object}: unchanged, {reason}"));
                    patched.push(item);
                }
            }
        }
        if !changed {
            documents.push(document.text.to_owned());
            continue;
        }
        let whole = match value["kind"].as_str() {
            Some("List") => {
                let mut list = value.clone();
                list["items"] = json!(patched);
                list
            }
            _ => patched.pop().unwrap_or_default(),
        };
        documents.push(write(&whole)?);
        for (namespace, isolation) in policies {
            let policy = write(&network_policy(namespace.as_deref(), &isolation))?;
            if !documents.contains(&policy) {
                documents.push(policy);
            }
        }
    }
    let text = documents.iter().map(|text| match text.ends_with('\n') || text.is_empty() {
        true => text.clone(),
        false => format!("{text}\n"),
    });
    Ok(Manifest { text: text.collect::<Vec<_>>().join("---\n"), notes })
}

/// `None`: nothing with pods.
fn inject_object(object: &Value, settings: &Sidecar) -> Result<Option<Outcome>, Refusal> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let place: &[&str] = match (group, object["kind"].as_str().unwrap_or_default()) {
        ("", "Pod") => &[],
        ("", "ReplicationController")
        | ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet")
        | ("batch", "Job") => &["spec", "template"],
        ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        ("serving.kserve.io", "InferenceService") => return predictor(object, settings).map(Some),
        _ => return Ok(None),
    };
    let pointer: String = place.iter().map(|key| format!("/{key}")).collect();
    let mut whole = object.clone();
    let Some(pod) = whole.pointer_mut(&pointer) else {
        return Err(Refusal::NotAPod {
            path: place.join("."),
            received: "missing",
            expected: "an object",
        });
    };
    let outcome = inject_from(Origin::Pod, pod, OptIn::Pod, settings)?;
    Ok(Some(match outcome {
        Outcome::Injected(injected) => {
            *pod = injected.pod;
            Outcome::Injected(Injected { pod: whole, ..injected })
        }
        unchanged => unchanged,
    }))
}

/// A predictor is a pod's spec with the pod's labels and annotations in it; those of the whole
/// InferenceService come down to the pod as well.
fn predictor(object: &Value, settings: &Sidecar) -> Result<Outcome, Refusal> {
    let predictor = &object["spec"]["predictor"];
    let merged = |key: &str| {
        let mut all = object["metadata"][key].as_object().cloned().unwrap_or_default();
        all.extend(predictor[key].as_object().cloned().unwrap_or_default());
        all
    };
    let pod = json!({
        "metadata": {"annotations": merged("annotations"), "labels": merged("labels")},
        "spec": predictor,
    });
    let custom = predictor["containers"].as_array().is_some_and(|list| !list.is_empty());
    let served = predictor.as_object().is_some_and(|map| {
        map.values()
            .any(|value| value.get("storageUri").is_some() || value.get("modelFormat").is_some())
    });
    let metadata = pod["metadata"].as_object().cloned().unwrap_or_default();
    if (served || !custom) && super::options::asks(&metadata, OptIn::Pod)? {
        return Err(Refusal::ServingRuntime);
    }
    let outcome = inject_from(Origin::Predictor, &pod, OptIn::Pod, settings)?;
    let Outcome::Injected(injected) = outcome else { return Ok(outcome) };
    let mut whole = object.clone();
    let mut spec = injected.pod["spec"].clone();
    for key in ["annotations", "labels"] {
        // Those of the whole stay where they are.
        let mut own = predictor[key].as_object().cloned().unwrap_or_default();
        for (name, value) in injected.pod["metadata"][key].as_object().into_iter().flatten() {
            if object["metadata"][key].get(name).is_none() || own.contains_key(name) {
                own.insert(name.clone(), value.clone());
            }
        }
        spec[key] = Value::Object(own);
    }
    whole["spec"]["predictor"] = spec;
    Ok(Outcome::Injected(Injected { pod: whole, ..injected }))
}

/// Lets clients reach the sidecar, and nobody reach the app. Probes come from the node, which
/// NetworkPolicies let through.
pub fn network_policy(namespace: Option<&str>, isolation: &Isolation) -> Value {
    let label = isolation.label();
    let mut metadata = json!({"name": format!("doorward-isolate-{label}")});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    let open = isolation.public.iter().chain([&isolation.admin]);
    let ports: Vec<Value> = open.map(|port| json!({"port": port, "protocol": "TCP"})).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": {ISOLATE: label}},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": ports}],
        },
    })
}

/// Splits at the markers of documents, which YAML keeps apart from content: no scalar can hold a
/// line that begins with one.
fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut first, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let end = offset + line.len();
        let bare = line.trim_end();
        if bare == "---" || line.starts_with("--- #") {
            documents.push(Document { line: first, text: &text[start..offset] });
            (start, first) = (end, index + 2);
        }
        offset = end;
    }
    documents.push(Document { line: first, text: &text[start..] });
    documents.retain(|document| has_content(document.text));
    documents
}

fn has_content(text: &str) -> bool {
    text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
}

/// As kubectl reads it: `0644` is octal.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { legacy_octal_numbers: true }
}

fn write(value: &Value) -> Result<String, Error> {
    serde_saphyr::to_string(value)
        .map_err(|error| Error::Write { object: name_of(value), reason: error.to_string() })
}

/// For people: `Deployment default/resnet`.
fn name_of(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("a document without a kind");
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or("unnamed");
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}
