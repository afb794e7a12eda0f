//! The tensor that a model takes, as requests spell it.

/// The shape of one row, the range of its values, and how they are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Input<'a> {
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Smallest value of each channel.
    pub lower: &'a [f32],
    /// Largest value of each channel.
    pub upper: &'a [f32],
    /// True if images are sent with their channels last; rows have them first all the same.
    pub channels_last: bool,
    /// True if the model's file declares FLOAT, so that bytes without a datatype are FP32.
    pub fp32: bool,
}

// === impl Input ===

impl Input<'_> {
    /// Values in one row.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if a row has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape of one row as it is sent.
    pub fn sent_shape(&self) -> [usize; 3] {
        let [channels, height, width] = self.shape;
        if self.channels_last { [height, width, channels] } else { self.shape }
    }

    /// Whole rows as they are sent, with their channels brought to the front.
    pub fn rows_of_sent(&self, sent: Vec<f32>) -> Vec<f32> {
        let [channels, height, width] = self.shape;
        if self.is_sent_as_it_is() {
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

    /// Whole rows as they are sent, from rows with their channels first.
    pub fn sent_of_rows(&self, rows: Vec<f32>) -> Vec<f32> {
        let [channels, height, width] = self.shape;
        if self.is_sent_as_it_is() {
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

    fn is_sent_as_it_is(&self) -> bool {
        !self.channels_last || self.shape[0] == 1 || self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_come_to_the_front_and_go_back() {
        let input = Input {
            shape: [3, 1, 2],
            lower: &[0.0; 3],
            upper: &[1.0; 3],
            channels_last: true,
            fp32: true,
        };
        let sent: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let rows = input.rows_of_sent(sent.clone());
        assert_eq!(rows, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        assert_eq!(input.sent_of_rows(rows), sent);
        assert_eq!(input.sent_shape(), [1, 2, 3]);
    }
}
