//! The listeners of the sidecar, and what is behind them.

mod admin;
mod error;
mod handle;
mod in_effect;
mod listener;
mod pictures;
mod readiness;
mod reload;
mod security;
#[expect(clippy::module_inception, reason = "the folder is named for the thing it is about")]
mod server;
mod socket;
mod status;

pub use error::Error;
pub use handle::Handle;
pub use listener::{Listener, Speaks};
pub use reload::reload_all;
pub use security::Security;
pub use server::{Server, signalled};
pub use socket::Socket;
