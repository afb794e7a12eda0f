//! What Doorward promises, checked from outside: one file per contract.

mod config_files;
mod engine;
mod failure_modes;
mod layering;
mod metrics_contract;
mod proxy_http;
mod support;
