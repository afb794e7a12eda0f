//! Puts the sidecar into pods: by hand, into manifests, or by an admission webhook.
//!
//! Injection is a pure function from a pod to a pod. A pod that asks for the sidecar gets it, or is
//! refused with a reason; it never runs without.
//!
//! Whoever may create pods in a namespace may also run pods without the sidecar, or with
//! annotations that weaken it: injection protects from mistakes, not from those who may deploy.

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod api;
mod certificates;
mod files;
mod inject;
mod manifest;
mod options;
mod ports;
mod probes;
mod refusal;
mod review;
mod server;
mod settings;
mod sidecar;
mod webhook;

pub use api::{Access, Error as ApiError};
pub use certificates::{Error as CertificateError, Keeper};
pub use inject::{Injected, Isolation, Outcome, Unchanged, inject};
pub use manifest::{Error as ManifestError, Manifest, inject_manifest, network_policy};
pub use options::OptIn;
pub use refusal::Refusal;
pub use review::{Answer, Error as ReviewError, answer};
pub use settings::{
    Check, Kind, PullPolicy, Resources, SelfManaged, Settings, Sidecar, Webhook as WebhookSettings,
};
pub use webhook::Webhook;
