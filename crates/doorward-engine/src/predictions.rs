//! Predictions that somebody else makes, of the same rows.

use crate::margins::{label, margin};
use crate::onnx::ending::OutputKind;

/// Predictions of some rows.
///
/// ```
/// use doorward_engine::{OutputKind, Predictions};
///
/// let scores = [0.5, 2.0, 1.0, 0.0];
/// let of_two_rows = Predictions::of_scores(&scores, 2, OutputKind::Logits).ok_or("no scores")?;
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
    /// Reads scores of an output of this kind, `labels` a row; `None` if they are not whole rows of
    /// finite numbers, or cannot be of that kind.
    ///
    /// Rows without a negative number that all add up to one are probabilities in any case.
    pub fn of_scores(values: &[f32], labels: usize, kind: OutputKind) -> Option<Self> {
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
        let logarithm = |value: f32| if value > 0.0 { value.ln() } else { BELOW_ALL };
        let mapped = |function: &dyn Fn(f32) -> f32| {
            let row = |row: &[f32]| row.iter().map(|&value| function(value)).collect();
            Some(Self::Logits(rows.clone().map(row).collect()))
        };
        match kind {
            _ if rows.clone().all(adds_up) => mapped(&logarithm),
            OutputKind::IndependentProbabilities => {
                let within = values.iter().all(|value| (0.0..=1.0).contains(value));
                within.then(|| mapped(&|p| logarithm(p) - logarithm(1.0 - p))).flatten()
            }
            // Percents, or what a clip has left.
            OutputKind::Probabilities => {
                let positive = values.iter().all(|&value| value >= 0.0);
                positive.then(|| mapped(&logarithm)).flatten()
            }
            _ => mapped(&|value| value),
        }
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
        let predictions = Predictions::of_scores(&softmax, 3, OutputKind::Logits).unwrap();
        for (row, logits) in logits.iter().enumerate() {
            for label in 0..3 {
                let expected = margin(logits, label);
                assert!((predictions.margin(row, label) - expected).abs() < 1e-4, "{row} {label}");
            }
        }
        assert_eq!(predictions.label(1), 0);
    }

    #[test]
    fn what_the_models_file_says_of_its_output_holds_for_the_model_server() {
        let close = |got: f32, expected: f32| assert!((got - expected).abs() < 1e-3, "{got}");
        let sigmoid = |logit: f32| 1.0 / (1.0 + (-logit).exp());
        let scores = [4.0, -2.0, 0.5].map(sigmoid);
        let of = |scores: &[f32], kind| Predictions::of_scores(scores, 3, kind);
        let independent = of(&scores, OutputKind::IndependentProbabilities).unwrap();
        close(independent.margin(0, 0), 3.5);
        close(independent.margin(0, 1), -6.0);
        let percents = of(&[80.0, 16.0, 4.0], OutputKind::Probabilities).unwrap();
        close(percents.margin(0, 0), 5f32.ln());
        for kind in [OutputKind::IndependentProbabilities, OutputKind::Probabilities] {
            assert_eq!(of(&[0.5, -0.25, 0.25], kind), None);
        }
        assert_eq!(of(&[0.5, 1.25, 0.25], OutputKind::IndependentProbabilities), None);
    }

    #[test]
    fn a_probability_of_zero_is_further_than_any_threshold_and_still_a_number() {
        let scores = [1.0, 0.0, 0.0, 0.5, 0.5, 0.0];
        let predictions = Predictions::of_scores(&scores, 3, OutputKind::Logits).unwrap();
        assert!(predictions.margin(0, 0) > 1e5 && predictions.margin(0, 1) < -1e5);
        assert_eq!(predictions.margin(0, 1) - predictions.margin(0, 2), 0.0);
        assert!(predictions.margin(1, 2) < -1e5);
    }

    #[test]
    fn logits_stay_as_they_are_and_nonsense_is_none() {
        let logits = [0.5f32, 0.75, -0.25, 0.1];
        let expected = Predictions::Logits(vec![vec![0.5, 0.75], vec![-0.25, 0.1]]);
        assert_eq!(Predictions::of_scores(&logits, 2, OutputKind::Logits), Some(expected));
        for wrong in [&[f32::NAN, 1.0][..], &[f32::INFINITY, 0.0], &[1.0, 2.0, 3.0]] {
            assert_eq!(Predictions::of_scores(wrong, 2, OutputKind::Logits), None, "{wrong:?}");
        }
        assert_eq!(Predictions::of_labels(vec![0, 10], 10), None);
        let labels = Predictions::of_labels(vec![3, 7], 10).unwrap();
        assert_eq!((labels.margin(0, 3), labels.margin(1, 3)), (1.0, -1.0));
    }
}
