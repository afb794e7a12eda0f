//! Says what happened: log lines, metrics, and the one event that feeds both.
//!
//! A request ends in exactly one [`Outcome`]; [`metrics::Metrics::record`] counts it and logs it
//! together, so the counters add up to the requests received. Label values come from closed
//! enums; nothing that a client sends becomes a label.

pub mod audit;
mod drift;
mod error;
mod log;
pub mod metrics;
mod outcome;
mod page;
mod recent;
pub mod spans;
mod unrecognised;

pub use error::Error;
pub use log::init;
pub use outcome::{Outcome, RemoteRows};
pub use page::page;
pub use recent::Rejection;
