//! What Doorward promises, checked from outside: one file per contract.

// Also in what the tests share, which clippy's exemption of test functions leaves out.
#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod admission;
mod audit;
mod bypasses;
mod bypasses_grpc;
mod calibrate_roundtrip;
mod clients;
mod config_files;
mod differential;
mod documents;
mod failure_modes;
mod failure_modes_grpc;
mod injection;
mod layering;
mod metrics_contract;
mod models;
mod monitoring;
#[cfg(feature = "ort")]
mod onnxruntime;
mod proxy_grpc;
mod proxy_http;
mod raw_images;
mod reload;
mod remote;
mod report;
mod rules;
mod scan;
mod spans;
mod status;
mod storage;
mod streams_grpc;
mod support;
mod tls;
mod unix_sockets;
mod webhook_certificates;
mod wrong_inputs;
