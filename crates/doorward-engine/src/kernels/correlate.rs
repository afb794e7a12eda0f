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

use crate::kernels::load::{Load, every};

/// A fixed correlation of images of one size, weights packed.
#[derive(Debug)]
pub(crate) struct Correlation {
    pub(super) geometry: Geometry,
    pub(super) passes: Vec<Pass>,
    /// Size of one padded plane (one channel, one phase, one image).
    plane_rows: usize,
    pub(super) pitch: usize,
    /// Values that reads may go past the last plane.
    slack: usize,
    /// Images that share one pass; small planes are joined so that vectors stay full.
    pub(super) images_per_pass: usize,
}

/// Sizes that the caller knows.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) groups: usize,
    /// Channels of the input over all groups.
    pub(crate) in_channels: usize,
    /// Channels of the output over all groups.
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
pub(super) struct Pass {
    pub(super) phase: Phase,
    /// `[group][block][channel][tap][block width]`.
    pub(super) weights: Vec<f32>,
    /// Phase index, row and column that each tap starts at.
    pub(super) starts: Vec<(usize, usize, usize)>,
    pub(super) blocks: Vec<Block>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) width: usize,
    pub(super) first: usize,
    pub(super) channels: usize,
}

// === impl Correlation ===

impl Correlation {
    /// `weight(group, out, in, ky, kx)` with channels counted within the group.
    pub(crate) fn new(
        geometry: Geometry,
        mut phases: Vec<Phase>,
        weight: &dyn Fn(usize, usize, usize, [usize; 2]) -> f32,
    ) -> Self {
        let stride = geometry.in_stride;
        for phase in &mut phases {
            phase.drop_taps_outside(&geometry);
            // In the order of the planes: taps side by side are taken in one run.
            phase.taps.sort_by_key(|tap| tap.at);
        }
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
        let mut plan = Self { geometry, passes, plane_rows, pitch, slack, images_per_pass };
        if plan.reads_in_place() {
            plan.images_per_pass = 1;
        }
        plan
    }

    /// Values of one image of the input.
    pub(crate) fn in_len(&self) -> usize {
        self.geometry.in_channels * self.geometry.in_size.iter().product::<usize>()
    }

    /// The least number of output channels that can be computed without the others; so can its
    /// multiples.
    pub(crate) fn unit(&self) -> usize {
        match self.geometry.groups {
            1 => self
                .passes
                .first()
                .and_then(|pass| pass.blocks.first())
                .map_or(1, |block| block.width),
            groups => self.geometry.out_channels / groups,
        }
    }

    /// True if the input's own planes are what [`Correlation::fill`] would copy: 1x1 kernels.
    /// Small planes are copied nonetheless, to be joined.
    pub(super) fn reads_in_place(&self) -> bool {
        let Geometry { in_size, out_size, in_stride, out_stride, origin, .. } = self.geometry;
        in_size == out_size
            && in_stride == [1, 1]
            && out_stride == [1, 1]
            && origin == [0, 0]
            && self.pitch == in_size[1]
            && self.passes.iter().all(|pass| pass.starts == [(0, 0, 0)])
            && self.plane() >= LEAST_IN_PLACE
    }

    pub(super) fn plane(&self) -> usize {
        self.plane_rows * self.pitch
    }

    /// Copies one group's channels into zero-padded planes `[channel][phase][image][row][pitch]`.
    #[inline(always)]
    pub(super) fn fill<L: Load>(
        &self,
        input: &[f32],
        images: usize,
        group: usize,
        load: &L,
        planes: &mut Vec<f32>,
    ) {
        let Geometry { in_size: [height, width], in_stride: [sy, sx], origin, .. } = self.geometry;
        let channels = self.geometry.in_channels / self.geometry.groups;
        let phases = sy * sx;
        let plane = self.plane();
        let filled = channels * phases * images * plane;
        if planes.len() < filled + self.slack {
            planes.resize(filled + self.slack, 0.0);
        }
        planes[filled..][..self.slack].fill(0.0);
        let read: Vec<bool> = (0..phases)
            .map(|phase| {
                self.passes.iter().any(|pass| pass.starts.iter().any(|&(own, ..)| own == phase))
            })
            .collect();
        let skip = origin[1].max(0) as usize;
        let drop = (-origin[1]).max(0) as usize;
        // One row of the input behind its zeros, before it is split into phases.
        let mut padded = vec![0.0; if sx == 1 { 0 } else { (self.pitch * sx).max(skip + width) }];
        for channel in 0..channels {
            let absolute = group * channels + channel;
            for image in 0..images {
                let source = &input
                    [(image * self.geometry.in_channels + absolute) * height * width..]
                    [..height * width];
                for a in 0..sy {
                    let plane_of =
                        |b: usize| ((channel * phases + a * sx + b) * images + image) * plane;
                    // Phases that are not read as well: their first zeros end the plane before.
                    for b in 0..sx {
                        planes[plane_of(b)..][..plane].fill(0.0);
                    }
                    if !read[a * sx..][..sx].contains(&true) {
                        continue;
                    }
                    for i in 0..self.plane_rows {
                        let Some(y) = (i * sy + a).checked_add_signed(-origin[0]) else {
                            continue;
                        };
                        if y >= height || drop >= width {
                            break;
                        }
                        let from = &source[y * width..][drop..width];
                        if sx == 1 {
                            let to = &mut planes[plane_of(0) + i * self.pitch..][..self.pitch];
                            if skip < to.len() {
                                load.row(absolute, from, &mut to[skip..]);
                            }
                            continue;
                        }
                        load.row(absolute, from, &mut padded[skip..]);
                        for b in 0..sx {
                            if read[a * sx + b] {
                                let to = &mut planes[plane_of(b) + i * self.pitch..][..self.pitch];
                                every(sx, &padded[b..], to);
                            }
                        }
                    }
                }
            }
        }
    }
}

// === impl Phase ===

impl Phase {
    /// Taps that read zeros for every output, as most do on images of few pixels; where all do,
    /// they stay, so that outputs have their bias.
    fn drop_taps_outside(&mut self, geometry: &Geometry) {
        let count = self.count;
        let inside = |axis: usize, at: usize| {
            let size = geometry.in_size[axis] as isize;
            (0..count[axis])
                .map(|i| (i * geometry.in_stride[axis] + at) as isize - geometry.origin[axis])
                .any(|position| (0..size).contains(&position))
        };
        if self.taps.iter().any(|tap| inside(0, tap.at[0]) && inside(1, tap.at[1])) {
            self.taps.retain(|tap| inside(0, tap.at[0]) && inside(1, tap.at[1]));
        }
    }
}

// === impl Pass ===

impl Pass {
    pub(super) fn is_empty(&self) -> bool {
        self.phase.taps.is_empty() || self.phase.count.contains(&0)
    }
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

/// Vectors may be read past the last position: 5 vectors of 16 lanes.
const MAX_VECTORS: usize = 80;

/// Least positions of a plane that is read where it is: a tile of five vectors fits in.
const LEAST_IN_PLACE: usize = 128;

/// Planes are joined until they have about this many positions.
const POSITIONS_PER_PASS: usize = 256;
