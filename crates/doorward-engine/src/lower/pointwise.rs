//! Elementwise operators, batch normalisation and where broadcasting is decided.

use super::context::{Context, Lowered, Operand, kind, step};
use crate::error::Error;
use crate::kernels::activation::Activation;
use crate::kernels::affine::ChannelAffine;
use crate::layout::Layout;
use crate::operators::Operator;
use crate::operators::binary::{Arithmetic, Binary, Term};
use crate::operators::choose::Choose;
use crate::operators::dynamic::{Dynamic, Part};
use crate::operators::prelu::PRelu;
use crate::operators::unary::Unary;

/// ONNX BatchNormalization at inference, opsets 7 to 26.
pub(super) fn batch_normalization(context: &Context<'_>) -> Result<Lowered, Error> {
    if context.node.int("training_mode", 0)? != 0 || context.node.int("spatial", 1)? != 1 {
        return Err(context.error("only inference over channels is supported".into()));
    }
    let layout = context.activation(0)?;
    if layout.rank() < 2 || layout.is_batch(1) {
        return Err(context.error(format!("input 0 is {layout}, expected [batch, C, ...]")));
    }
    let channels = layout.size(1);
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
    if layout.dim(1) == 1 && layout.row().len() + 1 == layout.rank() {
        return step(
            ChannelAffine { scale, shift, activation: Activation::Identity },
            layout.clone(),
        );
    }
    // The channels are not the first dimension of a row.
    let mut dims = vec![channels];
    dims.resize(layout.rank() - 1, 1);
    let row = layout.row();
    let part = |function: Arithmetic,
                values: &[f32]|
     -> Result<(Box<dyn Operator>, Layout), Error> {
        let Some(constant) = layout.row_of_constant(&dims) else {
            return Err(context.error(format!("channels of {layout} vary over the batch")));
        };
        let right = Term::Constant(context.tensor(values, &[&[1], constant.as_slice()].concat())?);
        let left = Term::Input(row.clone());
        let binary =
            Binary { function, left, right, row: row.clone(), activation: Activation::Identity };
        Ok((Box::new(binary), layout.clone()))
    };
    Ok(Lowered::Chain(vec![part(Arithmetic::Mul, &scale)?, part(Arithmetic::Add, &shift)?]))
}

/// ONNX Relu, opsets 1 to 26.
pub(super) fn relu(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    match layout.row().first() {
        Some(&channels) => step(ChannelAffine::unit(channels, Activation::Relu), layout.clone()),
        None => step(Unary::LeakyRelu { slope: 0.0 }, layout.clone()),
    }
}

/// ONNX Clip, opsets 6 to 26.
pub(super) fn clip(context: &Context<'_>) -> Result<Lowered, Error> {
    let bound = |index: usize, name: &str, default: f32| -> Result<f32, Error> {
        match context.optional_floats(index)? {
            None => context.node.float(name, default),
            Some(&[value]) => Ok(value),
            Some(other) => Err(context.error(format!("bound {name} has {} values", other.len()))),
        }
    };
    let low = bound(1, "min", f32::NEG_INFINITY)?;
    let high = bound(2, "max", f32::INFINITY)?;
    let layout = context.activation(0)?;
    match layout.row().first() {
        Some(&channels) => {
            step(ChannelAffine::unit(channels, Activation::Clip { low, high }), layout.clone())
        }
        None => step(Unary::Clip { low, high }, layout.clone()),
    }
}

/// A function of one value whose attributes are floats with defaults.
pub(super) fn unary<const N: usize>(
    context: &Context<'_>,
    attributes: [(&str, f32); N],
    function: impl Fn([f32; N]) -> Unary,
) -> Result<Lowered, Error> {
    let mut values = [0.0; N];
    for (value, (name, default)) in values.iter_mut().zip(attributes) {
        *value = context.node.float(name, default)?;
    }
    step(function(values), context.activation(0)?.clone())
}

/// ONNX Swish, opset 24 to 26, which also stands for `x * Sigmoid(x)`.
pub(super) fn swish(context: &Context<'_>) -> Result<Lowered, Error> {
    match context.node.float("alpha", 1.0)? {
        1.0 => step(Unary::Silu, context.activation(0)?.clone()),
        other => Err(context.error(format!("attribute \"alpha\" is {other}, expected 1"))),
    }
}

/// ONNX DynamicQuantizeLinear, opsets 11 to 26, of every row by itself.
pub(super) fn dynamic(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let part = |part, layout| (Box::new(Dynamic { part }) as Box<dyn Operator>, layout);
    let number = Layout::batch_first(&[]);
    Ok(Lowered::Steps(vec![
        part(Part::Values, layout.clone()),
        part(Part::Scale, number.clone()),
        part(Part::ZeroPoint, number),
    ]))
}

/// ONNX Where, opsets 9 to 26: no gradient goes to the condition.
pub(super) fn choose(context: &Context<'_>) -> Result<Lowered, Error> {
    let operands = [0, 1, 2].map(|index| context.operand(index));
    let Some(any) = operands.iter().find_map(|operand| match operand {
        Operand::Activation(layout) => Some(*layout),
        _ => None,
    }) else {
        return Err(context.error("input 0 is absent, expected an activation".into()));
    };
    let mut layouts = Vec::new();
    for (index, operand) in operands.into_iter().enumerate() {
        layouts.push(match operand {
            Operand::Activation(layout) => layout.clone(),
            Operand::Constant(constant) => any.like(&constant.dims),
            Operand::Absent => return Err(context.error(format!("input {index} is absent"))),
        });
    }
    let whole =
        layouts.iter().skip(1).try_fold(layouts[0].clone(), |all, next| all.broadcast(next));
    let whole = whole.ok_or_else(|| {
        let shapes: Vec<String> = layouts.iter().map(Layout::to_string).collect();
        context.error(format!("{} do not broadcast", shapes.join(" and ")))
    })?;
    let rank = whole.rank();
    let mut terms = Vec::new();
    for (index, layout) in layouts.iter().enumerate() {
        terms.push(term(context, index, &layout.padded(rank))?);
    }
    match <[Term; 3]>::try_from(terms) {
        Ok(terms) => step(Choose { terms, row: whole.row() }, whole),
        Err(_) => Err(context.error("expected three inputs".into())),
    }
}

/// ONNX Gelu, opset 20 and 21.
pub(super) fn gelu(context: &Context<'_>) -> Result<Lowered, Error> {
    let function = match context.node.text("approximate")?.unwrap_or("none") {
        "none" => Unary::Gelu,
        "tanh" => Unary::GeluTanh,
        other => {
            return Err(context.error(format!(
                "attribute \"approximate\" is {other:?}, expected \"none\" or \"tanh\""
            )));
        }
    };
    step(function, context.activation(0)?.clone())
}

/// ONNX PRelu, opsets 9 to 26: `max(x, 0) + slope min(x, 0)`.
pub(super) fn p_relu(context: &Context<'_>) -> Result<Lowered, Error> {
    let layout = context.activation(0)?;
    let (dims, values) = context.floats(1)?;
    let row = layout
        .row_of_constant(dims)
        .filter(|_| layout.broadcast(&layout.like(dims)).as_ref() == Some(layout));
    let Some(row) = row else {
        return Err(context.error(format!("slopes of shape {dims:?} for {layout}")));
    };
    let slopes = context.tensor(values, &[&[1], row.as_slice()].concat())?;
    step(PRelu::new(slopes, layout.row()), layout.clone())
}

/// ONNX Pow, opsets 7 to 26.
pub(super) fn pow(context: &Context<'_>) -> Result<Lowered, Error> {
    if let (Operand::Activation(layout), Operand::Constant(constant)) =
        (context.operand(0), context.operand(1))
        && constant.values.len() == 1
        && constant.dims.len() <= layout.rank()
    {
        let exponent = match (constant.floats(), constant.integers()) {
            (Some(&[exponent]), _) => exponent,
            (_, Some(&[exponent])) => exponent as f32,
            _ => {
                return Err(context.error("its exponent is of a kind that is not supported".into()));
            }
        };
        let function = match exponent {
            2.0 => Unary::Square,
            0.5 => Unary::Sqrt,
            exponent => Unary::Power { exponent },
        };
        return step(function, layout.clone());
    }
    arithmetic(context, Arithmetic::Pow)
}

/// ONNX Add, Sub, Mul, Div, Max and Min, opsets 7 to 26, with NumPy's broadcasting inside a row.
pub(super) fn arithmetic(context: &Context<'_>, function: Arithmetic) -> Result<Lowered, Error> {
    if context.operands.len() == 1 {
        return Ok(Lowered::Same);
    }
    let (a, b) = match (context.operand(0), context.operand(1)) {
        (Operand::Activation(a), Operand::Activation(b)) => (a.clone(), b.clone()),
        (Operand::Activation(a), Operand::Constant(b)) => beside(a, &b.dims),
        (Operand::Constant(a), Operand::Activation(b)) => {
            let (b, a) = beside(b, &a.dims);
            (a, b)
        }
        (a, b) => return Err(context.error(format!("operands are {} and {}", kind(a), kind(b)))),
    };
    // A number for each row, or a list, goes with rows of any shape.
    let in_front = |layout: &Layout| layout.as_batch_first().is_some();
    let (a, b) = match in_front(&a) && in_front(&b) {
        true => (a.for_each_row(b.rank()), b.for_each_row(a.rank())),
        false => (a, b),
    };
    let layout =
        a.broadcast(&b).ok_or_else(|| context.error(format!("{a} does not broadcast with {b}")))?;
    let (left, right) =
        (term(context, 0, &a.padded(layout.rank()))?, term(context, 1, &b.padded(layout.rank()))?);
    let row = layout.row();
    let affine = match (&left, &right) {
        (Term::Input(own), Term::Constant(_)) if *own == row => {
            channel_affine(function, &row, &context.numbers(1)?.1, &right, false)
        }
        (Term::Constant(_), Term::Input(own)) if *own == row => {
            channel_affine(function, &row, &context.numbers(0)?.1, &left, true)
        }
        _ => None,
    };
    match affine {
        Some(affine) => step(affine, layout),
        None => {
            step(Binary { function, left, right, row, activation: Activation::Identity }, layout)
        }
    }
}

/// The layouts of an activation and of a constant beside it.
fn beside(activation: &Layout, constant: &[usize]) -> (Layout, Layout) {
    match activation.is_number() {
        true => {
            let number = activation.for_each_row(constant.len() + 1);
            let list = number.like(constant);
            (number, list)
        }
        false => (activation.clone(), activation.like(constant)),
    }
}

/// An operand of a function whose output has the rank of `layout`.
pub(super) fn term(context: &Context<'_>, index: usize, layout: &Layout) -> Result<Term, Error> {
    match context.operand(index) {
        Operand::Activation(_) => Ok(Term::Input(layout.row())),
        _ => {
            let (dims, values) = context.numbers(index)?;
            let row = layout.row_of_constant(dims).ok_or_else(|| {
                context.error(format!("a constant of shape {dims:?} varies over the batch"))
            })?;
            Ok(Term::Constant(context.tensor(&values, &[&[1], row.as_slice()].concat())?))
        }
    }
}

/// Arithmetic with a scalar or one value per channel.
fn channel_affine(
    function: Arithmetic,
    row: &[usize],
    values: &[f32],
    constant: &Term,
    on_left: bool,
) -> Option<ChannelAffine> {
    let channels = *row.first()?;
    let Term::Constant(tensor) = constant else {
        return None;
    };
    // One value for every row behind the first dimension.
    if tensor.dims().get(2..)?.iter().any(|&dim| dim != 1) {
        return None;
    }
    let values: Vec<f32> = match values {
        [value] => vec![*value; channels],
        values if values.len() == channels => values.to_vec(),
        _ => return None,
    };
    let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
    let (scale, shift) = match (function, on_left) {
        (Arithmetic::Add, _) => (ones, values),
        (Arithmetic::Sub, false) => (ones, values.iter().map(|v| -v).collect()),
        (Arithmetic::Sub, true) => (vec![-1.0; channels], values),
        (Arithmetic::Mul, _) => (values, zeros),
        (Arithmetic::Div, false) => (values.iter().map(|v| 1.0 / v).collect(), zeros),
        _ => return None,
    };
    Some(ChannelAffine { scale, shift, activation: Activation::Identity })
}
