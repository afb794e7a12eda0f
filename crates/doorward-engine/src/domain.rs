//! The input that a model takes.

use candle_core::{Device, Result, Tensor};

/// The input that a model takes: the shape of one row and the range of its values.
///
/// ```
/// use doorward_engine::InputDomain;
///
/// // Grey images of one by two pixels, normalised to [-1, 1].
/// let domain = InputDomain {
///     shape: [1, 1, 2],
///     lower: vec![-1.0],
///     upper: vec![1.0],
///     channels_last: false,
///     fp32: true,
/// };
/// assert_eq!(domain.len(), 2);
/// assert_eq!(domain.normalise(&[0, 255]), [-1.0, 1.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct InputDomain {
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Smallest value a channel can take.
    pub lower: Vec<f32>,
    /// Largest value a channel can take.
    pub upper: Vec<f32>,
    /// True if senders of images have the channels last; rows have them first all the same.
    pub channels_last: bool,
    /// True if the model file declares FLOAT, so that bytes without a datatype are FP32.
    pub fp32: bool,
}

// === impl InputDomain ===

impl InputDomain {
    /// Values in one row.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if a row has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape of one row as it is sent.
    pub fn sent_shape(&self) -> [usize; 3] {
        let [channels, height, width] = self.shape;
        if self.channels_last { [height, width, channels] } else { self.shape }
    }

    /// Whole rows as they are sent, with their channels brought to the front.
    pub fn rows_of_sent(&self, sent: Vec<f32>) -> Vec<f32> {
        let [channels, height, width] = self.shape;
        if !self.channels_last || channels == 1 || self.is_empty() {
            return sent;
        }
        let mut rows = Vec::with_capacity(sent.len());
        for row in sent.chunks_exact(channels * height * width) {
            for channel in 0..channels {
                rows.extend(row[channel..].iter().step_by(channels));
            }
        }
        rows
    }

    /// Whole rows, channels in front, as they are sent.
    pub fn sent_of_rows(&self, rows: Vec<f32>) -> Vec<f32> {
        let [channels, height, width] = self.shape;
        if !self.channels_last || channels == 1 || self.is_empty() {
            return rows;
        }
        let mut sent = Vec::with_capacity(rows.len());
        for row in rows.chunks_exact(channels * height * width) {
            for pixel in 0..height * width {
                sent.extend(row[pixel..].iter().step_by(height * width));
            }
        }
        sent
    }

    /// Rows `[n, C, H, W]` of noise that fills the range of every channel, the same in each call.
    pub(crate) fn noise(&self, n: usize, device: &Device) -> Result<Tensor> {
        let plane = self.shape[1] * self.shape[2];
        let value = |i: usize| {
            let channel = i / plane % self.shape[0];
            // 97 and 251 are prime: neighbours differ, and so do rows.
            let share = (i * 97 % 251) as f32 / 250.0;
            self.lower[channel] + share * (self.upper[channel] - self.lower[channel])
        };
        let values: Vec<f32> = (0..n * self.len()).map(value).collect();
        let [channels, height, width] = self.shape;
        Tensor::from_vec(values, (n, channels, height, width), device)
    }

    /// Bytes of one image, channels in front, as a row of model input.
    pub fn normalise(&self, pixels: &[u8]) -> Vec<f32> {
        let plane = self.shape[1] * self.shape[2];
        let mut row = Vec::with_capacity(pixels.len());
        for (i, plane) in pixels.chunks(plane).enumerate() {
            let channel = i % self.shape[0];
            let (lower, upper) = (self.lower[channel], self.upper[channel]);
            row.extend(plane.iter().map(|&byte| {
                // Exact at both ends, so that no pixel leaves the domain by rounding.
                let share = f32::from(byte) / 255.0;
                lower + share * (upper - lower)
            }));
        }
        row
    }
}
