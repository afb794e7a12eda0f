//! Convolutions and matrix products.

use super::context::{Context, Lowered, Operand, kind, step};
use super::pointwise::term;
use crate::error::Error;
use crate::layout::Layout;
use crate::operators::binary::Term;
use crate::operators::conv::Conv;
use crate::operators::linear::Linear;
use crate::operators::matmul::MatMul;

/// ONNX Conv, opsets 1 to 26, two dimensions.
pub(super) fn conv(context: &Context<'_>) -> Result<Lowered, Error> {
    let (_, image) = context.images(0)?;
    let (dims, values) = context.floats(1)?;
    let groups = context.node.int("group", 1)?;
    let (out_channels, in_channels, height, width) = match *dims {
        [outs, ins, height, width] => (outs, ins, height, width),
        [outs, ins, length] => (outs, ins, 1, length),
        _ => {
            return Err(
                context.error(format!("weight has shape {dims:?}, expected [out, in, h, w]"))
            );
        }
    };
    let fits = groups >= 1
        && (in_channels as u64).checked_mul(groups as u64) == Some(image[0] as u64)
        && out_channels.is_multiple_of(groups as usize)
        && out_channels > 0
        && height > 0
        && width > 0;
    if !fits {
        return Err(context.error(format!(
            "weight of shape {dims:?} in {groups} groups does not fit an input of {} channels",
            image[0]
        )));
    }
    if let Some(declared) = context.node.ints("kernel_shape")?
        && declared.iter().rev().zip([width, height]).any(|(&own, size)| own != size as i64)
    {
        return Err(context.error(format!(
            "attribute \"kernel_shape\" is {declared:?}, but the weight has shape {dims:?}"
        )));
    }
    let bias = context.optional_floats(2)?;
    if let Some(bias) = bias
        && bias.len() != out_channels
    {
        return Err(
            context.error(format!("bias has {} values, expected {out_channels}", bias.len()))
        );
    }
    let window = context.window([height, width], image)?;
    let weight = context.tensor(values, &[out_channels, in_channels, height, width])?;
    match Conv::new(window.clone(), groups as usize, image, weight, bias.map(<[f32]>::to_vec)) {
        Some(conv) => {
            let shape = conv.out_shape();
            context.on_images(conv, shape)
        }
        None => Err(context.error(format!("{window:?} does not fit an image of {image:?}"))),
    }
}

/// ONNX Gemm, opsets 7 to 26, with a constant second operand.
pub(super) fn gemm(context: &Context<'_>) -> Result<Lowered, Error> {
    if context.node.int("transA", 0)? != 0 {
        return Err(context.error("attribute \"transA\" is set on the batch".into()));
    }
    let alpha = context.node.float("alpha", 1.0)?;
    let beta = context.node.float("beta", 1.0)?;
    let transposed = context.node.int("transB", 0)? != 0;
    let (dims, values) = context.floats(1)?;
    linear(context, dims, values, transposed, alpha, context.optional_floats(2)?.map(|c| (c, beta)))
}

/// ONNX MatMul, opsets 1 to 26.
pub(super) fn mat_mul(context: &Context<'_>) -> Result<Lowered, Error> {
    if let (Operand::Activation(_), Operand::Constant(constant)) =
        (context.operand(0), context.operand(1))
        && constant.dims.len() == 2
    {
        let (dims, values) = context.floats(1)?;
        return linear(context, dims, values, false, 1.0, None);
    }
    let (a, b) = match (context.operand(0), context.operand(1)) {
        (Operand::Activation(a), Operand::Activation(b)) => (a.clone(), b.clone()),
        (Operand::Activation(a), Operand::Constant(b)) => (a.clone(), a.like(&b.dims)),
        (Operand::Constant(a), Operand::Activation(b)) => (b.like(&a.dims), b.clone()),
        (a, b) => {
            return Err(context.error(format!("operands are {} and {}", kind(a), kind(b))));
        }
    };
    let refuse = || context.error(format!("{a} does not multiply with {b}"));
    let rank = a.rank().max(b.rank());
    if a.rank() < 2 || b.rank() < 2 {
        return Err(refuse());
    }
    // The dimensions in front repeat as an elementwise function's; the last two are the matrices'.
    let (a, b) = (a.padded(rank), b.padded(rank));
    let whole = a.trailing(rank - 2).is_some() && b.trailing(rank - 2).is_some();
    let (rows, inner) = (a.size(rank - 2), a.size(rank - 1));
    if !whole || b.size(rank - 2) != inner {
        return Err(refuse());
    }
    let in_front = |layout: &Layout| layout.resized(&[(rank - 2, 1), (rank - 1, 1)]);
    let front = in_front(&a).broadcast(&in_front(&b)).ok_or_else(refuse)?;
    let layout = front.resized(&[(rank - 2, rows), (rank - 1, b.size(rank - 1))]);
    let (left, right) = (term(context, 0, &a)?, term(context, 1, &b)?);
    let rank_of = |term: &Term| match term {
        Term::Input(row) => row.len(),
        Term::Constant(constant) => constant.rank() - 1,
    };
    if rank_of(&left) != rank_of(&right) {
        return Err(refuse());
    }
    step(MatMul { left, right, row: layout.row() }, layout)
}

fn linear(
    context: &Context<'_>,
    dims: &[usize],
    values: &[f32],
    transposed: bool,
    alpha: f32,
    bias: Option<(&[f32], f32)>,
) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let inner_outer = match (dims, transposed) {
        (&[outer, inner], true) | (&[inner, outer], false) => Some((inner, outer)),
        _ => None,
    };
    let last = layout.rank().checked_sub(1).filter(|&axis| !layout.is_batch(axis));
    let (Some((inner, outer)), Some(last)) = (inner_outer, last) else {
        return Err(context.error(format!(
            "operands of shape {layout} and {dims:?}, expected features in the last dimension and a matrix"
        )));
    };
    let features = layout.size(last);
    if inner != features {
        return Err(context.error(format!("{features} features meet a weight for {inner}")));
    }
    let mut weight = context.tensor(values, dims)?;
    if transposed {
        weight = weight.t()?;
    }
    if alpha != 1.0 {
        weight = (weight * f64::from(alpha))?;
    }
    let bias = match bias {
        None => None,
        Some((values, beta)) if values.len() == outer || values.len() == 1 => {
            let values: Vec<f32> = (0..outer).map(|i| values[i % values.len()] * beta).collect();
            Some(context.tensor(&values, &[outer])?)
        }
        Some((values, _)) => {
            return Err(context
                .error(format!("third operand has {} values, expected {outer}", values.len())));
        }
    };
    step(Linear::new(weight.contiguous()?, bias), layout.resized(&[(last, outer)]))
}
