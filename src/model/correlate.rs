//! The one arithmetic kernel behind convolutions and their gradients on the CPU.
//!
//! Both are sums of shifted planes. The input is copied once into zero-padded planes, one per
//! channel (and per phase, for a stride above one), all images of a pass side by side:
//!
//! ```text
//! out[o][p] = bias[o] + sum_k weight[o][k] * planes[offset[k] + p]
//! ```
//!
//! where `k` runs over channels and kernel taps and `p` over positions of the padded plane, so
//! that every load is contiguous and nothing is gathered (no im2col matrix). Blocks of output
//! channels stay in registers over the whole sum. Positions that fall into the padding are
//! computed and dropped: with 3x3 kernels on 28 columns, 2 of 30.
//!
//! - Convolution: the input is split into `stride x stride` phases, one pass writes the output.
//! - Gradient to the input: one pass per phase of the result, taps flipped, channels swapped.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Identity,
    Relu,
}

/// A fixed correlation of images of one size, weights packed.
#[derive(Debug)]
pub(crate) struct Correlation {
    geometry: Geometry,
    passes: Vec<Pass>,
    /// Size of one padded plane (one channel, one phase, one image).
    plane_rows: usize,
    pitch: usize,
    /// Values that reads may go past the last plane.
    slack: usize,
    /// Images that share one pass; small planes are joined so that vectors stay full.
    images_per_pass: usize,
}

/// Sizes that the caller knows.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) groups: usize,
    /// Over all groups.
    pub(crate) in_channels: usize,
    /// Over all groups.
    pub(crate) out_channels: usize,
    pub(crate) in_size: [usize; 2],
    pub(crate) out_size: [usize; 2],
    /// Phases of the input along each axis.
    pub(crate) in_stride: [usize; 2],
    /// Phases of the output along each axis.
    pub(crate) out_stride: [usize; 2],
    /// Zeros above and to the left of the input; negative drops rows or columns.
    pub(crate) origin: [isize; 2],
}

/// The outputs of one phase: rows `first + i * out_stride`.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub(crate) first: [usize; 2],
    pub(crate) count: [usize; 2],
    pub(crate) taps: Vec<Tap>,
}

/// One kernel element: where it reads, in padded input coordinates relative to the output's
/// index within its phase times `in_stride`, and which kernel element it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tap {
    pub(crate) at: [usize; 2],
    pub(crate) kernel: [usize; 2],
}

#[derive(Debug)]
struct Pass {
    phase: Phase,
    /// `[group][block][channel][tap][block width]`.
    weights: Vec<f32>,
    /// Phase index, row and column that each tap starts at.
    starts: Vec<(usize, usize, usize)>,
    blocks: Vec<Block>,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    width: usize,
    first: usize,
    channels: usize,
}

// === impl Correlation ===

impl Correlation {
    /// `weight(group, out, in, ky, kx)` with channels counted within the group.
    pub(crate) fn new(
        geometry: Geometry,
        phases: Vec<Phase>,
        weight: &dyn Fn(usize, usize, usize, [usize; 2]) -> f32,
    ) -> Self {
        let stride = geometry.in_stride;
        let reach = |axis: usize| {
            let furthest = phases
                .iter()
                .flat_map(|phase| {
                    phase
                        .taps
                        .iter()
                        .map(move |tap| tap.at[axis] / stride[axis] + phase.count[axis].max(1) - 1)
                })
                .max();
            furthest.map_or(1, |last| last + 1)
        };
        let reach = [reach(0), reach(1)];
        // Zeros behind a row serve as the zeros before the next, and so do rows between images: a
        // read past the end of either must meet no more than those.
        // Every output needs a position of its own: with more padding than the kernel reaches over,
        // there are more outputs in a row than the rest asks for.
        let extent = |axis: usize| {
            let zeros = geometry.origin[axis].max(0) as usize;
            let outputs = phases.iter().map(|phase| phase.count[axis]).max().unwrap_or(1);
            match stride[axis] {
                1 => (zeros + geometry.in_size[axis])
                    .max(reach[axis].saturating_sub(zeros))
                    .max(outputs),
                _ => reach[axis],
            }
        };
        let (plane_rows, pitch) = (extent(0).min(reach[0]), extent(1).min(reach[1]));
        let (ins, outs) =
            (geometry.in_channels / geometry.groups, geometry.out_channels / geometry.groups);
        let blocks = blocks(outs);
        let passes = phases
            .into_iter()
            .map(|phase| {
                let mut weights = Vec::new();
                for group in 0..geometry.groups {
                    for block in &blocks {
                        for channel in 0..ins {
                            for tap in &phase.taps {
                                weights.extend((0..block.width).map(|o| {
                                    if o < block.channels {
                                        weight(group, block.first + o, channel, tap.kernel)
                                    } else {
                                        0.0
                                    }
                                }));
                            }
                        }
                    }
                }
                let starts = phase
                    .taps
                    .iter()
                    .map(|tap| {
                        let phase_index =
                            (tap.at[0] % stride[0]) * stride[1] + tap.at[1] % stride[1];
                        (phase_index, tap.at[0] / stride[0], tap.at[1] / stride[1])
                    })
                    .collect();
                Pass { phase, weights, starts, blocks: blocks.clone() }
            })
            .collect();
        let images_per_pass = POSITIONS_PER_PASS.div_ceil(plane_rows * pitch);
        let slack = (reach[0] - plane_rows) * pitch + reach[1] - pitch + MAX_VECTORS;
        Self { geometry, passes, plane_rows, pitch, slack, images_per_pass }
    }

    /// Values of one image of the input.
    pub(crate) fn in_len(&self) -> usize {
        self.geometry.in_channels * self.geometry.in_size.iter().product::<usize>()
    }

    /// Values of one image of the output.
    pub(crate) fn out_len(&self) -> usize {
        self.geometry.out_channels * self.geometry.out_size.iter().product::<usize>()
    }

    /// Writes all of `out`, NCHW, from `input`, NCHW.
    ///
    /// `load` turns a value of an input channel into what is correlated; it sees no padding.
    pub(crate) fn run<L: Load>(
        &self,
        input: &[f32],
        load: L,
        bias: Option<&[f32]>,
        activation: Activation,
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
        let pairs = input
            .chunks(self.in_len() * self.images_per_pass)
            .zip(out.chunks_mut(self.out_len() * self.images_per_pass));
        SCRATCH.with_borrow_mut(|scratch| {
            for (input, out) in pairs {
                let images = input.len() / self.in_len();
                for group in 0..self.geometry.groups {
                    self.fill(input, images, group, &load, scratch);
                    for pass in self.passes.iter().filter(|pass| !pass.is_empty()) {
                        Arch::new().dispatch(Run {
                            correlation: self,
                            pass,
                            group,
                            images,
                            planes: scratch,
                            bias,
                            activation,
                            out,
                        });
                    }
                }
            }
        });
    }

    fn plane(&self) -> usize {
        self.plane_rows * self.pitch
    }

    /// Copies one group's channels into zero-padded planes `[channel][phase][image][row][pitch]`.
    fn fill<L: Load>(
        &self,
        input: &[f32],
        images: usize,
        group: usize,
        load: &L,
        scratch: &mut Vec<f32>,
    ) {
        let Geometry { in_size: [height, width], in_stride: [sy, sx], origin, .. } = self.geometry;
        let channels = self.geometry.in_channels / self.geometry.groups;
        let phases = sy * sx;
        let plane = self.plane();
        scratch.clear();
        scratch.resize(channels * phases * images * plane + self.slack, 0.0);
        for channel in 0..channels {
            let absolute = group * channels + channel;
            for image in 0..images {
                let source = &input
                    [(image * self.geometry.in_channels + absolute) * height * width..]
                    [..height * width];
                for phase in 0..phases {
                    let (a, b) = (phase / sx, phase % sx);
                    let target = &mut scratch
                        [((channel * phases + phase) * images + image) * plane..][..plane];
                    for (i, row) in target.chunks_exact_mut(self.pitch).enumerate() {
                        let Some(y) = (i * sy + a).checked_add_signed(-origin[0]) else {
                            continue;
                        };
                        if y >= height {
                            break;
                        }
                        let source = &source[y * width..][..width];
                        if sx == 1 {
                            let skip = origin[1].max(0) as usize;
                            let drop = (-origin[1]).max(0) as usize;
                            if skip < row.len() && drop < width {
                                load.row(absolute, &source[drop..], &mut row[skip..]);
                            }
                            continue;
                        }
                        for (j, value) in row.iter_mut().enumerate() {
                            let Some(x) = (j * sx + b).checked_add_signed(-origin[1]) else {
                                continue;
                            };
                            if x >= width {
                                break;
                            }
                            load.row(absolute, &source[x..=x], std::slice::from_mut(value));
                        }
                    }
                }
            }
        }
    }
}

// === impl Pass ===

impl Pass {
    fn is_empty(&self) -> bool {
        self.phase.taps.is_empty() || self.phase.count.contains(&0)
    }
}

/// How input values enter the planes; copies as many values as both slices have.
pub(crate) trait Load {
    fn row(&self, channel: usize, from: &[f32], to: &mut [f32]);
}

/// As they are.
pub(crate) struct Plain;

impl Load for Plain {
    fn row(&self, _channel: usize, from: &[f32], to: &mut [f32]) {
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
    }
}

/// Scaled, shifted and, for `Relu`, cut at zero, per channel.
pub(crate) struct Affine<'a> {
    pub(crate) scale: &'a [f32],
    pub(crate) shift: &'a [f32],
    pub(crate) activation: Activation,
}

impl Load for Affine<'_> {
    fn row(&self, channel: usize, from: &[f32], to: &mut [f32]) {
        let (scale, shift) = (self.scale[channel], self.shift[channel]);
        match self.activation {
            Activation::Identity => {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = from * scale + shift;
                }
            }
            Activation::Relu => {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = (from * scale + shift).max(0.0);
                }
            }
        }
    }
}

struct Run<'a> {
    correlation: &'a Correlation,
    pass: &'a Pass,
    group: usize,
    images: usize,
    planes: &'a [f32],
    bias: Option<&'a [f32]>,
    activation: Activation,
    out: &'a mut [f32],
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let c = self.correlation;
        let geometry = &c.geometry;
        let channels = geometry.in_channels / geometry.groups;
        let outs = geometry.out_channels / geometry.groups;
        let phases = geometry.in_stride[0] * geometry.in_stride[1];
        let plane_of_images = self.images * c.plane();
        let offsets: Vec<usize> = (0..channels)
            .flat_map(|channel| {
                self.pass.starts.iter().map(move |&(phase, row, column)| {
                    (channel * phases + phase) * plane_of_images + row * c.pitch + column
                })
            })
            .collect();
        let [rows, columns] = self.pass.phase.count;
        let positions = (self.images - 1) * c.plane() + (rows - 1) * c.pitch + columns;
        let per_block = offsets.len();
        let group_weights = per_block * self.pass.blocks.iter().map(|b| b.width).sum::<usize>();
        let mut weights = &self.pass.weights[self.group * group_weights..];
        for block in &self.pass.blocks {
            let (own, rest) = weights.split_at(per_block * block.width);
            weights = rest;
            let first = self.group * outs + block.first;
            let bias = self.bias.map(|bias| &bias[first..first + block.channels]);
            let mut position = 0;
            while position < positions {
                let vectors = (positions - position).div_ceil(S::F32_LANES);
                let mut tile = [0.0; TILE];
                let planes = &self.planes[position..];
                let done = match (block.width, vectors) {
                    (12, 1) => tile_sum::<S, 12, 1>(simd, planes, &offsets, own, bias, &mut tile),
                    (12, _) => tile_sum::<S, 12, 2>(simd, planes, &offsets, own, bias, &mut tile),
                    (8, 1) => tile_sum::<S, 8, 1>(simd, planes, &offsets, own, bias, &mut tile),
                    (8, 2) => tile_sum::<S, 8, 2>(simd, planes, &offsets, own, bias, &mut tile),
                    (8, _) => tile_sum::<S, 8, 3>(simd, planes, &offsets, own, bias, &mut tile),
                    (4, 1) => tile_sum::<S, 4, 1>(simd, planes, &offsets, own, bias, &mut tile),
                    (4, 2) => tile_sum::<S, 4, 2>(simd, planes, &offsets, own, bias, &mut tile),
                    (4, 3) => tile_sum::<S, 4, 3>(simd, planes, &offsets, own, bias, &mut tile),
                    (4, _) => tile_sum::<S, 4, 5>(simd, planes, &offsets, own, bias, &mut tile),
                    (_, 1) => tile_sum::<S, 1, 1>(simd, planes, &offsets, own, bias, &mut tile),
                    (_, 2 | 3) => tile_sum::<S, 1, 2>(simd, planes, &offsets, own, bias, &mut tile),
                    (_, _) => tile_sum::<S, 1, 4>(simd, planes, &offsets, own, bias, &mut tile),
                };
                self.store(block, first, position, done.min(positions - position), done, &tile);
                position += done;
            }
        }
    }
}

impl Run<'_> {
    /// Copies the positions `[start, start + len)` that are outputs from a tile of `pitch` values
    /// a channel.
    #[inline(always)]
    fn store(
        &mut self,
        block: &Block,
        first: usize,
        start: usize,
        len: usize,
        pitch: usize,
        tile: &[f32; TILE],
    ) {
        let c = self.correlation;
        let [rows, columns] = self.pass.phase.count;
        let [out_height, out_width] = c.geometry.out_size;
        let [sy, sx] = c.geometry.out_stride;
        let [y0, x0] = self.pass.phase.first;
        let end = start + len;
        let mut position = start;
        while position < end {
            let (image, within) = (position / c.plane(), position % c.plane());
            let (row, column) = (within / c.pitch, within % c.pitch);
            let next = position - column + c.pitch;
            if row < rows && column < columns {
                let count = (columns - column).min(end - position);
                for channel in 0..block.channels {
                    let from = &tile[channel * pitch + position - start..][..count];
                    let at = ((image * c.geometry.out_channels + first + channel) * out_height
                        + y0
                        + row * sy)
                        * out_width
                        + x0
                        + column * sx;
                    match (sx, self.activation) {
                        (1, Activation::Identity) => {
                            self.out[at..at + count].copy_from_slice(from);
                        }
                        (1, Activation::Relu) => {
                            for (to, from) in self.out[at..at + count].iter_mut().zip(from) {
                                *to = from.max(0.0);
                            }
                        }
                        (_, activation) => {
                            for (to, from) in self.out[at..].iter_mut().step_by(sx).zip(from) {
                                *to = match activation {
                                    Activation::Identity => *from,
                                    Activation::Relu => from.max(0.0),
                                };
                            }
                        }
                    }
                }
            }
            position = next;
        }
    }
}

#[expect(clippy::needless_range_loop, reason = "index loops unroll into registers")]
/// `VECTORS` vectors of positions for `BLOCK` output channels; returns the positions per channel.
#[inline(always)]
fn tile_sum<S: Simd, const BLOCK: usize, const VECTORS: usize>(
    simd: S,
    planes: &[f32],
    offsets: &[usize],
    weights: &[f32],
    bias: Option<&[f32]>,
    tile: &mut [f32; TILE],
) -> usize {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; BLOCK];
    if let Some(bias) = bias {
        for o in 0..BLOCK {
            // Rows that fill a block up have no bias.
            sums[o] = [simd.splat_f32s(bias.get(o).copied().unwrap_or(0.0)); VECTORS];
        }
    }
    let (weights, _) = weights.as_chunks::<BLOCK>();
    for (offset, weights) in offsets.iter().zip(weights) {
        // No panic in this loop: with one, the sums would live in memory instead of registers.
        let Some(values) = planes.get(*offset..*offset + VECTORS * S::F32_LANES) else { break };
        let (values, _) = S::as_simd_f32s(values);
        let Some(values) = values.first_chunk::<VECTORS>() else { break };
        for o in 0..BLOCK {
            let weight = simd.splat_f32s(weights[o]);
            for i in 0..VECTORS {
                sums[o][i] = simd.mul_add_e_f32s(weight, values[i], sums[o][i]);
            }
        }
    }
    let (vectors, _) = S::as_mut_simd_f32s(tile);
    for o in 0..BLOCK {
        for i in 0..VECTORS {
            vectors[o * VECTORS + i] = sums[o][i];
        }
    }
    VECTORS * S::F32_LANES
}

/// Splits output channels into blocks of the width that pads least; wider wins a tie.
fn blocks(channels: usize) -> Vec<Block> {
    let padded = |width: usize| channels.div_ceil(width) * width;
    // Twelve rows of two vectors and eight of three both fill 24 of the 32 AVX-512 registers.
    let width =
        [12, 8, 4, 1].into_iter().min_by_key(|&width| padded(width) * cost(width)).unwrap_or(1);
    (0..channels.div_ceil(width))
        .map(|index| {
            let first = index * width;
            Block { width, first, channels: width.min(channels - first) }
        })
        .collect()
}

/// Relative time of one output channel in a block of this width: narrow blocks load more.
const fn cost(width: usize) -> usize {
    match width {
        12 | 8 => 10,
        4 => 14,
        _ => 30,
    }
}

/// Largest tile: 8 channels x 3 vectors x 16 lanes, 12 x 2 x 16, 4 x 5 x 16.
const TILE: usize = 384;

/// Vectors may be read past the last position: 5 vectors of 16 lanes.
const MAX_VECTORS: usize = 80;

/// Planes are joined until they have about this many positions.
const POSITIONS_PER_PASS: usize = 256;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}
