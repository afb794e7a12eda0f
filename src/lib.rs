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

pub use doorward_detection::artifact;
pub use doorward_detection::calibrate;
pub mod cli;
pub mod config;
pub mod demo;
pub use doorward_detection::detect;
pub use doorward_detection::evaluate;
pub use doorward_detection::inspect;
pub use doorward_detection::perturb;
pub use doorward_engine as model;
pub use doorward_images as images;
pub use doorward_injector as k8s;
pub use doorward_protocol as protocol;
pub use doorward_proxy::proxy;
pub mod report;
pub use doorward_detection::scan;
pub use doorward_detection::stats;
pub use doorward_proxy::server;
pub mod storage;
pub mod watch;
pub use doorward_proxy::telemetry;
pub use doorward_proxy::tls;
