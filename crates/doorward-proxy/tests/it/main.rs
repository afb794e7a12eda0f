//! What the crate promises to those who use it without the program: one file per contract.

// Also in what the tests share, which clippy's exemption of test functions leaves out.
#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod layer;
