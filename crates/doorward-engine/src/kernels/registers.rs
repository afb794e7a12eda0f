//! Sums that stay in the processor's registers: 32 with AVX-512 and on ARM, 16 with AVX2.

use pulp::Simd;

/// True if the sums of so many rows and vectors of columns fit, with a vector of values for each
/// column, a weight and one to spare: with none, the compiler moves sums around at every step.
///
/// If they do not fit, rows are taken in two halves.
#[inline(always)]
pub(super) const fn fit<S: Simd>(rows: usize, vectors: usize) -> bool {
    rows * vectors + vectors + 1 < S::REGISTER_COUNT
}

/// The weights of `ROWS` rows of a block, from `first` on.
#[inline(always)]
pub(super) fn rows<const BLOCK: usize, const ROWS: usize>(
    weights: &[f32; BLOCK],
    first: usize,
) -> Option<&[f32; ROWS]> {
    weights.get(first..)?.first_chunk()
}

/// Vectors of columns for eight rows.
#[inline(always)]
pub(super) const fn beside_eight<S: Simd>() -> usize {
    if fit::<S>(8, 3) { 3 } else { 2 }
}

/// Vectors of columns for four rows.
#[inline(always)]
pub(super) const fn beside_four<S: Simd>() -> usize {
    if fit::<S>(4, 5) { 5 } else { 2 }
}
