//! From ONNX nodes to operators: a registry by name, one function each.
//!
//! Every function names the attributes it reads; any other is refused. Shapes leave out the batch.

use candle_core::{Device, Tensor};

use super::conv::{Conv, Window};
use super::correlate::Activation;
use super::graph::{Constant, Node};
use super::linear::Linear;
use super::operator::{ChannelAffine, Operator};
use super::pointwise::{Arithmetic, Binary, Side, Softmax, Unary};
use super::pool::{GlobalAveragePool, Kind, Pool};
use super::shape::{Concat, Pad, Reshape};
use super::{Error, Row};

/// An input of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand<'a> {
    Absent,
    /// Depends on the model's input; its shape without the batch.
    Activation(&'a [usize]),
    Constant(&'a Constant),
}

/// What a node becomes.
#[derive(Debug)]
pub(crate) enum Lowered {
    Constant(Constant),
    /// The first input, unchanged.
    Same,
    /// An operator on the activations among the inputs, in their order, and its output's shape.
    Step(Box<dyn Operator>, Vec<usize>),
}

/// What a lowering sees.
pub(crate) struct Context<'a> {
    pub(crate) node: &'a Node,
    pub(crate) operands: &'a [Operand<'a>],
    pub(crate) opset: i64,
    pub(crate) device: &'a Device,
}

type Lowering = fn(&Context<'_>) -> Result<Lowered, Error>;

/// Every supported operator, in alphabetical order.
pub(crate) const REGISTRY: &[(&str, Lowering)] = &[
    ("Add", |context| arithmetic(context, Arithmetic::Add)),
    ("AveragePool", average_pool),
    ("BatchNormalization", batch_normalization),
    ("Clip", clip),
    ("Concat", concat),
    ("Constant", constant),
    ("Conv", conv),
    ("Div", |context| arithmetic(context, Arithmetic::Div)),
    ("Dropout", dropout),
    ("Flatten", flatten),
    ("Gemm", gemm),
    ("GlobalAveragePool", global_average_pool),
    ("GlobalMaxPool", global_max_pool),
    ("Identity", |context| same(context, &[])),
    ("LeakyRelu", leaky_relu),
    ("LogSoftmax", |context| softmax(context, true)),
    ("MatMul", mat_mul),
    ("MaxPool", max_pool),
    ("Mul", |context| arithmetic(context, Arithmetic::Mul)),
    ("Pad", pad),
    ("ReduceMean", reduce_mean),
    ("Relu", relu),
    ("Reshape", reshape),
    ("Sigmoid", |context| unary(context, Unary::Sigmoid)),
    ("Softmax", |context| softmax(context, false)),
    ("Sub", |context| arithmetic(context, Arithmetic::Sub)),
    ("Tanh", |context| unary(context, Unary::Tanh)),
];

/// Lowers one node.
pub(crate) fn lower(context: &Context<'_>) -> Result<Lowered, Error> {
    let node = context.node;
    match REGISTRY.binary_search_by_key(&node.op.as_str(), |(name, _)| name) {
        Ok(index) => (REGISTRY[index].1)(context),
        Err(_) => Err(Error::Operator { node: node.name.clone(), op: node.op.clone() }),
    }
}

// === impl Context ===

impl<'a> Context<'a> {
    fn operand(&self, index: usize) -> Operand<'a> {
        self.operands.get(index).copied().unwrap_or(Operand::Absent)
    }

    fn activation(&self, index: usize) -> Result<&'a [usize], Error> {
        match self.operand(index) {
            Operand::Activation(shape) => Ok(shape),
            other => {
                Err(self.error(format!("input {index} is {}, expected an activation", kind(other))))
            }
        }
    }

    fn image(&self, index: usize) -> Result<[usize; 3], Error> {
        let shape = self.activation(index)?;
        <[usize; 3]>::try_from(shape).map_err(|_| {
            self.error(format!("input {index} has shape {}, expected an image", Row(shape)))
        })
    }

    fn floats(&self, index: usize) -> Result<(&'a [usize], &'a [f32]), Error> {
        match self.operand(index) {
            Operand::Constant(constant) => match constant.floats() {
                Some(values) => Ok((&constant.dims, values)),
                None => Err(self.error(format!("input {index} holds integers, expected floats"))),
            },
            other => {
                Err(self.error(format!("input {index} is {}, expected a constant", kind(other))))
            }
        }
    }

    fn optional_floats(&self, index: usize) -> Result<Option<&'a [f32]>, Error> {
        match self.operand(index) {
            Operand::Absent => Ok(None),
            _ => Ok(Some(self.floats(index)?.1)),
        }
    }

    fn integers(&self, index: usize) -> Result<&'a [i64], Error> {
        match self.operand(index) {
            Operand::Constant(constant) => constant.integers().ok_or_else(|| {
                self.error(format!("input {index} holds floats, expected integers"))
            }),
            other => {
                Err(self.error(format!("input {index} is {}, expected a constant", kind(other))))
            }
        }
    }

    fn error(&self, reason: String) -> Error {
        self.node.error(reason)
    }

    fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<Tensor, Error> {
        Ok(Tensor::from_slice(values, shape, self.device)?)
    }

    /// Kernel, strides, dilations and pads of a two-dimensional window.
    fn window(&self, kernel: [usize; 2], image: [usize; 3]) -> Result<Window, Error> {
        let pair = |name: &str| -> Result<[usize; 2], Error> {
            match self.node.ints(name)? {
                None => Ok([1, 1]),
                Some(&[a, b]) if (1..=MAX_PAD).contains(&a) && (1..=MAX_PAD).contains(&b) => {
                    Ok([a as usize, b as usize])
                }
                Some(other) => Err(self.error(format!(
                    "attribute {name:?} is {other:?}, expected two integers from 1 to {MAX_PAD}"
                ))),
            }
        };
        let (stride, dilation) = (pair("strides")?, pair("dilations")?);
        let auto = self.node.text("auto_pad")?.unwrap_or("NOTSET");
        let mut window = Window { kernel, stride, dilation, pad_begin: [0; 2], pad_end: [0; 2] };
        match (auto, self.node.ints("pads")?) {
            ("NOTSET", None) | ("VALID", _) => {}
            ("NOTSET", Some(&[top, left, bottom, right]))
                if [top, left, bottom, right].iter().all(|pad| (0..=MAX_PAD).contains(pad)) =>
            {
                window.pad_begin = [top as usize, left as usize];
                window.pad_end = [bottom as usize, right as usize];
            }
            ("NOTSET", Some(other)) => {
                return Err(self.error(format!(
                    "attribute \"pads\" is {other:?}, expected four integers from 0 to {MAX_PAD}"
                )));
            }
            ("SAME_UPPER" | "SAME_LOWER", _) => {
                for axis in [0, 1] {
                    let outputs = image[1 + axis].div_ceil(stride[axis]);
                    let reach = dilation[axis] * (kernel[axis] - 1) + 1;
                    let total =
                        ((outputs - 1) * stride[axis] + reach).saturating_sub(image[1 + axis]);
                    let small = total / 2;
                    let begin = if auto == "SAME_UPPER" { small } else { total - small };
                    window.pad_begin[axis] = begin;
                    window.pad_end[axis] = total - begin;
                }
            }
            (other, _) => {
                return Err(self.error(format!("attribute \"auto_pad\" is {other:?}")));
            }
        }
        Ok(window)
    }

    fn kernel_shape(&self) -> Result<[usize; 2], Error> {
        match self.node.ints("kernel_shape")? {
            Some(&[height, width])
                if (1..=MAX_PAD).contains(&height) && (1..=MAX_PAD).contains(&width) =>
            {
                Ok([height as usize, width as usize])
            }
            other => Err(self.error(format!(
                "attribute \"kernel_shape\" is {other:?}, expected two integers from 1 to {MAX_PAD}"
            ))),
        }
    }

    /// An axis as an index into a shape without the batch.
    fn axis(&self, axis: i64, shape: &[usize]) -> Result<usize, Error> {
        let rank = shape.len() as i64 + 1;
        let positive = if axis < 0 { axis + rank } else { axis };
        if !(1..rank).contains(&positive) {
            return Err(self.error(format!("axis {axis} is the batch, or outside of rank {rank}")));
        }
        Ok(positive as usize - 1)
    }
}

fn kind(operand: Operand<'_>) -> &'static str {
    match operand {
        Operand::Absent => "absent",
        Operand::Activation(_) => "an activation",
        Operand::Constant(_) => "a constant",
    }
}

fn step(operator: impl Operator + 'static, shape: &[usize]) -> Result<Lowered, Error> {
    Ok(Lowered::Step(Box::new(operator), shape.to_vec()))
}

// === Linear ===

/// ONNX Conv, opsets 1 to 21, two dimensions.
fn conv(context: &Context<'_>) -> Result<Lowered, Error> {
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
fn gemm(context: &Context<'_>) -> Result<Lowered, Error> {
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
fn mat_mul(context: &Context<'_>) -> Result<Lowered, Error> {
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

// === Pooling ===

/// ONNX MaxPool, opsets 1 to 21, two dimensions, without indices.
fn max_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[
        "auto_pad",
        "ceil_mode",
        "dilations",
        "kernel_shape",
        "pads",
        "storage_order",
        "strides",
    ])?;
    pool(context, Kind::Max)
}

/// ONNX AveragePool, opsets 1 to 21, two dimensions.
fn average_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[
        "auto_pad",
        "ceil_mode",
        "count_include_pad",
        "dilations",
        "kernel_shape",
        "pads",
        "strides",
    ])?;
    let count_padding = context.node.int("count_include_pad", 0)? != 0;
    pool(context, Kind::Average { count_padding })
}

fn pool(context: &Context<'_>, kind: Kind) -> Result<Lowered, Error> {
    let image = context.image(0)?;
    let window = context.window(context.kernel_shape()?, image)?;
    let ceil = context.node.int("ceil_mode", 0)? != 0;
    pooled(context, kind, window, image, ceil)
}

fn pooled(
    context: &Context<'_>,
    kind: Kind,
    window: Window,
    [channels, height, width]: [usize; 3],
    ceil: bool,
) -> Result<Lowered, Error> {
    match Pool::new(kind, window.clone(), [height, width], ceil) {
        Some(pool) => {
            let [height, width] = pool.out_size();
            step(pool, &[channels, height, width])
        }
        None => Err(context.error(format!("{window:?} does not fit an image of {height}x{width}"))),
    }
}

/// ONNX GlobalAveragePool, opsets 1 to 21, two dimensions.
fn global_average_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[])?;
    let [channels, _, _] = context.image(0)?;
    step(GlobalAveragePool { keep: true }, &[channels, 1, 1])
}

/// ONNX ReduceMean over both axes of an image, opsets 1 to 21.
fn reduce_mean(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["axes", "keepdims", "noop_with_empty_axes"])?;
    let [channels, _, _] = context.image(0)?;
    let axes = match (context.node.ints("axes")?, context.operand(1)) {
        (Some(axes), _) => axes,
        (None, Operand::Absent) => &[],
        (None, _) => context.integers(1)?,
    };
    if !matches!(axes, [2, 3] | [3, 2] | [-2, -1] | [-1, -2]) {
        return Err(context.error(format!("axes {axes:?}, expected both axes of an image")));
    }
    let keep = context.node.int("keepdims", 1)? != 0;
    let shape = if keep { vec![channels, 1, 1] } else { vec![channels] };
    step(GlobalAveragePool { keep }, &shape)
}

/// ONNX GlobalMaxPool, opsets 1 to 21, two dimensions.
fn global_max_pool(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[])?;
    let image = context.image(0)?;
    let window = Window {
        kernel: [image[1], image[2]],
        stride: [1; 2],
        dilation: [1; 2],
        pad_begin: [0; 2],
        pad_end: [0; 2],
    };
    pooled(context, Kind::Max, window, image, false)
}

// === Pointwise ===

/// ONNX BatchNormalization at inference, opsets 7 to 21.
fn batch_normalization(context: &Context<'_>) -> Result<Lowered, Error> {
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
fn relu(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&[])?;
    let shape = context.activation(0)?;
    step(ChannelAffine::relu(shape.first().copied().unwrap_or(1)), shape)
}

/// ONNX Clip, opsets 6 to 21.
fn clip(context: &Context<'_>) -> Result<Lowered, Error> {
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
fn leaky_relu(context: &Context<'_>) -> Result<Lowered, Error> {
    context.node.only(&["alpha"])?;
    let slope = context.node.float("alpha", 0.01)?;
    let shape = context.activation(0)?;
    step(Unary::LeakyRelu { slope }, shape)
}

fn unary(context: &Context<'_>, function: Unary) -> Result<Lowered, Error> {
    context.node.only(if context.node.op == "Clip" { &["max", "min"] } else { &[] })?;
    step(function, context.activation(0)?)
}

/// ONNX Softmax and LogSoftmax over the last axis, opsets 1 to 21.
fn softmax(context: &Context<'_>, log: bool) -> Result<Lowered, Error> {
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
fn arithmetic(context: &Context<'_>, function: Arithmetic) -> Result<Lowered, Error> {
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

// === Shape ===

fn constant(context: &Context<'_>) -> Result<Lowered, Error> {
    Ok(Lowered::Constant(context.node.constant()?))
}

/// ONNX Dropout at inference, opsets 7 to 21.
fn dropout(context: &Context<'_>) -> Result<Lowered, Error> {
    let training = match context.operand(2) {
        Operand::Absent => false,
        _ => context.integers(2)? != [0],
    };
    if training {
        return Err(context.error("it is in training mode".into()));
    }
    same(context, &["ratio", "seed"])
}

fn same(context: &Context<'_>, attributes: &[&str]) -> Result<Lowered, Error> {
    context.node.only(attributes)?;
    Ok(Lowered::Same)
}

/// ONNX Concat, opsets 4 to 21, not along the batch.
fn concat(context: &Context<'_>) -> Result<Lowered, Error> {
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
fn flatten(context: &Context<'_>) -> Result<Lowered, Error> {
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
fn reshape(context: &Context<'_>) -> Result<Lowered, Error> {
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
fn pad(context: &Context<'_>) -> Result<Lowered, Error> {
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

/// Windows, strides, dilations and pads larger than any image need no support.
const MAX_PAD: i64 = 4096;
