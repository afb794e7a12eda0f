//! The sidecar: a reverse proxy that has the inputs of inference requests judged.

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod address;
pub mod page;
pub mod picture;
pub mod proxy;
pub mod server;
pub mod settings;
pub mod telemetry;
pub mod tls;
pub mod verdict;

pub use address::{Address, NoAddress, Origin};
pub use proxy::ScreenLayer;
pub use server::Server;
pub use settings::Settings;
pub use telemetry::metrics::Metrics;
