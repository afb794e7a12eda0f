//! From ONNX nodes to operators: a registry by name, one function each.
//!
//! Every entry names the attributes its function reads; any other is refused. The operator table of
//! the documentation is written from it.

mod context;
mod einsum;
mod expand;
mod expanding;
mod linear;
mod pointwise;
mod pooling;
mod quantized;
mod reduce;
mod registry;
mod resize;
mod select;
mod shape;
mod table;

use crate::error::Error;
use registry::REGISTRY;

pub(crate) use context::{Context, Lowered, Operand};
pub(crate) use expand::expand;
pub(crate) use expanding::Known;
pub use table::operator_table;

/// Lowers one node.
pub(crate) fn lower(context: &Context<'_>) -> Result<Lowered, Error> {
    let node = context.node;
    let Ok(index) = REGISTRY.binary_search_by_key(&node.op.as_str(), |entry| entry.name) else {
        return Err(Error::Operator { node: node.name.clone(), op: node.op.clone() });
    };
    let entry = &REGISTRY[index];
    node.only(entry.attributes)?;
    (entry.lower)(context)
}
