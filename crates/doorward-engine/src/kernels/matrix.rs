//! Products of rows with a packed constant matrix.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::activation::Activation;
use crate::kernels::registers::{beside_eight, fit, rows};

/// A constant matrix, packed for products with few or many rows.
#[derive(Debug)]
pub(crate) struct Matrix {
    rows: usize,
    columns: usize,
    /// `[block of columns][row][column]`.
    packed: Vec<f32>,
}

// === impl Matrix ===

impl Matrix {
    /// `value(row, column)`.
    pub(crate) fn new(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        let mut packed = vec![0.0; columns.div_ceil(BLOCK) * rows * BLOCK];
        for (block, packed) in packed.chunks_exact_mut((rows * BLOCK).max(1)).enumerate() {
            for (row, packed) in packed.chunks_exact_mut(BLOCK).enumerate() {
                let columns = block * BLOCK..columns.min((block + 1) * BLOCK);
                for (packed, column) in packed.iter_mut().zip(columns) {
                    *packed = value(row, column);
                }
            }
        }
        Self { rows, columns, packed }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// `[row][column]` of every `BLOCK` columns, the last filled up with zeros.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &[f32]> {
        self.packed.chunks_exact((self.rows * BLOCK).max(1))
    }

    /// `out = activation(x M + bias)` for any number of rows `x`.
    pub(crate) fn apply(
        &self,
        x: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
        out: &mut [f32],
    ) {
        SCRATCH.with_borrow_mut(|turned| {
            Arch::new().dispatch(Apply { matrix: self, x, bias, activation, out, turned });
        });
    }
}

struct Apply<'a> {
    matrix: &'a Matrix,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    activation: Activation,
    out: &'a mut [f32],
    /// `[block of 8 rows of x][column of x][row]`.
    turned: &'a mut Vec<f32>,
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { matrix, x, bias, activation, out, turned } = self;
        let Matrix { rows: inner, columns, .. } = *matrix;
        let [least, most] = activation.bounds();
        let count = out.len() / columns;
        // Rows by eight, by four and one by one: a vector of weights serves as many sums.
        let heights = |row: usize| match count - row {
            HEIGHT.. => HEIGHT,
            4.. => 4,
            _ => 1,
        };
        turned.resize(x.len(), 0.0);
        let mut row = 0;
        while row < count {
            let height = heights(row);
            let turned = &mut turned[row * inner..][..height * inner];
            let x = &x[row * inner..][..height * inner];
            if height == 1 {
                turned.copy_from_slice(x);
            } else {
                for (i, x) in x.chunks_exact(inner.max(1)).enumerate() {
                    for (to, from) in turned[i..].iter_mut().step_by(height).zip(x) {
                        *to = *from;
                    }
                }
            }
            row += height;
        }
        let mut tile = [0.0; HEIGHT * BLOCK];
        for (block, weights) in matrix.blocks().enumerate() {
            let first = block * BLOCK;
            let width = BLOCK.min(columns - first);
            let bias = bias.map(|bias| &bias[first..first + width]);
            let mut row = 0;
            while row < count {
                let height = heights(row);
                let x = &turned[row * inner..][..height * inner];
                let vectors = vectors::<S>(height);
                for at in (0..BLOCK).step_by(vectors * S::F32_LANES) {
                    let (weights, tile) = (&weights[at.min(weights.len())..], &mut tile[at..]);
                    product_of::<S>(simd, height, vectors, weights, x, tile);
                }
                for (i, sums) in tile.chunks_exact(BLOCK).take(height).enumerate() {
                    let out = &mut out[(row + i) * columns + first..][..width];
                    match bias {
                        None => {
                            for (out, sum) in out.iter_mut().zip(sums) {
                                let sum = if *sum < least { least } else { *sum };
                                *out = if sum > most { most } else { sum };
                            }
                        }
                        Some(bias) => {
                            for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                                let sum = sum + bias;
                                let sum = if sum < least { least } else { sum };
                                *out = if sum > most { most } else { sum };
                            }
                        }
                    }
                }
                row += height;
            }
        }
    }
}

/// Vectors of a block's columns that are summed together for `height` rows, 8, 4, 2 or 1; divides
/// the block.
#[inline(always)]
pub(super) fn vectors<S: Simd>(height: usize) -> usize {
    match (height, beside_eight::<S>()) {
        (_, 3) => 3,
        (4.., _) => 2,
        (2, _) => 3,
        (_, _) => 6,
    }
}

/// `vectors` vectors of a block's columns for `height` rows; see [`vectors`].
#[inline(always)]
pub(super) fn product_of<S: Simd>(
    simd: S,
    height: usize,
    vectors: usize,
    values: &[f32],
    weights: &[f32],
    out: &mut [f32],
) {
    match (height, vectors) {
        (8, 3) => product::<S, 8, 4, 3>(simd, values, weights, BLOCK, out),
        (8, _) => product::<S, 8, 4, 2>(simd, values, weights, BLOCK, out),
        (4, 3) => product::<S, 4, 2, 3>(simd, values, weights, BLOCK, out),
        (4, _) => product::<S, 4, 2, 2>(simd, values, weights, BLOCK, out),
        (2, _) => product::<S, 2, 1, 3>(simd, values, weights, BLOCK, out),
        (_, 6) => product::<S, 1, 1, 6>(simd, values, weights, BLOCK, out),
        (_, _) => product::<S, 1, 1, 3>(simd, values, weights, BLOCK, out),
    };
}

/// `VECTORS` vectors of columns for `BLOCK` rows of `weights`, `[term][row]`, at once or in two
/// halves; returns the columns.
///
/// The rows of `values`, one a term, and of `out` are `pitch` apart.
#[inline(always)]
pub(super) fn product<S: Simd, const BLOCK: usize, const HALF: usize, const VECTORS: usize>(
    simd: S,
    values: &[f32],
    weights: &[f32],
    pitch: usize,
    out: &mut [f32],
) -> usize {
    if fit::<S>(BLOCK, VECTORS) {
        part::<S, BLOCK, BLOCK, VECTORS>(simd, values, weights, 0, pitch, out);
    } else {
        part::<S, BLOCK, HALF, VECTORS>(simd, values, weights, 0, pitch, out);
        part::<S, BLOCK, HALF, VECTORS>(simd, values, weights, HALF, pitch, out);
    }
    VECTORS * S::F32_LANES
}

#[expect(clippy::manual_memcpy, reason = "index loops unroll into registers")]
/// The product of `ROWS` rows of weights from `first` on.
#[inline(always)]
fn part<S: Simd, const BLOCK: usize, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    values: &[f32],
    weights: &[f32],
    first: usize,
    pitch: usize,
    out: &mut [f32],
) {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    let (weights, _) = weights.as_chunks::<BLOCK>();
    for (values, weights) in values.chunks(pitch).zip(weights) {
        // No panic in this loop: with one, the sums would live in memory instead of registers.
        let (values, _) = S::as_simd_f32s(values);
        let Some(values) = values.first_chunk::<VECTORS>() else { break };
        let Some(weights) = rows::<BLOCK, ROWS>(weights, first) else { break };
        for o in 0..ROWS {
            let weight = simd.splat_f32s(weights[o]);
            for i in 0..VECTORS {
                sums[o][i] = simd.mul_add_e_f32s(weight, values[i], sums[o][i]);
            }
        }
    }
    for o in 0..ROWS {
        let out = &mut out[(first + o) * pitch..][..VECTORS * S::F32_LANES];
        let (out, _) = S::as_mut_simd_f32s(out);
        for i in 0..VECTORS {
            out[i] = sums[o][i];
        }
    }
}

/// Most rows whose sums stay in registers together.
pub(crate) const HEIGHT: usize = 8;

/// Columns of a block: three vectors of 16 lanes.
pub(crate) const BLOCK: usize = 48;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_equal_plain_sums() {
        for (count, inner, columns) in
            [(1, 1, 1), (3, 7, 5), (8, 16, 48), (13, 33, 49), (21, 5, 100)]
        {
            let value = |i: usize, j: usize| ((i * 7 + j * 3) % 11) as f32 - 5.0;
            let matrix = Matrix::new(inner, columns, value);
            let x: Vec<f32> = (0..count * inner).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
            let bias: Vec<f32> = (0..columns).map(|j| j as f32 / 2.0 - 3.0).collect();
            let mut out = vec![f32::NAN; count * columns];
            matrix.apply(&x, Some(&bias), Activation::Relu, &mut out);
            for (at, got) in out.iter().enumerate() {
                let (row, column) = (at / columns, at % columns);
                let sum: f32 = (0..inner).map(|i| x[row * inner + i] * value(i, column)).sum();
                assert_eq!(*got, (sum + bias[column]).max(0.0), "{count} {inner} {columns}");
            }
        }
    }
}
