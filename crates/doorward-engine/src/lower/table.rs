//! The registry as people read it.

use super::expand;
use super::registry::{Entry, REGISTRY};
use crate::fold;
use crate::onnx::node::OPSETS;

/// The supported operators as a Markdown document.
///
/// ```
/// assert!(doorward_engine::operator_table().contains("| Conv | 9 |"));
/// ```
pub fn operator_table() -> String {
    let mut table = format!(
        "# Operators\n\n\
        What a model's graph may consist of; operator sets {} to {}. Any attribute that is not listed is refused by name, and so is a node\n\
        that needs what the last column says. Everything is computed in 32 bits, whatever float type the graph names. The batch may be any\n\
        axis, or part of one. This file is written from the registry: `DOORWARD_UPDATE=1 cargo test --release operator_table`.\n\n\
        | operator | since | attributes | refused |\n| --- | ---: | --- | --- |\n",
        OPSETS.start(),
        OPSETS.end(),
    );
    for Entry { name, since, attributes, refused, .. } in REGISTRY {
        let attributes: Vec<String> =
            attributes.iter().map(|attribute| format!("`{attribute}`")).collect();
        table += &format!("| {name} | {since} | {} | {refused} |\n", attributes.join(", "));
    }
    let expanded: Vec<&str> = expand::names().collect();
    table += &format!("\nMade of those: {}.\n", expanded.join(", "));
    let folded: Vec<&str> = fold::names().collect();
    table += &format!(
        "\nOn constants and shapes alone, computed once while loading: {}.\n",
        folded.join(", ")
    );
    table
}
