//! The kernel that computes a convolution or its gradient on the CPU, and its plan.

use crate::kernels::activation::Activation;
use crate::kernels::correlate::{Correlation, Geometry, Phase, Tap};
use crate::kernels::depthwise::Depthwise;
use crate::kernels::load::Load;
use crate::kernels::matrix::Matrix;
use crate::kernels::pointwise::{Pointwise, ROWS};
use crate::kernels::shifted::Shifted;
use crate::kernels::window::ConvShape;
use crate::kernels::winograd::{Sizes, Winograd};

/// The kernel that computes one direction on the CPU.
#[derive(Debug)]
pub(crate) enum Plan {
    Depthwise(Depthwise),
    Direct(Correlation),
    /// Images of one pixel: rows of channels.
    Matrix(Matrix),
    Pointwise(Pointwise),
    Shifted(Shifted),
    Winograd(Winograd),
}

// === impl Plan ===

impl Plan {
    /// The least number of output channels that can be computed without the others; so can its
    /// multiples. `None` where it is always all.
    pub(crate) fn unit(&self) -> Option<usize> {
        match self {
            Self::Depthwise(_) | Self::Matrix(_) => None,
            Self::Direct(plan) => Some(plan.unit()),
            Self::Pointwise(_) => Some(ROWS),
            Self::Shifted(_) => Some(1),
            Self::Winograd(plan) => Some(plan.unit()),
        }
    }

    /// Writes all of `out`: of every image as many output channels, from `first` on, as its length
    /// says.
    pub(crate) fn run<L: Load>(
        &self,
        input: &[f32],
        load: L,
        bias: Option<&[f32]>,
        activation: Activation,
        first: usize,
        out: &mut [f32],
    ) {
        match self {
            Self::Depthwise(plan) => plan.run(input, load, bias, activation, out),
            Self::Direct(plan) => plan.run(input, load, bias, activation, first, out),
            Self::Matrix(matrix) if L::PLAIN => matrix.apply(input, bias, activation, out),
            Self::Matrix(matrix) => {
                let channels = matrix.rows();
                let mut loaded = vec![0.0; input.len()];
                for (row, to) in input.chunks_exact(channels).zip(loaded.chunks_exact_mut(channels))
                {
                    for channel in 0..channels {
                        load.row(channel, &row[channel..=channel], &mut to[channel..=channel]);
                    }
                }
                matrix.apply(&loaded, bias, activation, out);
            }
            Self::Pointwise(plan) => plan.run(input, load, bias, activation, first, out),
            Self::Shifted(plan) => plan.run(input, load, bias, activation, first, out),
            Self::Winograd(plan) => plan.run(input, load, bias, activation, first, out),
        }
    }

    pub(crate) fn forward(conv: &ConvShape, values: &[f32]) -> Self {
        let sizes = ([conv.input[1], conv.input[2]], [conv.output[1], conv.output[2]]);
        if conv.is_depthwise() {
            if let Some(built) = Shifted::forward(&conv.window, [sizes.0, sizes.1], values) {
                return Self::Shifted(built);
            }
            let built = Depthwise::forward(&conv.window, sizes.0, sizes.1, values);
            return Self::Depthwise(built);
        }
        if conv.is_matrix() {
            let (ins, outs) = (conv.input[0], conv.output[0]);
            let built = Matrix::new(ins, outs, |channel, out| values[out * ins + channel]);
            return Self::Matrix(built);
        }
        if conv.is_pointwise() {
            let (ins, outs) = (conv.input[0], conv.output[0]);
            return Self::Pointwise(Pointwise::forward(
                [ins, outs],
                [sizes.0, sizes.1],
                conv.window.stride,
                |channel, out| values[out * ins + channel],
            ));
        }
        if let Some(sizes) = conv.winograd(Direction::Forward) {
            let ins = sizes.in_channels;
            let built = Winograd::new(sizes, &|out, channel, [ky, kx]| {
                values[((out * ins + channel) * 3 + ky) * 3 + kx]
            });
            return Self::Winograd(built);
        }
        let w = &conv.window;
        let (outs, ins) = (conv.output[0] / conv.groups, conv.input[0] / conv.groups);
        let geometry = Geometry {
            groups: conv.groups,
            in_channels: conv.input[0],
            out_channels: conv.output[0],
            in_size: [conv.input[1], conv.input[2]],
            out_size: [conv.output[1], conv.output[2]],
            in_stride: w.stride,
            out_stride: [1, 1],
            origin: w.pad_begin.map(|pad| pad as isize),
        };
        let taps = taps(w.kernel)
            .map(|kernel| Tap {
                at: [kernel[0] * w.dilation[0], kernel[1] * w.dilation[1]],
                kernel,
            })
            .collect();
        let phase = Phase { first: [0, 0], count: geometry.out_size, taps };
        let built = Correlation::new(geometry, vec![phase], &|group, out, channel, [ky, kx]| {
            values[(((group * outs + out) * ins + channel) * w.kernel[0] + ky) * w.kernel[1] + kx]
        });
        Self::Direct(built)
    }

    pub(crate) fn backward(conv: &ConvShape, values: &[f32]) -> Self {
        let sizes = ([conv.input[1], conv.input[2]], [conv.output[1], conv.output[2]]);
        if conv.is_depthwise() {
            if let Some(built) = Shifted::backward(&conv.window, [sizes.0, sizes.1], values) {
                return Self::Shifted(built);
            }
            let built = Depthwise::backward(&conv.window, sizes.0, sizes.1, values);
            return Self::Depthwise(built);
        }
        if conv.is_matrix() {
            let (ins, outs) = (conv.input[0], conv.output[0]);
            let built = Matrix::new(outs, ins, |out, channel| values[out * ins + channel]);
            return Self::Matrix(built);
        }
        if conv.is_pointwise() {
            let (ins, outs) = (conv.input[0], conv.output[0]);
            return Self::Pointwise(Pointwise::backward(
                [outs, ins],
                [sizes.0, sizes.1],
                conv.window.stride,
                |out, channel| values[out * ins + channel],
            ));
        }
        if let Some(sizes) = conv.winograd(Direction::Backward) {
            let outs = sizes.out_channels;
            let built = Winograd::new(sizes, &|out, channel, [ky, kx]| {
                values[((channel * outs + out) * 3 + 2 - ky) * 3 + 2 - kx]
            });
            return Self::Winograd(built);
        }
        let w = &conv.window;
        let (outs, ins) = (conv.output[0] / conv.groups, conv.input[0] / conv.groups);
        // Along one axis: input index i = q * stride + phase - pad reads output
        // q - (k * dilation - phase) / stride for every k of the same phase.
        let axis = |axis: usize| -> Vec<AxisPhase> {
            let (stride, pad) = (w.stride[axis], w.pad_begin[axis]);
            let size = conv.input[1 + axis];
            (0..stride)
                .map(|phase| {
                    let q0 = pad.saturating_sub(phase).div_ceil(stride);
                    let first = q0 * stride + phase - pad;
                    let back = (0..w.kernel[axis])
                        .filter(|k| k * w.dilation[axis] % stride == phase)
                        .map(|k| (k, (k * w.dilation[axis] - phase) / stride))
                        .collect();
                    AxisPhase {
                        first,
                        count: size.saturating_sub(first).div_ceil(stride),
                        q0,
                        back,
                    }
                })
                .collect()
        };
        let (rows, columns) = (axis(0), axis(1));
        let origin = |phases: &[AxisPhase]| {
            let behind =
                |p: &AxisPhase| p.back.iter().map(|(_, e)| *e as isize - p.q0 as isize).max();
            phases.iter().filter_map(behind).max().unwrap_or(0).max(0)
        };
        let origin = [origin(&rows), origin(&columns)];
        let at =
            |p: &AxisPhase, e: usize, origin: isize| (p.q0 as isize - e as isize + origin) as usize;
        let mut phases = Vec::new();
        for row in &rows {
            for column in &columns {
                let mut taps = Vec::new();
                for &(ky, ey) in &row.back {
                    for &(kx, ex) in &column.back {
                        taps.push(Tap {
                            at: [at(row, ey, origin[0]), at(column, ex, origin[1])],
                            kernel: [ky, kx],
                        });
                    }
                }
                phases.push(Phase {
                    first: [row.first, column.first],
                    count: [row.count, column.count],
                    taps,
                });
            }
        }
        let geometry = Geometry {
            groups: conv.groups,
            in_channels: conv.output[0],
            out_channels: conv.input[0],
            in_size: [conv.output[1], conv.output[2]],
            out_size: [conv.input[1], conv.input[2]],
            in_stride: [1, 1],
            out_stride: w.stride,
            origin,
        };
        let built = Correlation::new(geometry, phases, &|group, out, channel, [ky, kx]| {
            values[(((group * outs + channel) * ins + out) * w.kernel[0] + ky) * w.kernel[1] + kx]
        });
        Self::Direct(built)
    }
}

// === impl ConvShape ===

impl ConvShape {
    /// The sizes of a direction that Winograd's algorithm is for.
    fn winograd(&self, direction: Direction) -> Option<Sizes> {
        let w = &self.window;
        if self.groups != 1 || w.kernel != [3, 3] || w.stride != [1, 1] || w.dilation != [1, 1] {
            return None;
        }
        let ([ins, in_size @ ..], [outs, out_size @ ..]) = (self.input, self.output);
        let sizes = match direction {
            Direction::Forward => Sizes {
                in_channels: ins,
                out_channels: outs,
                in_size,
                out_size,
                origin: w.pad_begin,
            },
            Direction::Backward => Sizes {
                in_channels: outs,
                out_channels: ins,
                in_size: out_size,
                out_size: in_size,
                origin: [2usize.checked_sub(w.pad_begin[0])?, 2usize.checked_sub(w.pad_begin[1])?],
            },
        };
        sizes.suit().then_some(sizes)
    }
}

#[derive(Clone, Copy, Debug)]
enum Direction {
    Backward,
    Forward,
}

struct AxisPhase {
    first: usize,
    count: usize,
    q0: usize,
    /// Kernel index and how many outputs back it reaches.
    back: Vec<(usize, usize)>,
}

pub(crate) fn taps([rows, columns]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    (0..rows).flat_map(move |ky| (0..columns).map(move |kx| [ky, kx]))
}
