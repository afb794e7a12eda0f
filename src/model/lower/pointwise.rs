//! Elementwise operators, batch normalisation and softmax.

use super::context::{Context, Lowered, Operand, kind, step};
use crate::model::correlate::Activation;
use crate::model::operator::ChannelAffine;
use crate::model::pointwise::{Arithmetic, Binary, Side, Softmax, Unary};
use crate::model::{Error, Row};

/// ONNX BatchNormalization at inference, opsets 7 to 21.
pub(super) fn batch_normalization(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["epsilon", "momentum", "spatial", "training_mode"])?;
    if context.node.int("training_mode", 0)? != 0 || context.node.int("spatial", 1)? != 1 {
        return Err(context.error("only inference over channels is supported".into()));
    }
    let shape = context.activation(0)?;
    let channels = shape.first().copied().unwrap_or(0);
    let mut parameters = [&[][..]; 4];
    for (index, parameter) in parameters.iter_mut().enumerate() {
        *parameter = context.floats(index + 1)?.1;
        if parameter.len() != channels {
            return Err(context.error(format!(
                "input {} has {} values, expected {channels}",
                index + 1,
                parameter.len()
            )));
        }
    }
    let [weight, bias, mean, variance] = parameters;
    let epsilon = f64::from(context.node.float("epsilon", 1e-5)?);
    let scale: Vec<f32> = weight
        .iter()
        .zip(variance)
        .map(|(w, v)| (f64::from(*w) / (f64::from(*v) + epsilon).sqrt()) as f32)
        .collect();
    let shift = bias.iter().zip(mean.iter().zip(&scale)).map(|(b, (m, s))| b - m * s).collect();
    step(ChannelAffine { scale, shift, activation: Activation::Identity }, shape)
}

/// ONNX Relu, opsets 1 to 21.
pub(super) fn relu(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[])?;
    let shape = context.activation(0)?;
    step(ChannelAffine::relu(shape.first().copied().unwrap_or(1)), shape)
}

/// ONNX Clip, opsets 6 to 21.
pub(super) fn clip(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["max", "min"])?;
    let bound = |index: usize, name: &str, default: f32| -> Result<f32, Error> {
        match context.optional_floats(index)? {
            None => context.node.float(name, default),
            Some(&[value]) => Ok(value),
            Some(other) => Err(context.error(format!("bound {name} has {} values", other.len()))),
        }
    };
    let low = bound(1, "min", f32::NEG_INFINITY)?;
    let high = bound(2, "max", f32::INFINITY)?;
    unary(context, Unary::Clip { low, high })
}

/// ONNX LeakyRelu, opsets 1 to 21.
pub(super) fn leaky_relu(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["alpha"])?;
    let slope = context.node.float("alpha", 0.01)?;
    let shape = context.activation(0)?;
    step(Unary::LeakyRelu { slope }, shape)
}

pub(super) fn unary(context: &Context<'_>, function: Unary) -> Result<Lowered, Error> {
    context.node.only(if context.node.op == "Clip" { &["max", "min"] } else { &[] })?;
    step(function, context.activation(0)?)
}

/// ONNX Softmax and LogSoftmax over the last axis, opsets 1 to 21.
pub(super) fn softmax(context: &Context<'_>, log: bool) -> Result<Lowered, Error> {
    context.node.only(&["axis"])?;
    let shape = context.activation(0)?;
    let default = if context.opset >= 13 { -1 } else { 1 };
    let axis = context.axis(context.node.int("axis", default)?, shape)?;
    // Before opset 13 everything from the axis on was one distribution.
    if axis + 1 != shape.len() {
        return Err(context.error(format!(
            "axis {} of {}, expected the last",
            axis + 1,
            Row(shape)
        )));
    }
    step(Softmax { log }, shape)
}

/// ONNX Add, Sub, Mul and Div, opsets 7 to 21, with NumPy's broadcasting inside a row.
pub(super) fn arithmetic(context: &Context<'_>, function: Arithmetic) -> Result<Lowered, Error> {
    context.node.only(&[])?;
    match (context.operand(0), context.operand(1)) {
        (Operand::Activation(a), Operand::Activation(b)) => {
            let shape = broadcast(a, b).filter(|_| a.len() == b.len()).ok_or_else(|| {
                context.error(format!("{} does not broadcast with {}", Row(a), Row(b)))
            })?;
            step(Binary { function, constant: None, relu: false }, &shape)
        }
        (Operand::Activation(shape), Operand::Constant(_)) => {
            with_constant(context, function, shape, Side::Right)
        }
        (Operand::Constant(_), Operand::Activation(shape)) => {
            with_constant(context, function, shape, Side::Left)
        }
        (a, b) => Err(context.error(format!("operands are {} and {}", kind(a), kind(b)))),
    }
}

fn with_constant(
    context: &Context<'_>,
    function: Arithmetic,
    shape: &[usize],
    side: Side,
) -> Result<Lowered, Error> {
    let (dims, values) = context.floats(usize::from(side == Side::Right))?;
    if let Some(affine) = channel_affine(function, shape, dims, values, side) {
        return step(affine, shape);
    }
    // With the batch in front as 1, the constant broadcasts as the row does.
    let mut full = vec![1; (shape.len() + 1).saturating_sub(dims.len())];
    full.extend(dims);
    let fits = full.len() == shape.len() + 1 && full[0] == 1;
    match broadcast(shape, &full[1..]).filter(|out| fits && out == shape) {
        Some(out) => {
            let constant = Some((side, context.tensor(values, &full)?));
            step(Binary { function, constant, relu: false }, &out)
        }
        None => Err(context
            .error(format!("a constant of shape {dims:?} does not broadcast to {}", Row(shape)))),
    }
}

/// Arithmetic with a scalar or one value per channel.
fn channel_affine(
    function: Arithmetic,
    shape: &[usize],
    dims: &[usize],
    values: &[f32],
    side: Side,
) -> Option<ChannelAffine> {
    let channels = *shape.first()?;
    let rank = shape.len() + 1;
    let per_channel = dims.len() <= rank
        && dims.iter().rev().enumerate().all(|(i, &dim)| dim == 1 || rank - 1 - i == 1);
    let values: Vec<f32> = match values {
        [value] => vec![*value; channels],
        values if per_channel && values.len() == channels => values.to_vec(),
        _ => return None,
    };
    let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
    let (scale, shift) = match (function, side) {
        (Arithmetic::Add, _) => (ones, values),
        (Arithmetic::Sub, Side::Right) => (ones, values.iter().map(|v| -v).collect()),
        (Arithmetic::Sub, Side::Left) => (vec![-1.0; channels], values),
        (Arithmetic::Mul, _) => (values, zeros),
        (Arithmetic::Div, Side::Right) => (values.iter().map(|v| 1.0 / v).collect(), zeros),
        (Arithmetic::Div, Side::Left) => return None,
    };
    Some(ChannelAffine { scale, shift, activation: Activation::Identity })
}

fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], i: usize| {
        (i + shape.len()).checked_sub(rank).map_or(1, |index| shape[index])
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}
