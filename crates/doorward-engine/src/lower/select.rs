//! Operators that pick values: slices, splits, single indices, repetitions and paddings.

use super::context::{Context, Lowered, MAX_PAD, Operand, step};
use crate::error::Error;
use crate::kernels::strided::row_major;
use crate::layout::Layout;
use crate::onnx::axes::Cut;
use crate::operators::Operator;
use crate::operators::select::{Gather, View};
use crate::operators::shape::{Pad, Reshape};
use crate::size::{BATCH, Size};

/// ONNX Slice, opsets 1 to 26, not along the batch.
pub(super) fn slice(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let given = |name: &str, index: usize| -> Result<&[i64], Error> {
        let absent = || context.error(format!("{name} are absent"));
        context.moved_integers(name, index)?.ok_or_else(absent)
    };
    let (starts, ends) = (given("starts", 1)?, given("ends", 2)?);
    let axes = context.moved_integers("axes", 3)?;
    let steps = match context.operand(4) {
        Operand::Absent => None,
        _ => Some(context.integers(4)?),
    };
    let mut cuts = Vec::new();
    for (axis, bounds) in context.node.slices([starts, ends], axes, steps)? {
        let axis = context.node.axis(axis, layout.rank())?;
        if layout.is_batch(axis) {
            // The whole of it is no cut.
            if matches!(bounds, [0, end, 1] if end >= BATCH) {
                continue;
            }
            return Err(context.error(format!("axis {axis} of {layout} is the batch")));
        }
        cuts.push((axis, context.node.cut(layout.size(axis), bounds)?));
    }
    let (view, layout) = view(layout, "Slice", &cuts);
    step(view, layout)
}

fn view(layout: &Layout, name: &'static str, cuts: &[(usize, Cut)]) -> (View, Layout) {
    let in_row = layout.row();
    let mut dims: Vec<(usize, isize)> = in_row.iter().copied().zip(row_major(&in_row)).collect();
    let mut offset = 0;
    let mut sizes = Vec::new();
    for &(axis, (start, step, count)) in cuts {
        let (size, stride) = &mut dims[layout.dim(axis) - 1];
        offset += start * *stride;
        (*size, *stride) = (count, *stride * step);
        sizes.push((axis, count));
    }
    (View { name, in_row, offset, dims }, layout.resized(&sizes))
}

/// ONNX Split, opsets 2 to 26, not along the batch.
pub(super) fn split(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let axis = context.axis(context.node.int("axis", 0)?)?;
    let (size, count) = (layout.size(axis), context.node.outputs.len());
    let sizes: Vec<usize> = match context.moved_integers("split", 1)? {
        Some(sizes) => sizes.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect(),
        None => {
            // The last one is smaller where they do not divide.
            let each = size.div_ceil(count);
            (0..count).map(|i| each.min(size.saturating_sub(i * each))).collect()
        }
    };
    let total = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
    if sizes.len() != count || total != Some(size) {
        return Err(context.error(format!(
            "{count} outputs of sizes {sizes:?} do not make up {size} along axis {axis}"
        )));
    }
    let mut start = 0;
    let parts = sizes.into_iter().map(|size| {
        let (view, layout) = view(layout, "Split", &[(axis, (start, 1, size))]);
        start += size as isize;
        (Box::new(view) as Box<dyn Operator>, layout)
    });
    Ok(Lowered::Steps(parts.collect()))
}

/// ONNX Gather with constant indices, opsets 1 to 26.
pub(super) fn gather(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let axis = context.node.axis(context.node.int("axis", 0)?, layout.rank())?;
    let (index_dims, raw) = match context.operand(1) {
        Operand::Constant(constant) => (constant.dims.as_slice(), context.integers(1)?),
        _ => return Err(context.error("input 1 is an activation, expected a constant".into())),
    };
    // Values of every row by their place in it: how exporters write a strided view of a tensor
    // flattened together with the batch.
    let in_rows = layout.is_batch(axis) && index_dims.first() == Some(&1) && layout.rank() == 1;
    if layout.is_batch(axis) && !in_rows {
        return Err(context.error(format!("axis {axis} of {layout} is the batch")));
    }
    let size = layout.size(axis);
    let indices = raw
        .iter()
        .map(|&index| context.node.index(index, axis, size))
        .collect::<Result<Vec<_>, _>>()?;
    if in_rows {
        let out = Layout::batch_first(&index_dims[1..]);
        let rows = [layout.row(), out.row()];
        return step(Gather { indices, size, inner: 1, rows }, out);
    }
    if let (&[index], []) = (indices.as_slice(), index_dims) {
        let (one, kept) = view(layout, "Gather", &[(axis, (index as isize, 1, 1))]);
        let out = kept.without(axis);
        let reshape = Reshape { rows: [kept.row(), out.row()] };
        return Ok(Lowered::Chain(vec![(Box::new(one), kept), (Box::new(reshape), out)]));
    }
    let inner = layout.behind(axis);
    let out = layout.replaced(axis, index_dims);
    let rows = [layout.row(), out.row()];
    step(Gather { indices, size, inner, rows }, out)
}

/// ONNX Expand, opsets 8 to 26.
pub(super) fn expand(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let wanted = context.integers(1)?;
    let refuse =
        || context.error(format!("{layout} does not expand to {wanted:?}, one batch to a row"));
    let padded = layout.padded(wanted.len().max(layout.rank()));
    let skip = padded.rank() - wanted.len();
    let mut sizes = Vec::new();
    for (i, &dim) in wanted.iter().enumerate() {
        let axis = skip + i;
        if padded.is_batch(axis) {
            if dim != 1
                && Some(dim) != context.fixed_batch
                && Size::of_integer(dim) != Size::Batches(padded.size(axis))
            {
                return Err(refuse());
            }
            continue;
        }
        let size = usize::try_from(dim).map_err(|_| refuse())?;
        match padded.size(axis) {
            own if own == size || size == 1 => {}
            1 => sizes.push((axis, size)),
            _ => return Err(refuse()),
        }
    }
    let out = padded.resized(&sizes);
    let (in_row, out_row) = (padded.row(), out.row());
    let dims = out_row
        .iter()
        .zip(in_row.iter().zip(row_major(&in_row)))
        .map(|(&size, (&own, stride))| (size, if own == 1 { 0 } else { stride }))
        .collect();
    step(View { name: "Expand", in_row, offset: 0, dims }, out)
}

/// ONNX Pad, opsets 2 to 26.
pub(super) fn pad(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let Some(pads) = context.moved_integers("pads", 1)? else {
        return Err(context.error("pads are absent".into()));
    };
    let value = match context.operand(2) {
        Operand::Absent => context.node.float("value", 0.0)?,
        // A zero point, where bytes are padded.
        _ => context.numbers(2)?.1.first().copied().unwrap_or(0.0),
    };
    let axes: Vec<usize> = match context.operand(3) {
        Operand::Absent => (0..layout.rank()).collect(),
        _ => context
            .integers(3)?
            .iter()
            .map(|&axis| context.node.axis(axis, layout.rank()))
            .collect::<Result<_, _>>()?,
    };
    let count = axes.len();
    let sane = pads.len() == 2 * count
        && pads.iter().all(|pad| (-MAX_PAD..=MAX_PAD).contains(pad))
        && (0..count).all(|i| !layout.is_batch(axes[i]) || (pads[i], pads[count + i]) == (0, 0));
    if !sane {
        return Err(context.error(format!(
            "pads are {pads:?}, expected {} integers up to {MAX_PAD}, none for the batch",
            2 * count
        )));
    }
    let mode = context.node.text("mode")?.unwrap_or("constant");
    let mut current = layout.clone();
    let mut dims = Vec::new();
    let mut steps: Vec<(Box<dyn Operator>, Layout)> = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let (before, after) = (pads[i] as isize, pads[count + i] as isize);
        if (before, after) == (0, 0) {
            continue;
        }
        let size = current.size(axis) as isize;
        let padded = usize::try_from(size + before + after).unwrap_or(0);
        if padded == 0 {
            return Err(context.error(format!("pads {pads:?} leave nothing of {layout}")));
        }
        let from = current.clone();
        current = current.resized(&[(axis, padded)]);
        if mode == "constant" {
            dims.push((layout.dim(axis), before, after));
            continue;
        }
        let indices = (0..padded as isize)
            .map(|to| source(mode, to - before, size))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                context.error(format!(
                    "attribute \"mode\" is {mode:?} with pads {pads:?}, expected \"constant\", \"edge\", \"reflect\" or \"wrap\" within the input"
                ))
            })?;
        let rows = [from.row(), current.row()];
        let gather = Gather { indices, size: from.size(axis), inner: from.behind(axis), rows };
        steps.push((Box::new(gather), current.clone()));
    }
    match (dims.is_empty(), steps.is_empty()) {
        (true, true) => Ok(Lowered::Same),
        (false, _) => step(Pad { dims, value }, current),
        (true, false) => Ok(Lowered::Chain(steps)),
    }
}

/// The place that a padded value comes from; `None` for a constant.
fn source(mode: &str, at: isize, size: isize) -> Option<usize> {
    let from = match mode {
        "edge" => at.clamp(0, size - 1),
        "reflect" if at < 0 => -at,
        "reflect" if at >= size => 2 * (size - 1) - at,
        "wrap" => at.rem_euclid(size),
        "reflect" => at,
        _ => return None,
    };
    usize::try_from(from).ok().filter(|&from| from < size.unsigned_abs())
}
