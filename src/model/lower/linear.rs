//! Convolutions and matrix products.

use super::context::{Context, Lowered, step};
use crate::model::conv::Conv;
use crate::model::linear::Linear;
use crate::model::{Error, Row};

/// ONNX Conv, opsets 1 to 21, two dimensions.
pub(super) fn conv(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"])?;
    let image = context.image(0)?;
    let (dims, values) = context.floats(1)?;
    let groups = context.node.int("group", 1)?;
    let &[out_channels, in_channels, height, width] = dims else {
        return Err(context.error(format!("weight has shape {dims:?}, expected four dimensions")));
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
        && declared != [height as i64, width as i64]
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
    let weight = context.tensor(values, dims)?;
    match Conv::new(window.clone(), groups as usize, image, weight, bias.map(<[f32]>::to_vec)) {
        Some(conv) => {
            let shape = conv.out_shape();
            step(conv, &shape)
        }
        None => Err(context.error(format!("{window:?} does not fit an image of {image:?}"))),
    }
}

/// ONNX Gemm, opsets 7 to 21, with a constant second operand.
pub(super) fn gemm(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["alpha", "beta", "transA", "transB"])?;
    if context.node.int("transA", 0)? != 0 {
        return Err(context.error("attribute \"transA\" is set on the batch".into()));
    }
    let alpha = context.node.float("alpha", 1.0)?;
    let beta = context.node.float("beta", 1.0)?;
    let transposed = context.node.int("transB", 0)? != 0;
    let (dims, values) = context.floats(1)?;
    linear(context, dims, values, transposed, alpha, context.optional_floats(2)?.map(|c| (c, beta)))
}

/// ONNX MatMul, opsets 1 to 21, with a constant second operand.
pub(super) fn mat_mul(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[])?;
    let (dims, values) = context.floats(1)?;
    linear(context, dims, values, false, 1.0, None)
}

fn linear(
    context: &Context<'_>,
    dims: &[usize],
    values: &[f32],
    transposed: bool,
    alpha: f32,
    bias: Option<(&[f32], f32)>,
) -> Result<Lowered, Error> {
    let shape = context.activation(0)?;
    let inner_outer = match (dims, transposed) {
        (&[outer, inner], true) | (&[inner, outer], false) => Some((inner, outer)),
        _ => None,
    };
    let (Some((inner, outer)), &[features]) = (inner_outer, shape) else {
        return Err(context.error(format!(
            "operands of shape {} and {dims:?}, expected a matrix each",
            Row(shape)
        )));
    };
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
    step(Linear::new(weight.contiguous()?, bias), &[outer])
}
