//! The operators that are lowered, by name.

use super::context::{Context, Lowered};
use super::{einsum, linear, pointwise, pooling, reduce, resize, select, shape};
use crate::error::Error;
use crate::operators::binary::Arithmetic;
use crate::operators::reduce::Reduction;
use crate::operators::unary::Unary;

/// An operator that is supported.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// First operator set whose definition is followed; the last is that of the graph.
    pub(crate) since: i64,
    /// Attributes that are read.
    pub(crate) attributes: &'static [&'static str],
    /// Cases that the definition allows and this refuses, in words.
    pub(crate) refused: &'static str,
    pub(crate) lower: fn(&Context<'_>) -> Result<Lowered, Error>,
}

const fn entry(
    name: &'static str,
    since: i64,
    attributes: &'static [&'static str],
    refused: &'static str,
    lower: fn(&Context<'_>) -> Result<Lowered, Error>,
) -> Entry {
    Entry { name, since, attributes, refused, lower }
}

/// The operators that are supported, in alphabetical order.
pub(crate) const REGISTRY: &[Entry] = &[
    entry("Abs", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Abs)),
    entry("Add", 9, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::Add)
    }),
    entry(
        "AveragePool",
        9,
        &[
            "auto_pad",
            "ceil_mode",
            "count_include_pad",
            "dilations",
            "kernel_shape",
            "pads",
            "strides",
        ],
        "more than two dimensions",
        pooling::average_pool,
    ),
    entry(
        "BatchNormalization",
        9,
        &["epsilon", "momentum", "spatial", "training_mode"],
        "training; statistics that are no constants",
        pointwise::batch_normalization,
    ),
    entry(
        "Cast",
        9,
        &["saturate", "to"],
        "of an activation to other than a float type",
        shape::cast,
    ),
    entry("Ceil", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Ceil)),
    entry("Celu", 12, &["alpha"], "", |context| {
        pointwise::unary(context, [("alpha", 1.0)], |[alpha]| Unary::Celu { alpha })
    }),
    entry("Clip", 9, &["max", "min"], "bounds that are no constants", pointwise::clip),
    entry("Concat", 9, &["axis"], "an axis that the batch is part of", shape::concat),
    entry(
        "Conv",
        9,
        &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"],
        "more than two dimensions; weights that are no constants",
        linear::conv,
    ),
    entry("DepthToSpace", 9, &["blocksize", "mode"], "", |context| shape::blocks(context, false)),
    entry("Div", 9, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::Div)
    }),
    entry("Dropout", 9, &["ratio", "seed"], "training", shape::dropout),
    entry("DynamicQuantizeLinear", 11, &[], "a range over more than a row", pointwise::dynamic),
    entry(
        "Einsum",
        12,
        &["equation"],
        "other than two operands; ellipses, repeated letters, a summed batch",
        einsum::einsum,
    ),
    entry("Elu", 9, &["alpha"], "", |context| {
        pointwise::unary(context, [("alpha", 1.0)], |[alpha]| Unary::Elu { alpha })
    }),
    entry("Equal", 9, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::Equal)
    }),
    entry("Erf", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Erf)),
    entry("Exp", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Exp)),
    entry("Expand", 9, &[], "an axis that the batch is part of to another size", select::expand),
    entry("Flatten", 9, &["axis"], "", shape::flatten),
    entry("Floor", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Floor)),
    entry(
        "Gather",
        9,
        &["axis"],
        "indices that are no constants; an axis that the batch is part of",
        select::gather,
    ),
    entry("Gelu", 20, &["approximate"], "", pointwise::gelu),
    entry(
        "Gemm",
        9,
        &["alpha", "beta", "transA", "transB"],
        "transA; a second or third operand that is no constant",
        linear::gemm,
    ),
    entry("GlobalAveragePool", 9, &[], "", pooling::global_average_pool),
    entry("GlobalMaxPool", 9, &[], "more than two dimensions", pooling::global_max_pool),
    entry("Greater", 9, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::Greater)
    }),
    entry("GreaterOrEqual", 12, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::GreaterOrEqual)
    }),
    entry(
        "GroupNormalization",
        18,
        &["epsilon", "num_groups", "stash_type"],
        "scales and biases that are no constants",
        reduce::group_normalization,
    ),
    entry("HardSigmoid", 9, &["alpha", "beta"], "", |context| {
        pointwise::unary(context, [("alpha", 0.2), ("beta", 0.5)], |[alpha, beta]| {
            Unary::HardSigmoid { alpha, beta }
        })
    }),
    entry("HardSwish", 14, &[], "", |context| pointwise::unary(context, [], |[]| Unary::HardSwish)),
    entry("Identity", 9, &[], "", |_| Ok(Lowered::Same)),
    entry(
        "InstanceNormalization",
        9,
        &["epsilon"],
        "scales and biases that are no constants",
        reduce::instance_normalization,
    ),
    entry("LRN", 9, &["alpha", "beta", "bias", "size"], "", reduce::local_response),
    entry(
        "LayerNormalization",
        17,
        &["axis", "epsilon", "stash_type"],
        "scales and biases that are no constants; the second and third output",
        reduce::layer_normalization,
    ),
    entry("LeakyRelu", 9, &["alpha"], "", |context| {
        pointwise::unary(context, [("alpha", 0.01)], |[slope]| Unary::LeakyRelu { slope })
    }),
    entry("Log", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Log)),
    entry("LogSoftmax", 9, &["axis"], "an axis that the batch is part of", |context| {
        reduce::softmax(context, true)
    }),
    entry("MatMul", 9, &[], "vectors; the batch among the last two axes", linear::mat_mul),
    entry("Max", 9, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::Max)
    }),
    entry(
        "MaxPool",
        9,
        &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"],
        "more than two dimensions; the second output",
        pooling::max_pool,
    ),
    entry("Min", 9, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::Min)
    }),
    entry("Mish", 18, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Mish)),
    entry("Mul", 9, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::Mul)
    }),
    entry("Neg", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Neg)),
    entry("PRelu", 9, &[], "slopes that are no constants", pointwise::p_relu),
    entry(
        "Pad",
        9,
        &["mode", "pads", "value"],
        "pads that are no constants; an axis that the batch is part of",
        select::pad,
    ),
    entry("Pow", 9, &[], "a constant that varies over the batch", pointwise::pow),
    entry("Reciprocal", 9, &[], "", |context| {
        pointwise::unary(context, [], |[]| Unary::Reciprocal)
    }),
    entry(
        "ReduceL1",
        9,
        &["axes", "keepdims", "noop_with_empty_axes"],
        "an axis that the batch is part of",
        |context| reduce::reduce(context, Reduction::L1),
    ),
    entry(
        "ReduceL2",
        9,
        &["axes", "keepdims", "noop_with_empty_axes"],
        "an axis that the batch is part of",
        |context| reduce::reduce(context, Reduction::L2),
    ),
    entry(
        "ReduceLogSumExp",
        9,
        &["axes", "keepdims", "noop_with_empty_axes"],
        "an axis that the batch is part of",
        |context| reduce::reduce(context, Reduction::LogSumExp),
    ),
    entry(
        "ReduceMax",
        9,
        &["axes", "keepdims", "noop_with_empty_axes"],
        "an axis that the batch is part of",
        |context| reduce::reduce(context, Reduction::Max),
    ),
    entry(
        "ReduceMean",
        9,
        &["axes", "keepdims", "noop_with_empty_axes"],
        "an axis that the batch is part of",
        |context| reduce::reduce(context, Reduction::Mean),
    ),
    entry(
        "ReduceMin",
        9,
        &["axes", "keepdims", "noop_with_empty_axes"],
        "an axis that the batch is part of",
        |context| reduce::reduce(context, Reduction::Min),
    ),
    entry(
        "ReduceSum",
        9,
        &["axes", "keepdims", "noop_with_empty_axes"],
        "an axis that the batch is part of",
        |context| reduce::reduce(context, Reduction::Sum),
    ),
    entry(
        "ReduceSumSquare",
        9,
        &["axes", "keepdims", "noop_with_empty_axes"],
        "an axis that the batch is part of",
        |context| reduce::reduce(context, Reduction::SumSquare),
    ),
    entry("Relu", 9, &[], "", pointwise::relu),
    entry(
        "Reshape",
        9,
        &["allowzero"],
        "a shape that is no constant; one that cuts through the batch",
        shape::reshape,
    ),
    entry(
        "Resize",
        10,
        &[
            "antialias",
            "axes",
            "coordinate_transformation_mode",
            "cubic_coeff_a",
            "exclude_outside",
            "extrapolation_value",
            "keep_aspect_ratio_policy",
            "mode",
            "nearest_mode",
        ],
        "antialias; tf_crop_and_resize; aspect ratio policies; an axis that the batch is part of",
        resize::resize,
    ),
    entry("Round", 11, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Round)),
    entry(
        "RoundedSteps",
        9,
        &["scale"],
        "as a node of its own: stands for the rounding of QuantizeLinear",
        |context| {
            pointwise::unary(context, [("scale", 1.0)], |[scale]| Unary::RoundedSteps { scale })
        },
    ),
    entry("Selu", 9, &["alpha", "gamma"], "", |context| {
        let attributes = [("alpha", 1.673_263_2), ("gamma", 1.050_701)];
        pointwise::unary(context, attributes, |[alpha, gamma]| Unary::Selu { alpha, gamma })
    }),
    entry("Shape", 9, &["end", "start"], "", shape::shape),
    entry("Sigmoid", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Sigmoid)),
    entry("Sign", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Sign)),
    entry("Size", 9, &[], "", shape::size),
    entry(
        "Slice",
        9,
        &["axes", "ends", "starts"],
        "bounds that are no constants; an axis that the batch is part of",
        select::slice,
    ),
    entry("Softmax", 9, &["axis"], "an axis that the batch is part of", |context| {
        reduce::softmax(context, false)
    }),
    entry("Softplus", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Softplus)),
    entry("Softsign", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Softsign)),
    entry("SpaceToDepth", 9, &["blocksize"], "", |context| shape::blocks(context, true)),
    entry(
        "Split",
        9,
        &["axis", "num_outputs", "split"],
        "an axis that the batch is part of",
        select::split,
    ),
    entry("Sqrt", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Sqrt)),
    entry("Squeeze", 9, &["axes"], "an axis that the batch is part of", shape::squeeze),
    entry("Sub", 9, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::Sub)
    }),
    entry("Sum", 9, &[], "a constant that varies over the batch", |context| {
        pointwise::arithmetic(context, Arithmetic::Add)
    }),
    entry("Swish", 9, &["alpha"], "", pointwise::swish),
    entry("Tanh", 9, &[], "", |context| pointwise::unary(context, [], |[]| Unary::Tanh)),
    entry("ThresholdedRelu", 10, &["alpha"], "", |context| {
        pointwise::unary(context, [("alpha", 1.0)], |[alpha]| Unary::ThresholdedRelu { alpha })
    }),
    entry("Transpose", 9, &["perm"], "", shape::transpose),
    entry("Unsqueeze", 9, &["axes"], "", shape::unsqueeze),
    entry("Upsample", 9, &["mode", "scales"], "scales that are no constants", resize::resize),
    entry("Where", 9, &[], "a constant that varies over the batch", pointwise::choose),
];

#[cfg(test)]
mod tests {
    use super::REGISTRY;

    #[test]
    fn the_registry_is_sorted_by_name() {
        assert!(REGISTRY.windows(2).all(|pair| pair[0].name < pair[1].name));
    }
}
