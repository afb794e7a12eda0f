//! Operators that move values or pass them on.

use super::context::{Context, Lowered, MAX_PAD, Operand, step};
use crate::model::Error;
use crate::model::graph::{Constant, Values};
use crate::model::layout::{BATCH, Layout, batches};
use crate::model::operator::Operator;
use crate::model::shape::{Concat, Gather, Pad, Reshape, Transpose, View};
use crate::model::strided::row_major;

/// ONNX Dropout at inference, opsets 7 to 21.
pub(super) fn dropout(context: &Context<'_>) -> Result<Lowered, Error> {
    let training = match context.operand(2) {
        Operand::Absent => false,
        _ => context.integers(2)? != [0],
    };
    if training {
        return Err(context.error("it is in training mode".into()));
    }
    Ok(Lowered::Same)
}

/// ONNX Cast of floats to floats, opsets 6 to 21: everything is computed in 32 bits.
pub(super) fn cast(context: &Context<'_>) -> Result<Lowered, Error> {
    match context.node.int("to", 0)? {
        // FLOAT, FLOAT16, DOUBLE, BFLOAT16
        1 | 10 | 11 | 16 => Ok(Lowered::Same),
        other => Err(context.error(format!("attribute \"to\" is {other}, expected a float type"))),
    }
}

/// ONNX Shape, opsets 1 to 21.
pub(super) fn shape(context: &Context<'_>) -> Result<Lowered, Error> {
    let dims = context.activation(0)?.to_dims();
    let rank = dims.len() as i64;
    let bound = |name: &str, default: i64| -> Result<usize, Error> {
        let value = context.node.int(name, default)?;
        let value = if value < 0 { value.saturating_add(rank) } else { value };
        Ok(value.clamp(0, rank) as usize)
    };
    let (start, end) = (bound("start", 0)?, bound("end", rank)?);
    let dims = dims.get(start..end).unwrap_or_default().to_vec();
    Ok(Lowered::Constant(Constant { dims: vec![dims.len()], values: Values::I64(dims) }))
}

/// ONNX Size, opsets 1 to 21.
pub(super) fn size(context: &Context<'_>) -> Result<Lowered, Error> {
    let dims = context.activation(0)?.to_dims();
    let size = dims.iter().try_fold(1i64, |size, &dim| size.checked_mul(dim));
    let size = size.ok_or_else(|| context.error("its result overflows".into()))?;
    Ok(Lowered::Constant(Constant { dims: vec![], values: Values::I64(vec![size]) }))
}

/// ONNX Concat, opsets 4 to 21, not along the batch.
pub(super) fn concat(context: &Context<'_>) -> Result<Lowered, Error> {
    let first = context.operands.iter().find_map(|operand| match operand {
        Operand::Activation(layout) => Some(*layout),
        _ => None,
    });
    let Some(first) = first else {
        return Err(context.error("input 0 is absent, expected an activation".into()));
    };
    let axis = context.any_axis(context.node.int("axis", 0)?, first.rank())?;
    if first.is_batch(axis) {
        return Err(context.error(format!("axis {axis} of {first} is the batch")));
    }
    let mut size = 0usize;
    let (mut parts, mut sizes) = (Vec::new(), Vec::new());
    for index in 0..context.operands.len() {
        let layout = match context.operand(index) {
            Operand::Activation(layout) => layout.clone(),
            Operand::Constant(constant) => first.like(&constant.dims),
            Operand::Absent => return Err(context.error(format!("input {index} is absent"))),
        };
        let own = match layout.rank() == first.rank() {
            true => layout.size(axis),
            false => 0,
        };
        // A constant may stand for every row with a one.
        let whole = match context.operand(index) {
            Operand::Constant(_) => first.broadcast(&layout.resized(&[(axis, 1)])),
            _ => Some(layout.clone()),
        };
        if whole.map(|layout| layout.resized(&[(axis, 1)])) != Some(first.resized(&[(axis, 1)])) {
            return Err(context.error(format!(
                "input {index} of shape {layout} does not join {first} along axis {axis}"
            )));
        }
        parts.push(match context.operand(index) {
            Operand::Constant(constant) => {
                let (dims, values) = context.floats(index)?;
                let row = first.row_of_constant(&constant.dims).ok_or_else(|| {
                    context.error(format!("a constant of shape {dims:?} varies over the batch"))
                })?;
                let own = context.tensor(values, &[&[1], row.as_slice()].concat())?;
                let shape = [vec![1], first.resized(&[(axis, layout.size(axis))]).row()].concat();
                Some(own.broadcast_as(shape)?.contiguous()?)
            }
            _ => None,
        });
        sizes.push(own);
        size = size.saturating_add(own);
    }
    let dim = first.dim(axis);
    step(Concat { dim, parts, sizes }, first.resized(&[(axis, size)]))
}

/// ONNX Flatten, opsets 1 to 21.
pub(super) fn flatten(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let given = context.node.int("axis", 1)?;
    let rank = layout.rank() as i64;
    let axis = if given < 0 { given.saturating_add(rank) } else { given };
    if !(0..=rank).contains(&axis) {
        return Err(context.error(format!("axis {given} is outside of rank {rank}")));
    }
    let dims = layout.to_dims();
    let product = |dims: &[i64]| dims.iter().try_fold(1i64, |all, &dim| all.checked_mul(dim));
    let (front, back) = dims.split_at(axis as usize);
    match (product(front), product(back)) {
        (Some(front), Some(back)) => reshaped(context, &[front, back], false),
        _ => Err(context.error(format!("{layout} has too many values"))),
    }
}

/// ONNX Reshape, opsets 5 to 21.
pub(super) fn reshape(context: &Context<'_>) -> Result<Lowered, Error> {
    let wanted = context.integers(1)?;
    reshaped(context, wanted, context.node.int("allowzero", 0)? == 0)
}

/// ONNX Squeeze, opsets 1 to 21.
pub(super) fn squeeze(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let single = |axis: usize| layout.size(axis) == 1 && !layout.is_batch(axis);
    let axes = match context.moved_integers("axes", 1)? {
        None => (0..layout.rank()).filter(|&axis| single(axis)).collect(),
        Some(axes) => axes.iter().map(|&axis| context.axis(axis)).collect::<Result<Vec<_>, _>>()?,
    };
    if let Some(axis) = axes.iter().find(|&&axis| !single(axis)) {
        return Err(context.error(format!("axis {axis} of {layout} is not of size 1")));
    }
    let dims = layout.to_dims();
    let left: Vec<i64> =
        (0..dims.len()).filter(|axis| !axes.contains(axis)).map(|axis| dims[axis]).collect();
    reshaped(context, &left, false)
}

/// ONNX Unsqueeze, opsets 1 to 21.
pub(super) fn unsqueeze(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let Some(axes) = context.moved_integers("axes", 1)? else {
        return Err(context.error("axes are absent".into()));
    };
    let rank = layout.rank() + axes.len();
    let mut added = vec![false; rank];
    for &axis in axes {
        added[context.any_axis(axis, rank)?] = true;
    }
    if added.iter().filter(|&&new| new).count() != axes.len() {
        return Err(context.error(format!("axes {axes:?} repeat")));
    }
    let mut old = layout.to_dims().into_iter();
    let dims: Vec<i64> =
        added.iter().filter_map(|&new| if new { Some(1) } else { old.next() }).collect();
    reshaped(context, &dims, false)
}

fn reshaped(context: &Context<'_>, wanted: &[i64], zero_copies: bool) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    match layout.reshaped(wanted, zero_copies, context.fixed_batch) {
        Some(reshaped) => step(Reshape { rows: [layout.row(), reshaped.row()] }, reshaped),
        None => {
            let shape: Vec<String> = wanted
                .iter()
                .map(|&dim| match batches(dim) {
                    Some(1) => "batch".into(),
                    Some(count) => format!("{count} * batch"),
                    None => dim.to_string(),
                })
                .collect();
            Err(context.error(format!(
                "{layout} does not become [{}] with every row by itself",
                shape.join(", ")
            )))
        }
    }
}

/// ONNX Transpose, opsets 1 to 21.
pub(super) fn transpose(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let rank = layout.rank();
    let permutation = match context.node.ints("perm")? {
        None => (0..rank).rev().collect(),
        Some(axes) => {
            axes.iter().map(|&axis| context.any_axis(axis, rank)).collect::<Result<Vec<_>, _>>()?
        }
    };
    if permutation.len() != rank || (0..rank).any(|axis| !permutation.contains(&axis)) {
        return Err(context.error(format!("{permutation:?} is no permutation of {rank} axes")));
    }
    let (transposed, order) = layout.transposed(&permutation);
    step(Transpose { order }, transposed)
}

/// ONNX SpaceToDepth and DepthToSpace, opsets 1 to 21: blocks of pixels as channels, and back.
pub(super) fn blocks(context: &Context<'_>, to_depth: bool) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let block = context.node.int("blocksize", 0)?;
    let Some(&[channels, height, width]) = layout.as_batch_first() else {
        return Err(context.error(format!("input 0 is {layout}, expected [batch, C, H, W]")));
    };
    let size = usize::try_from(block).ok().filter(|size| (1..=1 << 12).contains(size));
    let divides = |size: usize| match to_depth {
        true => height.is_multiple_of(size) && width.is_multiple_of(size),
        false => channels.is_multiple_of(size * size),
    };
    let Some(size) = size.filter(|&size| divides(size)) else {
        return Err(context.error(format!("blocks of {block} do not divide {layout}")));
    };
    let depth_first = context.node.text("mode")?.unwrap_or("DCR") == "DCR";
    let (apart, permutation, joined) = match (to_depth, depth_first) {
        (true, _) => (
            vec![channels, height / size, size, width / size, size],
            [0, 3, 5, 1, 2, 4],
            [channels * size * size, height / size, width / size],
        ),
        (false, true) => (
            vec![size, size, channels / (size * size), height, width],
            [0, 3, 4, 1, 5, 2],
            [channels / (size * size), height * size, width * size],
        ),
        (false, false) => (
            vec![channels / (size * size), size, size, height, width],
            [0, 1, 4, 2, 5, 3],
            [channels / (size * size), height * size, width * size],
        ),
    };
    let apart = Layout::batch_first(&apart);
    let (moved, order) = apart.transposed(&permutation);
    let joined = Layout::batch_first(&joined);
    let split = Reshape { rows: [layout.row(), apart.row()] };
    let join = Reshape { rows: [moved.row(), joined.row()] };
    Ok(Lowered::Chain(vec![
        (Box::new(split), apart),
        (Box::new(Transpose { order }), moved),
        (Box::new(join), joined),
    ]))
}

/// ONNX Slice, opsets 1 to 21, not along the batch.
pub(super) fn slice(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let given = |name: &str, index: usize| -> Result<&[i64], Error> {
        let absent = || context.error(format!("{name} are absent"));
        context.moved_integers(name, index)?.ok_or_else(absent)
    };
    let (starts, ends) = (given("starts", 1)?, given("ends", 2)?);
    let all: Vec<i64> = (0..starts.len() as i64).collect();
    let axes = context.moved_integers("axes", 3)?.unwrap_or(&all);
    let ones = vec![1; starts.len()];
    let steps = match context.operand(4) {
        Operand::Absent => ones.as_slice(),
        _ => context.integers(4)?,
    };
    if [ends, axes, steps].iter().any(|other| other.len() != starts.len()) {
        return Err(context.error("starts, ends, axes and steps differ in number".into()));
    }
    let mut cuts = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let axis = context.any_axis(axis, layout.rank())?;
        if layout.is_batch(axis) {
            // The whole of it is no cut.
            if starts[i] == 0 && ends[i] >= BATCH && steps[i] == 1 {
                continue;
            }
            return Err(context.error(format!("axis {axis} of {layout} is the batch")));
        }
        cuts.push((axis, cut(context, layout.size(axis), [starts[i], ends[i], steps[i]])?));
    }
    let (view, layout) = view(layout, "Slice", &cuts);
    step(view, layout)
}

/// Where a slice starts, its step and its length.
type Cut = (isize, isize, usize);

fn cut(context: &Context<'_>, size: usize, [start, end, step]: [i64; 3]) -> Result<Cut, Error> {
    let (size, step) = (size as i128, i128::from(step));
    let (lowest, highest) = match step {
        0 => return Err(context.error("a step is 0".into())),
        1.. => (0, size),
        _ => (-1, size - 1),
    };
    let bound = |value: i64| {
        let value = i128::from(value);
        (if value < 0 { value + size } else { value }).clamp(lowest, highest)
    };
    let (start, end) = (bound(start), bound(end));
    let count = (end - start + step - step.signum()) / step;
    Ok((start as isize, step as isize, usize::try_from(count).unwrap_or(0)))
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

/// ONNX Split, opsets 2 to 21, not along the batch.
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
    if sizes.len() != count || sizes.iter().sum::<usize>() != size {
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

/// ONNX Gather with constant indices, opsets 1 to 21.
pub(super) fn gather(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let axis = context.any_axis(context.node.int("axis", 0)?, layout.rank())?;
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
        .map(|&index| {
            let positive = if index < 0 { index.saturating_add(size as i64) } else { index };
            usize::try_from(positive).ok().filter(|&index| index < size).ok_or_else(|| {
                context.error(format!("index {index} is outside of axis {axis} of size {size}"))
            })
        })
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

/// ONNX Expand, opsets 8 to 21.
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
                && batches(dim) != Some(padded.size(axis))
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

/// ONNX Pad, opsets 2 to 21.
pub(super) fn pad(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let Some(pads) = context.moved_integers("pads", 1)? else {
        return Err(context.error("pads are absent".into()));
    };
    let value = match context.optional_floats(2)? {
        None => context.node.float("value", 0.0)?,
        Some(values) => values.first().copied().unwrap_or(0.0),
    };
    let axes: Vec<usize> = match context.operand(3) {
        Operand::Absent => (0..layout.rank()).collect(),
        _ => context
            .integers(3)?
            .iter()
            .map(|&axis| context.any_axis(axis, layout.rank()))
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
        let own = current.size(axis) as isize;
        let padded = usize::try_from(own + before + after).unwrap_or(0);
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
            .map(|to| source(mode, to - before, own))
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

/// Where a padded value comes from.
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
