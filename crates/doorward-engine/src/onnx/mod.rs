//! The ONNX file, from its bytes to a checked graph.

pub(crate) mod axes;
pub(crate) mod constant;
pub(crate) mod external;
pub(crate) mod graph;
pub(crate) mod input;
pub(crate) mod patterns;
pub(crate) mod wire;
