//! Reductions, softmax and normalisations.

use super::context::{Context, Lowered, step};
use crate::error::Error;
use crate::layout::Layout;
use crate::operators::Operator;
use crate::operators::lrn::LocalResponse;
use crate::operators::norm::{Normalization, Softmax};
use crate::operators::reduce::{Reduce, Reduction};
use crate::operators::shape::Reshape;

/// ONNX ReduceMean and the like, opsets 1 to 26, over any axes but the batch.
pub(super) fn reduce(context: &Context<'_>, kind: Reduction) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let keep = context.node.int("keepdims", 1)? != 0;
    let mut axes = match context.moved_integers("axes", 1)? {
        Some(axes) if !axes.is_empty() => {
            axes.iter().map(|&axis| context.axis(axis)).collect::<Result<Vec<_>, _>>()?
        }
        _ if context.node.int("noop_with_empty_axes", 0)? != 0 => return Ok(Lowered::Same),
        _ => (0..layout.rank())
            .map(|axis| context.axis(axis as i64))
            .collect::<Result<Vec<_>, _>>()?,
    };
    axes.sort_unstable();
    axes.dedup();
    over(context, kind, axes, keep)
}

/// Reductions over these axes, in order.
pub(super) fn over(
    context: &Context<'_>,
    kind: Reduction,
    axes: Vec<usize>,
    keep: bool,
) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    if let Some(axis) = axes.iter().find(|&&axis| layout.is_batch(axis)) {
        return Err(context.error(format!("axis {axis} of {layout} is the batch")));
    }
    // Runs of neighbours, the last first, each to one of size 1; those are dropped at the end.
    let mut steps: Vec<(Box<dyn Operator>, Layout)> = Vec::new();
    let mut current = layout.clone();
    let mut rest = axes.as_slice();
    while let Some(&last) = rest.last() {
        let run = rest.iter().rev().enumerate().take_while(|&(i, &axis)| axis + i == last).count();
        let (before, reduced) = rest.split_at(rest.len() - run);
        rest = before;
        if run < axes.len() && !kind.in_stages() {
            return Err(context.error(format!("axes {axes:?} do not follow each other")));
        }
        let inner = current.behind(last);
        let len = reduced.iter().map(|&axis| current.size(axis)).product();
        let in_row = current.row();
        let sizes: Vec<(usize, usize)> = reduced.iter().map(|&axis| (axis, 1)).collect();
        current = current.resized(&sizes);
        let reduce = Reduce { kind, len, inner, row: current.row(), in_row };
        steps.push((Box::new(reduce), current.clone()));
    }
    if !keep {
        let in_row = current.row();
        for &axis in axes.iter().rev() {
            current = current.without(axis);
        }
        steps.push((Box::new(Reshape { rows: [in_row, current.row()] }), current));
    }
    Ok(Lowered::Chain(steps))
}

/// ONNX Softmax and LogSoftmax, opsets 1 to 26, along any axis but the batch.
pub(super) fn softmax(context: &Context<'_>, log: bool) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let default = if context.node.opset >= 13 { -1 } else { 1 };
    let axis = context.axis(context.node.int("axis", default)?)?;
    let behind = layout.behind(axis);
    // Before opset 13 everything from the axis on was one distribution.
    let (len, inner) = match context.node.opset {
        13.. => (layout.size(axis), behind),
        _ => (layout.size(axis) * behind, 1),
    };
    if context.node.opset < 13 && layout.trailing(axis).is_none() {
        return Err(context.error(format!("axis {axis} of {layout} has the batch behind it")));
    }
    step(Softmax { log, len, inner }, layout.clone())
}

/// ONNX LayerNormalization, opset 17 to 26.
pub(super) fn layer_normalization(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let axis = context.axis(context.node.int("axis", -1)?)?;
    let Some(len) = layout.trailing(axis) else {
        return Err(context.error(format!("axis {axis} of {layout} has the batch behind it")));
    };
    let scale = parameters(context, 1, len)?;
    let bias = match context.optional_floats(2)? {
        None => vec![0.0; len],
        Some(_) => parameters(context, 2, len)?,
    };
    let epsilon = context.node.float("epsilon", 1e-5)?;
    let name = "LayerNormalization";
    step(Normalization { name, len, epsilon, scale, bias, repeat: 1 }, layout.clone())
}

/// ONNX InstanceNormalization, opsets 6 to 26: every channel of every image by itself.
pub(super) fn instance_normalization(context: &Context<'_>) -> Result<Lowered, Error> {
    let (channels, plane) = channels(context)?;
    grouped(context, "InstanceNormalization", channels, channels, plane)
}

/// ONNX GroupNormalization, opset 18 to 26.
pub(super) fn group_normalization(context: &Context<'_>) -> Result<Lowered, Error> {
    let (channels, plane) = channels(context)?;
    let groups = context.node.int("num_groups", 0)?;
    let groups = usize::try_from(groups)
        .ok()
        .filter(|&groups| groups > 0 && channels.is_multiple_of(groups));
    match groups {
        Some(groups) => grouped(context, "GroupNormalization", channels, groups, plane),
        None => {
            Err(context
                .error(format!("attribute \"num_groups\" does not divide {channels} channels")))
        }
    }
}

/// ONNX LRN, opsets 1 to 26.
pub(super) fn local_response(context: &Context<'_>) -> Result<Lowered, Error> {
    let (channels, plane) = channels(context)?;
    let size = context.node.int("size", 0)?;
    let Some(size) = usize::try_from(size).ok().filter(|&size| size > 0) else {
        return Err(context.error(format!("attribute \"size\" is {size}, expected 1 or more")));
    };
    let alpha = context.node.float("alpha", 1e-4)?;
    let beta = context.node.float("beta", 0.75)?;
    let bias = context.node.float("bias", 1.0)?;
    let layout = context.activation(0)?.clone();
    step(LocalResponse { alpha, beta, bias, size, channels, plane }, layout)
}

fn grouped(
    context: &Context<'_>,
    name: &'static str,
    channels: usize,
    groups: usize,
    plane: usize,
) -> Result<Lowered, Error> {
    // Until opset 20 a group normalisation had one scale a group.
    let count = match context.floats(1)?.1.len() {
        given if given == groups => groups,
        _ => channels,
    };
    let per_channel = |values: Vec<f32>| -> Vec<f32> {
        (0..channels).map(|channel| values[channel * count / channels]).collect()
    };
    let scale = per_channel(parameters(context, 1, count)?);
    let bias = per_channel(parameters(context, 2, count)?);
    let epsilon = context.node.float("epsilon", 1e-5)?;
    let len = channels / groups * plane;
    let layout = context.activation(0)?.clone();
    step(Normalization { name, len, epsilon, scale, bias, repeat: plane }, layout)
}

/// Channels, and values of each.
fn channels(context: &Context<'_>) -> Result<(usize, usize), Error> {
    let layout = context.activation(0)?;
    let fits = layout.rank() >= 2 && !layout.is_batch(1) && layout.trailing(1).is_some();
    match fits {
        true => Ok((layout.size(1), layout.behind(1))),
        false => Err(context.error(format!("input 0 is {layout}, expected [batch, C, ...]"))),
    }
}

fn parameters(context: &Context<'_>, index: usize, len: usize) -> Result<Vec<f32>, Error> {
    let (_, values) = context.floats(index)?;
    match values {
        values if values.len() == len => Ok(values.to_vec()),
        values => {
            Err(context.error(format!("input {index} has {} values, expected {len}", values.len())))
        }
    }
}
