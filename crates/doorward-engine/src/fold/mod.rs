//! Nodes on constants alone, evaluated once while compiling.
//!
//! Exporters compute shapes, pads, masks and position biases with little graphs of their own.
//! Their operators are written out here: candle-onnx's evaluator has many of them too, but panics
//! on nodes that are not as it expects them, and a model file may be anything. So every function
//! checks what it is given, integers never wrap, and both the values that are computed and those
//! that are read to no other end are drawn from one budget.
//!
//! A program's operators are not asked instead: they know `f32` alone, a batch in front and, for
//! exponentials and sums, faster loops whose last bits differ. What is only lowered is evaluated by
//! its operator (`Compiler::computed`).

mod algebra;
mod arithmetic;
mod cast;
mod creation;
mod folding;
mod gather;
mod movement;
mod reduce;
#[cfg(test)]
mod tests;

use std::cell::Cell;

use crate::error::Error;
use crate::onnx::constant::Constant;
use crate::onnx::node::Node;
use Evaluation::{Many, One};
use folding::Folding;

/// True if `fold` may evaluate this operator.
pub(crate) fn folds(op: &str) -> bool {
    evaluation(op).is_some()
}

/// Names of the operators that may be evaluated, in alphabetical order.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(name, _)| *name)
}

/// The node's outputs for constant inputs, `None` where one is absent.
///
/// `budget` is how many values nodes may still compute: a small file can ask for large results.
/// What this node takes is subtracted, and a node that needs more is refused.
pub(crate) fn fold(
    node: &Node,
    inputs: &[Option<&Constant>],
    budget: &mut usize,
) -> Result<Vec<Constant>, Error> {
    let folding = Folding { node, inputs, outputs: node.outputs.len(), budget: Cell::new(*budget) };
    let folded = match evaluation(&node.op) {
        Some(One(evaluate)) => vec![evaluate(&folding)?],
        Some(Many(evaluate)) => evaluate(&folding)?,
        None => return Err(Error::Operator { node: node.name.clone(), op: node.op.clone() }),
    };
    // A Constant's values are the file's own.
    if node.op != "Constant" {
        folding.work(folded.iter().map(|constant| constant.values.len()).sum())?;
    }
    *budget = folding.budget.get();
    Ok(folded)
}

#[derive(Clone, Copy)]
enum Evaluation {
    /// Gives one output.
    One(fn(&Folding<'_>) -> Result<Constant, Error>),
    /// Gives any number of outputs.
    Many(fn(&Folding<'_>) -> Result<Vec<Constant>, Error>),
}

/// Operators by name, in alphabetical order. Identity and Dropout pass constants on without a copy:
/// see `lower`.
const REGISTRY: &[(&str, Evaluation)] = &[
    ("Abs", One(|node| arithmetic::unary(node, f32::abs, Some(i64::checked_abs)))),
    ("Add", One(|node| arithmetic::binary(node, |a, b| a + b, i64::checked_add))),
    ("And", One(|node| arithmetic::logic(node, |a, b| a & b))),
    ("Cast", One(cast::cast)),
    ("CastLike", One(cast::cast_like)),
    ("Ceil", One(|node| arithmetic::unary(node, f32::ceil, None))),
    ("Clip", One(arithmetic::clip)),
    ("Concat", One(movement::concat)),
    ("Constant", One(creation::constant)),
    ("ConstantOfShape", One(creation::constant_of_shape)),
    ("Cos", One(|node| arithmetic::unary(node, f32::cos, None))),
    ("CumSum", One(reduce::cum_sum)),
    ("DequantizeLinear", One(cast::dequantize_linear)),
    ("Div", One(|node| arithmetic::binary(node, |a, b| a / b, i64::checked_div))),
    ("Equal", One(|node| arithmetic::compare(node, |a, b| a == b, |a, b| a == b))),
    ("Exp", One(|node| arithmetic::unary(node, f32::exp, None))),
    ("Expand", One(movement::expand)),
    ("EyeLike", One(creation::eye_like)),
    ("Flatten", One(movement::flatten)),
    ("Floor", One(|node| arithmetic::unary(node, f32::floor, None))),
    ("Gather", One(gather::gather)),
    ("GatherElements", One(gather::gather_elements)),
    ("GatherND", One(gather::gather_nd)),
    ("Gemm", One(algebra::gemm)),
    ("Greater", One(|node| arithmetic::compare(node, |a, b| a > b, |a, b| a > b))),
    ("GreaterOrEqual", One(|node| arithmetic::compare(node, |a, b| a >= b, |a, b| a >= b))),
    ("Less", One(|node| arithmetic::compare(node, |a, b| a < b, |a, b| a < b))),
    ("LessOrEqual", One(|node| arithmetic::compare(node, |a, b| a <= b, |a, b| a <= b))),
    ("Log", One(|node| arithmetic::unary(node, f32::ln, None))),
    ("MatMul", One(algebra::mat_mul)),
    ("Max", One(|node| arithmetic::variadic(node, arithmetic::larger, |a, b| Some(a.max(b))))),
    ("Min", One(|node| arithmetic::variadic(node, arithmetic::smaller, |a, b| Some(a.min(b))))),
    ("Mod", One(arithmetic::modulo)),
    ("Mul", One(|node| arithmetic::binary(node, |a, b| a * b, i64::checked_mul))),
    ("Neg", One(|node| arithmetic::unary(node, |a| -a, Some(i64::checked_neg)))),
    ("NonZero", One(creation::non_zero)),
    ("Not", One(arithmetic::not)),
    ("OneHot", One(creation::one_hot)),
    ("Or", One(|node| arithmetic::logic(node, |a, b| a | b))),
    ("Pow", One(arithmetic::pow)),
    ("Range", One(creation::range)),
    ("Reciprocal", One(|node| arithmetic::unary(node, f32::recip, None))),
    ("ReduceMax", One(|node| reduce::reduce(node, reduce::Reduction::Max))),
    ("ReduceMean", One(|node| reduce::reduce(node, reduce::Reduction::Mean))),
    ("ReduceMin", One(|node| reduce::reduce(node, reduce::Reduction::Min))),
    ("ReduceProd", One(|node| reduce::reduce(node, reduce::Reduction::Prod))),
    ("ReduceSum", One(|node| reduce::reduce(node, reduce::Reduction::Sum))),
    ("Relu", One(|node| arithmetic::unary(node, arithmetic::relu, Some(|a| Some(a.max(0)))))),
    ("Reshape", One(movement::reshape)),
    ("Round", One(|node| arithmetic::unary(node, f32::round_ties_even, None))),
    ("ScatterND", One(gather::scatter_nd)),
    ("Shape", One(creation::shape)),
    ("Sigmoid", One(|node| arithmetic::unary(node, arithmetic::sigmoid, None))),
    ("Sign", One(|node| arithmetic::unary(node, arithmetic::sign, Some(|a| Some(a.signum()))))),
    ("Sin", One(|node| arithmetic::unary(node, f32::sin, None))),
    ("Size", One(creation::size)),
    ("Slice", One(movement::slice)),
    ("Softmax", One(algebra::softmax)),
    ("Split", Many(movement::split)),
    ("Sqrt", One(|node| arithmetic::unary(node, f32::sqrt, None))),
    ("Squeeze", One(movement::squeeze)),
    ("Sub", One(|node| arithmetic::binary(node, |a, b| a - b, i64::checked_sub))),
    ("Sum", One(|node| arithmetic::variadic(node, |a, b| a + b, i64::checked_add))),
    ("Tanh", One(|node| arithmetic::unary(node, f32::tanh, None))),
    ("Tile", One(movement::tile)),
    ("Transpose", One(movement::transpose)),
    ("Trilu", One(creation::trilu)),
    ("Unsqueeze", One(movement::unsqueeze)),
    ("Where", One(arithmetic::choose)),
    ("Xor", One(|node| arithmetic::logic(node, |a, b| a ^ b))),
];

fn evaluation(op: &str) -> Option<Evaluation> {
    let index = REGISTRY.binary_search_by_key(&op, |(name, _)| name).ok()?;
    Some(REGISTRY[index].1)
}
