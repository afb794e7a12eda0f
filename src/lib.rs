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

pub mod cli;
pub mod config;
pub mod demo;
pub mod report;
pub mod storage;
pub mod watch;
