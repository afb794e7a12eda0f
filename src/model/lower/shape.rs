//! Operators that move values or pass them on.

use super::context::{Context, Lowered, MAX_PAD, Operand, step};
use crate::model::shape::{Concat, Pad, Reshape};
use crate::model::{Error, Row};

pub(super) fn constant(context: &Context<'_>) -> Result<Lowered, Error> {
    Ok(Lowered::Constant(context.node.constant()?))
}

/// ONNX Dropout at inference, opsets 7 to 21.
pub(super) fn dropout(context: &Context<'_>) -> Result<Lowered, Error> {
    let training = match context.operand(2) {
        Operand::Absent => false,
        _ => context.integers(2)? != [0],
    };
    if training {
        return Err(context.error("it is in training mode".into()));
    }
    same(context, &["ratio", "seed"])
}

pub(super) fn same(context: &Context<'_>, attributes: &[&str]) -> Result<Lowered, Error> {
    context.node.only(attributes)?;
    Ok(Lowered::Same)
}

/// ONNX Concat, opsets 4 to 21, not along the batch.
pub(super) fn concat(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["axis"])?;
    let mut shape = context.activation(0)?.to_vec();
    let axis = context.axis(context.node.int("axis", 0)?, &shape)?;
    for index in 1..context.operands.len() {
        let other = context.activation(index)?;
        let fits = other.len() == shape.len()
            && (0..shape.len()).all(|i| i == axis || other[i] == shape[i]);
        if !fits {
            return Err(context.error(format!(
                "input {index} of shape {} does not join {} along axis {}",
                Row(other),
                Row(&shape),
                axis + 1
            )));
        }
        shape[axis] += other[axis];
    }
    step(Concat { axis: axis + 1 }, &shape)
}

/// ONNX Flatten, opsets 1 to 21, that keeps the batch.
pub(super) fn flatten(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["axis"])?;
    let shape = context.activation(0)?;
    let axis = context.node.int("axis", 1)?;
    let rank = shape.len() as i64 + 1;
    if axis != 1 && axis != 1 - rank {
        return Err(context.error(format!("axis {axis}, expected 1: the batch stays in front")));
    }
    let flat = vec![shape.iter().product()];
    step(Reshape { shape: flat.clone() }, &flat)
}

/// ONNX Reshape, opsets 5 to 21, to a constant shape that keeps the batch.
pub(super) fn reshape(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["allowzero"])?;
    let shape = context.activation(0)?;
    let wanted = context.integers(1)?;
    let values: usize = shape.iter().product();
    let copies = context.node.int("allowzero", 0)? == 0;
    let refuse = || {
        context
            .error(format!("shape {wanted:?} for {} does not keep the batch in front", Row(shape)))
    };
    let (&batch, rest) = wanted.split_first().ok_or_else(refuse)?;
    let mut out = Vec::with_capacity(rest.len());
    let mut open = None;
    for (i, &dim) in rest.iter().enumerate() {
        out.push(match dim {
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            0 if copies => *shape.get(i).ok_or_else(refuse)?,
            dim => usize::try_from(dim).map_err(|_| refuse())?,
        });
    }
    let known = out.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let known = known.filter(|&known| known > 0).ok_or_else(refuse)?;
    if let Some(open) = open {
        out[open] = values / known;
    }
    // A fixed batch of one, or an open one that the other dimensions leave over, is the batch.
    let keeps = batch == 1 || (batch == 0 && copies) || (batch == -1 && open.is_none());
    if !keeps || out.iter().product::<usize>() != values {
        return Err(refuse());
    }
    step(Reshape { shape: out.clone() }, &out)
}

/// ONNX Pad with a constant, opsets 2 to 21.
pub(super) fn pad(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["mode", "pads", "value"])?;
    let mode = context.node.text("mode")?.unwrap_or("constant");
    if mode != "constant" {
        return Err(context.error(format!("attribute \"mode\" is {mode:?}, expected \"constant\"")));
    }
    let shape = context.activation(0)?;
    let pads = match context.node.ints("pads")? {
        Some(pads) => pads,
        None => context.integers(1)?,
    };
    let value = match context.optional_floats(2)? {
        None => context.node.float("value", 0.0)?,
        Some(values) => values.first().copied().unwrap_or(0.0),
    };
    if !matches!(context.operand(3), Operand::Absent) {
        return Err(context.error("input 3, a choice of axes, is not supported".into()));
    }
    let rank = shape.len() + 1;
    let sane = pads.len() == 2 * rank
        && pads.iter().all(|pad| (-MAX_PAD..=MAX_PAD).contains(pad))
        && pads[0] == 0
        && pads[rank] == 0;
    if !sane {
        return Err(context.error(format!(
            "pads are {pads:?}, expected {} integers up to {MAX_PAD}, none for the batch",
            2 * rank
        )));
    }
    let mut out = shape.to_vec();
    let mut axes = Vec::new();
    for axis in 1..rank {
        let (before, after) = (pads[axis] as isize, pads[rank + axis] as isize);
        if (before, after) == (0, 0) {
            continue;
        }
        let dropped = before.min(0).unsigned_abs() + after.min(0).unsigned_abs();
        let added = before.max(0).unsigned_abs() + after.max(0).unsigned_abs();
        out[axis - 1] = (out[axis - 1] + added)
            .checked_sub(dropped)
            .filter(|&left| left > 0)
            .ok_or_else(|| context.error(format!("pads {pads:?} leave nothing of {shape:?}")))?;
        axes.push((axis, before, after));
    }
    step(Pad { axes, value }, &out)
}
