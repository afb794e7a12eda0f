//! Einstein sums: which axes are products, rows, columns and summed.

use super::context::{Context, Lowered, Operand, kind, step};
use super::pointwise::term;
use crate::error::Error;
use crate::layout::Layout;
use crate::operators::binary::Term;
use crate::operators::einsum::Einsum;

/// ONNX Einsum of two operands, opsets 12 to 26.
pub(super) fn einsum(context: &Context<'_>) -> Result<Lowered, Error> {
    let equation: String =
        context.node.text("equation")?.unwrap_or_default().split_whitespace().collect();
    let refuse = || {
        context.error(format!(
            "equation {equation:?}, expected two operands with an arrow, every letter once in each, and the batch in the result"
        ))
    };
    let (operands, result) = equation.split_once("->").ok_or_else(refuse)?;
    let (a, b) = operands.split_once(',').ok_or_else(refuse)?;
    let (a, b, result): (Vec<char>, Vec<char>, Vec<char>) =
        (a.chars().collect(), b.chars().collect(), result.chars().collect());
    let (left, right) = match (context.operand(0), context.operand(1)) {
        (Operand::Activation(a), Operand::Activation(b)) => (a.clone(), b.clone()),
        (Operand::Activation(a), Operand::Constant(b)) => (a.clone(), Layout::row_only(&b.dims)),
        (Operand::Constant(a), Operand::Activation(b)) => (Layout::row_only(&a.dims), b.clone()),
        (a, b) => return Err(context.error(format!("operands are {} and {}", kind(a), kind(b)))),
    };
    let letters = |labels: &[char], rank: usize| {
        labels.len() == rank
            && labels
                .iter()
                .enumerate()
                .all(|(i, c)| c.is_ascii_alphabetic() && !labels[..i].contains(c))
    };
    if !letters(&a, left.rank()) || !letters(&b, right.rank()) || !letters(&result, result.len()) {
        return Err(refuse());
    }
    let only = |of: &[char], keep: &dyn Fn(&char) -> bool| -> Vec<char> {
        of.iter().copied().filter(|c| keep(c)).collect()
    };
    let products = only(&result, &|c| a.contains(c) && b.contains(c));
    let rows = only(&result, &|c| a.contains(c) && !b.contains(c));
    let columns = only(&result, &|c| !a.contains(c) && b.contains(c));
    let summed = only(&a, &|c| b.contains(c) && !result.contains(c));
    let complete = products.len() + rows.len() + columns.len() == result.len()
        && products.len() + rows.len() + summed.len() == a.len()
        && products.len() + columns.len() + summed.len() == b.len();
    let at = |labels: &[char], label: &char| labels.iter().position(|own| own == label);
    let order = |labels: &[char], groups: [&[char]; 3]| -> Vec<usize> {
        groups.concat().iter().filter_map(|label| at(labels, label)).collect()
    };
    let size = |layout: &Layout, labels: &[char], group: &[char]| -> usize {
        group.iter().filter_map(|label| at(labels, label)).map(|axis| layout.size(axis)).product()
    };
    let agree = products.iter().chain(&summed).all(|label| {
        let (i, j) = (at(&a, label), at(&b, label));
        i.zip(j).is_some_and(|(i, j)| {
            left.size(i) == right.size(j) && left.is_batch(i) == right.is_batch(j)
        })
    });
    // The batch is outermost in every tensor: it has to be among the products, or alone.
    let batch = |layout: &Layout, labels: &[char]| {
        (0..labels.len()).find(|&axis| layout.is_batch(axis)).map(|axis| labels[axis])
    };
    let fits = match (batch(&left, &a), batch(&right, &b)) {
        (Some(batch), Some(other)) => batch == other && products.contains(&batch),
        (Some(batch), None) => products.is_empty() && rows.first() == Some(&batch),
        (None, Some(batch)) => {
            products.is_empty() && columns.len() == 1 && columns[0] == batch && rows.is_empty()
        }
        (None, None) => true,
    };
    if !complete || !agree || !fits {
        return Err(refuse());
    }
    let (left_ordered, left_order) = left.transposed(&order(&a, [&products, &rows, &summed]));
    let (right_ordered, right_order) = right.transposed(&order(&b, [&products, &summed, &columns]));
    let sizes = [size(&left, &a, &rows), size(&left, &a, &summed), size(&right, &b, &columns)];
    let column_sizes: Vec<usize> =
        columns.iter().filter_map(|label| at(&b, label)).map(|axis| right.size(axis)).collect();
    let mut product = left_ordered.clone();
    for axis in (products.len() + rows.len()..left_ordered.rank()).rev() {
        product = product.without(axis);
    }
    let product = product.extended(&column_sizes);
    let made: Vec<char> = [products.as_slice(), &rows, &columns].concat();
    let (layout, out_order) =
        product.transposed(&result.iter().filter_map(|label| at(&made, label)).collect::<Vec<_>>());
    let constant_term = |index: usize, layout: &Layout| -> Result<Term, Error> {
        match context.operand(index) {
            Operand::Activation(_) => Ok(Term::Input(layout.row())),
            _ => term(context, index, layout),
        }
    };
    let (left, right) = (constant_term(0, &left)?, constant_term(1, &right)?);
    let rows = [left_ordered.row(), right_ordered.row(), product.row()];
    step(Einsum { left, right, orders: [left_order, right_order, out_order], sizes, rows }, layout)
}
