//! Depthwise convolution as a sum of shifted planes, and its gradient for a stride of one.
//!
//! Each plane is copied behind zeros, several images of a channel side by side, and vectors run
//! along the positions:
//!
//! ```text
//! out[p] = bias + sum_k weight[k] * plane[offset[k] + p]
//! ```
//!
//! With a stride along the rows, rows of the same remainder lie together; with one along the
//! columns, positions between are computed and dropped. That and short rows waste vectors: for
//! rows of fewer than four there is [`crate::kernels::depthwise`], whose vectors run over channels.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::activation::Activation;
use crate::kernels::load::{Load, copy, every};
use crate::kernels::window::Window;

/// A fixed depthwise correlation of images of one size.
#[derive(Debug)]
pub(crate) struct Shifted {
    in_size: [usize; 2],
    out_size: [usize; 2],
    stride: [usize; 2],
    /// Zeros above and to the left.
    origin: [usize; 2],
    /// Values of a padded row.
    pitch: usize,
    /// Padded rows of one remainder.
    rows: usize,
    images_per_pass: usize,
    offsets: Vec<usize>,
    /// `[channel][tap]`
    weights: Vec<f32>,
}

// === impl Shifted ===

impl Shifted {
    /// `weights` is `[channel][tap]`; `None` for rows that are too short.
    pub(crate) fn forward(
        window: &Window,
        [in_size, out_size]: [[usize; 2]; 2],
        weights: &[f32],
    ) -> Option<Self> {
        let offsets = |axis: usize| -> Vec<usize> {
            (0..window.kernel[axis]).map(|k| k * window.dilation[axis]).collect()
        };
        let along = [offsets(0), offsets(1)];
        Self::new([in_size, out_size], window.stride, window.pad_begin, along, weights)
    }

    /// The gradient to the input: taps in the reverse order. `None` also for a stride above one
    /// and for more padding than the kernel reaches over.
    pub(crate) fn backward(
        window: &Window,
        [in_size, out_size]: [[usize; 2]; 2],
        weights: &[f32],
    ) -> Option<Self> {
        if window.stride != [1, 1] {
            return None;
        }
        let reach = [0, 1].map(|axis| (window.kernel[axis] - 1) * window.dilation[axis]);
        let origin = |axis: usize| reach[axis].checked_sub(window.pad_begin[axis]);
        let offsets = |axis: usize| -> Vec<usize> {
            (0..window.kernel[axis]).map(|k| reach[axis] - k * window.dilation[axis]).collect()
        };
        let (origin, along) = ([origin(0)?, origin(1)?], [offsets(0), offsets(1)]);
        Self::new([out_size, in_size], [1, 1], origin, along, weights)
    }

    /// `along` says how far behind its output each row and each column of the kernel reads.
    fn new(
        [in_size, out_size]: [[usize; 2]; 2],
        stride: [usize; 2],
        origin: [usize; 2],
        along: [Vec<usize>; 2],
        weights: &[f32],
    ) -> Option<Self> {
        if out_size[1] < LEAST_COLUMNS || stride[1] > 2 {
            return None;
        }
        let last = |axis: usize| (out_size[axis] - 1) * stride[axis];
        let reach = |axis: usize| last(axis) + along[axis].iter().copied().max().unwrap_or(0) + 1;
        // Zeros before a row also end the one before it, and likewise rows above an image if they
        // are not split by remainders.
        let extent = |axis: usize| {
            (origin[axis] + in_size[axis])
                .max(reach(axis).saturating_sub(origin[axis]))
                .max(last(axis) + 1)
        };
        let pitch = extent(1);
        let rows = match stride[0] {
            1 => extent(0),
            down => reach(0).div_ceil(down),
        };
        let images_per_pass = (POSITIONS_PER_PASS / (rows * pitch)).max(1);
        let remainder = images_per_pass * rows * pitch;
        let offsets = along[0]
            .iter()
            .flat_map(|down| along[1].iter().map(move |right| (down, right)))
            .map(|(down, right)| down % stride[0] * remainder + down / stride[0] * pitch + right)
            .collect();
        Some(Self {
            in_size,
            out_size,
            stride,
            origin,
            pitch,
            rows,
            images_per_pass,
            offsets,
            weights: weights.to_vec(),
        })
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
        SCRATCH.with_borrow_mut(|(planes, sums)| {
            let run = Run { plan: self, input, load, bias, activation, first, out, planes, sums };
            Arch::new().dispatch(run);
        });
    }

    /// Values of one padded plane.
    fn plane(&self) -> usize {
        self.rows * self.pitch
    }
}

struct Run<'a, L> {
    plan: &'a Shifted,
    input: &'a [f32],
    load: L,
    bias: Option<&'a [f32]>,
    activation: Activation,
    /// Channel that `out` begins with.
    first: usize,
    out: &'a mut [f32],
    /// `[remainder][image][row][pitch]`
    planes: &'a mut Vec<f32>,
    /// `[image][row][pitch]`
    sums: &'a mut Vec<f32>,
}

impl<L: Load> WithSimd for Run<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let plan = self.plan;
        let taps = plan.offsets.len();
        let channels = plan.weights.len() / taps;
        let images = self.input.len() / (channels * plan.in_size[0] * plan.in_size[1]);
        let outs = self.out.len() / (images.max(1) * plan.out_size[0] * plan.out_size[1]);
        let joined = plan.images_per_pass.min(images);
        let slack = plan.offsets.iter().copied().max().unwrap_or(0) + SLACK;
        self.planes.clear();
        self.planes.resize(plan.stride[0] * plan.images_per_pass * plan.plane() + slack, 0.0);
        self.sums.resize(plan.images_per_pass * plan.plane() + SLACK, 0.0);
        for first in (0..images).step_by(joined.max(1)) {
            let count = joined.min(images - first);
            let weights = plan.weights.chunks_exact(taps).enumerate();
            for (channel, weights) in weights.skip(self.first).take(outs) {
                self.fill(channel, channels, first, count);
                let start = self.bias.map_or(0.0, |bias| bias[channel]);
                let bounds = self.activation.bounds();
                let terms = Terms { offsets: &plan.offsets, weights, start, bounds };
                let positions = (count - 1) * plan.plane() + plan.out_size[0] * plan.pitch;
                let mut at = 0;
                while at < positions {
                    let (planes, sums) = (&self.planes[at..], &mut self.sums[at..]);
                    at += match (positions - at).div_ceil(S::F32_LANES) {
                        1 => terms.sum::<S, 1>(simd, planes, sums),
                        2 => terms.sum::<S, 2>(simd, planes, sums),
                        3 => terms.sum::<S, 3>(simd, planes, sums),
                        _ => terms.sum::<S, 4>(simd, planes, sums),
                    };
                }
                self.store(channel - self.first, outs, first, count);
            }
        }
    }
}

impl<L: Load> Run<'_, L> {
    /// Copies a channel of some images into the planes, whose zeros stay.
    #[inline(always)]
    fn fill(&mut self, channel: usize, channels: usize, first: usize, count: usize) {
        let plan = self.plan;
        let ([height, width], [top, left], down) = (plan.in_size, plan.origin, plan.stride[0]);
        let remainder = plan.images_per_pass * plan.plane();
        for image in 0..count {
            let from = &self.input[((first + image) * channels + channel) * height * width..];
            let from = from[..height * width].chunks_exact(width);
            for (y, from) in from.enumerate().take(plan.rows * down - top.min(plan.rows * down)) {
                let (part, row) = ((top + y) % down, (top + y) / down);
                let to = part * remainder + image * plan.plane() + row * plan.pitch + left;
                self.load.row(channel, from, &mut self.planes[to..][..width]);
            }
        }
    }

    #[inline(always)]
    fn store(&mut self, channel: usize, channels: usize, first: usize, count: usize) {
        let plan = self.plan;
        let [height, width] = plan.out_size;
        for image in 0..count {
            let to = &mut self.out[((first + image) * channels + channel) * height * width..];
            let from = self.sums[image * plan.plane()..].chunks(plan.pitch);
            for (from, to) in from.zip(to.chunks_exact_mut(width).take(height)) {
                match plan.stride[1] {
                    1 => copy(&from[..width], to),
                    step => every(step, &from[..(width - 1) * step + 1], to),
                }
            }
        }
    }
}

/// The terms of the sums of one channel.
struct Terms<'a> {
    offsets: &'a [usize],
    weights: &'a [f32],
    start: f32,
    bounds: [f32; 2],
}

impl Terms<'_> {
    /// `VECTORS` vectors of positions; returns how many positions that is.
    #[inline(always)]
    fn sum<S: Simd, const VECTORS: usize>(
        &self,
        simd: S,
        planes: &[f32],
        sums: &mut [f32],
    ) -> usize {
        let mut totals = [simd.splat_f32s(self.start); VECTORS];
        for (offset, weight) in self.offsets.iter().zip(self.weights) {
            // No panic in this loop: with one, the sums would live in memory instead of registers.
            let Some(values) = planes.get(*offset..*offset + VECTORS * S::F32_LANES) else { break };
            let (values, _) = S::as_simd_f32s(values);
            let Some(values) = values.first_chunk::<VECTORS>() else { break };
            let weight = simd.splat_f32s(*weight);
            for i in 0..VECTORS {
                totals[i] = simd.mul_add_e_f32s(weight, values[i], totals[i]);
            }
        }
        let [least, most] = self.bounds.map(|bound| simd.splat_f32s(bound));
        let (sums, _) = S::as_mut_simd_f32s(sums);
        if let Some(sums) = sums.first_chunk_mut::<VECTORS>() {
            for i in 0..VECTORS {
                sums[i] = simd.min_f32s(most, simd.max_f32s(least, totals[i]));
            }
        }
        VECTORS * S::F32_LANES
    }
}

/// Shorter rows leave most of a vector to zeros.
const LEAST_COLUMNS: usize = 4;

/// Planes and sums of a pass, 8 KiB each, stay in the L1 cache.
const POSITIONS_PER_PASS: usize = 2048;

/// Vectors may reach past the last position: four of 16 lanes.
const SLACK: usize = 64;

thread_local! {
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}
