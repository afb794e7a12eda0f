//! Running a [`Correlation`]: which sums are held in registers, in what order, and their storage.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::activation::Activation;
use crate::kernels::correlate::{Block, Correlation, Pass};
use crate::kernels::load::Load;
use crate::kernels::registers::{beside_eight, beside_four, fit, rows};

/// One run of a plan over a batch.
struct Sweep<'a, L> {
    plan: &'a Correlation,
    input: &'a [f32],
    load: L,
    bias: Option<&'a [f32]>,
    activation: Activation,
    /// Output channel that `out` begins with.
    first: usize,
    out: &'a mut [f32],
    /// Scratch.
    planes: &'a mut Vec<f32>,
}

/// The part of a pass that depends on the number of images.
struct Prepared {
    /// Starts in the planes of the terms of a sum; of each run of `run` terms that lie side by
    /// side, the first.
    offsets: Vec<usize>,
    run: usize,
    segments: Vec<Segment>,
    positions: usize,
}

/// Positions that are outputs of one row, or of one image where nothing lies between its rows.
struct Segment {
    start: usize,
    len: usize,
    /// Place in the output of the first position of the first channel.
    at: usize,
}

/// The place in the output for the sums of one pass, group and block.
struct Target<'a> {
    out: &'a mut [f32],
    /// Values from one channel to the next.
    pitch: usize,
    /// Values from one position to the next.
    step: usize,
    first: usize,
    channels: usize,
    /// Least and largest value of the activation.
    bounds: [f32; 2],
}

// === impl Correlation ===

impl Correlation {
    /// Writes all of `out`, NCHW, from `input`, NCHW.
    ///
    /// `load` turns a value of an input channel into what is correlated; it sees no padding. `out`
    /// has as many output channels, from `first` on, as its length says.
    pub(crate) fn run<L: Load>(
        &self,
        input: &[f32],
        load: L,
        bias: Option<&[f32]>,
        activation: Activation,
        first: usize,
        out: &mut [f32],
    ) {
        let covered: usize =
            self.passes.iter().map(|pass| pass.phase.count.iter().product::<usize>()).sum();
        if covered < self.geometry.out_size.iter().product()
            || self.passes.iter().any(Pass::is_empty)
        {
            // Outputs that no tap reaches: the gradient where the kernel skipped the input.
            out.fill(0.0);
        }
        SCRATCH.with_borrow_mut(|planes| {
            let sweep = Sweep { plan: self, input, load, bias, activation, first, out, planes };
            Arch::new().dispatch(sweep);
        });
    }
}

// === impl Sweep ===

impl<L: Load> WithSimd for Sweep<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { plan, input, load, bias, activation, first, out, planes } = self;
        let in_place = L::PLAIN && plan.reads_in_place();
        let in_len = plan.in_len();
        let out_len = out.len() / (input.len() / in_len).max(1);
        let plane_out: usize = plan.geometry.out_size.iter().product();
        let wanted = first..first + out_len / plane_out;
        let ins = plan.geometry.in_channels / plan.geometry.groups;
        let outs = plan.geometry.out_channels / plan.geometry.groups;
        let bounds = activation.bounds();
        let mut prepared: Vec<Prepared> = Vec::new();
        let mut prepared_for = 0;
        let pairs = input
            .chunks(in_len * plan.images_per_pass)
            .zip(out.chunks_mut(out_len * plan.images_per_pass));
        for (input, out) in pairs {
            let images = input.len() / in_len;
            if images != prepared_for {
                let prepare = |pass| plan.prepare(pass, images, out_len);
                prepared = plan.passes.iter().map(prepare).collect();
                prepared_for = images;
            }
            for group in wanted.start / outs..wanted.end.div_ceil(outs) {
                if !in_place {
                    plan.fill(input, images, group, &load, planes);
                }
                let planes = match in_place {
                    true => &input[group * ins * plane_out..],
                    false => planes.as_slice(),
                };
                for (pass, prepared) in plan.passes.iter().zip(&prepared) {
                    if pass.is_empty() {
                        continue;
                    }
                    let per_block = prepared.offsets.len() * prepared.run;
                    let widths: usize = pass.blocks.iter().map(|block| block.width).sum();
                    let weights = &pass.weights[group * per_block * widths..];
                    // Panels of positions stay in the L2 cache while all blocks read them.
                    for from in (0..prepared.positions).step_by(PANEL) {
                        let panel = from..(from + PANEL).min(prepared.positions);
                        let mut weights = weights;
                        for block in &pass.blocks {
                            let (packed, rest) = weights.split_at(per_block * block.width);
                            weights = rest;
                            let first = group * outs + block.first;
                            if !wanted.contains(&first) {
                                continue;
                            }
                            let bias = bias.map(|bias| &bias[first..first + block.channels]);
                            let mut target = Target {
                                out: &mut *out,
                                pitch: plane_out,
                                step: plan.geometry.out_stride[1],
                                first: first - wanted.start,
                                channels: block.channels,
                                bounds,
                            };
                            let terms =
                                Terms { planes, offsets: &prepared.offsets, weights: packed, bias };
                            let panel = panel.clone();
                            let target = &mut target;
                            match prepared.run {
                                3 => sweep_block::<S, 3>(
                                    simd, block, terms, prepared, panel, in_place, target,
                                ),
                                _ => sweep_block::<S, 1>(
                                    simd, block, terms, prepared, panel, in_place, target,
                                ),
                            }
                        }
                    }
                }
            }
        }
    }
}

// === impl Correlation ===

impl Correlation {
    /// `out_len` values of an image of the output are wanted.
    fn prepare(&self, pass: &Pass, images: usize, out_len: usize) -> Prepared {
        let geometry = &self.geometry;
        let channels = geometry.in_channels / geometry.groups;
        let phases = geometry.in_stride[0] * geometry.in_stride[1];
        let plane_of_images = images * self.plane();
        // The three taps of a row of a 3x3 kernel are checked against the planes once.
        let side_by_side = |taps: &[(usize, usize, usize)]| {
            taps.iter().enumerate().all(|(i, &(phase, row, column))| {
                (phase, row, column) == (taps[0].0, taps[0].1, taps[0].2 + i)
            })
        };
        let (threes, rest) = pass.starts.as_chunks::<3>();
        let run = match rest.is_empty() && threes.iter().all(|taps| side_by_side(taps)) {
            true => 3,
            false => 1,
        };
        let offsets = (0..channels)
            .flat_map(|channel| {
                pass.starts.iter().step_by(run).map(move |&(phase, row, column)| {
                    (channel * phases + phase) * plane_of_images + row * self.pitch + column
                })
            })
            .collect();
        let [rows, columns] = pass.phase.count;
        let [_, out_width] = geometry.out_size;
        let [sy, sx] = geometry.out_stride;
        let [y0, x0] = pass.phase.first;
        let mut segments = Vec::new();
        for image in 0..images {
            let image_at = image * out_len;
            if [sy, sx] == [1, 1] && columns == self.pitch && columns == out_width {
                let (start, len) = (image * self.plane(), rows * columns);
                segments.push(Segment { start, len, at: image_at + y0 * out_width });
                continue;
            }
            segments.extend((0..rows).map(|row| Segment {
                start: image * self.plane() + row * self.pitch,
                len: columns,
                at: image_at + (y0 + row * sy) * out_width + x0,
            }));
        }
        let positions = segments.last().map_or(0, |last| last.start + last.len);
        Prepared { offsets, run, segments, positions }
    }
}

/// A sum's operands.
#[derive(Clone, Copy)]
struct Terms<'a> {
    planes: &'a [f32],
    offsets: &'a [usize],
    weights: &'a [f32],
    bias: Option<&'a [f32]>,
}

/// One block of channels at the positions of one panel.
#[inline(always)]
fn sweep_block<S: Simd, const RUN: usize>(
    simd: S,
    block: &Block,
    terms: Terms<'_>,
    prepared: &Prepared,
    panel: std::ops::Range<usize>,
    in_place: bool,
    target: &mut Target<'_>,
) {
    let mut segments = &prepared.segments[..];
    let skipped = segments.partition_point(|segment| segment.start + segment.len <= panel.start);
    segments = &segments[skipped..];
    let mut tile = [0.0; TILE + LINE];
    let mut position = panel.start;
    while position < panel.end {
        let vectors = match (block.width, (panel.end - position).div_ceil(S::F32_LANES)) {
            (12, left) => left.min(2),
            // Two and two keep more sums in flight than three and one.
            (8, 4) => 2,
            (8, left) => left.min(beside_eight::<S>()),
            (4, left) => match (beside_four::<S>(), left) {
                (5, 4) => 3,
                (most, left) => left.min(most),
            },
            (_, left) => match left {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            },
        };
        let done = vectors * S::F32_LANES;
        // Nothing may be read past planes in place: the last tile repeats positions instead.
        let start = if in_place { position.min(prepared.positions - done) } else { position };
        let terms = Terms { planes: &terms.planes[start..], ..terms };
        match (block.width, vectors) {
            (12, 1) => tile_sums::<S, RUN, 12, 6, 1>(simd, terms, &mut tile),
            (12, _) => tile_sums::<S, RUN, 12, 6, 2>(simd, terms, &mut tile),
            (8, 1) => tile_sums::<S, RUN, 8, 4, 1>(simd, terms, &mut tile),
            (8, 2) => tile_sums::<S, RUN, 8, 4, 2>(simd, terms, &mut tile),
            (8, _) => tile_sums::<S, RUN, 8, 4, 3>(simd, terms, &mut tile),
            (4, 1) => tile_sums::<S, RUN, 4, 2, 1>(simd, terms, &mut tile),
            (4, 2) => tile_sums::<S, RUN, 4, 2, 2>(simd, terms, &mut tile),
            (4, 3) => tile_sums::<S, RUN, 4, 2, 3>(simd, terms, &mut tile),
            (4, _) => tile_sums::<S, RUN, 4, 2, 5>(simd, terms, &mut tile),
            (_, 1) => tile_sums::<S, RUN, 1, 1, 1>(simd, terms, &mut tile),
            (_, 2) => tile_sums::<S, RUN, 1, 1, 2>(simd, terms, &mut tile),
            (_, _) => tile_sums::<S, RUN, 1, 1, 4>(simd, terms, &mut tile),
        }
        let end = (start + done).min(panel.end);
        while let Some(segment) = segments.first() {
            if segment.start >= end {
                break;
            }
            let (low, high) = (segment.start.max(start), (segment.start + segment.len).min(end));
            target.store(
                simd,
                &tile[low - start..],
                done,
                segment.at + (low - segment.start) * target.step,
                high - low,
            );
            if segment.start + segment.len > end {
                break;
            }
            segments = &segments[1..];
        }
        position = end;
    }
}

impl Target<'_> {
    /// `len` positions of every channel, whose values are `tile_pitch` apart.
    #[inline(always)]
    fn store<S: Simd>(&mut self, simd: S, tile: &[f32], tile_pitch: usize, at: usize, len: usize) {
        let [least, most] = self.bounds.map(|bound| simd.splat_f32s(bound));
        for channel in 0..self.channels {
            let from = &tile[channel * tile_pitch..];
            let to = &mut self.out[(self.first + channel) * self.pitch + at..];
            if self.step != 1 {
                for (to, from) in to.iter_mut().step_by(self.step).zip(&from[..len]) {
                    *to = from.max(self.bounds[0]).min(self.bounds[1]);
                }
                continue;
            }
            let (whole, rest) = S::as_mut_simd_f32s(&mut to[..len]);
            let (from, _) = S::as_simd_f32s(from);
            let mut from = from.iter();
            for (to, from) in whole.iter_mut().zip(&mut from) {
                *to = simd.min_f32s(most, simd.max_f32s(least, *from));
            }
            if let (false, Some(from)) = (rest.is_empty(), from.next()) {
                let value = simd.min_f32s(most, simd.max_f32s(least, *from));
                simd.partial_store_f32s(rest, value);
            }
        }
    }
}

/// `VECTORS` vectors of positions for `BLOCK` output channels, at once or in two halves.
#[inline(always)]
fn tile_sums<
    S: Simd,
    const RUN: usize,
    const BLOCK: usize,
    const HALF: usize,
    const VECTORS: usize,
>(
    simd: S,
    terms: Terms<'_>,
    tile: &mut [f32; TILE + LINE],
) {
    if fit::<S>(BLOCK, VECTORS) {
        return tile_sum::<S, RUN, BLOCK, BLOCK, VECTORS>(simd, terms, 0, tile);
    }
    tile_sum::<S, RUN, BLOCK, HALF, VECTORS>(simd, terms, 0, tile);
    tile_sum::<S, RUN, BLOCK, HALF, VECTORS>(simd, terms, HALF, tile);
}

#[expect(clippy::needless_range_loop, reason = "index loops unroll into registers")]
/// `VECTORS` vectors of positions for `ROWS` output channels, from `first` on, of a block.
#[inline(always)]
fn tile_sum<
    S: Simd,
    const RUN: usize,
    const BLOCK: usize,
    const ROWS: usize,
    const VECTORS: usize,
>(
    simd: S,
    terms: Terms<'_>,
    first: usize,
    tile: &mut [f32; TILE + LINE],
) {
    let Terms { planes, offsets, weights, bias } = terms;
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    if let Some(bias) = bias {
        for o in 0..ROWS {
            // Rows that fill a block up have no bias.
            sums[o] = [simd.splat_f32s(bias.get(first + o).copied().unwrap_or(0.0)); VECTORS];
        }
    }
    let (weights, _) = weights.as_chunks::<BLOCK>();
    let (runs, _) = weights.as_chunks::<RUN>();
    for (offset, weights) in offsets.iter().zip(runs) {
        // No panic in this loop: with one, the sums would live in memory instead of registers.
        let reach = RUN - 1 + VECTORS * S::F32_LANES;
        let Some(values) = planes.get(*offset..*offset + reach) else { break };
        for k in 0..RUN {
            let (values, _) = S::as_simd_f32s(&values[k..k + VECTORS * S::F32_LANES]);
            let Some(values) = values.first_chunk::<VECTORS>() else { break };
            let Some(weights) = rows::<BLOCK, ROWS>(&weights[k], first) else { break };
            for o in 0..ROWS {
                let weight = simd.splat_f32s(weights[o]);
                for i in 0..VECTORS {
                    sums[o][i] = simd.mul_add_e_f32s(weight, values[i], sums[o][i]);
                }
            }
        }
    }
    let (vectors, _) = S::as_mut_simd_f32s(tile);
    for o in 0..ROWS {
        for i in 0..VECTORS {
            vectors[(first + o) * VECTORS + i] = sums[o][i];
        }
    }
}

/// Positions that all blocks of channels take in turn; a multiple of every tile's.
const PANEL: usize = 480;

/// Largest tile: 8 channels x 3 vectors x 16 lanes, 12 x 2 x 16, 4 x 5 x 16.
const TILE: usize = 384;

/// The most lanes a vector has.
const LINE: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}
