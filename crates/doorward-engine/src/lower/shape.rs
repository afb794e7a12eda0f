//! Operators that pass values on, whole, in other shapes and orders.

use super::context::{Context, Lowered, Operand, step};
use crate::error::Error;
use crate::layout::Layout;
use crate::onnx::constant::{Constant, Values};
use crate::operators::shape::{Concat, Reshape, Transpose};
use crate::size::Size;

/// ONNX Dropout at inference, opsets 7 to 26.
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

/// ONNX Cast of floats to floats, opsets 6 to 26: everything is computed in 32 bits.
pub(super) fn cast(context: &Context<'_>) -> Result<Lowered, Error> {
    match context.node.int("to", 0)? {
        // FLOAT, FLOAT16, DOUBLE, BFLOAT16
        1 | 10 | 11 | 16 => Ok(Lowered::Same),
        other => Err(context.error(format!("attribute \"to\" is {other}, expected a float type"))),
    }
}

/// ONNX Shape, opsets 1 to 26.
pub(super) fn shape(context: &Context<'_>) -> Result<Lowered, Error> {
    let sizes = context.activation(0)?.sizes();
    let rank = sizes.len() as i64;
    let bound = |name: &str, default: i64| -> Result<usize, Error> {
        let value = context.node.int(name, default)?;
        let value = if value < 0 { value.saturating_add(rank) } else { value };
        Ok(value.clamp(0, rank) as usize)
    };
    let (start, end) = (bound("start", 0)?, bound("end", rank)?);
    let sizes = sizes.get(start..end).unwrap_or_default();
    let dims: Vec<i64> = sizes.iter().map(|size| size.integer()).collect();
    Ok(Lowered::Constant(Constant { dims: vec![dims.len()], values: Values::I64(dims) }))
}

/// ONNX Size, opsets 1 to 26.
pub(super) fn size(context: &Context<'_>) -> Result<Lowered, Error> {
    let size = Size::product(&context.activation(0)?.sizes());
    let size = size.ok_or_else(|| context.error("its result overflows".into()))?;
    Ok(Lowered::Constant(Constant { dims: vec![], values: Values::I64(vec![size.integer()]) }))
}

/// ONNX Concat, opsets 4 to 26, not along the batch.
pub(super) fn concat(context: &Context<'_>) -> Result<Lowered, Error> {
    let first = context.operands.iter().find_map(|operand| match operand {
        Operand::Activation(layout) => Some(*layout),
        _ => None,
    });
    let Some(first) = first else {
        return Err(context.error("input 0 is absent, expected an activation".into()));
    };
    let axis = context.node.axis(context.node.int("axis", 0)?, first.rank())?;
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
        let part_size = match layout.rank() == first.rank() {
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
                let repeated = context.tensor(values, &[&[1], row.as_slice()].concat())?;
                let shape = [vec![1], first.resized(&[(axis, layout.size(axis))]).row()].concat();
                Some(repeated.broadcast_as(shape)?.contiguous()?)
            }
            _ => None,
        });
        sizes.push(part_size);
        size = size.saturating_add(part_size);
    }
    let dim = first.dim(axis);
    step(Concat { dim, parts, sizes }, first.resized(&[(axis, size)]))
}

/// ONNX Flatten, opsets 1 to 26.
pub(super) fn flatten(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let given = context.node.int("axis", 1)?;
    let rank = layout.rank() as i64;
    let axis = if given < 0 { given.saturating_add(rank) } else { given };
    if !(0..=rank).contains(&axis) {
        return Err(context.error(format!("axis {given} is outside of rank {rank}")));
    }
    let sizes = layout.sizes();
    let (front, back) = sizes.split_at(axis as usize);
    match (Size::product(front), Size::product(back)) {
        (Some(front), Some(back)) => reshaped(context, &[front, back], false),
        _ => Err(context.error(format!("{layout} has too many values"))),
    }
}

/// ONNX Reshape, opsets 5 to 26.
pub(super) fn reshape(context: &Context<'_>) -> Result<Lowered, Error> {
    let wanted = Size::of_integers(context.integers(1)?);
    reshaped(context, &wanted, context.node.int("allowzero", 0)? == 0)
}

/// ONNX Squeeze, opsets 1 to 26.
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
    let sizes = layout.sizes().into_iter().enumerate();
    let kept: Vec<Size> =
        sizes.filter(|(axis, _)| !axes.contains(axis)).map(|(_, size)| size).collect();
    reshaped(context, &kept, false)
}

/// ONNX Unsqueeze, opsets 1 to 26.
pub(super) fn unsqueeze(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let Some(axes) = context.moved_integers("axes", 1)? else {
        return Err(context.error("axes are absent".into()));
    };
    let dims = context.node.unsqueezed(&layout.sizes(), Size::Fixed(1), axes)?;
    reshaped(context, &dims, false)
}

fn reshaped(context: &Context<'_>, wanted: &[Size], zero_copies: bool) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    match layout.reshaped(wanted, zero_copies, context.fixed_batch) {
        Some(reshaped) => step(Reshape { rows: [layout.row(), reshaped.row()] }, reshaped),
        None => {
            let shape: Vec<String> = wanted.iter().map(Size::to_string).collect();
            Err(context.error(format!(
                "{layout} does not become [{}] with every row by itself",
                shape.join(", ")
            )))
        }
    }
}

/// ONNX Transpose, opsets 1 to 26.
pub(super) fn transpose(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let permutation = context.node.permutation(layout.rank())?;
    let (transposed, order) = layout.transposed(&permutation);
    step(Transpose { order }, transposed)
}

/// ONNX SpaceToDepth and DepthToSpace, opsets 1 to 26: blocks of pixels as channels, and back.
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
