//! 1x1 convolution and its gradient: the product of a packed matrix and all positions at once.
//!
//! The positions of all images make one long row. Tiles of three vectors of it are copied to
//! `[channel][position]`, a few of them at a time so that they stay in the L2 cache while all
//! output channels pass over them. A stride above one takes only the positions that are read.
//!
//! What is left behind the last whole vector and fills at most half of another is computed the
//! other way round, with vectors over output channels: of 7x7 positions 48 are three vectors of
//! 16 lanes, and one is not worth a fourth.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::activation::Activation;
use crate::kernels::load::{Load, every};
use crate::kernels::matrix::{BLOCK, Matrix, product_of, vectors};
use crate::kernels::registers::{beside_eight, fit, rows};

/// A fixed 1x1 correlation of images of one size.
#[derive(Debug)]
pub(crate) struct Pointwise {
    matrix: Matrix,
    from: Lattice,
    to: Lattice,
}

/// The positions of an image that take part: `runs` of `run` positions.
#[derive(Clone, Copy, Debug)]
struct Lattice {
    run: usize,
    runs: usize,
    /// Distance from the first position of a run to that of the next.
    pitch: usize,
    /// Distance from a position to the next.
    step: usize,
    /// All positions of an image.
    plane: usize,
}

/// Positions that follow each other in one channel of one image and in a tile.
#[derive(Clone, Copy, Debug)]
struct Piece {
    image: usize,
    /// Position in the plane.
    at: usize,
    /// Position in the tile.
    offset: usize,
    len: usize,
}

/// `columns` positions of the long row in `width` columns of the panel.
struct Tile {
    first: usize,
    columns: usize,
    width: usize,
    /// Start of the tile's values in the panel.
    values: usize,
}

// === impl Lattice ===

impl Lattice {
    /// `count` rows and columns of an image of `size`, every `stride`th.
    fn new(size: [usize; 2], count: [usize; 2], stride: [usize; 2]) -> Self {
        let plane = size[0] * size[1];
        if count == size {
            return Self { run: plane, runs: 1, pitch: plane, step: 1, plane };
        }
        let pitch = stride[0] * size[1];
        Self { run: count[1], runs: count[0], pitch, step: stride[1], plane }
    }

    fn pieces(self, tile: &Tile) -> impl Iterator<Item = Piece> {
        let (mut column, end) = (tile.first, tile.first + tile.columns);
        std::iter::from_fn(move || {
            let (run, within) = (column / self.run, column % self.run);
            let len = (self.run - within).min(end - column);
            let at = run % self.runs * self.pitch + within * self.step;
            let piece = Piece { image: run / self.runs, at, offset: column - tile.first, len };
            column += len;
            (len > 0).then_some(piece)
        })
    }
}

// === impl Pointwise ===

impl Pointwise {
    /// `weight(in, out)`; reads every `stride`th row and column.
    pub(crate) fn forward(
        channels: [usize; 2],
        [in_size, out_size]: [[usize; 2]; 2],
        stride: [usize; 2],
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let matrix = Matrix::new(channels[0], channels[1], weight);
        let from = Lattice::new(in_size, out_size, stride);
        Self { matrix, from, to: Lattice::new(out_size, out_size, [1, 1]) }
    }

    /// The gradient to the input: writes every `stride`th row and column, zero between them.
    pub(crate) fn backward(
        channels: [usize; 2],
        [in_size, out_size]: [[usize; 2]; 2],
        stride: [usize; 2],
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let matrix = Matrix::new(channels[0], channels[1], weight);
        let to = Lattice::new(in_size, out_size, stride);
        Self { matrix, from: Lattice::new(out_size, out_size, [1, 1]), to }
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
        if self.to.run * self.to.runs < self.to.plane {
            out.fill(0.0);
        }
        SCRATCH.with_borrow_mut(|panel| {
            let run = Run { plan: self, input, load, bias, activation, first, out, panel };
            Arch::new().dispatch(run);
        });
    }
}

struct Run<'a, L> {
    plan: &'a Pointwise,
    input: &'a [f32],
    load: L,
    bias: Option<&'a [f32]>,
    activation: Activation,
    /// Output channel that `out` begins with.
    first: usize,
    out: &'a mut [f32],
    /// `[tile][channel][position]`
    panel: &'a mut Vec<f32>,
}

impl<L: Load> WithSimd for Run<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let plan = self.plan;
        let inner = plan.matrix.rows();
        let images = self.input.len() / (inner * plan.from.plane);
        let positions = images * plan.from.run * plan.from.runs;
        let tiles = tiles(positions, S::F32_LANES, beside_eight::<S>());
        let per_panel = (PANEL / (inner * 3 * S::F32_LANES)).max(1);
        for tiles in tiles.chunks(per_panel) {
            let mut length = 0;
            let tiles: Vec<Tile> = tiles
                .iter()
                .map(|&(first, columns, width)| {
                    length += width * inner;
                    Tile { first, columns, width, values: length - width * inner }
                })
                .collect();
            if self.panel.len() < length {
                self.panel.resize(length, 0.0);
            }
            for tile in &tiles {
                self.fill(tile);
            }
            self.multiply(simd, &tiles);
        }
    }
}

impl<L: Load> Run<'_, L> {
    /// Copies the positions of a tile into the panel.
    #[inline(always)]
    fn fill(&mut self, tile: &Tile) {
        let inner = self.plan.matrix.rows();
        let Lattice { plane, step, .. } = self.plan.from;
        let panel = &mut self.panel[tile.values..][..inner * tile.width];
        if tile.columns < tile.width {
            panel.fill(0.0);
        }
        for piece in self.plan.from.pieces(tile) {
            let from = &self.input[piece.image * inner * plane + piece.at..];
            let to = &mut panel[piece.offset..];
            if L::PLAIN && step == 1 {
                copy_rows(from, plane, to, tile.width, piece.len, inner);
                continue;
            }
            let mut gathered = [0.0; BLOCK];
            let rows = from.chunks(plane).zip(to.chunks_mut(tile.width));
            for (channel, (from, to)) in rows.enumerate().take(inner) {
                let gathered = &mut gathered[..piece.len];
                every(step, &from[..(piece.len - 1) * step + 1], gathered);
                self.load.row(channel, gathered, &mut to[..piece.len]);
            }
        }
    }

    /// All output channels at the positions of the panel.
    #[inline(always)]
    fn multiply<S: Simd>(&mut self, simd: S, tiles: &[Tile]) {
        let matrix = &self.plan.matrix;
        let inner = matrix.rows();
        let plane = self.plan.to.plane;
        let images = self.input.len() / (inner * self.plan.from.plane);
        let outs = self.out.len() / (images * plane);
        let channels = self.first..self.first + outs;
        let bounds = self.activation.bounds();
        let mut sums = [0.0; ROWS * BLOCK];
        for (block, weights) in matrix.blocks().enumerate() {
            let first = block * BLOCK;
            let wanted = channels.start.max(first)..channels.end.min(first + BLOCK);
            if wanted.is_empty() {
                continue;
            }
            for row in wanted.clone().step_by(ROWS) {
                let rows = ROWS.min(wanted.end - row);
                let mut start = [0.0; ROWS];
                if let Some(bias) = self.bias {
                    start[..rows].copy_from_slice(&bias[row..row + rows]);
                }
                let terms = Terms { weights: &weights[row - first..], start, bounds };
                for tile in tiles.iter().filter(|tile| tile.width >= S::F32_LANES) {
                    let values = &self.panel[tile.values..][..inner * tile.width];
                    let mut pieces = self.plan.to.pieces(tile).peekable();
                    let direct = pieces.next_if(|piece| {
                        piece.len == tile.width && rows == ROWS && self.plan.to.step == 1
                    });
                    if let Some(piece) = direct {
                        let at = (piece.image * outs + row - channels.start) * plane + piece.at;
                        terms.sum(simd, values, tile.width, &mut self.out[at..], plane);
                        continue;
                    }
                    terms.sum(simd, values, tile.width, &mut sums, BLOCK);
                    for piece in pieces {
                        let at = (piece.image * outs + row - channels.start) * plane + piece.at;
                        let (from, to) = (&sums[piece.offset..], &mut self.out[at..]);
                        if self.plan.to.step == 1 {
                            copy_rows(from, BLOCK, to, plane, piece.len, rows);
                            continue;
                        }
                        for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(plane)).take(rows) {
                            let to = to.iter_mut().step_by(self.plan.to.step);
                            to.zip(&from[..piece.len]).for_each(|(to, from)| *to = *from);
                        }
                    }
                }
            }
            for tile in tiles.iter().filter(|tile| tile.width < S::F32_LANES) {
                let values = &self.panel[tile.values..][..inner * tile.width];
                let vectors = vectors::<S>(tile.width);
                for at in (0..BLOCK).step_by(vectors * S::F32_LANES) {
                    let (weights, sums) = (&weights[at.min(weights.len())..], &mut sums[at..]);
                    product_of::<S>(simd, tile.width, vectors, weights, values, sums);
                }
                for piece in self.plan.to.pieces(tile) {
                    let sums = sums.chunks_exact(BLOCK).skip(piece.offset).take(piece.len);
                    for (i, sums) in sums.enumerate() {
                        let position = piece.at + i * self.plan.to.step;
                        let channel = piece.image * outs + wanted.start - channels.start;
                        let to = &mut self.out[channel * plane + position..];
                        let sums = &sums[wanted.start - first..wanted.end - first];
                        for (o, (to, sum)) in to.iter_mut().step_by(plane).zip(sums).enumerate() {
                            let sum = sum + self.bias.map_or(0.0, |bias| bias[wanted.start + o]);
                            *to = sum.max(bounds[0]).min(bounds[1]);
                        }
                    }
                }
            }
        }
    }
}

/// First position, positions and width of the tiles of a row: whole ones, of so many vectors at
/// most, then what is left.
fn tiles(positions: usize, lanes: usize, most: usize) -> Vec<(usize, usize, usize)> {
    let mut tiles = Vec::with_capacity(positions / (3 * lanes) + 2);
    let mut first = 0;
    while first < positions {
        let remaining = positions - first;
        let vectors = match (remaining + lanes / 2 - 1) / lanes {
            // Two and two keep more sums in flight than three and one.
            4 => 2,
            vectors => vectors.min(most),
        };
        let width = match vectors {
            0 => remaining.next_power_of_two(),
            _ => vectors * lanes,
        };
        tiles.push((first, width.min(remaining), width));
        first += width.min(remaining);
    }
    tiles
}

/// The terms of the sums of `ROWS` output channels.
struct Terms<'a> {
    /// `[channel][BLOCK]`, of which the first `ROWS` count.
    weights: &'a [f32],
    start: [f32; ROWS],
    bounds: [f32; 2],
}

impl Terms<'_> {
    /// For `width` positions; rows of `out` are `pitch` apart.
    #[inline(always)]
    fn sum<S: Simd>(&self, simd: S, values: &[f32], width: usize, out: &mut [f32], pitch: usize) {
        match width / S::F32_LANES {
            1 => self.sum_all::<S, 1>(simd, values, out, pitch),
            2 => self.sum_all::<S, 2>(simd, values, out, pitch),
            _ => self.sum_all::<S, 3>(simd, values, out, pitch),
        }
    }

    /// All `ROWS` channels, at once or in two halves.
    #[inline(always)]
    fn sum_all<S: Simd, const VECTORS: usize>(
        &self,
        simd: S,
        values: &[f32],
        out: &mut [f32],
        pitch: usize,
    ) {
        const HALF: usize = ROWS / 2;
        if fit::<S>(ROWS, VECTORS) {
            return self.sum_vectors::<S, ROWS, VECTORS>(simd, values, 0, out, pitch);
        }
        self.sum_vectors::<S, HALF, VECTORS>(simd, values, 0, out, pitch);
        self.sum_vectors::<S, HALF, VECTORS>(simd, values, HALF, &mut out[HALF * pitch..], pitch);
    }

    #[expect(
        clippy::manual_memcpy,
        clippy::needless_range_loop,
        reason = "index loops unroll into registers"
    )]
    #[inline(always)]
    fn sum_vectors<S: Simd, const COUNT: usize, const VECTORS: usize>(
        &self,
        simd: S,
        values: &[f32],
        first: usize,
        out: &mut [f32],
        pitch: usize,
    ) {
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; COUNT];
        for o in 0..COUNT {
            sums[o] = [simd.splat_f32s(self.start[first + o]); VECTORS];
        }
        let (values, _) = S::as_simd_f32s(values);
        let (values, _) = values.as_chunks::<VECTORS>();
        for (values, weights) in values.iter().zip(self.weights.chunks(BLOCK)) {
            // No panic in this loop: with one, the sums would live in memory instead of registers.
            let Some(weights) = weights.first_chunk::<ROWS>() else { break };
            let Some(weights) = rows::<ROWS, COUNT>(weights, first) else { break };
            for o in 0..COUNT {
                let weight = simd.splat_f32s(weights[o]);
                for i in 0..VECTORS {
                    sums[o][i] = simd.mul_add_e_f32s(weight, values[i], sums[o][i]);
                }
            }
        }
        for o in 0..COUNT {
            let (out, _) = S::as_mut_simd_f32s(&mut out[o * pitch..][..VECTORS * S::F32_LANES]);
            for i in 0..VECTORS {
                out[i] = sums[o][i];
            }
        }
        // In a loop of its own: the one above, with more to do, would not unroll into registers.
        let [least, most] = self.bounds.map(|bound| simd.splat_f32s(bound));
        for out in out.chunks_mut(pitch).take(COUNT) {
            let (out, _) = S::as_mut_simd_f32s(&mut out[..VECTORS * S::F32_LANES]);
            for value in out {
                *value = simd.min_f32s(most, simd.max_f32s(least, *value));
            }
        }
    }
}

/// `len` values of each of `rows` rows.
#[inline(always)]
fn copy_rows(
    from: &[f32],
    from_pitch: usize,
    to: &mut [f32],
    to_pitch: usize,
    len: usize,
    rows: usize,
) {
    let rows = from.chunks(from_pitch).zip(to.chunks_mut(to_pitch)).take(rows);
    match len {
        4 => rows.for_each(|(from, to)| copy::<4>(from, to)),
        16 => rows.for_each(|(from, to)| copy::<16>(from, to)),
        32 => rows.for_each(|(from, to)| copy::<32>(from, to)),
        48 => rows.for_each(|(from, to)| copy::<48>(from, to)),
        _ => rows.for_each(|(from, to)| to[..len].copy_from_slice(&from[..len])),
    }
}

/// Lengths known while compiling need no call.
#[inline(always)]
fn copy<const LEN: usize>(from: &[f32], to: &mut [f32]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<LEN>(), to.first_chunk_mut::<LEN>()) {
        *to = *from;
    }
}

/// Output channels whose sums stay in registers, for three vectors of positions each.
pub(crate) const ROWS: usize = 8;

/// Values of a panel: 1.5 MiB, three quarters of a core's L2 cache.
const PANEL: usize = 3 << 17;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests;
