//! Resizing as Pillow does it, bit for bit: model servers in Python resize with it, and what is
//! judged has to be what they see.
//!
//! Pillow's `Resample.c`: the filter is stretched when it shrinks a picture (antialiasing), its
//! weights are rounded to 22 bits, rows are computed first and columns then, each pass rounded to
//! bytes. `Geometry.c` for the nearest pixel. `tests/golden/pictures.py` has Pillow's own results.

use crate::settings::Interpolation;

/// Bytes of `channels` interleaved channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raster {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) channels: usize,
    pub(super) bytes: Vec<u8>,
}

/// The weights of one output position: of which inputs, from `first` on.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// Pillow's `PRECISION_BITS` for bytes.
const PRECISION: u32 = 32 - 8 - 2;

// === impl Raster ===

impl Raster {
    /// Another size.
    pub(super) fn resize(self, width: usize, height: usize, by: Interpolation) -> Self {
        let (filter, support): (fn(f64) -> f64, f64) = match by {
            Interpolation::Bicubic => (bicubic, 2.0),
            Interpolation::Bilinear => (bilinear, 1.0),
            Interpolation::Lanczos => (lanczos, 3.0),
            Interpolation::Nearest => return self.nearest(width, height),
        };
        let mut raster = self;
        if raster.width != width {
            let windows = windows(raster.width, width, filter, support);
            raster = raster.rows(&windows);
        }
        if raster.height != height {
            let windows = windows(raster.height, height, filter, support);
            raster = raster.columns(&windows);
        }
        raster
    }

    /// The part of this size that begins at a column and a row.
    pub(super) fn cut(self, left: usize, top: usize, width: usize, height: usize) -> Self {
        let stride = self.width * self.channels;
        let columns = left * self.channels..(left + width) * self.channels;
        let rows = self.bytes.chunks_exact(stride.max(1)).skip(top).take(height);
        let bytes = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
        Self { width, height, bytes, ..self }
    }

    fn nearest(self, width: usize, height: usize) -> Self {
        let (columns, rows) = (nearest(self.width, width), nearest(self.height, height));
        let mut bytes = Vec::with_capacity(width * height * self.channels);
        for row in rows {
            for &column in &columns {
                let at = (row * self.width + column) * self.channels;
                bytes.extend_from_slice(&self.bytes[at..at + self.channels]);
            }
        }
        Self { width, height, bytes, ..self }
    }

    fn rows(self, windows: &[Window]) -> Self {
        let channels = self.channels;
        let mut bytes = Vec::with_capacity(windows.len() * self.height * channels);
        for row in self.bytes.chunks_exact(self.width * channels) {
            for Window { first, weights } in windows {
                for channel in 0..channels {
                    let samples = row[first * channels + channel..].iter().step_by(channels);
                    bytes.push(weigh(samples.zip(weights)));
                }
            }
        }
        Self { width: windows.len(), bytes, ..self }
    }

    fn columns(self, windows: &[Window]) -> Self {
        let stride = self.width * self.channels;
        let mut bytes = Vec::with_capacity(windows.len() * stride);
        for Window { first, weights } in windows {
            for column in 0..stride {
                let samples = self.bytes[first * stride + column..].iter().step_by(stride);
                bytes.push(weigh(samples.zip(weights)));
            }
        }
        Self { height: windows.len(), bytes, ..self }
    }
}

/// The weighted sum, rounded.
fn weigh<'a>(samples: impl Iterator<Item = (&'a u8, &'a i32)>) -> u8 {
    let half = 1 << (PRECISION - 1);
    let sum = samples.fold(half, |sum: i32, (&sample, &weight)| sum + i32::from(sample) * weight);
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// `precompute_coeffs` and `normalize_coeffs_8bpc`.
fn windows(from: usize, to: usize, filter: fn(f64) -> f64, support: f64) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = support * stretch;
    let window = |position: usize| {
        let centre = (position as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let place = |index: usize| (index as f64 - centre + 0.5) * (1.0 / stretch);
        let weights: Vec<f64> = (first..end).map(|index| filter(place(index))).collect();
        let sum: f64 = weights.iter().sum();
        let unit = f64::from(1_i32 << PRECISION);
        let fixed = |weight: &f64| {
            let weight = if sum == 0.0 { *weight } else { weight / sum };
            (weight * unit + 0.5_f64.copysign(weight)) as i32
        };
        Window { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

/// `ImagingScaleAffine`, which adds up steps.
fn nearest(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut place = step * 0.5;
    let mut places = Vec::with_capacity(to);
    for _ in 0..to {
        places.push((place as usize).min(from - 1));
        place += step;
    }
    places
}

fn bilinear(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}
