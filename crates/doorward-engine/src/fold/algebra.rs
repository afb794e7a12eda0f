//! Products of matrices, and softmax, on constants: the position biases of Swin transformers.

use super::arithmetic;
use super::folding::{Folding, Indices, dot, repeating};
use crate::error::Error;
use crate::onnx::constant::{Constant, Values};

/// ONNX MatMul, opsets 9 to 26.
pub(super) fn mat_mul(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let (left, right) = (folding.input(0)?, folding.input(1)?);
    let (left_values, right_values) = (folding.floats(0)?, folding.floats(1)?);
    let refuse = || folding.error(format!("of shapes {:?} and {:?}", left.dims, right.dims));
    let (mut left_dims, mut right_dims) = (left.dims.clone(), right.dims.clone());
    let (row, column) = (left_dims.len() == 1, right_dims.len() == 1);
    if row {
        left_dims.insert(0, 1);
    }
    if column {
        right_dims.push(1);
    }
    let (&[ref left_outer @ .., rows, depth], &[ref right_outer @ .., other, columns]) =
        (left_dims.as_slice(), right_dims.as_slice())
    else {
        return Err(refuse());
    };
    if depth != other {
        return Err(refuse());
    }
    let outer = folding.broadcast(left_outer, right_outer)?;
    let mut dims = [outer.as_slice(), &[rows, columns]].concat();
    let count = folding.count(&dims)?;
    multiplications(folding, count, depth)?;
    let left_strides = matrices(left_outer, outer.len(), rows.wrapping_mul(depth));
    let right_strides = matrices(right_outer, outer.len(), depth.wrapping_mul(columns));
    let mut values = Vec::with_capacity(count);
    let mut indices = Indices::new(&outer);
    while values.len() < count {
        let left = &left_values[dot(&indices.index, &left_strides)..][..rows * depth];
        let right = &right_values[dot(&indices.index, &right_strides)..][..depth * columns];
        values.extend(product(left, right, [rows, depth, columns]));
        indices.advance();
    }
    if column {
        dims.pop();
    }
    if row {
        dims.remove(outer.len());
    }
    Ok(Constant { dims, values: Values::F32(values) })
}

fn matrices(outer: &[usize], rank: usize, size: usize) -> Vec<usize> {
    repeating(outer, rank).into_iter().map(|stride| stride.wrapping_mul(size)).collect()
}

/// Row-major matrices of `[rows, depth]` and `[depth, columns]`.
fn product(left: &[f32], right: &[f32], [rows, depth, columns]: [usize; 3]) -> Vec<f32> {
    let mut all = vec![0.0; rows * columns];
    if columns == 0 {
        return all;
    }
    for (row, out) in all.chunks_exact_mut(columns).enumerate() {
        for (i, &a) in left[row * depth..][..depth].iter().enumerate() {
            for (sum, b) in out.iter_mut().zip(&right[i * columns..][..columns]) {
                *sum += a * b;
            }
        }
    }
    all
}

/// Draws a product's inner loop from the budget, at the price of few values.
fn multiplications(folding: &Folding<'_>, count: usize, depth: usize) -> Result<(), Error> {
    folding.work(count.saturating_mul(depth) / PRODUCTS_PER_VALUE)
}

/// ONNX Gemm, opsets 7 to 26.
pub(super) fn gemm(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["alpha", "beta", "transA", "transB"])?;
    let (alpha, beta) = (folding.node.float("alpha", 1.0)?, folding.node.float("beta", 1.0)?);
    let (left, [rows, depth]) = matrix(folding, 0, folding.node.int("transA", 0)? != 0)?;
    let (right, [other, columns]) = matrix(folding, 1, folding.node.int("transB", 0)? != 0)?;
    if depth != other {
        return Err(folding.error(format!("of {rows}x{depth} and {other}x{columns} values")));
    }
    let dims = vec![rows, columns];
    let count = folding.count(&dims)?;
    multiplications(folding, count, depth)?;
    let mut values = product(&left, &right, [rows, depth, columns]);
    values.iter_mut().for_each(|value| *value *= alpha);
    if let Some(bias) = folding.optional(2) {
        folding.floats(2)?;
        if folding.broadcast(&bias.dims, &dims)? != dims {
            return Err(folding.error(format!("input 2 of shape {:?} for {dims:?}", bias.dims)));
        }
        let bias = folding.expanded(bias, &dims)?;
        let bias = bias.floats().unwrap_or_default();
        values.iter_mut().zip(bias).for_each(|(value, bias)| *value += beta * bias);
    }
    Ok(Constant { dims, values: Values::F32(values) })
}

/// An input of two axes, transposed or not.
fn matrix(
    folding: &Folding<'_>,
    index: usize,
    transposed: bool,
) -> Result<(Vec<f32>, [usize; 2]), Error> {
    let source = folding.input(index)?;
    let values = folding.floats(index)?;
    let &[rows, columns] = source.dims.as_slice() else {
        let got = &source.dims;
        return Err(folding.error(format!("input {index} has shape {got:?}, expected two axes")));
    };
    folding.work(values.len())?;
    if !transposed {
        return Ok((values.to_vec(), [rows, columns]));
    }
    let at = |i| values[i % rows * columns + i / rows];
    Ok(((0..values.len()).map(at).collect(), [columns, rows]))
}

/// ONNX Softmax, opsets 1 to 26, along the last axis.
///
/// Before opset 13 all axes from the given one on were joined: along the last one both are the
/// same.
pub(super) fn softmax(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axis"])?;
    let source = folding.input(0)?;
    let values = folding.floats(0)?;
    folding.count(&source.dims)?;
    let rank = source.dims.len();
    // The default was 1 and is -1.
    let default = if rank == 2 { -1 } else { i64::MIN };
    let axis = match folding.node.int("axis", default)? {
        i64::MIN => return Err(folding.error("its axis is absent".into())),
        axis => folding.axis(axis, rank)?,
    };
    if axis + 1 != rank {
        return Err(folding.error(format!("along axis {axis} of {rank}, expected the last one")));
    }
    let mut values = values.to_vec();
    for row in values.chunks_exact_mut(source.dims[axis].max(1)) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, arithmetic::larger);
        row.iter_mut().for_each(|value| *value = (*value - most).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|value| *value /= sum);
    }
    Ok(Constant { dims: source.dims.clone(), values: Values::F32(values) })
}

/// A multiplication costs less than a value that is stored.
const PRODUCTS_PER_VALUE: usize = 64;
