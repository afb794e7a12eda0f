//! Checks that tensors of every protocol undergo.

use crate::bounds::Bounds;
use crate::error::DecodeError;

pub(super) fn check_shape(shape: &[usize], bounds: Bounds<'_>) -> Result<(), DecodeError> {
    let row = bounds.input.sent_shape();
    let [rows, a, b, c] = *shape else {
        return Err(DecodeError::Shape { received: shape.to_vec(), row });
    };
    if [a, b, c] != row {
        return Err(DecodeError::Shape { received: shape.to_vec(), row });
    }
    check_rows(rows, bounds)
}

pub(super) fn check_rows(rows: usize, bounds: Bounds<'_>) -> Result<(), DecodeError> {
    if rows == 0 || rows > bounds.rows {
        return Err(DecodeError::Rows { received: rows, limit: bounds.rows });
    }
    Ok(())
}

pub(super) fn check_range(values: &[f32], bounds: Bounds<'_>) -> Result<(), DecodeError> {
    match outside(values, bounds) {
        None => Ok(()),
        Some(Outside { index, value, lower, upper }) => {
            Err(DecodeError::Range { index, value, lower, upper, slack: bounds.slack })
        }
    }
}

/// A value outside the range that the model's preprocessing can give.
pub(super) struct Outside {
    pub(super) index: usize,
    pub(super) value: f32,
    pub(super) lower: f32,
    pub(super) upper: f32,
}

/// The first value, of rows as they are sent, that is further outside than the slack.
pub(super) fn outside(values: &[f32], bounds: Bounds<'_>) -> Option<Outside> {
    let input = bounds.input;
    let slack = bounds.slack.max(ROUNDING);
    // Values of one channel that lie side by side.
    let run = if input.channels_last { 1 } else { input.shape[1] * input.shape[2] };
    if run == 0 {
        return None;
    }
    let limits: Vec<(f32, f32)> = (input.lower.iter().zip(input.upper))
        .map(|(&lower, &upper)| {
            let tolerance = slack * (upper - lower);
            (lower - tolerance, upper + tolerance)
        })
        .collect();
    for (number, chunk) in values.chunks_exact(run).enumerate() {
        let channel = number % input.shape[0];
        let (lower, upper) = limits[channel];
        let outside = |value: &f32| !value.is_finite() || !(lower..=upper).contains(value);
        if let Some(position) = chunk.iter().position(outside) {
            return Some(Outside {
                index: number * run + position,
                value: chunk[position],
                lower: input.lower[channel],
                upper: input.upper[channel],
            });
        }
    }
    None
}

/// Share of a channel's range by which a client's normalisation may round past its ends: some ten
/// units in the last place of an `f32`.
const ROUNDING: f32 = 1e-6;
