//! Doorward: an inference-time input firewall that turns away inputs carrying a backdoor trigger.
//!
//! Two flows, and data moves one way in each:
//!
//! ```text
//! offline   config -> model -> perturb -> inspect -> calibrate -> artifact
//! online    request -> protocol -> detect -> verdict -> upstream or rejection -> telemetry
//! ```
//!
//! Every module has a rank and imports only from lower ranks; `tests/it/layering.rs` holds the
//! table and fails when an import points up or sideways.

pub mod artifact;
pub mod calibrate;
pub mod cli;
pub mod config;
pub mod demo;
pub mod detect;
pub mod digest;
pub mod evaluate;
pub use doorward_images as images;
pub mod inspect;
pub mod k8s;
pub use doorward_engine as model;
pub mod perturb;
pub use doorward_protocol as protocol;
pub mod proxy;
pub mod report;
pub mod scan;
pub mod server;
pub mod stats;
pub mod storage;
pub mod telemetry;
pub mod tls;
