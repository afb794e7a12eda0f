//! Networks of integers, as onnxruntime's quantiser and others write them, in floats.
//!
//! Integers of 8 bits, their products and sums of up to 2^24 are exact in `f32`, so predictions are
//! those of integer arithmetic. Where a value is rounded, the gradient goes straight through.

use candle_onnx::onnx::tensor_proto::DataType;

use super::context::Operand;
use super::expanding::Expanding;
use crate::error::Error;
use crate::onnx::node::MADE;

/// ONNX QuantizeLinear of a constant, or with a scale for each channel.
pub(super) fn quantize(node: &mut Expanding<'_>) -> Result<(), Error> {
    let (x, rank) = (node.input(0)?, node.sizes(0)?.len());
    let limits = limits(node, 2)?;
    let scale = along(node, 1, rank)?;
    let zero = match node.has(2) {
        true => along(node, 2, rank)?,
        false => node.scalar(0.0),
    };
    if node.is_constant(0)? {
        let scaled = node.one("Div", &[x, &scale]);
        let rounded = node.one("Round", &[&scaled]);
        let moved = node.one("Add", &[&rounded, &zero]);
        let [low, high] = limits.map(|limit| node.scalar(limit));
        let clipped = node.one("Clip", &[&moved, &low, &high]);
        node.node(node.node.made("Cast", &[&clipped], "").with_int("to", INT32));
        return node.end();
    }
    match node.floats(1)?.1.as_slice() {
        &[scale] => rounded(node, x, scale, &zero, limits),
        _ => {
            let scaled = node.one("Div", &[x, &scale]);
            rounded(node, &scaled, 1.0, &zero, limits);
        }
    }
    node.end()
}

/// ONNX DequantizeLinear of an activation; that of a constant is evaluated.
pub(super) fn dequantize(node: &mut Expanding<'_>) -> Result<(), Error> {
    if node.is_constant(0)? && node.node.op == "DequantizeLinear" {
        return Ok(());
    }
    dequantized(node, [0, 1, 2])?;
    node.end()
}

/// ONNX MatMulInteger.
pub(super) fn mat_mul_integer(node: &mut Expanding<'_>) -> Result<(), Error> {
    let a = centred(node, 0, 2)?;
    let b = centred(node, 1, 3)?;
    node.one("MatMul", &[&a, &b]);
    node.end()
}

/// ONNX ConvInteger.
pub(super) fn conv_integer(node: &mut Expanding<'_>) -> Result<(), Error> {
    let x = centred(node, 0, 2)?;
    let w = centred_weights(node, 1, 3)?;
    node.node(node.with_attributes("Conv", &CONV, &[&x, &w]));
    node.end()
}

/// ONNX QLinearConv.
pub(super) fn q_linear_conv(node: &mut Expanding<'_>) -> Result<(), Error> {
    let x = centred(node, 0, 2)?;
    let w = centred_weights(node, 3, 5)?;
    let mut inputs = vec![x, w];
    if node.has(8) {
        let (dims, bias) = node.floats(8)?;
        inputs.push(node.keep_floats(dims, bias));
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let sum = node.node(node.with_attributes("Conv", &CONV, &inputs));
    let scales = rescaled(node, [1, 4, 6])?;
    let shape = if scales.len() == 1 { vec![] } else { vec![scales.len(), 1, 1] };
    requantized(node, &sum, &shape, scales, 7)
}

/// ONNX QLinearMatMul.
pub(super) fn q_linear_mat_mul(node: &mut Expanding<'_>) -> Result<(), Error> {
    let a = centred(node, 0, 2)?;
    let b = centred(node, 3, 5)?;
    let product = node.one("MatMul", &[&a, &b]);
    let scales = rescaled(node, [1, 4, 6])?;
    let shape = if scales.len() == 1 { vec![] } else { vec![scales.len()] };
    requantized(node, &product, &shape, scales, 7)
}

/// onnxruntime's QGemm: with a float result where it has no scale for it.
pub(super) fn q_gemm(node: &mut Expanding<'_>) -> Result<(), Error> {
    let a = centred(node, 0, 2)?;
    let b = centred(node, 3, 5)?;
    let mut inputs = vec![a, b];
    if node.has(6) {
        let (dims, bias) = node.floats(6)?;
        inputs.push(node.keep_floats(dims, bias));
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let sum = node.node(node.with_attributes("Gemm", &["transA", "transB"], &inputs));
    let alpha = node.node.float("alpha", 1.0)?;
    let scales = if node.has(7) { rescaled(node, [1, 4, 7])? } else { products(node, 1, 4)? };
    let scales: Vec<f32> = scales.into_iter().map(|scale| scale * alpha).collect();
    let shape = if scales.len() == 1 { vec![] } else { vec![scales.len()] };
    if node.has(7) {
        return requantized(node, &sum, &shape, scales, 8);
    }
    let scales = node.keep_floats(&shape, scales);
    node.one("Mul", &[&sum, &scales]);
    node.end()
}

/// onnxruntime's product of a float and a matrix of integers.
pub(super) fn dynamic_quantize_mat_mul(node: &mut Expanding<'_>) -> Result<(), Error> {
    let a = node.input(0)?;
    let [y, scale, zero] = ["values", "scale", "zero"].map(|what| format!("{MADE}{what} of {a}"));
    let mut dynamic = node.node.made("DynamicQuantizeLinear", &[a], "");
    dynamic.outputs = vec![y.clone(), scale.clone(), zero.clone()];
    node.nodes_of(dynamic);
    let x = node.one("Sub", &[&y, &zero]);
    let b = centred(node, 1, 3)?;
    let product = node.one("MatMul", &[&x, &b]);
    let scaled = node.one("Mul", &[&product, &scale]);
    let (dims, scales) = node.floats(2)?;
    let scales = node.keep_floats(dims, scales);
    let mut sum = node.one("Mul", &[&scaled, &scales]);
    if node.has(4) {
        sum = node.one("Add", &[&sum, node.input(4)?]);
    }
    node.one("Identity", &[&sum]);
    node.end()
}

/// onnxruntime's product of integers that is scaled to floats.
pub(super) fn mat_mul_integer_to_float(node: &mut Expanding<'_>) -> Result<(), Error> {
    let a = centred(node, 0, 4)?;
    let b = centred(node, 1, 5)?;
    let mut sum = node.one("MatMul", &[&a, &b]);
    for index in [2, 3] {
        let scale = match node.operand(index)? {
            Operand::Constant(_) => {
                let (dims, scales) = node.floats(index)?;
                node.keep_floats(dims, scales)
            }
            _ => node.input(index)?.to_owned(),
        };
        sum = node.one("Mul", &[&sum, &scale]);
    }
    if node.has(6) {
        sum = node.one("Add", &[&sum, node.input(6)?]);
    }
    node.one("Identity", &[&sum]);
    node.end()
}

/// A function of two values that were quantised, and are again.
pub(super) fn q_linear_binary(node: &mut Expanding<'_>, op: &str) -> Result<(), Error> {
    let a = dequantized(node, [0, 1, 2])?;
    let b = dequantized(node, [3, 4, 5])?;
    let y = node.one(op, &[&a, &b]);
    quantized(node, &y, 6)
}

/// A function of one value that was quantised, and is again.
pub(super) fn q_linear_unary(node: &mut Expanding<'_>, op: &str) -> Result<(), Error> {
    if node.node.int("channels_last", 0)? != 0 {
        return Err(node.error("channels last are not supported"));
    }
    let x = dequantized(node, [0, 1, 2])?;
    let known =
        ["alpha", "auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"];
    let y = node.node(node.with_attributes(op, &known, &[&x]));
    quantized(node, &y, 3)
}

/// onnxruntime's QLinearConcat.
pub(super) fn q_linear_concat(node: &mut Expanding<'_>) -> Result<(), Error> {
    let mut parts = Vec::new();
    for first in (2..node.node.inputs.len()).step_by(3) {
        parts.push(dequantized(node, [first, first + 1, first + 2])?);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let y = node.node(node.with_attributes("Concat", &["axis"], &parts));
    quantized(node, &y, 0)
}

/// `(x - zero point) * scale` of the inputs with these indices.
fn dequantized(node: &mut Expanding<'_>, [x, scale, zero]: [usize; 3]) -> Result<String, Error> {
    let rank = node.sizes(x)?.len();
    let mut value = match node.operand(x)? {
        Operand::Constant(_) => {
            let (dims, values) = node.floats(x)?;
            node.keep_floats(dims, values)
        }
        _ => node.input(x)?.to_owned(),
    };
    if node.has(zero) {
        let zero = along(node, zero, rank)?;
        value = node.one("Sub", &[&value, &zero]);
    }
    let scale = along(node, scale, rank)?;
    Ok(node.one("Mul", &[&value, &scale]))
}

/// Ends with `y` quantised by the scale and the zero point of two inputs.
fn quantized(node: &mut Expanding<'_>, y: &str, scale: usize) -> Result<(), Error> {
    let limits = limits(node, scale + 1)?;
    let zero = along(node, scale + 1, 0)?;
    match node.floats(scale)?.1.as_slice() {
        &[scale] => rounded(node, y, scale, &zero, limits),
        other => return Err(node.error(format!("{} scales of the result", other.len()))),
    }
    node.end()
}

/// Ends with a sum of products that is scaled, and quantised with the zero point of an input.
fn requantized(
    node: &mut Expanding<'_>,
    sum: &str,
    shape: &[usize],
    scales: Vec<f32>,
    zero: usize,
) -> Result<(), Error> {
    let limits = limits(node, zero)?;
    let scales = node.keep_floats(shape, scales);
    let scaled = node.one("Mul", &[sum, &scales]);
    let zero = along(node, zero, 0)?;
    rounded(node, &scaled, 1.0, &zero, limits);
    node.end()
}

/// Appends the rounding of a value over a scale to integers within limits, after a zero point is
/// added.
fn rounded(node: &mut Expanding<'_>, x: &str, scale: f32, zero: &str, [low, high]: [f32; 2]) {
    let steps = node.node.made("RoundedSteps", &[x], "").with_float("scale", scale);
    let rounded = node.node(steps);
    let moved = node.one("Add", &[&rounded, zero]);
    let (low, high) = (node.scalar(low), node.scalar(high));
    node.one("Clip", &[&moved, &low, &high]);
}

/// An input less its zero point.
fn centred(node: &mut Expanding<'_>, x: usize, zero: usize) -> Result<String, Error> {
    let name = match node.operand(x)? {
        Operand::Constant(_) => {
            let (dims, values) = node.floats(x)?;
            node.keep_floats(dims, values)
        }
        _ => node.input(x)?.to_owned(),
    };
    if !node.has(zero) {
        return Ok(name);
    }
    let zero = match node.operand(zero)? {
        Operand::Constant(_) => {
            let (dims, values) = node.floats(zero)?;
            if values.iter().all(|&value| value == 0.0) {
                return Ok(name);
            }
            node.keep_floats(dims, values)
        }
        _ => node.input(zero)?.to_owned(),
    };
    Ok(node.one("Sub", &[&name, &zero]))
}

/// Weights of a convolution less their zero points, one for all or for each output channel.
fn centred_weights(node: &mut Expanding<'_>, w: usize, zero: usize) -> Result<String, Error> {
    let (dims, mut values) = node.floats(w)?;
    if node.has(zero) {
        let (_, zeros) = node.floats(zero)?;
        let outputs = dims.first().copied().unwrap_or(0);
        if zeros.is_empty() || zeros.len() != 1 && zeros.len() != outputs {
            return Err(node.error(format!("{} zero points for {outputs} outputs", zeros.len())));
        }
        let each = values.len() / outputs.max(1);
        for (index, value) in values.iter_mut().enumerate() {
            *value -= zeros[if zeros.len() == 1 { 0 } else { index / each }];
        }
    }
    Ok(node.keep_floats(dims, values))
}

/// The products of two scales, one of which may be one for each channel.
fn products(node: &Expanding<'_>, x: usize, w: usize) -> Result<Vec<f32>, Error> {
    let ((_, x), (_, w)) = (node.floats(x)?, node.floats(w)?);
    match (x.as_slice(), w.as_slice()) {
        (&[x], [_, ..]) => Ok(w.iter().map(|w| x * w).collect()),
        _ => Err(node.error(format!("{} and {} scales are not supported", x.len(), w.len()))),
    }
}

/// The scales from sums of products to what is quantised again.
fn rescaled(node: &Expanding<'_>, [x, w, y]: [usize; 3]) -> Result<Vec<f32>, Error> {
    let products = products(node, x, w)?;
    match node.floats(y)?.1.as_slice() {
        &[y] => Ok(products.into_iter().map(|product| product / y).collect()),
        other => Err(node.error(format!("{} scales of the result", other.len()))),
    }
}

/// A constant of one value, or one for each channel of a tensor of `rank` axes.
fn along(node: &mut Expanding<'_>, index: usize, rank: usize) -> Result<String, Error> {
    let (dims, values) = node.floats(index)?;
    match values.len() {
        1 => Ok(node.scalar(values[0])),
        count => {
            let axis = node.node.axis(node.node.int("axis", 1)?, rank)?;
            if dims.len() != 1 {
                return Err(node.error(format!("input {index} is of shape {dims:?}")));
            }
            let mut shape = vec![1; rank];
            shape[axis] = count;
            Ok(node.keep_floats(&shape, values))
        }
    }
}

/// The smallest and the largest value of the type of a zero point.
fn limits(node: &Expanding<'_>, zero: usize) -> Result<[f32; 2], Error> {
    let kind = match (node.has(zero), node.node.int("output_dtype", 0)?) {
        (false, 0) => Some(DataType::Uint8),
        (false, kind) => i32::try_from(kind).ok().and_then(|kind| DataType::try_from(kind).ok()),
        (true, _) => node.narrow(zero),
    };
    Ok(match kind {
        Some(DataType::Int8) => [i8::MIN.into(), i8::MAX.into()],
        Some(DataType::Uint8) => [u8::MIN.into(), u8::MAX.into()],
        Some(DataType::Int16) => [i16::MIN.into(), i16::MAX.into()],
        Some(DataType::Uint16) => [u16::MIN.into(), u16::MAX.into()],
        _ => return Err(node.error("a zero point that is no constant of 8 or 16 bits")),
    })
}

const CONV: [&str; 6] = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

/// ONNX's number for 32-bit integers.
const INT32: i64 = 6;
