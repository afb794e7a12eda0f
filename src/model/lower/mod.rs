//! From ONNX nodes to operators: a registry by name, one function each.
//!
//! Every function names the attributes it reads; any other is refused. Shapes leave out the batch.

mod context;
mod linear;
mod pointwise;
mod pooling;
mod shape;

use super::Error;
use super::pointwise::{Arithmetic, Unary};

pub(crate) use context::{Context, Lowered, Operand};

type Lowering = fn(&Context<'_>) -> Result<Lowered, Error>;

/// Every supported operator, in alphabetical order.
pub(crate) const REGISTRY: &[(&str, Lowering)] = &[
    ("Add", |context| pointwise::arithmetic(context, Arithmetic::Add)),
    ("AveragePool", pooling::average_pool),
    ("BatchNormalization", pointwise::batch_normalization),
    ("Clip", pointwise::clip),
    ("Concat", shape::concat),
    ("Constant", shape::constant),
    ("Conv", linear::conv),
    ("Div", |context| pointwise::arithmetic(context, Arithmetic::Div)),
    ("Dropout", shape::dropout),
    ("Flatten", shape::flatten),
    ("Gemm", linear::gemm),
    ("GlobalAveragePool", pooling::global_average_pool),
    ("GlobalMaxPool", pooling::global_max_pool),
    ("Identity", |context| shape::same(context, &[])),
    ("LeakyRelu", pointwise::leaky_relu),
    ("LogSoftmax", |context| pointwise::softmax(context, true)),
    ("MatMul", linear::mat_mul),
    ("MaxPool", pooling::max_pool),
    ("Mul", |context| pointwise::arithmetic(context, Arithmetic::Mul)),
    ("Pad", shape::pad),
    ("ReduceMean", pooling::reduce_mean),
    ("Relu", pointwise::relu),
    ("Reshape", shape::reshape),
    ("Sigmoid", |context| pointwise::unary(context, Unary::Sigmoid)),
    ("Softmax", |context| pointwise::softmax(context, false)),
    ("Sub", |context| pointwise::arithmetic(context, Arithmetic::Sub)),
    ("Tanh", |context| pointwise::unary(context, Unary::Tanh)),
];

/// Lowers one node.
pub(crate) fn lower(context: &Context<'_>) -> Result<Lowered, Error> {
    let node = context.node;
    match REGISTRY.binary_search_by_key(&node.op.as_str(), |(name, _)| name) {
        Ok(index) => (REGISTRY[index].1)(context),
        Err(_) => Err(Error::Operator { node: node.name.clone(), op: node.op.clone() }),
    }
}
