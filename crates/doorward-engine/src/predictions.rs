//! Predictions that somebody else makes, of the same rows.

use crate::margins::{label, margin};

/// Predictions of some rows.
///
/// ```
/// use doorward_engine::Predictions;
///
/// let of_two_rows = Predictions::of_scores(&[0.5, 2.0, 1.0, 0.0], 2).ok_or("no scores")?;
/// assert_eq!((of_two_rows.label(0), of_two_rows.margin(0, 1)), (1, 1.5));
/// let of_labels = Predictions::of_labels(vec![1, 0], 2).ok_or("no such label")?;
/// assert_eq!(of_labels.margin(1, 1), -1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// A label per row.
    Labels(Vec<usize>),
    /// Logits, or what has their margins, row by row.
    Logits(Vec<Vec<f32>>),
}

impl Predictions {
    /// Reads scores, `labels` a row; `None` if they are not whole rows of finite numbers.
    ///
    /// Rows without a negative number that all add up to one are probabilities.
    pub fn of_scores(values: &[f32], labels: usize) -> Option<Self> {
        if labels < 2 || !values.len().is_multiple_of(labels) {
            return None;
        }
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let rows = values.chunks_exact(labels);
        let adds_up = |row: &[f32]| {
            let sum: f64 = row.iter().map(|&value| f64::from(value)).sum();
            row.iter().all(|&value| value >= 0.0) && (sum - 1.0).abs() < SUM_TOLERANCE
        };
        if !rows.clone().all(adds_up) {
            return Some(Self::Logits(rows.map(<[f32]>::to_vec).collect()));
        }
        let logarithm = |&value: &f32| if value > 0.0 { value.ln() } else { BELOW_ALL };
        Some(Self::Logits(rows.map(|row| row.iter().map(logarithm).collect()).collect()))
    }

    /// Takes labels; `None` if one is not below `labels`.
    pub fn of_labels(predicted: Vec<usize>, labels: usize) -> Option<Self> {
        predicted.iter().all(|&label| label < labels).then_some(Self::Labels(predicted))
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Labels(labels) => labels.len(),
            Self::Logits(rows) => rows.len(),
        }
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The label of a row.
    pub fn label(&self, row: usize) -> usize {
        match self {
            Self::Labels(labels) => labels[row],
            Self::Logits(rows) => label(&rows[row]),
        }
    }

    /// The margin `m_y` of a row; where a label is all that is known, no more than its sign.
    pub fn margin(&self, row: usize, label: usize) -> f32 {
        match self {
            Self::Labels(labels) if labels[row] == label => 1.0,
            Self::Labels(_) => -1.0,
            Self::Logits(rows) => margin(&rows[row], label),
        }
    }
}

/// Softmax in half precision is off by some thousandths.
const SUM_TOLERANCE: f64 = 0.02;

/// Stands for the logarithm of zero; finite, so that differences are numbers.
const BELOW_ALL: f32 = -1e6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_have_the_margins_of_their_logits() {
        let logits = [[3.0f32, -1.5, 0.25], [0.0, 0.0, -20.0]];
        let softmax: Vec<f32> = logits
            .iter()
            .flat_map(|row| {
                let sum: f32 = row.iter().map(|value| value.exp()).sum();
                row.map(|value| value.exp() / sum)
            })
            .collect();
        let predictions = Predictions::of_scores(&softmax, 3).unwrap();
        for (row, logits) in logits.iter().enumerate() {
            for label in 0..3 {
                let expected = margin(logits, label);
                assert!((predictions.margin(row, label) - expected).abs() < 1e-4, "{row} {label}");
            }
        }
        assert_eq!(predictions.label(1), 0);
    }

    #[test]
    fn a_probability_of_zero_is_further_than_any_threshold_and_still_a_number() {
        let predictions = Predictions::of_scores(&[1.0, 0.0, 0.0, 0.5, 0.5, 0.0], 3).unwrap();
        assert!(predictions.margin(0, 0) > 1e5 && predictions.margin(0, 1) < -1e5);
        assert_eq!(predictions.margin(0, 1) - predictions.margin(0, 2), 0.0);
        assert!(predictions.margin(1, 2) < -1e5);
    }

    #[test]
    fn logits_stay_as_they_are_and_nonsense_is_none() {
        let logits = [0.5f32, 0.75, -0.25, 0.1];
        let expected = Predictions::Logits(vec![vec![0.5, 0.75], vec![-0.25, 0.1]]);
        assert_eq!(Predictions::of_scores(&logits, 2), Some(expected));
        for wrong in [&[f32::NAN, 1.0][..], &[f32::INFINITY, 0.0], &[1.0, 2.0, 3.0]] {
            assert_eq!(Predictions::of_scores(wrong, 2), None, "{wrong:?}");
        }
        assert_eq!(Predictions::of_labels(vec![0, 10], 10), None);
        let labels = Predictions::of_labels(vec![3, 7], 10).unwrap();
        assert_eq!((labels.margin(0, 3), labels.margin(1, 3)), (1.0, -1.0));
    }
}
