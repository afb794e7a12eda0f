//! Pooling, with the gradients that central differences confirm.
//!
//! candle's own max pooling scales the gradient by (number of maxima) / (window area) and refuses
//! windows that overlap; these do neither. Among equal maxima the first in row order takes the
//! whole gradient, as in PyTorch.

mod composed;

use candle_core::{Result, Tensor};

use crate::kernels::loops;
use crate::kernels::window::Window;
use crate::operators::{Backward, Kernel, Operator};

/// ONNX `MaxPool` and `AveragePool` over images of one size.
#[derive(Debug)]
pub(crate) struct Pool {
    kind: Kind,
    window: Window,
    in_size: [usize; 2],
    out_size: [usize; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Divides by the positions inside the image, plus the padding for `count_padding`.
    Average {
        count_padding: bool,
    },
    Max,
}

// === impl Pool ===

impl Pool {
    /// `None` when the window does not fit the padded input, or lies in the padding alone.
    pub(crate) fn new(kind: Kind, window: Window, in_size: [usize; 2], ceil: bool) -> Option<Self> {
        let mut out_size = [0; 2];
        for axis in [0, 1] {
            let positions = window.positions(axis, in_size[axis]);
            if positions.is_none() && ceil && window.dilation[axis] == 1 {
                // Rounding up leaves one window that reaches past the end.
                let padded = in_size[axis] + window.pad_begin[axis] + window.pad_end[axis];
                if window.kernel[axis] - padded < window.stride[axis] {
                    out_size[axis] = 1;
                    continue;
                }
            }
            let floor = positions?;
            let covered = (floor - 1) * window.stride[axis]
                + window.dilation[axis] * (window.kernel[axis] - 1)
                + 1;
            let padded = in_size[axis] + window.pad_begin[axis] + window.pad_end[axis];
            // A window that rounding up adds must start inside the image or its leading padding.
            let starts_inside =
                floor * window.stride[axis] < in_size[axis] + window.pad_begin[axis];
            let extra = ceil && covered < padded && starts_inside;
            out_size[axis] = floor + usize::from(extra);
        }
        let fits = (0..2).all(|axis| {
            let span = window.dilation[axis] * (window.kernel[axis] - 1);
            window.pad_begin[axis] <= span
                && (out_size[axis] - 1) * window.stride[axis]
                    < in_size[axis] + window.pad_begin[axis]
        });
        let pool = Self { kind, window, in_size, out_size };
        // With dilation a window can reach over the image.
        let touches = |axis: usize| {
            (0..out_size[axis]).all(|position| pool.covered(axis, position).next().is_some())
        };
        (fits && touches(0) && touches(1)).then_some(pool)
    }

    pub(crate) fn out_size(&self) -> [usize; 2] {
        self.out_size
    }

    /// Input indices along an axis that window `position` covers.
    fn covered(&self, axis: usize, position: usize) -> impl Iterator<Item = usize> + Clone {
        let w = &self.window;
        let (start, pad) = (position * w.stride[axis], w.pad_begin[axis]);
        let (dilation, size) = (w.dilation[axis], self.in_size[axis]);
        (0..w.kernel[axis])
            .filter_map(move |k| (start + k * dilation).checked_sub(pad))
            .filter(move |&i| i < size)
    }

    /// The divisor of the average over window `(y, x)`.
    fn divisor(&self, y: usize, x: usize, count_padding: bool) -> f32 {
        (self.counted(0, y, count_padding) * self.counted(1, x, count_padding)) as f32
    }

    /// Number of places along an axis that an average counts.
    fn counted(&self, axis: usize, position: usize, count_padding: bool) -> usize {
        if !count_padding {
            return self.covered(axis, position).count();
        }
        // Positions past the declared padding, which rounding up adds, do not count.
        let w = &self.window;
        let padded = self.in_size[axis] + w.pad_begin[axis] + w.pad_end[axis];
        (0..w.kernel[axis])
            .filter(|k| position * w.stride[axis] + k * w.dilation[axis] < padded)
            .count()
    }

    fn max_index(&self, plane: &[f32], y: usize, x: usize) -> usize {
        let mut best: Option<usize> = None;
        for row in self.covered(0, y) {
            for column in self.covered(1, x) {
                let index = row * self.in_size[1] + column;
                if best.is_none_or(|best| plane[index] > plane[best]) {
                    best = Some(index);
                }
            }
        }
        best.unwrap_or(0)
    }

    fn tiles(&self) -> bool {
        let w = &self.window;
        w.pad_begin == [0, 0]
            && w.dilation == [1, 1]
            && (0..2).all(|axis| {
                (self.out_size[axis] - 1) * w.stride[axis] + w.kernel[axis] <= self.in_size[axis]
            })
    }

    fn forward_plane(&self, plane: &[f32], out: &mut [f32]) {
        let [out_height, out_width] = self.out_size;
        for y in 0..out_height {
            for x in 0..out_width {
                out[y * out_width + x] = match self.kind {
                    Kind::Max => plane[self.max_index(plane, y, x)],
                    Kind::Average { count_padding } => {
                        let columns = self.covered(1, x);
                        let sum: f32 = self
                            .covered(0, y)
                            .flat_map(|row| columns.clone().map(move |column| (row, column)))
                            .map(|(row, column)| plane[row * self.in_size[1] + column])
                            .sum();
                        sum / self.divisor(y, x, count_padding)
                    }
                };
            }
        }
    }

    /// Rows and columns that the windows of a maximum cover, padding included; `None` where they
    /// skip a value.
    fn padded(&self) -> Option<[usize; 2]> {
        let w = &self.window;
        let covered = |axis: usize| {
            let reach = (self.out_size[axis] - 1) * w.stride[axis] + w.kernel[axis];
            reach.max(w.pad_begin[axis] + self.in_size[axis])
        };
        let suits = self.kind == Kind::Max && w.dilation == [1, 1];
        suits.then(|| [covered(0), covered(1)])
    }

    /// Without padding every window is whole: down the columns, then along the rows, then every
    /// `stride`th of what is left, each a loop over neighbours that the compiler makes vectors of.
    fn forward_tiles(&self, plane: &[f32], width: usize, out: &mut [f32], row: &mut Vec<f32>) {
        let [kernel_height, kernel_width] = self.window.kernel;
        let [stride_down, stride] = self.window.stride;
        let share = match self.kind {
            Kind::Average { .. } => 1.0 / (kernel_height * kernel_width) as f32,
            Kind::Max => 1.0,
        };
        let join = |to: &mut [f32], from: &[f32]| match self.kind {
            Kind::Average { .. } => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
            // Unlike `f32::max` one instruction; NaN stays where it comes first.
            Kind::Max => {
                to.iter_mut()
                    .zip(from)
                    .for_each(|(to, &from)| *to = if from > *to { from } else { *to });
            }
        };
        row.resize(2 * width, 0.0);
        let (column, along) = row.split_at_mut(width);
        for (y, out) in out.chunks_exact_mut(self.out_size[1]).enumerate() {
            let rows = &plane[y * stride_down * width..];
            column.copy_from_slice(&rows[..width]);
            for row in rows.chunks_exact(width).take(kernel_height).skip(1) {
                join(column, row);
            }
            along.copy_from_slice(column);
            for kx in 1..kernel_width {
                join(along, &column[kx..]);
            }
            if stride == 2 {
                let pairs = along.as_chunks::<2>();
                for (out, pair) in out.iter_mut().zip(pairs.0) {
                    *out = pair[0] * share;
                }
                if let (Some(out), [last]) = (out.get_mut(pairs.0.len()), pairs.1) {
                    *out = last * share;
                }
                continue;
            }
            for (out, value) in out.iter_mut().zip(along.iter().step_by(stride)) {
                *out = value * share;
            }
        }
    }

    /// Without padding: the first maximum of each whole window takes its gradient.
    fn backward_max_tiles(&self, plane: &[f32], cotangent: &[f32], out: &mut [f32]) {
        let width = self.in_size[1];
        let [kernel_height, kernel_width] = self.window.kernel;
        for (y, cotangent) in cotangent.chunks_exact(self.out_size[1]).enumerate() {
            for (x, dy) in cotangent.iter().enumerate() {
                let corner = y * self.window.stride[0] * width + x * self.window.stride[1];
                let (mut at, mut best) = (corner, f32::NEG_INFINITY);
                for ky in 0..kernel_height {
                    let start = corner + ky * width;
                    for (kx, &value) in plane[start..start + kernel_width].iter().enumerate() {
                        if value > best {
                            (at, best) = (start + kx, value);
                        }
                    }
                }
                out[at] += dy;
            }
        }
    }

    fn backward_plane(&self, plane: &[f32], cotangent: &[f32], out: &mut [f32]) {
        if self.kind == Kind::Max && self.tiles() {
            return self.backward_max_tiles(plane, cotangent, out);
        }
        let [out_height, out_width] = self.out_size;
        for y in 0..out_height {
            for x in 0..out_width {
                let dy = cotangent[y * out_width + x];
                match self.kind {
                    Kind::Max => out[self.max_index(plane, y, x)] += dy,
                    Kind::Average { count_padding } => {
                        let share = dy / self.divisor(y, x, count_padding);
                        for row in self.covered(0, y) {
                            for column in self.covered(1, x) {
                                out[row * self.in_size[1] + column] += share;
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Kernel for Pool {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (batch, channels, height, width) = inputs[0].dims4()?;
        let [out_height, out_width] = self.out_size;
        let shape = (batch, channels, out_height, out_width);
        loops::map(self.name(), &inputs[0], shape, |x, out| {
            let mut row = Vec::new();
            let planes =
                x.chunks_exact(height * width).zip(out.chunks_exact_mut(out_height * out_width));
            if self.tiles() {
                planes.for_each(|(plane, out)| self.forward_tiles(plane, width, out, &mut row));
            } else if let Some([rows, pitch]) = self.padded() {
                // Padding never is the maximum: a window has a value of the image.
                let mut padded = vec![f32::NEG_INFINITY; rows * pitch];
                let [top, left] = self.window.pad_begin;
                for (plane, out) in planes {
                    let to = padded[top * pitch..].chunks_exact_mut(pitch);
                    for (from, to) in plane.chunks_exact(width).zip(to) {
                        to[left..left + width].copy_from_slice(from);
                    }
                    self.forward_tiles(&padded, pitch, out, &mut row);
                }
            } else {
                planes.for_each(|(plane, out)| self.forward_plane(plane, out));
            }
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        let x = &inputs[0];
        let (in_plane, out_plane) =
            (self.in_size.iter().product::<usize>(), self.out_size.iter().product::<usize>());
        let gradient = loops::zip(self.name(), x, cotangent, x.shape(), |x, dy, out| {
            let planes = x.chunks_exact(in_plane).zip(dy.chunks_exact(out_plane));
            for ((x, dy), out) in planes.zip(out.chunks_exact_mut(in_plane)) {
                self.backward_plane(x, dy, out);
            }
        })?;
        Ok(vec![Some(gradient)])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn padded_maxima_equal_those_of_single_windows() {
        for (kernel, stride, pad, size, ceil) in [
            ([3, 3], [2, 2], [1, 1], [9, 12], false),
            ([3, 3], [2, 2], [1, 1], [8, 7], true),
            ([2, 5], [1, 3], [1, 2], [6, 11], false),
            ([3, 3], [1, 1], [1, 1], [1, 1], false),
        ] {
            let (dilation, pad_begin, pad_end) = ([1, 1], pad, pad);
            let window = Window { kernel, stride, dilation, pad_begin, pad_end };
            let pool = Pool::new(Kind::Max, window, size, ceil).unwrap();
            let plane = size[0] * size[1];
            let x: Vec<f32> = (0..2 * plane).map(|i| (i * 7 % 23) as f32 - 30.0).collect();
            let mut expected = vec![0.0; 2 * pool.out_size[0] * pool.out_size[1]];
            let outs = expected.chunks_exact_mut(pool.out_size[0] * pool.out_size[1]);
            x.chunks_exact(plane).zip(outs).for_each(|(x, out)| pool.forward_plane(x, out));
            let x = Tensor::from_vec(x, (1, 2, size[0], size[1]), &Device::Cpu).unwrap();
            let y = pool.forward(&[x]).unwrap().flatten_all().unwrap();
            assert_eq!(y.to_vec1::<f32>().unwrap(), expected, "{kernel:?} {size:?}");
        }
    }
}
