//! Nodes that stand for several others, which are lowered in their place.

use super::context::MAX_PAD;
use super::expanding::{Expanding, Expansion, Known};
use super::quantized;
use crate::error::Error;
use crate::onnx::node::Node;

type Expand = fn(&mut Expanding<'_>) -> Result<(), Error>;

/// The operators that are always, or for constants, made of others, in alphabetical order.
const REGISTRY: &[(&str, Expand)] = &[
    ("And", |node| node.as_floats("Mul")),
    ("BatchNormalization", normalization_of_constants),
    ("ConvInteger", quantized::conv_integer),
    ("ConvTranspose", conv_transpose),
    ("DequantizeLinear", quantized::dequantize),
    ("GlobalLpPool", global_lp_pool),
    ("Less", |node| node.swapped("Greater")),
    ("LessOrEqual", |node| node.swapped("GreaterOrEqual")),
    ("LpNormalization", lp_normalization),
    ("MatMulInteger", quantized::mat_mul_integer),
    ("Mean", mean),
    ("MeanVarianceNormalization", mean_variance_normalization),
    ("Not", not),
    ("Or", |node| node.as_floats("Max")),
    ("QLinearConv", quantized::q_linear_conv),
    ("QLinearMatMul", quantized::q_linear_mat_mul),
    ("QuantizeLinear", quantized::quantize),
    ("Tile", tile),
    ("com.microsoft.BiasGelu", bias_gelu),
    ("com.microsoft.DequantizeLinear", quantized::dequantize),
    ("com.microsoft.DynamicQuantizeMatMul", quantized::dynamic_quantize_mat_mul),
    ("com.microsoft.FastGelu", fast_gelu),
    ("com.microsoft.FusedConv", fused_conv),
    ("com.microsoft.FusedGemm", fused_gemm),
    ("com.microsoft.Gelu", |node| node.renamed("Gelu", &[])),
    ("com.microsoft.MatMulIntegerToFloat", quantized::mat_mul_integer_to_float),
    ("com.microsoft.QGemm", quantized::q_gemm),
    ("com.microsoft.QLinearAdd", |node| quantized::q_linear_binary(node, "Add")),
    ("com.microsoft.QLinearAveragePool", |node| quantized::q_linear_unary(node, "AveragePool")),
    ("com.microsoft.QLinearConcat", quantized::q_linear_concat),
    ("com.microsoft.QLinearGlobalAveragePool", |node| {
        quantized::q_linear_unary(node, "GlobalAveragePool")
    }),
    ("com.microsoft.QLinearLeakyRelu", |node| quantized::q_linear_unary(node, "LeakyRelu")),
    ("com.microsoft.QLinearMul", |node| quantized::q_linear_binary(node, "Mul")),
    ("com.microsoft.QLinearSigmoid", |node| quantized::q_linear_unary(node, "Sigmoid")),
    ("com.microsoft.QuantizeLinear", quantized::quantize),
    ("com.microsoft.QuickGelu", quick_gelu),
];

/// Names of the operators that are made of others, in alphabetical order.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(name, _)| *name)
}

/// The nodes that stand for `node`; `None` where it is lowered, or evaluated, itself.
pub(crate) fn expand<'a>(node: &'a Node, known: &'a Known<'a>) -> Result<Option<Expansion>, Error> {
    let Ok(index) = REGISTRY.binary_search_by_key(&node.op.as_str(), |(name, _)| name) else {
        return Ok(None);
    };
    let mut expanding = Expanding::new(node, known);
    REGISTRY[index].1(&mut expanding)?;
    // One that is left as it is has made nothing.
    Ok(Some(expanding.finish()).filter(|made| !made.nodes.is_empty()))
}

/// ONNX Not: `1 - x` of ones and zeros.
fn not(node: &mut Expanding<'_>) -> Result<(), Error> {
    if node.is_constant(0)? {
        return Ok(());
    }
    let one = node.scalar(1.0);
    node.one("Sub", &[&one, node.input(0)?]);
    node.end()
}

/// ONNX Mean: a sum, divided by the number of its terms.
fn mean(node: &mut Expanding<'_>) -> Result<(), Error> {
    let terms: Vec<&str> = node.node.inputs.iter().map(String::as_str).collect();
    let sum = node.one("Sum", &terms);
    let count = node.scalar(terms.len() as f32);
    node.one("Div", &[&sum, &count]);
    node.end()
}

/// ONNX LpNormalization: by the norm along an axis; zeros stay.
fn lp_normalization(node: &mut Expanding<'_>) -> Result<(), Error> {
    let (x, axis) = (node.input(0)?, node.node.int("axis", -1)?);
    let norm = match node.node.int("p", 2)? {
        1 => "ReduceL1",
        2 => "ReduceL2",
        other => return Err(node.error(format!("attribute \"p\" is {other}, expected 1 or 2"))),
    };
    let axes = node.integers(&[axis]);
    let norm = node.one(norm, &[x, &axes]);
    let zero = node.scalar(0.0);
    let one_for_zero = node.one("Equal", &[&norm, &zero]);
    let norm = node.one("Add", &[&norm, &one_for_zero]);
    node.one("Div", &[x, &norm]);
    node.end()
}

/// ONNX GlobalLpPool: a norm over all positions.
fn global_lp_pool(node: &mut Expanding<'_>) -> Result<(), Error> {
    let x = node.input(0)?;
    let norm = match node.node.int("p", 2)? {
        1 => "ReduceL1",
        2 => "ReduceL2",
        other => return Err(node.error(format!("attribute \"p\" is {other}, expected 1 or 2"))),
    };
    let axes: Vec<i64> = (2..node.sizes(0)?.len() as i64).collect();
    let axes = node.integers(&axes);
    node.one(norm, &[x, &axes]);
    node.end()
}

/// ONNX MeanVarianceNormalization, without the batch among its axes.
fn mean_variance_normalization(node: &mut Expanding<'_>) -> Result<(), Error> {
    let x = node.input(0)?;
    let axes = node.node.ints("axes")?.unwrap_or(&[0, 2, 3]).to_vec();
    let axes = node.integers(&axes);
    let mean = node.one("ReduceMean", &[x, &axes]);
    let centred = node.one("Sub", &[x, &mean]);
    let square = node.one("Mul", &[&centred, &centred]);
    let variance = node.one("ReduceMean", &[&square, &axes]);
    let deviation = node.one("Sqrt", &[&variance]);
    let epsilon = node.scalar(1e-9);
    let deviation = node.one("Add", &[&deviation, &epsilon]);
    node.one("Div", &[&centred, &deviation]);
    node.end()
}

/// ONNX BatchNormalization of a constant: standardised weights, by their own statistics where it is
/// in training mode.
fn normalization_of_constants(node: &mut Expanding<'_>) -> Result<(), Error> {
    if !node.is_constant(0)? {
        return Ok(());
    }
    let (x, rank) = (node.input(0)?, node.constant(0)?.dims.len());
    let epsilon = node.node.float("epsilon", 1e-5)?;
    let along = |node: &mut Expanding<'_>, index: usize| -> Result<String, Error> {
        let (dims, values) = node.floats(index)?;
        let mut shape = vec![1; rank];
        if rank < 2 || dims.len() != 1 {
            return Err(node.error(format!("input {index} is of shape {dims:?}")));
        }
        shape[1] = values.len();
        Ok(node.keep_floats(&shape, values))
    };
    let (mean, variance) = match node.node.int("training_mode", 0)? {
        0 => (along(node, 3)?, along(node, 4)?),
        _ => {
            let axes: Vec<i64> = (0..rank as i64).filter(|&axis| axis != 1).collect();
            let axes = node.integers(&axes);
            let mean = node.one("ReduceMean", &[x, &axes]);
            let centred = node.one("Sub", &[x, &mean]);
            let square = node.one("Mul", &[&centred, &centred]);
            (mean, node.one("ReduceMean", &[&square, &axes]))
        }
    };
    let (scale, bias) = (along(node, 1)?, along(node, 2)?);
    let centred = node.one("Sub", &[x, &mean]);
    let epsilon = node.scalar(epsilon);
    let variance = node.one("Add", &[&variance, &epsilon]);
    let deviation = node.one("Sqrt", &[&variance]);
    let standard = node.one("Div", &[&centred, &deviation]);
    let scaled = node.one("Mul", &[&standard, &scale]);
    let whole = node.one("Add", &[&scaled, &bias]);
    node.one("Identity", &[&whole]);
    node.end()
}

/// ONNX Tile: copies beside each other, axis by axis.
fn tile(node: &mut Expanding<'_>) -> Result<(), Error> {
    if node.is_constant(0)? {
        return Ok(());
    }
    let mut x = node.input(0)?.to_owned();
    let repeats = node.constant(1)?.integers().unwrap_or_default();
    if repeats.len() != node.sizes(0)?.len()
        || repeats.iter().any(|repeats| !(1..=MAX_PAD).contains(repeats))
    {
        let reason = format!("repeats are {repeats:?}, expected 1 to {MAX_PAD} for each axis");
        return Err(node.error(reason));
    }
    for (axis, &repeats) in repeats.iter().enumerate().filter(|(_, repeats)| **repeats > 1) {
        let copies = vec![x.as_str(); repeats as usize];
        let joined = node.node.made("Concat", &copies, "").with_int("axis", axis as i64);
        x = node.node(joined);
    }
    node.one("Identity", &[&x]);
    node.end()
}

/// ONNX ConvTranspose as a convolution of the image with zeros between its pixels.
fn conv_transpose(node: &mut Expanding<'_>) -> Result<(), Error> {
    let (dims, weights) = node.floats(1)?;
    let &[channels, per_group, rows, columns] = dims else {
        return Err(node.error(format!("weights are of shape {dims:?}, expected four axes")));
    };
    let sizes = [node.size(0, 2)?, node.size(0, 3)?];
    if node.sizes(0)?.len() != 4 {
        return Err(node.error("expected [batch, C, H, W]"));
    }
    let pair = |name: &str, default: i64| -> Result<[i64; 2], Error> {
        match node.node.ints(name)? {
            None => Ok([default; 2]),
            Some(&[a, b]) if [a, b].iter().all(|value| (0..=MAX_PAD).contains(value)) => Ok([a, b]),
            Some(other) => Err(node.error(format!("attribute {name:?} is {other:?}"))),
        }
    };
    let (strides, dilations) = (pair("strides", 1)?, pair("dilations", 1)?);
    let extra = pair("output_padding", 0)?;
    let groups = node.node.int("group", 1)?;
    let groups = usize::try_from(groups).ok().filter(|&groups| groups > 0);
    let groups = groups.filter(|&groups| channels.is_multiple_of(groups));
    let Some(groups) = groups else {
        return Err(node.error(format!("{channels} channels in groups that do not divide them")));
    };
    if strides.contains(&0) || dilations.contains(&0) || [rows, columns].contains(&0) {
        return Err(node.error("strides, dilations or weights are empty"));
    }
    let kernel = [rows as i64, columns as i64];
    let mut pads = match node.node.ints("pads")? {
        None => [0; 4],
        Some(&[a, b, c, d]) if [a, b, c, d].iter().all(|value| (0..=MAX_PAD).contains(value)) => {
            [a, b, c, d]
        }
        Some(other) => return Err(node.error(format!("attribute \"pads\" is {other:?}"))),
    };
    let auto = node.node.text("auto_pad")?.unwrap_or("NOTSET");
    let wanted = match (node.node.ints("output_shape")?, auto) {
        (Some(&[.., height, width]), _) => Some([height, width]),
        (_, "SAME_UPPER" | "SAME_LOWER") => {
            Some([0, 1].map(|axis| (sizes[axis] as i64).saturating_mul(strides[axis])))
        }
        _ => None,
    };
    if let Some(wanted) = wanted {
        for axis in 0..2 {
            let full = (sizes[axis] as i64 - 1) * strides[axis]
                + extra[axis]
                + (kernel[axis] - 1) * dilations[axis]
                + 1;
            let total = full.saturating_sub(wanted[axis]).clamp(0, MAX_PAD);
            // The odd one is at the end for SAME_UPPER alone.
            let begin = if auto == "SAME_UPPER" { total / 2 } else { total - total / 2 };
            (pads[axis], pads[axis + 2]) = (begin, total - begin);
        }
    }
    // [channels, per_group, ...] as [groups * per_group, channels / groups, ...], turned over.
    let (in_group, plane) = (channels / groups, rows * columns);
    let mut turned = Vec::with_capacity(weights.len());
    for group in 0..groups {
        for output in 0..per_group {
            for input in 0..in_group {
                let at = ((group * in_group + input) * per_group + output) * plane;
                turned.extend(weights[at..at + plane].iter().rev());
            }
        }
    }
    let turned = node.keep_floats(&[groups * per_group, in_group, rows, columns], turned);
    // Zeros behind every pixel.
    let mut x = node.input(0)?.to_owned();
    for axis in 0..2 {
        if strides[axis] == 1 {
            continue;
        }
        let place = 3 + axis as i64;
        let axes = node.integers(&[place]);
        x = node.one("Unsqueeze", &[&x, &axes]);
        let zeros = node.integers(&[0, strides[axis] - 1]);
        x = node.one("Pad", &[&x, &zeros, "", &axes]);
        let mut shape: Vec<i64> = vec![0, 0, 0, 0];
        shape[2 + axis] = sizes[axis] as i64 * strides[axis];
        // The axis behind has moved by one.
        if axis == 0 {
            shape[3] = sizes[1] as i64;
        }
        let shape = node.integers(&shape);
        x = node.one("Reshape", &[&x, &shape]);
    }
    let reach = |axis: usize| (kernel[axis] - 1) * dilations[axis];
    let begin = [0, 1].map(|axis| reach(axis) - pads[axis]);
    let end = [0, 1].map(|axis| reach(axis) - pads[axis + 2] + extra[axis] - (strides[axis] - 1));
    let all = node.integers(&[begin[0], begin[1], end[0], end[1]]);
    let axes = node.integers(&[2, 3]);
    x = node.one("Pad", &[&x, &all, "", &axes]);
    let mut inputs = vec![x.as_str(), turned.as_str()];
    if node.has(2) {
        inputs.push(node.input(2)?);
    }
    let conv = node.node.made("Conv", &inputs, "");
    node.node(conv.with_ints("dilations", &dilations).with_int("group", groups as i64));
    node.end()
}

/// onnxruntime's convolution with an activation, and with a sum before that.
fn fused_conv(node: &mut Expanding<'_>) -> Result<(), Error> {
    let count = node.node.inputs.len().min(3);
    let inputs: Vec<&str> = node.node.inputs[..count].iter().map(String::as_str).collect();
    let known = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
    let mut x = node.node(node.with_attributes("Conv", &known, &inputs));
    if node.has(3) {
        x = node.one("Add", &[&x, node.input(3)?]);
    }
    activated(node, &x)
}

/// onnxruntime's fully connected layer with an activation.
fn fused_gemm(node: &mut Expanding<'_>) -> Result<(), Error> {
    let inputs: Vec<&str> = node.node.inputs.iter().map(String::as_str).collect();
    let known = ["alpha", "beta", "transA", "transB"];
    let x = node.node(node.with_attributes("Gemm", &known, &inputs));
    activated(node, &x)
}

fn activated(node: &mut Expanding<'_>, x: &str) -> Result<(), Error> {
    let parameters = node.node.floats("activation_params")?.unwrap_or_default();
    let activation = node.node.text("activation")?.unwrap_or_default();
    match (activation, parameters) {
        ("", _) => node.one("Identity", &[x]),
        ("HardSwish" | "Relu" | "Sigmoid" | "Tanh", _) => node.one(activation, &[x]),
        ("Clip", &[low, high]) => {
            let (low, high) = (node.scalar(low), node.scalar(high));
            node.one("Clip", &[x, &low, &high])
        }
        ("LeakyRelu", &[alpha]) => {
            node.node(node.node.made("LeakyRelu", &[x], "").with_float("alpha", alpha))
        }
        ("HardSigmoid", &[alpha, beta]) => {
            let made = node.node.made("HardSigmoid", &[x], "");
            node.node(made.with_float("alpha", alpha).with_float("beta", beta))
        }
        (other, _) => {
            let reason = format!("activation {other:?} with {parameters:?} is not supported");
            return Err(node.error(reason));
        }
    };
    node.end()
}

fn bias_gelu(node: &mut Expanding<'_>) -> Result<(), Error> {
    let sum = node.one("Add", &[node.input(0)?, node.input(1)?]);
    node.one("Gelu", &[&sum]);
    node.end()
}

fn fast_gelu(node: &mut Expanding<'_>) -> Result<(), Error> {
    let mut x = node.input(0)?.to_owned();
    if node.has(1) {
        x = node.one("Add", &[&x, node.input(1)?]);
    }
    node.node(node.node.made("Gelu", &[&x], "").with_text("approximate", "tanh"));
    node.end()
}

fn quick_gelu(node: &mut Expanding<'_>) -> Result<(), Error> {
    let x = node.input(0)?;
    let alpha = node.scalar(node.node.float("alpha", 1.702)?);
    let scaled = node.one("Mul", &[x, &alpha]);
    let gate = node.one("Sigmoid", &[&scaled]);
    node.one("Mul", &[x, &gate]);
    node.end()
}

#[cfg(test)]
mod tests {
    use super::REGISTRY;

    #[test]
    fn the_registry_is_sorted_by_name() {
        assert!(REGISTRY.is_sorted_by_key(|(name, _)| name));
    }
}
