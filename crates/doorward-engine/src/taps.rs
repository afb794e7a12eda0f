//! Statistics of activations, read while a forward pass has them in cache.
//!
//! A tapped activation is summed up channel by channel: mean, standard deviation and maximum over
//! its positions. An activation without positions, behind pooling, stands for itself.

use candle_core::{D, Result, Tensor};

use crate::compile::Computed;
use crate::kernels::loops;
use crate::step::{Mode, Step};

/// An activation that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tap {
    /// As the graph names it.
    pub(crate) name: String,
    /// The step that computes it.
    pub(crate) step: usize,
    shape: Activated,
}

/// The place of the channels in a row of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activated {
    /// `[channels, positions]`
    ChannelsFirst { channels: usize, positions: usize },
    /// `[positions, channels]`, as transformers have their tokens.
    ChannelsLast { positions: usize, channels: usize },
    /// `[channels]`
    Vector { channels: usize },
}

/// The activations to read: at most [`MOST`], evenly spread over those that are computed.
///
/// `rows` are the shapes of the slots, `None` where the batch is not in front.
pub(crate) fn choose(
    computed: &[Computed],
    steps: &[Step],
    rows: &[Option<&[usize]>],
    output: usize,
) -> Vec<Tap> {
    let mut taps: Vec<Tap> = Vec::new();
    for (step, Step { output: slot, .. }) in steps.iter().enumerate() {
        // What a fusion has swallowed no step computes.
        let ends_layer = computed.iter().find(|value| value.slot == *slot && value.ends_layer);
        let Some(Computed { name, .. }) = ends_layer else { continue };
        let tokens = is_token_wise(steps, *slot);
        let Some(shape) = rows[*slot].and_then(|row| Activated::of_row(row, tokens)) else {
            continue;
        };
        if *slot != output {
            taps.push(Tap { name: name.clone(), step, shape });
        }
    }
    if taps.len() <= MOST {
        return taps;
    }
    (0..MOST).map(|index| taps[index * (taps.len() - 1) / (MOST - 1)].clone()).collect()
}

/// True if what reads a value takes its last dimension for the channels, as transformers do.
fn is_token_wise(steps: &[Step], slot: usize) -> bool {
    let mut readers = steps.iter().filter(|step| step.inputs.contains(&slot));
    readers.any(|step| matches!(step.operator.name(), "Gemm" | "LayerNormalization" | "MatMul"))
}

// === impl Tap ===

impl Tap {
    /// Number of statistics of a row.
    pub(crate) fn len(&self) -> usize {
        match self.shape {
            Activated::ChannelsFirst { channels, .. }
            | Activated::ChannelsLast { channels, .. } => PER_CHANNEL * channels,
            Activated::Vector { channels } => channels,
        }
    }

    /// The statistics `[n, len]` of an activation `[n, ...row]`: all means, then all standard
    /// deviations, then all maxima.
    pub(crate) fn read(&self, activation: &Tensor, mode: Mode) -> Result<Tensor> {
        let n = activation.dim(0)?;
        if let Activated::Vector { channels } = self.shape {
            return activation.reshape((n, channels));
        }
        match mode {
            Mode::Composed => self.compose(activation, n),
            Mode::Loops => {
                let shape = self.shape;
                loops::map("statistics", activation, (n, self.len()), move |x, out| {
                    shape.summarize(x, out);
                })
            }
        }
    }

    fn compose(&self, activation: &Tensor, n: usize) -> Result<Tensor> {
        let planes = match self.shape {
            Activated::ChannelsFirst { channels, positions } => {
                activation.reshape((n, channels, positions))?
            }
            Activated::ChannelsLast { positions, channels } => {
                activation.reshape((n, positions, channels))?.transpose(1, 2)?.contiguous()?
            }
            Activated::Vector { channels } => activation.reshape((n, channels, 1))?,
        };
        let mean = planes.mean_keepdim(D::Minus1)?;
        let deviation = planes.broadcast_sub(&mean)?.sqr()?.mean(D::Minus1)?.sqrt()?;
        Tensor::cat(&[mean.squeeze(D::Minus1)?, deviation, planes.max(D::Minus1)?], 1)
    }
}

// === impl Activated ===

impl Activated {
    /// The place of the channels in a row of this shape; `tokens` says that they come last in an
    /// image.
    fn of_row(row: &[usize], tokens: bool) -> Option<Self> {
        match *row {
            [height, width, channels] if tokens => {
                Some(Self::ChannelsLast { positions: height * width, channels })
            }
            [channels, height, width] => {
                Some(Self::ChannelsFirst { channels, positions: height * width })
            }
            [positions, channels] => Some(Self::ChannelsLast { positions, channels }),
            [channels] => Some(Self::Vector { channels }),
            _ => None,
        }
    }

    /// Writes the statistics of every row.
    #[inline(always)]
    fn summarize(self, x: &[f32], out: &mut [f32]) {
        match self {
            Self::ChannelsFirst { channels, positions } => {
                let rows = x.chunks_exact(channels * positions);
                for (row, out) in rows.zip(out.chunks_exact_mut(PER_CHANNEL * channels)) {
                    for (channel, plane) in row.chunks_exact(positions).enumerate() {
                        let [mean, deviation, most] = summary(plane);
                        out[channel] = mean;
                        out[channels + channel] = deviation;
                        out[2 * channels + channel] = most;
                    }
                }
            }
            Self::ChannelsLast { positions, channels } => {
                let rows = x.chunks_exact(channels * positions);
                for (row, out) in rows.zip(out.chunks_exact_mut(PER_CHANNEL * channels)) {
                    summarize_tokens(row, channels, out);
                }
            }
            Self::Vector { .. } => out.copy_from_slice(x),
        }
    }
}

/// Mean, standard deviation and maximum of one channel's values.
///
/// Two passes: a sum of squares alone loses a small spread around a large mean.
#[inline(always)]
fn summary(plane: &[f32]) -> [f32; 3] {
    let (lanes, rest) = plane.as_chunks::<LANES>();
    let (mut sums, mut most) = ([0f32; LANES], [f32::NEG_INFINITY; LANES]);
    for values in lanes {
        for lane in 0..LANES {
            sums[lane] += values[lane];
            most[lane] = most[lane].max(values[lane]);
        }
    }
    let sum = sums.iter().chain(rest).sum::<f32>();
    let most = most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, value| most.max(*value));
    let count = plane.len() as f32;
    let mean = sum / count;
    let mut squares = [0f32; LANES];
    for values in lanes {
        for lane in 0..LANES {
            let off = values[lane] - mean;
            squares[lane] += off * off;
        }
    }
    let rest = rest.iter().map(|value| (value - mean) * (value - mean));
    let square = squares.iter().copied().chain(rest).sum::<f32>();
    [mean, (square / count).sqrt(), most]
}

/// The same of all channels of a row `[positions, channels]`.
#[inline(always)]
fn summarize_tokens(row: &[f32], channels: usize, out: &mut [f32]) {
    let (mean, rest) = out.split_at_mut(channels);
    let (deviation, most) = rest.split_at_mut(channels);
    mean.fill(0.0);
    deviation.fill(0.0);
    most.fill(f32::NEG_INFINITY);
    let count = (row.len() / channels) as f32;
    for token in row.chunks_exact(channels) {
        for ((mean, most), value) in mean.iter_mut().zip(&mut *most).zip(token) {
            *mean += value;
            *most = most.max(*value);
        }
    }
    mean.iter_mut().for_each(|mean| *mean /= count);
    for token in row.chunks_exact(channels) {
        for ((deviation, mean), value) in deviation.iter_mut().zip(&*mean).zip(token) {
            *deviation += (value - mean) * (value - mean);
        }
    }
    deviation.iter_mut().for_each(|deviation| *deviation = (*deviation / count).sqrt());
}

/// Activations that are read at most.
const MOST: usize = 24;

/// Mean, standard deviation, maximum.
const PER_CHANNEL: usize = 3;

/// Sums that run side by side: two vectors of AVX2, one of AVX-512.
const LANES: usize = 16;

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn one_channel(positions: usize) -> Tap {
        let shape = Activated::ChannelsFirst { channels: 1, positions };
        Tap { name: String::new(), step: 0, shape }
    }

    fn both_ways(shape: Activated, row: &[usize]) -> [Vec<f32>; 2] {
        let tap = Tap { name: String::new(), step: 0, shape };
        let count = 3 * row.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| (i * 37 % 101) as f32 - 40.0).collect();
        let dims = [&[3], row].concat();
        let activation = Tensor::from_vec(values, dims, &Device::Cpu).unwrap();
        [Mode::Loops, Mode::Composed].map(|mode| {
            let read = tap.read(&activation, mode).unwrap();
            assert_eq!(read.dims(), [3, tap.len()]);
            read.flatten_all().unwrap().to_vec1().unwrap()
        })
    }

    #[test]
    fn loops_give_what_the_composition_gives() {
        for (row, last) in [
            (vec![5, 7, 9], false),
            (vec![4, 4, 8], true),
            (vec![8, 1, 1], false),
            (vec![50, 24], true),
            (vec![33], false),
        ] {
            let shape = Activated::of_row(&row, last).expect("a shape");
            let [loops, composed] = both_ways(shape, &row);
            for (a, b) in loops.iter().zip(composed) {
                assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{row:?}: {a} and {b}");
            }
        }
    }

    #[test]
    fn a_small_spread_around_a_large_mean_is_not_lost() {
        let tap = one_channel(4);
        let x = Tensor::new(&[[[[1e4f32, 1e4 + 1.0, 1e4, 1e4 + 1.0]]]], &Device::Cpu).unwrap();
        let read = tap.read(&x, Mode::Loops).unwrap().flatten_all().unwrap();
        assert_eq!(read.to_vec1::<f32>().unwrap(), [1e4 + 0.5, 0.5, 1e4 + 1.0]);
    }

    #[test]
    fn what_is_not_a_number_shows() {
        let tap = one_channel(2);
        let x = Tensor::new(&[[[[f32::NAN, 1.0]]]], &Device::Cpu).unwrap();
        let read = tap.read(&x, Mode::Loops).unwrap().flatten_all().unwrap();
        assert!(read.to_vec1::<f32>().unwrap()[0].is_nan());
    }
}
