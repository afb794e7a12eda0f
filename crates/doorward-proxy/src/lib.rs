//! The sidecar: a reverse proxy that has the inputs of inference requests judged.

mod address;
pub mod page;
pub mod picture;
pub mod proxy;
pub mod server;
pub mod settings;
pub mod telemetry;
pub mod tls;

pub use address::{Address, NoAddress, Origin};
pub use settings::Settings;
