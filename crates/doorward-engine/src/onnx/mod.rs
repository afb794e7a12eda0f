//! The ONNX file, from its bytes to a checked graph.

pub(crate) mod axes;
mod calls;
pub(crate) mod constant;
pub(crate) mod ending;
pub(crate) mod external;
pub(crate) mod graph;
pub(crate) mod input;
pub(crate) mod node;
mod outputs;
pub(crate) mod patterns;
pub(crate) mod wire;
