//! 3x3 correlation of stride one by Winograd's minimal filtering F(2x2, 3x3).
//!
//! Four outputs of a tile take 16 products instead of 36 (Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks", 2016, section 4.1):
//!
//! ```text
//! Y = A' [ sum_c (G g G') * (B' d B) ] A
//! ```
//!
//! for 4x4 tiles `d` of the input that overlap by two, with `*` by element. All coefficients are 0,
//! 1 and 1/2, so that rounding stays that of a direct sum (F(4x4, 3x3) loses about a digit). The
//! sums over channels are 16 matrix products, whose vectors run over tiles.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::activation::Activation;
use crate::kernels::load::{Load, copy};
use crate::kernels::matrix::product;
use crate::kernels::registers::beside_eight;

/// A fixed 3x3 correlation of images of one size, weights transformed and packed.
#[derive(Debug)]
pub(crate) struct Winograd {
    sizes: Sizes,
    /// Rows and columns of tiles in one image.
    tiles: [usize; 2],
    /// Output channels that stay in registers together.
    block: usize,
    /// `[element][block][channel][block width]`.
    weights: Vec<f32>,
    rows_per_pass: usize,
}

/// Sizes of what is correlated.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) in_size: [usize; 2],
    pub(crate) out_size: [usize; 2],
    /// Zeros above and to the left of the input.
    pub(crate) origin: [usize; 2],
}

// === impl Sizes ===

impl Sizes {
    /// True if the transforms, which cost the same for any number of channels, pay.
    pub(crate) fn suit(&self) -> bool {
        let (ins, outs) = (self.in_channels, self.out_channels);
        let tiles = self.out_size.map(|size| size.div_ceil(2));
        // Cycles of a tile with two 16-lane multiply-adds a cycle. Transforms take about 150 a
        // vector, most of it waiting for the L2 cache; a vector holds tiles of one row only.
        let lanes = tiles[1] / tiles[1].div_ceil(16);
        let transform = 150 * (ins + outs) / lanes;
        let products = 16 * ins * outs / 32;
        let [height, width] = self.out_size;
        let direct = 9 * ins * outs * (height + 1) * (width + 1) / (tiles[0] * tiles[1]) / 32;
        self.origin[0] <= 2 && self.origin[1] <= 2 && transform + products < direct
    }
}

// === impl Winograd ===

impl Winograd {
    /// `weight(out, in, ky, kx)`.
    pub(crate) fn new(sizes: Sizes, weight: &dyn Fn(usize, usize, [usize; 2]) -> f32) -> Self {
        let (ins, outs) = (sizes.in_channels, sizes.out_channels);
        let block = [12, 8].into_iter().min_by_key(|&width| outs.div_ceil(width) * width);
        let block = block.unwrap_or(8);
        let padded = outs.div_ceil(block) * block;
        let mut weights = vec![0.0; ELEMENTS * ins * padded];
        for out in 0..outs {
            for channel in 0..ins {
                let transformed = transform_kernel(|at| weight(out, channel, at));
                for (element, value) in transformed.into_iter().enumerate() {
                    let row = element * padded / block + out / block;
                    weights[(row * ins + channel) * block + out % block] = value;
                }
            }
        }
        let tiles = sizes.out_size.map(|size| size.div_ceil(2));
        let most = (PASS_VALUES / (ELEMENTS * (ins + padded))).max(LEAST_TILES);
        Self { sizes, tiles, block, weights, rows_per_pass: (most / tiles[1]).max(1) }
    }

    /// The least number of output channels that can be computed without the others; so can its
    /// multiples.
    pub(crate) fn unit(&self) -> usize {
        self.block
    }

    /// Writes all of `out`, NCHW, from `input`, NCHW; see
    /// [`Correlation::run`][crate::kernels::correlate::Correlation::run].
    pub(crate) fn run<L: Load>(
        &self,
        input: &[f32],
        load: L,
        bias: Option<&[f32]>,
        activation: Activation,
        first: usize,
        out: &mut [f32],
    ) {
        let images =
            input.len() / (self.sizes.in_channels * self.sizes.in_size.iter().product::<usize>());
        let rows = images * self.tiles[0];
        let plane: usize = self.sizes.out_size.iter().product();
        let outs = out.len() / (images.max(1) * plane);
        SCRATCH.with_borrow_mut(|scratch| {
            for row in (0..rows).step_by(self.rows_per_pass) {
                Arch::new().dispatch(Pass {
                    plan: self,
                    channels: first..first + outs,
                    first: row,
                    count: self.rows_per_pass.min(rows - row),
                    input,
                    load: &load,
                    bias,
                    activation,
                    out,
                    scratch,
                });
            }
        });
    }
}

/// `G g G'`.
fn transform_kernel(kernel: impl Fn([usize; 2]) -> f32) -> [f32; ELEMENTS] {
    let along = |[a, b, c]: [f32; 3]| [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c];
    let columns: [[f32; 4]; 3] =
        std::array::from_fn(|x| along(std::array::from_fn(|y| kernel([y, x]))));
    let mut transformed = [0.0; ELEMENTS];
    for (y, row) in transformed.chunks_exact_mut(4).enumerate() {
        row.copy_from_slice(&along(std::array::from_fn(|x| columns[x][y])));
    }
    transformed
}

#[derive(Default)]
struct Scratch {
    /// `[element][channel][tile]`, transformed input.
    values: Vec<f32>,
    /// `[element][output channel][tile]`, before the output's transform.
    sums: Vec<f32>,
    /// One channel's rows, zero-padded: even columns, then odd ones.
    rows: Vec<f32>,
    /// One padded row.
    row: Vec<f32>,
    /// One channel's outputs: of even rows and columns, even rows and odd columns, and so on.
    halves: Vec<f32>,
    /// The same of even or of odd rows, columns in order.
    pairs: Vec<f32>,
}

/// Tile rows `first..first + count`, counted over all images.
struct Pass<'a, L> {
    plan: &'a Winograd,
    /// Channels of the output, from the first of a block on.
    channels: Range<usize>,
    first: usize,
    count: usize,
    input: &'a [f32],
    load: &'a L,
    bias: Option<&'a [f32]>,
    activation: Activation,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl<L: Load> WithSimd for Pass<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let plan = self.plan;
        let ins = plan.sizes.in_channels;
        let padded = self.channels.len().next_multiple_of(plan.block);
        let tiles = self.count * plan.tiles[1];
        // An odd number of cache lines: rows of a power of two would meet in a few cache sets.
        // The last vector of a row of tiles reaches past it, but never into the next channel.
        let pitch = ((tiles + LINE - 1).div_ceil(LINE) | 1) * LINE;
        let Scratch { values, sums, .. } = &mut *self.scratch;
        grow(values, ELEMENTS * (ins * pitch + LINE) + SLACK);
        grow(sums, ELEMENTS * (padded * pitch + LINE) + SLACK);
        self.transform_input(simd, pitch);
        self.multiply(simd, tiles, pitch, padded);
        self.transform_output(simd, pitch, padded);
    }
}

#[expect(clippy::needless_range_loop, reason = "index loops unroll into registers")]
impl<L: Load> Pass<'_, L> {
    /// Rows of tiles of one image: image, first row and number of rows.
    fn images(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<L> {
        let (height, end) = (self.plan.tiles[0], self.first + self.count);
        let mut at = self.first;
        std::iter::from_fn(move || {
            let (image, row) = (at / height, at % height);
            let count = (height - row).min(end - at);
            at += count;
            (count > 0).then_some((image, row, count))
        })
    }

    /// `B' d B` of every tile and channel.
    #[inline(always)]
    fn transform_input<S: Simd>(&mut self, simd: S, pitch: usize) {
        let Sizes { in_channels, in_size: [height, width], origin, .. } = self.plan.sizes;
        let columns = self.plan.tiles[1];
        // Even and odd columns of a row, one vector longer than is read.
        let half = (columns + 1).next_multiple_of(LINE) + LINE;
        // A rest of one or two is cheaper by itself than as a vector.
        let wanted = match (columns + 1) % LINE {
            0..=2 => columns + 1,
            _ => (columns + 1).next_multiple_of(LINE),
        };
        let stride = in_channels * pitch + LINE;
        let images = self.images();
        let Scratch { values, rows, row, .. } = &mut *self.scratch;
        row.clear();
        row.resize((2 * half).max(origin[1] + width), 0.0);
        let mut tile = 0;
        for (image, first, count) in images {
            grow(rows, (2 * count + 2) * 2 * half);
            for channel in 0..in_channels {
                let source = &self.input[(image * in_channels + channel) * height * width..];
                for (i, to) in rows.chunks_exact_mut(2 * half).take(2 * count + 2).enumerate() {
                    match (2 * first + i).checked_sub(origin[0]) {
                        Some(y) if y < height => {
                            let from = &source[y * width..][..width];
                            self.load.row(channel, from, &mut row[origin[1]..][..width]);
                            deinterleave(&row[..2 * wanted], to);
                        }
                        _ => to.fill(0.0),
                    }
                }
                for (i, four) in rows.windows(8 * half).step_by(4 * half).enumerate().take(count) {
                    let at = channel * pitch + tile + i * columns;
                    for from in (0..columns).step_by(S::F32_LANES) {
                        let mut d = [[simd.splat_f32s(0.0); 4]; 4];
                        for x in 0..4 {
                            let column = (x % 2) * half + x / 2 + from;
                            for y in 0..4 {
                                d[y][x] = vector::<S>(four, 2 * y * half + column);
                            }
                            let [a, b, c, e] = edges(simd, [d[0][x], d[1][x], d[2][x], d[3][x]]);
                            (d[0][x], d[1][x], d[2][x], d[3][x]) = (a, b, c, e);
                        }
                        for y in 0..4 {
                            let row = edges(simd, d[y]);
                            for x in 0..4 {
                                store::<S>(&mut values[(4 * y + x) * stride + at + from..], row[x]);
                            }
                        }
                    }
                }
            }
            tile += count * columns;
        }
    }

    /// The sum over channels, for each of the 16 elements.
    #[inline(always)]
    fn multiply<S: Simd>(&mut self, simd: S, tiles: usize, pitch: usize, padded: usize) {
        let ins = self.plan.sizes.in_channels;
        let block = self.plan.block;
        let Scratch { values, sums, .. } = &mut *self.scratch;
        for element in 0..ELEMENTS {
            let values = &values[element * (ins * pitch + LINE)..];
            let sums = &mut sums[element * (padded * pitch + LINE)..];
            let weights = &self.plan.weights[element * self.plan.weights.len() / ELEMENTS..];
            let weights = &weights[self.channels.start * ins..][..ins * padded];
            for (weights, sums) in
                weights.chunks_exact(ins * block).zip(sums.chunks_mut(block * pitch))
            {
                let mut at = 0;
                while at < tiles {
                    let vectors = (tiles - at).div_ceil(S::F32_LANES);
                    let values = &values[at..];
                    let sums = &mut sums[at..];
                    at += match (block, vectors) {
                        (12, 1) => product::<S, 12, 6, 1>(simd, values, weights, pitch, sums),
                        (12, _) => product::<S, 12, 6, 2>(simd, values, weights, pitch, sums),
                        (_, 1) => product::<S, 8, 4, 1>(simd, values, weights, pitch, sums),
                        (_, left) if left == 2 || left == 4 || beside_eight::<S>() == 2 => {
                            product::<S, 8, 4, 2>(simd, values, weights, pitch, sums)
                        }
                        (_, _) => product::<S, 8, 4, 3>(simd, values, weights, pitch, sums),
                    };
                }
            }
        }
    }

    /// `A' m A` of every tile, bias and activation.
    #[inline(always)]
    fn transform_output<S: Simd>(&mut self, simd: S, pitch: usize, padded: usize) {
        let Sizes { out_size: [height, width], .. } = self.plan.sizes;
        let outs = self.channels.len();
        let columns = self.plan.tiles[1];
        let stride = padded * pitch + LINE;
        let [least, most] = self.activation.bounds().map(|bound| simd.splat_f32s(bound));
        let images = self.images();
        let Scratch { sums, halves, pairs, .. } = &mut *self.scratch;
        let mut tile = 0;
        for (image, first, count) in images {
            let batch = count * columns + LINE;
            grow(halves, 4 * batch);
            grow(pairs, 2 * count * columns);
            for channel in 0..outs {
                let bias = self.bias.map_or(0.0, |bias| bias[self.channels.start + channel]);
                let bias = simd.splat_f32s(bias);
                for i in 0..count {
                    let at = channel * pitch + tile + i * columns;
                    for from in (0..columns).step_by(S::F32_LANES) {
                        let mut rows = [[simd.splat_f32s(0.0); 4]; 2];
                        for x in 0..4 {
                            let mut m = [simd.splat_f32s(0.0); 4];
                            for y in 0..4 {
                                m[y] = vector::<S>(sums, (4 * y + x) * stride + at + from);
                            }
                            [rows[0][x], rows[1][x]] = folds(simd, m);
                        }
                        for dy in 0..2 {
                            let pair = folds(simd, rows[dy]);
                            for dx in 0..2 {
                                let y = simd.max_f32s(least, simd.add_f32s(pair[dx], bias));
                                let y = simd.min_f32s(most, y);
                                let to = (2 * dy + dx) * batch + i * columns + from;
                                store::<S>(&mut halves[to..], y);
                            }
                        }
                    }
                }
                let plane =
                    &mut self.out[(image * outs + channel) * height * width..][..height * width];
                for dy in 0..2 {
                    let (even, odd) = halves[2 * dy * batch..][..2 * batch].split_at(batch);
                    interleave(even, odd, &mut pairs[..2 * count * columns]);
                    let to = plane.chunks_exact_mut(width).skip(2 * first + dy).step_by(2);
                    for (from, to) in pairs.chunks_exact(2 * columns).zip(to).take(count) {
                        copy(&from[..width], to);
                    }
                }
            }
            tile += count * columns;
        }
    }
}

/// One axis of `B'`.
#[inline(always)]
fn edges<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
    [simd.sub_f32s(a, c), simd.add_f32s(b, c), simd.sub_f32s(c, b), simd.sub_f32s(b, d)]
}

/// One axis of `A'`.
#[inline(always)]
fn folds<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 2] {
    let (sum, difference) = (simd.add_f32s(b, c), simd.sub_f32s(b, c));
    [simd.add_f32s(a, sum), simd.sub_f32s(difference, d)]
}

#[inline(always)]
fn vector<S: Simd>(values: &[f32], at: usize) -> S::f32s {
    let (vectors, _) = S::as_simd_f32s(&values[at..at + S::F32_LANES]);
    vectors[0]
}

#[inline(always)]
fn store<S: Simd>(to: &mut [f32], value: S::f32s) {
    let (vectors, _) = S::as_mut_simd_f32s(&mut to[..S::F32_LANES]);
    vectors[0] = value;
}

/// Makes `values` at least this long; what they are stays open.
fn grow(values: &mut Vec<f32>, length: usize) {
    if values.len() < length {
        values.resize(length, 0.0);
    }
}

/// Even values to the first half of `to`, odd ones to the second.
#[inline(always)]
fn deinterleave(row: &[f32], to: &mut [f32]) {
    let (even, odd) = to.split_at_mut(to.len() / 2);
    // Over a length that the compiler does not know: it makes shuffles of this loop, but single
    // loads and stores of one that it unrolls first.
    for ((pair, even), odd) in row.as_chunks::<2>().0.iter().zip(even).zip(odd) {
        (*even, *odd) = (pair[0], pair[1]);
    }
}

/// Values of `even` and `odd` in turn, as many as `to` takes.
#[inline(always)]
fn interleave(even: &[f32], odd: &[f32], to: &mut [f32]) {
    for ((pair, even), odd) in to.as_chunks_mut::<2>().0.iter_mut().zip(even).zip(odd) {
        *pair = [*even, *odd];
    }
}

/// Values of a transformed tile.
const ELEMENTS: usize = 16;

/// Values in a cache line, and the most lanes a vector has.
const LINE: usize = 16;

/// Vectors of tiles may be read and written past the last one: 3 vectors of 16 lanes.
const SLACK: usize = 48;

/// Transformed values that a pass holds: 1 MiB, half of a core's L2 cache.
const PASS_VALUES: usize = 1 << 18;

/// Least tiles of a pass: with fewer, the weights, which every pass reads, cost more than the
/// tiles.
const LEAST_TILES: usize = 48;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}
