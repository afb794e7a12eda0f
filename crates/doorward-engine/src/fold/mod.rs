//! Nodes on constants alone, evaluated once while compiling.
//!
//! Exporters compute shapes, pads, masks and position biases with little graphs of their own.
//! Their operators are written out here: candle-onnx's evaluator has many of them too, but panics
//! on nodes that are not as it expects them, and a model file may be anything. So every function
//! checks what it is given, integers never wrap, and both the values that are computed and those
//! that are read to no other end are drawn from one budget.

mod algebra;
mod arithmetic;
mod cast;
mod creation;
mod gather;
mod movement;
mod reduce;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cell::Cell;

use super::Error;
use super::graph::{Constant, Node, Values};
use super::layout::broadcast;
use super::wire::MAX_RANK;
use Evaluation::{Many, One};

/// Whether `fold` may evaluate this operator.
pub(crate) fn folds(op: &str) -> bool {
    evaluation(op).is_some()
}

/// What may be evaluated, in alphabetical order.
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

/// In alphabetical order. Identity and Dropout pass constants on without a copy: see `lower`.
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

/// What an evaluation sees.
struct Folding<'a> {
    node: &'a Node,
    inputs: &'a [Option<&'a Constant>],
    /// How many the node has.
    outputs: usize,
    budget: Cell<usize>,
}

// === impl Folding ===

impl<'a> Folding<'a> {
    fn optional(&self, index: usize) -> Option<&'a Constant> {
        self.inputs.get(index).copied().flatten()
    }

    fn input(&self, index: usize) -> Result<&'a Constant, Error> {
        self.optional(index).ok_or_else(|| self.error(format!("input {index} is absent")))
    }

    fn floats(&self, index: usize) -> Result<&'a [f32], Error> {
        let integers = || self.error(format!("input {index} holds integers, expected floats"));
        self.input(index)?.floats().ok_or_else(integers)
    }

    fn integers(&self, index: usize) -> Result<&'a [i64], Error> {
        let floats = || self.error(format!("input {index} holds floats, expected integers"));
        self.input(index)?.integers().ok_or_else(floats)
    }

    /// One value for each of some axes, which opsets have moved from an attribute to an input.
    fn per_axis(&self, name: &str, index: usize) -> Result<Option<&'a [i64]>, Error> {
        let values = match (self.node.ints(name)?, self.optional(index)) {
            (Some(values), _) => values,
            (None, Some(_)) => self.integers(index)?,
            (None, None) => return Ok(None),
        };
        match values.len() {
            0..=MAX_RANK => Ok(Some(values)),
            more => Err(self.error(format!("{name} has {more} values, expected up to {MAX_RANK}"))),
        }
    }

    fn required(&self, name: &str, index: usize) -> Result<&'a [i64], Error> {
        let absent = || self.error(format!("{name} is absent"));
        self.per_axis(name, index)?.ok_or_else(absent)
    }

    /// The only value of an input.
    fn scalar(&self, index: usize) -> Result<i64, Error> {
        match self.integers(index)? {
            &[value] => Ok(value),
            values => {
                let got = values.len();
                Err(self.error(format!("input {index} holds {got} values, expected one")))
            }
        }
    }

    fn axis(&self, axis: i64, rank: usize) -> Result<usize, Error> {
        self.node.axis(axis, rank)
    }

    /// Dimensions as the file writes them.
    fn dims(&self, wanted: &[i64]) -> Result<Vec<usize>, Error> {
        let negative = |_| self.error(format!("shape {wanted:?} has a negative dimension"));
        wanted.iter().map(|&dim| usize::try_from(dim).map_err(negative)).collect()
    }

    /// Number of values of a result.
    fn count(&self, dims: &[usize]) -> Result<usize, Error> {
        if dims.len() > MAX_RANK {
            let rank = dims.len();
            return Err(self.error(format!("its result has {rank} axes, expected {MAX_RANK}")));
        }
        dims.iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .filter(|&count| count <= self.budget.get())
            .ok_or_else(|| self.error(format!("its result of shape {dims:?} has too many values")))
    }

    /// Takes from the budget, which is for results and what else grows with neither the file nor them.
    fn work(&self, values: usize) -> Result<(), Error> {
        let Some(left) = self.budget.get().checked_sub(values) else {
            return Err(self.error(format!("it computes on too many values, {values}")));
        };
        self.budget.set(left);
        Ok(())
    }

    /// A result whose value at an index is `source`'s at the flat position `at(index)`.
    fn moved(
        &self,
        source: &Constant,
        dims: Vec<usize>,
        at: impl Fn(&[usize]) -> usize,
    ) -> Result<Constant, Error> {
        let count = self.count(&dims)?;
        let values = match &source.values {
            Values::F32(values) => Values::F32(at_each(values, &dims, count, at)),
            Values::I64(values) => Values::I64(at_each(values, &dims, count, at)),
        };
        Ok(Constant { dims, values })
    }

    /// The same values in another shape.
    fn shaped(&self, source: &Constant, dims: Vec<usize>) -> Result<Constant, Error> {
        let count = self.count(&dims)?;
        if count != source.values.len() {
            let got = source.values.len();
            return Err(self.error(format!("{got} values do not fill a shape of {dims:?}")));
        }
        Ok(Constant { dims, values: source.values.clone() })
    }

    /// The shape to which two others broadcast, as NumPy does it.
    fn broadcast(&self, left: &[usize], right: &[usize]) -> Result<Vec<usize>, Error> {
        broadcast(left, right)
            .ok_or_else(|| self.error(format!("{left:?} and {right:?} do not broadcast")))
    }

    /// `source` repeated to fill a shape that it broadcasts to.
    fn expanded<'c>(
        &self,
        source: &'c Constant,
        dims: &[usize],
    ) -> Result<Cow<'c, Constant>, Error> {
        if source.dims == dims {
            return Ok(Cow::Borrowed(source));
        }
        let strides = repeating(&source.dims, dims.len());
        self.moved(source, dims.to_vec(), |index| dot(index, &strides)).map(Cow::Owned)
    }

    fn error(&self, reason: String) -> Error {
        self.node.error(reason)
    }
}

/// Counts through the indices of a shape, row by row.
struct Indices<'a> {
    dims: &'a [usize],
    index: Vec<usize>,
}

// === impl Indices ===

impl<'a> Indices<'a> {
    fn new(dims: &'a [usize]) -> Self {
        Self { dims, index: vec![0; dims.len()] }
    }

    /// From the last index back to the first.
    fn advance(&mut self) {
        for (index, &dim) in self.index.iter_mut().zip(self.dims).rev() {
            *index += 1;
            if *index < dim {
                break;
            }
            *index = 0;
        }
    }
}

fn at_each<T: Copy>(
    values: &[T],
    dims: &[usize],
    count: usize,
    at: impl Fn(&[usize]) -> usize,
) -> Vec<T> {
    let mut indices = Indices::new(dims);
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(values[at(&indices.index)]);
        indices.advance();
    }
    all
}

/// Of a row-major layout. Wraps where another dimension is zero: nothing is read there.
fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis].wrapping_mul(dims[axis]);
    }
    strides
}

/// Strides of a shape that is broadcast to `rank` axes: zero along the ones that repeat.
fn repeating(dims: &[usize], rank: usize) -> Vec<usize> {
    let own = strides(dims);
    let own = dims.iter().zip(own).map(|(&dim, stride)| if dim == 1 { 0 } else { stride });
    let mut all = vec![0; rank - dims.len()];
    all.extend(own);
    all
}

fn dot(index: &[usize], strides: &[usize]) -> usize {
    index.iter().zip(strides).map(|(index, stride)| index * stride).sum()
}
