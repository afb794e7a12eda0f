//! Value by value, with NumPy's broadcasting.

use std::borrow::Cow;

use super::cast::whole;
use super::folding::Folding;
use crate::error::Error;
use crate::onnx::constant::{Constant, Values};

/// ONNX Abs, Ceil, Cos, Exp, Floor, Log, Neg, Reciprocal, Relu, Round, Sigmoid, Sign, Sin, Sqrt and
/// Tanh, opsets 6 to 26. `None` for what is not defined on integers, or overflows.
pub(super) fn unary(
    folding: &Folding<'_>,
    floats: fn(f32) -> f32,
    integers: Option<fn(i64) -> Option<i64>>,
) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let source = folding.input(0)?;
    folding.count(&source.dims)?;
    let values = match (&source.values, integers) {
        (Values::F32(values), _) => Values::F32(values.iter().map(|&a| floats(a)).collect()),
        (Values::I64(values), Some(integers)) => {
            let checked = |&a: &i64| {
                integers(a)
                    .ok_or_else(|| folding.error(format!("its result for {a} exceeds 64 bits")))
            };
            Values::I64(values.iter().map(checked).collect::<Result<_, _>>()?)
        }
        (Values::I64(_), None) => {
            return Err(folding.error("input 0 holds integers, expected floats".into()));
        }
    };
    Ok(Constant { dims: source.dims.clone(), values })
}

pub(super) fn relu(a: f32) -> f32 {
    if a < 0.0 { 0.0 } else { a }
}

pub(super) fn sigmoid(a: f32) -> f32 {
    1.0 / (1.0 + (-a).exp())
}

/// Zero for zero, where `f32::signum` has one.
pub(super) fn sign(a: f32) -> f32 {
    if a == 0.0 { 0.0 } else { a.signum() }
}

/// NaN if either is.
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// NaN if either is.
pub(super) fn smaller(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// ONNX Add, Div, Mul and Sub, opsets 7 to 26. Division of integers truncates toward zero.
pub(super) fn binary(
    folding: &Folding<'_>,
    floats: fn(f32, f32) -> f32,
    integers: fn(i64, i64) -> Option<i64>,
) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    joined(folding, folding.input(0)?, folding.input(1)?, floats, integers)
}

/// ONNX Max, Min and Sum, opsets 8 to 26.
pub(super) fn variadic(
    folding: &Folding<'_>,
    floats: fn(f32, f32) -> f32,
    integers: fn(i64, i64) -> Option<i64>,
) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let mut result = Cow::Borrowed(folding.input(0)?);
    for index in 1..folding.inputs.len() {
        let next = joined(folding, &result, folding.input(index)?, floats, integers)?;
        folding.work(next.values.len())?;
        result = Cow::Owned(next);
    }
    folding.count(&result.dims)?;
    Ok(result.into_owned())
}

fn joined(
    folding: &Folding<'_>,
    left: &Constant,
    right: &Constant,
    floats: impl Fn(f32, f32) -> f32,
    integers: impl Fn(i64, i64) -> Option<i64>,
) -> Result<Constant, Error> {
    let (dims, left, right) = pair(folding, left, right)?;
    let values = match (&left.values, &right.values) {
        (Values::F32(left), Values::F32(right)) => {
            Values::F32(left.iter().zip(right).map(|(&a, &b)| floats(a, b)).collect())
        }
        (Values::I64(left), Values::I64(right)) => {
            let checked = |(&a, &b): (&i64, &i64)| {
                let undefined =
                    || folding.error(format!("its result for {a} and {b} is no 64-bit integer"));
                integers(a, b).ok_or_else(undefined)
            };
            Values::I64(left.iter().zip(right).map(checked).collect::<Result<_, _>>()?)
        }
        _ => return Err(mixed(folding)),
    };
    Ok(Constant { dims, values })
}

type Pair<'c> = (Vec<usize>, Cow<'c, Constant>, Cow<'c, Constant>);

fn pair<'c>(
    folding: &Folding<'_>,
    left: &'c Constant,
    right: &'c Constant,
) -> Result<Pair<'c>, Error> {
    let dims = folding.broadcast(&left.dims, &right.dims)?;
    folding.count(&dims)?;
    let (left, right) = (folding.expanded(left, &dims)?, folding.expanded(right, &dims)?);
    Ok((dims, left, right))
}

fn mixed(folding: &Folding<'_>) -> Error {
    folding.error("its inputs differ in type: floats and integers".into())
}

/// ONNX Mod, opsets 10 to 26: the sign of the divisor, or with `fmod` of the dividend.
pub(super) fn modulo(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["fmod"])?;
    let (left, right) = (folding.input(0)?, folding.input(1)?);
    if folding.node.int("fmod", 0)? != 0 {
        return joined(folding, left, right, |a, b| a % b, i64::checked_rem);
    }
    if left.floats().is_some() {
        return Err(folding.error("input 0 holds floats, expected integers or fmod 1".into()));
    }
    joined(
        folding,
        left,
        right,
        |_, _| f32::NAN,
        |a, b| {
            let remainder = a.checked_rem(b)?;
            Some(if remainder != 0 && (remainder < 0) != (b < 0) {
                remainder + b
            } else {
                remainder
            })
        },
    )
}

/// ONNX Pow, opsets 7 to 26: of the type of the base.
pub(super) fn pow(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let (base, exponent) = (folding.input(0)?, folding.input(1)?);
    folding.count(&exponent.dims)?;
    let values = match (&base.values, &exponent.values) {
        (Values::F32(_), Values::I64(exponents)) => {
            Values::F32(exponents.iter().map(|&exponent| exponent as f32).collect())
        }
        (Values::I64(_), Values::F32(exponents)) => {
            let integer = |&exponent: &f32| {
                let undefined = || folding.error(format!("an integer to the power of {exponent}"));
                whole(exponent.into()).filter(|_| exponent.fract() == 0.0).ok_or_else(undefined)
            };
            Values::I64(exponents.iter().map(integer).collect::<Result<_, _>>()?)
        }
        _ => return joined(folding, base, exponent, f32::powf, power),
    };
    let exponent = Constant { dims: exponent.dims.clone(), values };
    joined(folding, base, &exponent, f32::powf, power)
}

fn power(base: i64, exponent: i64) -> Option<i64> {
    match (base, exponent) {
        // Of these, any power is known.
        (0 | 1, 1..) => Some(base),
        _ => base.checked_pow(u32::try_from(exponent).ok()?),
    }
}

/// ONNX Equal, Greater, GreaterOrEqual, Less and LessOrEqual, opsets 7 to 26.
pub(super) fn compare(
    folding: &Folding<'_>,
    floats: fn(f32, f32) -> bool,
    integers: fn(i64, i64) -> bool,
) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let (dims, left, right) = pair(folding, folding.input(0)?, folding.input(1)?)?;
    let values = match (&left.values, &right.values) {
        (Values::F32(left), Values::F32(right)) => {
            left.iter().zip(right).map(|(&a, &b)| floats(a, b).into()).collect()
        }
        (Values::I64(left), Values::I64(right)) => {
            left.iter().zip(right).map(|(&a, &b)| integers(a, b).into()).collect()
        }
        _ => return Err(mixed(folding)),
    };
    Ok(Constant { dims, values: Values::I64(values) })
}

/// ONNX And, Or and Xor, opsets 7 to 26.
pub(super) fn logic(
    folding: &Folding<'_>,
    operation: fn(bool, bool) -> bool,
) -> Result<Constant, Error> {
    folding.integers(0)?;
    folding.integers(1)?;
    let integers = |a, b| Some(i64::from(operation(a != 0, b != 0)));
    folding.node.only(&[])?;
    joined(folding, folding.input(0)?, folding.input(1)?, |_, _| f32::NAN, integers)
}

/// ONNX Not, opsets 1 to 26.
pub(super) fn not(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.integers(0)?;
    unary(folding, |_| f32::NAN, Some(|a| Some(i64::from(a == 0))))
}

/// ONNX Where, opsets 9 to 26.
pub(super) fn choose(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let (condition, left, right) = (folding.input(0)?, folding.input(1)?, folding.input(2)?);
    folding.integers(0)?;
    let dims = folding.broadcast(&left.dims, &right.dims)?;
    let dims = folding.broadcast(&condition.dims, &dims)?;
    folding.count(&dims)?;
    let condition = folding.expanded(condition, &dims)?;
    let (left, right) = (folding.expanded(left, &dims)?, folding.expanded(right, &dims)?);
    let chosen = condition.integers().unwrap_or_default();
    let values = match (&left.values, &right.values) {
        (Values::F32(left), Values::F32(right)) => Values::F32(picked(chosen, left, right)),
        (Values::I64(left), Values::I64(right)) => Values::I64(picked(chosen, left, right)),
        _ => return Err(mixed(folding)),
    };
    Ok(Constant { dims, values })
}

fn picked<T: Copy>(chosen: &[i64], left: &[T], right: &[T]) -> Vec<T> {
    let both = left.iter().zip(right);
    chosen.iter().zip(both).map(|(&left, (&a, &b))| if left != 0 { a } else { b }).collect()
}

/// ONNX Clip, opsets 6 to 26.
pub(super) fn clip(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["max", "min"])?;
    let source = folding.input(0)?;
    folding.count(&source.dims)?;
    let mut result = Cow::Borrowed(source);
    let bound = |name, index, none| match folding.optional(index) {
        Some(bound) if bound.values.len() == 1 => Ok(Some(bound.clone())),
        Some(bound) => {
            let got = bound.values.len();
            Err(folding.error(format!("input {index} holds {got} values, expected one")))
        }
        None => {
            let value = folding.node.float(name, none)?;
            let values = Values::F32(vec![value]);
            Ok((value != none).then_some(Constant { dims: vec![], values }))
        }
    };
    if let Some(mut least) = bound("min", 1, f32::NEG_INFINITY)? {
        least.dims.clear();
        let larger = joined(folding, &result, &least, larger, |a, b| Some(a.max(b)))?;
        result = Cow::Owned(larger);
    }
    if let Some(mut most) = bound("max", 2, f32::INFINITY)? {
        most.dims.clear();
        let smaller = joined(folding, &result, &most, smaller, |a, b| Some(a.min(b)))?;
        result = Cow::Owned(smaller);
    }
    Ok(result.into_owned())
}
