//! From ONNX nodes to operators: a registry by name, one function each.
//!
//! Every function names the attributes it reads; any other is refused. Shapes leave out the batch.

mod context;
mod linear;
mod pointwise;
mod pooling;
mod reduce;
mod shape;

use super::Error;
use super::binary::Arithmetic;
use super::reduce::Reduction;
use super::unary::Unary;

pub(crate) use context::{Context, Lowered, Operand};

type Lowering = fn(&Context<'_>) -> Result<Lowered, Error>;

/// Every supported operator, in alphabetical order.
pub(crate) const REGISTRY: &[(&str, Lowering)] = &[
    ("Abs", |context| pointwise::unary(context, [], |[]| Unary::Abs)),
    ("Add", |context| pointwise::arithmetic(context, Arithmetic::Add)),
    ("AveragePool", pooling::average_pool),
    ("BatchNormalization", pointwise::batch_normalization),
    ("Cast", shape::cast),
    ("Celu", |context| {
        pointwise::unary(context, [("alpha", 1.0)], |[alpha]| Unary::Celu { alpha })
    }),
    ("Clip", pointwise::clip),
    ("Concat", shape::concat),
    ("Constant", shape::constant),
    ("Conv", linear::conv),
    ("Div", |context| pointwise::arithmetic(context, Arithmetic::Div)),
    ("Dropout", shape::dropout),
    ("Elu", |context| pointwise::unary(context, [("alpha", 1.0)], |[alpha]| Unary::Elu { alpha })),
    ("Erf", |context| pointwise::unary(context, [], |[]| Unary::Erf)),
    ("Exp", |context| pointwise::unary(context, [], |[]| Unary::Exp)),
    ("Expand", shape::expand),
    ("Flatten", shape::flatten),
    ("Gather", shape::gather),
    ("Gelu", pointwise::gelu),
    ("Gemm", linear::gemm),
    ("GlobalAveragePool", pooling::global_average_pool),
    ("GlobalMaxPool", pooling::global_max_pool),
    ("GroupNormalization", reduce::group_normalization),
    ("HardSigmoid", |context| {
        pointwise::unary(context, [("alpha", 0.2), ("beta", 0.5)], |[alpha, beta]| {
            Unary::HardSigmoid { alpha, beta }
        })
    }),
    ("HardSwish", |context| pointwise::unary(context, [], |[]| Unary::HardSwish)),
    ("Identity", |context| shape::same(context, &[])),
    ("InstanceNormalization", reduce::instance_normalization),
    ("LayerNormalization", reduce::layer_normalization),
    ("LeakyRelu", |context| {
        pointwise::unary(context, [("alpha", 0.01)], |[slope]| Unary::LeakyRelu { slope })
    }),
    ("Log", |context| pointwise::unary(context, [], |[]| Unary::Log)),
    ("LogSoftmax", |context| reduce::softmax(context, true)),
    ("MatMul", linear::mat_mul),
    ("Max", |context| pointwise::arithmetic(context, Arithmetic::Max)),
    ("MaxPool", pooling::max_pool),
    ("Min", |context| pointwise::arithmetic(context, Arithmetic::Min)),
    ("Mish", |context| pointwise::unary(context, [], |[]| Unary::Mish)),
    ("Mul", |context| pointwise::arithmetic(context, Arithmetic::Mul)),
    ("Neg", |context| pointwise::unary(context, [], |[]| Unary::Neg)),
    ("PRelu", pointwise::p_relu),
    ("Pad", shape::pad),
    ("Pow", pointwise::pow),
    ("Reciprocal", |context| pointwise::unary(context, [], |[]| Unary::Reciprocal)),
    ("ReduceL1", |context| reduce::reduce(context, Reduction::L1)),
    ("ReduceL2", |context| reduce::reduce(context, Reduction::L2)),
    ("ReduceLogSumExp", |context| reduce::reduce(context, Reduction::LogSumExp)),
    ("ReduceMax", |context| reduce::reduce(context, Reduction::Max)),
    ("ReduceMean", |context| reduce::reduce(context, Reduction::Mean)),
    ("ReduceMin", |context| reduce::reduce(context, Reduction::Min)),
    ("ReduceSum", |context| reduce::reduce(context, Reduction::Sum)),
    ("ReduceSumSquare", |context| reduce::reduce(context, Reduction::SumSquare)),
    ("Relu", pointwise::relu),
    ("Reshape", shape::reshape),
    ("Selu", |context| {
        let attributes = [("alpha", 1.673_263_2), ("gamma", 1.050_701)];
        pointwise::unary(context, attributes, |[alpha, gamma]| Unary::Selu { alpha, gamma })
    }),
    ("Shape", shape::shape),
    ("Sigmoid", |context| pointwise::unary(context, [], |[]| Unary::Sigmoid)),
    ("Size", shape::size),
    ("Slice", shape::slice),
    ("Softmax", |context| reduce::softmax(context, false)),
    ("Softplus", |context| pointwise::unary(context, [], |[]| Unary::Softplus)),
    ("Softsign", |context| pointwise::unary(context, [], |[]| Unary::Softsign)),
    ("Split", shape::split),
    ("Sqrt", |context| pointwise::unary(context, [], |[]| Unary::Sqrt)),
    ("Squeeze", shape::squeeze),
    ("Sub", |context| pointwise::arithmetic(context, Arithmetic::Sub)),
    ("Sum", |context| pointwise::arithmetic(context, Arithmetic::Add)),
    ("Swish", |context| pointwise::unary(context, [], |[]| Unary::Silu)),
    ("Tanh", |context| pointwise::unary(context, [], |[]| Unary::Tanh)),
    ("ThresholdedRelu", |context| {
        pointwise::unary(context, [("alpha", 1.0)], |[alpha]| Unary::ThresholdedRelu { alpha })
    }),
    ("Transpose", shape::transpose),
    ("Unsqueeze", shape::unsqueeze),
];

/// Lowers one node.
pub(crate) fn lower(context: &Context<'_>) -> Result<Lowered, Error> {
    let node = context.node;
    match REGISTRY.binary_search_by_key(&node.op.as_str(), |(name, _)| name) {
        Ok(index) => (REGISTRY[index].1)(context),
        Err(_) => Err(Error::Operator { node: node.name.clone(), op: node.op.clone() }),
    }
}
