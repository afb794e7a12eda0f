//! Convolution with one channel a group, and its gradient.
//!
//! Vectors run over channels: 16 planes are transposed to `[pixel][channel]`, where every output is
//! the sum of a few whole vectors whatever the size of the image, the stride and the padding. The
//! planes of networks for small images have 4x4 pixels and less: vectors along a row stay empty.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::activation::Activation;
use crate::kernels::load::Load;
use crate::kernels::window::Window;

/// One direction of a depthwise convolution of images of one size.
#[derive(Debug)]
pub(crate) struct Depthwise {
    channels: usize,
    in_plane: usize,
    /// `[block of channels][tap][channel]`.
    weights: Vec<f32>,
    taps: usize,
    /// The reads of each output pixel: a position in the weights of a block, and an input pixel.
    reads: Vec<(usize, usize)>,
    /// Ends of the reads of each output pixel.
    ends: Vec<usize>,
}

// === impl Depthwise ===

impl Depthwise {
    /// `weights` is `[channel][tap]`.
    pub(crate) fn forward(
        window: &Window,
        in_size: [usize; 2],
        out_size: [usize; 2],
        weights: &[f32],
    ) -> Self {
        Self::new(window, [in_size, out_size], weights, |out, reads| {
            reads[out.1].push((out.0, out.2))
        })
    }

    /// The gradient to the input: outputs read what read them.
    pub(crate) fn backward(
        window: &Window,
        in_size: [usize; 2],
        out_size: [usize; 2],
        weights: &[f32],
    ) -> Self {
        let mut built = Self::new(window, [in_size, out_size], weights, |out, reads| {
            reads[out.2].push((out.0, out.1));
        });
        built.in_plane = out_size.iter().product();
        built
    }

    /// `note` is given the tap, the output and the input pixel of each product.
    fn new(
        window: &Window,
        [in_size, out_size]: [[usize; 2]; 2],
        weights: &[f32],
        note: impl Fn((usize, usize, usize), &mut Vec<Vec<(usize, usize)>>),
    ) -> Self {
        let taps: usize = window.kernel.iter().product();
        let pixels = |size: [usize; 2]| size[0] * size[1];
        let mut reads = vec![Vec::new(); pixels(in_size).max(pixels(out_size))];
        for out in 0..pixels(out_size) {
            for tap in 0..taps {
                let along = |axis: usize, out: usize, tap: usize| {
                    let at = out * window.stride[axis] + tap * window.dilation[axis];
                    at.checked_sub(window.pad_begin[axis]).filter(|&at| at < in_size[axis])
                };
                let row = along(0, out / out_size[1], tap / window.kernel[1]);
                let column = along(1, out % out_size[1], tap % window.kernel[1]);
                if let (Some(row), Some(column)) = (row, column) {
                    note((tap * LANES, out, row * in_size[1] + column), &mut reads);
                }
            }
        }
        let channels = weights.len() / taps;
        let mut packed = vec![0.0; channels.div_ceil(LANES) * taps * LANES];
        for (channel, weights) in weights.chunks_exact(taps).enumerate() {
            for (tap, weight) in weights.iter().enumerate() {
                packed[(channel / LANES * taps + tap) * LANES + channel % LANES] = *weight;
            }
        }
        let ends = reads
            .iter()
            .scan(0, |end, reads| {
                *end += reads.len();
                Some(*end)
            })
            .collect();
        let reads = reads.concat();
        Self { channels, in_plane: pixels(in_size), weights: packed, taps, reads, ends }
    }

    /// Writes all of `out`, NCHW, from `input`, NCHW; see
    /// [`Correlation::run`][crate::kernels::correlate::Correlation::run].
    pub(crate) fn run<L: Load>(
        &self,
        input: &[f32],
        load: L,
        bias: Option<&[f32]>,
        activation: Activation,
        out: &mut [f32],
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            Arch::new().dispatch(Run { plan: self, input, load, bias, activation, out, scratch });
        });
    }
}

#[derive(Default)]
struct Scratch {
    /// `[input pixel][channel]`
    input: Vec<f32>,
    /// `[output pixel][channel]`
    out: Vec<f32>,
    row: Vec<f32>,
}

struct Run<'a, L> {
    plan: &'a Depthwise,
    input: &'a [f32],
    load: L,
    bias: Option<&'a [f32]>,
    activation: Activation,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl<L: Load> WithSimd for Run<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { plan, input, load, bias, activation, out, scratch } = self;
        let Depthwise { channels, in_plane, taps, .. } = *plan;
        let images = input.len() / (channels * in_plane);
        let out_plane = out.len() / (channels * images);
        let [least, most] = activation.bounds().map(|bound| simd.splat_f32s(bound));
        scratch.input.resize(in_plane * LANES, 0.0);
        scratch.out.resize(out_plane * LANES, 0.0);
        scratch.row.resize(in_plane, 0.0);
        for first in (0..channels).step_by(LANES) {
            let count = LANES.min(channels - first);
            let weights = &plan.weights[first * taps..][..LANES * taps];
            let mut start = [0.0; LANES];
            if let Some(bias) = bias {
                start[..count].copy_from_slice(&bias[first..first + count]);
            }
            for image in 0..images {
                let block = image * channels + first;
                let planes = input[block * in_plane..][..count * in_plane].chunks_exact(in_plane);
                for (c, mut plane) in planes.enumerate() {
                    if !L::PLAIN {
                        load.row(first + c, plane, &mut scratch.row);
                        plane = &scratch.row[..in_plane];
                    }
                    for (to, from) in scratch.input.as_chunks_mut::<LANES>().0.iter_mut().zip(plane)
                    {
                        to[c] = *from;
                    }
                }
                let mut reads = 0;
                for (end, to) in
                    plan.ends.iter().zip(scratch.out.as_chunks_mut::<LANES>().0.iter_mut())
                {
                    let reads_of = &plan.reads[reads..*end];
                    reads = *end;
                    for lane in (0..LANES).step_by(S::F32_LANES) {
                        let mut sum = vector::<S>(&start, lane);
                        for &(weight, pixel) in reads_of {
                            let value = vector::<S>(&scratch.input, pixel * LANES + lane);
                            sum = simd.mul_add_e_f32s(
                                vector::<S>(weights, weight + lane),
                                value,
                                sum,
                            );
                        }
                        let (to, _) = S::as_mut_simd_f32s(&mut to[lane..][..S::F32_LANES]);
                        to[0] = simd.min_f32s(most, simd.max_f32s(least, sum));
                    }
                }
                let planes =
                    out[block * out_plane..][..count * out_plane].chunks_exact_mut(out_plane);
                for (c, plane) in planes.enumerate() {
                    for (from, to) in scratch.out.as_chunks::<LANES>().0.iter().zip(plane) {
                        *to = from[c];
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn vector<S: Simd>(values: &[f32], at: usize) -> S::f32s {
    let (vectors, _) = S::as_simd_f32s(&values[at..at + S::F32_LANES]);
    vectors[0]
}

/// Channels of a block: the lanes of the widest vector.
const LANES: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}
