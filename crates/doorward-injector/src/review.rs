//! Admission reviews of the API server: a request in, a response out.
//!
//! Nothing is written anywhere, so a dry run needs no care: its answer is that of a real run.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::inject::{Outcome, Unchanged, inject};
use super::options::OptIn;
use super::settings::Sidecar;

/// An answer, and what the log says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The `AdmissionReview` for the API server.
    pub review: Value,
    /// The outcome for the pod.
    pub verdict: String,
    /// True if the pod may be created.
    pub allowed: bool,
    /// Namespace and name, as far as they are known yet.
    pub pod: String,
    /// True if nothing is going to be created.
    pub dry_run: bool,
}

/// Why something is no review.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is no JSON, or lacks what a review has.
    #[error("this is no AdmissionReview with a request: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It is another version's, or another thing.
    #[error("received {received}, expected {EXPECTED}")]
    Version {
        /// Its version and kind.
        received: String,
    },
}

/// `admission.k8s.io/v1`, as far as it is read here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: ObjectKind,
    operation: String,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
struct ObjectKind {
    group: String,
    version: String,
    kind: String,
}

const EXPECTED: &str = "admission.k8s.io/v1 AdmissionReview";

/// Answers a review. A pod that cannot have the sidecar is not allowed.
pub fn answer(body: &[u8], opt_in: OptIn, settings: &Sidecar) -> Result<Answer, Error> {
    let review: Review = serde_json::from_slice(body)?;
    let received = format!("{} {}", review.api_version, review.kind);
    if received != EXPECTED {
        return Err(Error::Version { received });
    }
    let request = review.request;
    let metadata = &request.object["metadata"];
    let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or_default();
    let pod = format!("{}/{name}", request.namespace);
    let dry_run = request.dry_run.unwrap_or(false);
    let finish = |allowed: bool, verdict: String, mut response: Value| {
        response["uid"] = json!(request.uid);
        response["allowed"] = json!(allowed);
        let review =
            json!({"apiVersion": review.api_version, "kind": review.kind, "response": response});
        Answer { review, verdict, allowed, pod: pod.clone(), dry_run }
    };
    let ObjectKind { group, version, kind } = &request.kind;
    let is_pod = group.is_empty() && version == "v1" && kind == "Pod";
    if !is_pod || request.operation != "CREATE" || !request.sub_resource.is_empty() {
        let verdict =
            format!("{} of {kind}: pods get the sidecar when they are created", request.operation);
        let response = json!({"warnings": [verdict]});
        return Ok(finish(true, verdict, response));
    }
    Ok(match inject(&request.object, opt_in, settings) {
        Ok(Outcome::Injected(injected)) => {
            let patch = json_patch::diff(&request.object, &injected.pod);
            let patch = BASE64_STANDARD.encode(json!(patch).to_string());
            let mut response = json!({"patchType": "JSONPatch", "patch": patch});
            if !injected.warnings.is_empty() {
                response["warnings"] = json!(injected.warnings);
            }
            finish(true, "has the sidecar now".to_owned(), response)
        }
        Ok(Outcome::Unchanged(reason @ Unchanged::AlreadyInjected)) => {
            finish(true, format!("unchanged, {reason}"), json!({}))
        }
        Ok(Outcome::Unchanged(reason)) => {
            finish(true, format!("unchanged, {reason}"), json!({"warnings": [reason.to_string()]}))
        }
        Err(refusal) => {
            let message = refusal.to_string();
            let status = json!({"code": 403, "message": message, "reason": "Forbidden"});
            finish(false, format!("refused, {message}"), json!({"status": status}))
        }
    })
}
