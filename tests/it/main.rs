//! Every contract of the crate, one file each.

mod engine;
