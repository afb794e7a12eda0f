//! Convolution (ONNX `Conv`), with bias, activation and a preceding per-channel affine fused in.
//!
//! On the CPU both directions run on [`Correlation`] or [`Winograd`]; elsewhere candle's own convolutions are
//! composed, which takes equal strides and dilations along both axes.

use std::sync::OnceLock;

use candle_core::{Device, Result, Tensor, bail};

use super::correlate::{Activation, Affine, Correlation, Geometry, Load, Phase, Plain, Tap};
use super::depthwise::Depthwise;
use super::kernel;
use super::matrix::Matrix;
use super::operator::{ChannelAffine, Operator, Saves, relu_gate};
use super::winograd::{Sizes, Winograd};

/// Attributes of a two-dimensional sliding window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) dilation: [usize; 2],
    /// Top, left.
    pub(crate) pad_begin: [usize; 2],
    /// Bottom, right.
    pub(crate) pad_end: [usize; 2],
}

/// A convolution of images of one size.
#[derive(Debug)]
pub(crate) struct Conv {
    window: Window,
    groups: usize,
    in_shape: [usize; 3],
    out_shape: [usize; 3],
    /// `[out channels, in channels / groups, ky, kx]`
    weight: Tensor,
    bias: Option<Vec<f32>>,
    /// Applied to the input, not to the padding.
    before: Option<ChannelAffine>,
    activation: Activation,
    forward: OnceLock<Plan>,
    backward: OnceLock<Plan>,
}

/// How one direction is computed on the CPU.
#[derive(Debug)]
enum Plan {
    Depthwise(Depthwise),
    Direct(Correlation),
    /// Images of one pixel: rows of channels.
    Matrix(Matrix),
    Winograd(Winograd),
}

// === impl Window ===

impl Window {
    /// Positions along an axis, rounding down.
    pub(crate) fn positions(&self, axis: usize, size: usize) -> Option<usize> {
        let padded = size + self.pad_begin[axis] + self.pad_end[axis];
        let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        Some(padded.checked_sub(reach)? / self.stride[axis] + 1)
    }
}

// === impl Plan ===

impl Plan {
    fn run<L: Load>(
        &self,
        input: &[f32],
        load: L,
        bias: Option<&[f32]>,
        activation: Activation,
        out: &mut [f32],
    ) {
        match self {
            Self::Depthwise(plan) => plan.run(input, load, bias, activation, out),
            Self::Direct(plan) => plan.run(input, load, bias, activation, out),
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
            Self::Winograd(plan) => plan.run(input, load, bias, activation, out),
        }
    }
}

// === impl Conv ===

impl Conv {
    /// `None` when the kernel does not fit the padded input.
    pub(crate) fn new(
        mut window: Window,
        groups: usize,
        in_shape: [usize; 3],
        weight: Tensor,
        bias: Option<Vec<f32>>,
    ) -> Option<Self> {
        let [_, height, width] = in_shape;
        let out_shape =
            [weight.dims()[0], window.positions(0, height)?, window.positions(1, width)?];
        for axis in [0, 1] {
            // No step is taken, and a large stride would cost as many phases.
            if out_shape[1 + axis] == 1 {
                window.stride[axis] = 1;
            }
        }
        Some(Self {
            window,
            groups,
            in_shape,
            out_shape,
            weight,
            bias,
            before: None,
            activation: Activation::Identity,
            forward: OnceLock::new(),
            backward: OnceLock::new(),
        })
    }

    pub(crate) fn out_shape(&self) -> [usize; 3] {
        self.out_shape
    }

    fn rebuilt(&self) -> Self {
        Self {
            window: self.window.clone(),
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            before: self.before.clone(),
            forward: OnceLock::new(),
            backward: OnceLock::new(),
            ..*self
        }
    }

    fn weight_values(&self) -> Result<Vec<f32>> {
        self.weight.flatten_all()?.to_vec1()
    }

    /// The sizes of a direction that Winograd's algorithm is for.
    fn winograd(&self, direction: Direction) -> Option<Sizes> {
        let w = &self.window;
        if self.groups != 1 || w.kernel != [3, 3] || w.stride != [1, 1] || w.dilation != [1, 1] {
            return None;
        }
        let ([ins, in_size @ ..], [outs, out_size @ ..]) = (self.in_shape, self.out_shape);
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

    /// One channel in and one out for every group.
    fn is_depthwise(&self) -> bool {
        self.groups == self.in_shape[0] && self.groups == self.out_shape[0] && self.groups > 1
    }

    /// Images of one pixel before and after a 1x1 kernel.
    fn is_matrix(&self) -> bool {
        let pixels = [self.in_shape[1], self.in_shape[2], self.out_shape[1], self.out_shape[2]];
        self.groups == 1 && self.window.kernel == [1, 1] && pixels == [1; 4]
    }

    fn forward_plan(&self) -> Result<&Plan> {
        if let Some(ready) = self.forward.get() {
            return Ok(ready);
        }
        let values = self.weight_values()?;
        let sizes = ([self.in_shape[1], self.in_shape[2]], [self.out_shape[1], self.out_shape[2]]);
        if self.is_depthwise() {
            let built = Depthwise::forward(&self.window, sizes.0, sizes.1, &values);
            return Ok(self.forward.get_or_init(|| Plan::Depthwise(built)));
        }
        if self.is_matrix() {
            let (ins, outs) = (self.in_shape[0], self.out_shape[0]);
            let built = Matrix::new(ins, outs, |channel, out| values[out * ins + channel]);
            return Ok(self.forward.get_or_init(|| Plan::Matrix(built)));
        }
        if let Some(sizes) = self.winograd(Direction::Forward) {
            let ins = sizes.in_channels;
            let built = Winograd::new(sizes, &|out, channel, [ky, kx]| {
                values[((out * ins + channel) * 3 + ky) * 3 + kx]
            });
            return Ok(self.forward.get_or_init(|| Plan::Winograd(built)));
        }
        let w = &self.window;
        let (outs, ins) = (self.out_shape[0] / self.groups, self.in_shape[0] / self.groups);
        let geometry = Geometry {
            groups: self.groups,
            in_channels: self.in_shape[0],
            out_channels: self.out_shape[0],
            in_size: [self.in_shape[1], self.in_shape[2]],
            out_size: [self.out_shape[1], self.out_shape[2]],
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
        Ok(self.forward.get_or_init(|| Plan::Direct(built)))
    }

    fn backward_plan(&self) -> Result<&Plan> {
        if let Some(ready) = self.backward.get() {
            return Ok(ready);
        }
        let values = self.weight_values()?;
        let sizes = ([self.in_shape[1], self.in_shape[2]], [self.out_shape[1], self.out_shape[2]]);
        if self.is_depthwise() {
            let built = Depthwise::backward(&self.window, sizes.0, sizes.1, &values);
            return Ok(self.backward.get_or_init(|| Plan::Depthwise(built)));
        }
        if self.is_matrix() {
            let (ins, outs) = (self.in_shape[0], self.out_shape[0]);
            let built = Matrix::new(outs, ins, |out, channel| values[out * ins + channel]);
            return Ok(self.backward.get_or_init(|| Plan::Matrix(built)));
        }
        if let Some(sizes) = self.winograd(Direction::Backward) {
            let outs = sizes.out_channels;
            let built = Winograd::new(sizes, &|out, channel, [ky, kx]| {
                values[((channel * outs + out) * 3 + 2 - ky) * 3 + 2 - kx]
            });
            return Ok(self.backward.get_or_init(|| Plan::Winograd(built)));
        }
        let w = &self.window;
        let (outs, ins) = (self.out_shape[0] / self.groups, self.in_shape[0] / self.groups);
        // Along one axis: input index i = q * stride + phase - pad reads output
        // q - (k * dilation - phase) / stride for every k of the same phase.
        let axis = |axis: usize| -> Vec<AxisPhase> {
            let (stride, pad) = (w.stride[axis], w.pad_begin[axis]);
            let size = self.in_shape[1 + axis];
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
            groups: self.groups,
            in_channels: self.out_shape[0],
            out_channels: self.in_shape[0],
            in_size: [self.out_shape[1], self.out_shape[2]],
            out_size: [self.in_shape[1], self.in_shape[2]],
            in_stride: [1, 1],
            out_stride: w.stride,
            origin,
        };
        let built = Correlation::new(geometry, phases, &|group, out, channel, [ky, kx]| {
            values[(((group * outs + channel) * ins + out) * w.kernel[0] + ky) * w.kernel[1] + kx]
        });
        Ok(self.backward.get_or_init(|| Plan::Direct(built)))
    }

    fn forward_cpu(&self, x: &Tensor) -> Result<Tensor> {
        let plan = self.forward_plan()?;
        let bias = self.bias.as_deref();
        let shape = (x.dim(0)?, self.out_shape[0], self.out_shape[1], self.out_shape[2]);
        kernel::apply("conv", x, shape, |x, out| match &self.before {
            None => plan.run(x, Plain, bias, self.activation, out),
            Some(before) => {
                let load = Affine {
                    scale: &before.scale,
                    shift: &before.shift,
                    activation: before.activation,
                };
                plan.run(x, load, bias, self.activation, out);
            }
        })
    }

    fn backward_cpu(&self, cotangent: &Tensor) -> Result<Tensor> {
        let plan = self.backward_plan()?;
        let shape = (cotangent.dim(0)?, self.in_shape[0], self.in_shape[1], self.in_shape[2]);
        kernel::apply("conv gradient", cotangent, shape, |y, out| {
            plan.run(y, Plain, None, Activation::Identity, out);
        })
    }

    fn forward_composed(&self, x: &Tensor) -> Result<Tensor> {
        let (stride, dilation) = self.equal_along_axes()?;
        let x = match &self.before {
            Some(before) => before.forward(std::slice::from_ref(x))?,
            None => x.clone(),
        };
        let w = &self.window;
        let x = x.pad_with_zeros(2, w.pad_begin[0], w.pad_end[0])?.pad_with_zeros(
            3,
            w.pad_begin[1],
            w.pad_end[1],
        )?;
        let weight = self.weight.to_device(x.device())?;
        let mut y = x.conv2d(&weight, 0, stride, dilation, self.groups)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&Tensor::new(bias.as_slice(), x.device())?.reshape((
                1,
                (),
                1,
                1,
            ))?)?;
        }
        match self.activation {
            Activation::Identity => Ok(y),
            Activation::Relu => y.relu(),
        }
    }

    fn backward_composed(&self, cotangent: &Tensor) -> Result<Tensor> {
        let (stride, dilation) = self.equal_along_axes()?;
        let weight = self.weight.to_device(cotangent.device())?;
        let parts = cotangent
            .chunk(self.groups, 1)?
            .iter()
            .zip(weight.chunk(self.groups, 0)?)
            .map(|(y, w)| {
                y.contiguous()?.conv_transpose2d(&w.contiguous()?, 0, 0, stride, dilation)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut full = Tensor::cat(&parts, 1)?;
        for axis in [0, 1] {
            let dim = axis + 2;
            let (begin, size) = (self.window.pad_begin[axis], self.in_shape[1 + axis]);
            let missing = (begin + size).saturating_sub(full.dim(dim)?);
            full = full.pad_with_zeros(dim, 0, missing)?.narrow(dim, begin, size)?;
        }
        full.contiguous()
    }

    fn equal_along_axes(&self) -> Result<(usize, usize)> {
        let Window { stride: [sy, sx], dilation: [dy, dx], .. } = self.window;
        if sy != sx || dy != dx {
            bail!(
                "conv: on this device strides and dilations must be equal along both axes, got strides {:?} and dilations {:?}",
                [sy, sx],
                [dy, dx]
            );
        }
        Ok((sy, dy))
    }
}

impl Operator for Conv {
    fn name(&self) -> &'static str {
        "Conv"
    }

    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        match inputs[0].device() {
            Device::Cpu => self.forward_cpu(&inputs[0]),
            _ => self.forward_composed(&inputs[0]),
        }
    }

    fn vjp(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let cotangent = match self.activation {
            Activation::Identity => cotangent.clone(),
            Activation::Relu => relu_gate(output, cotangent)?,
        };
        let gradient = match cotangent.device() {
            Device::Cpu => self.backward_cpu(&cotangent)?,
            _ => self.backward_composed(&cotangent)?,
        };
        match &self.before {
            None => Ok(vec![Some(gradient)]),
            Some(before) => Ok(vec![Some(before.gradient(&inputs[0], &gradient)?)]),
        }
    }

    fn saves(&self) -> Saves {
        let output = self.activation == Activation::Relu;
        Saves { inputs: self.before.is_some(), output }
    }

    fn absorb_after(&self, next: &ChannelAffine) -> Option<Box<dyn Operator>> {
        if self.activation != Activation::Identity {
            return None;
        }
        let mut fused = self.rebuilt();
        fused.activation = next.activation;
        if !next.is_unit() {
            let scale = Tensor::new(next.scale.as_slice(), self.weight.device()).ok()?;
            fused.weight = self.weight.broadcast_mul(&scale.reshape(((), 1, 1, 1)).ok()?).ok()?;
            let zero = vec![0.0; self.out_shape[0]];
            let bias = self.bias.as_ref().unwrap_or(&zero);
            fused.bias = Some(
                bias.iter()
                    .zip(next.scale.iter().zip(&next.shift))
                    .map(|(bias, (scale, shift))| bias * scale + shift)
                    .collect(),
            );
        }
        Some(Box::new(fused))
    }

    fn absorb_before(&self, previous: &ChannelAffine) -> Option<Box<dyn Operator>> {
        if self.before.is_some() {
            return None;
        }
        let mut fused = self.rebuilt();
        fused.before = Some(previous.clone());
        Some(Box::new(fused))
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

fn taps([rows, columns]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    (0..rows).flat_map(move |ky| (0..columns).map(move |kx| [ky, kx]))
}

#[cfg(test)]
mod tests;
