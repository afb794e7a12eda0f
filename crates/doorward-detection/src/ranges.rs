//! How far an input's features lie outside the range that clean images of its label keep to.
//!
//! A rectifying network uses some of its features for a label and leaves the others at zero. A
//! trigger moves the label, and what the rest of the picture excites stays excited: features that
//! clean images of the predicted label hardly ever use. Random directions, as [`crate::Layers`] has
//! them, mix these few with all others.
//!
//! The range of a feature is its median over the label's clean images, and ten median absolute
//! deviations to both sides. The excess beyond it is measured by its bound, so that a feature that
//! the label leaves at zero weighs most (Ma et al. 2023, "The 'Beatrix' Resurrections: Robust
//! Backdoor Detection via Gram Matrices", section IV-C, with the features themselves in place of
//! their Gram matrices).

/// The ranges of a model's features, label by label.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranges {
    /// Lower bounds, `[labels, features]`, row-major.
    pub low: Vec<f32>,
    /// Upper bounds, `[labels, features]`, row-major.
    pub high: Vec<f32>,
    /// What is added to the size of a bound that an excess is divided by, above zero.
    pub floor: f32,
}

// === impl Ranges ===

impl Ranges {
    /// `range`, the logarithm of the sum of all excesses of a row of features; NaN where a feature
    /// is.
    pub fn score(&self, features: &[f32], label: usize) -> f32 {
        let from = label * features.len();
        let bounds = self.low[from..].iter().zip(&self.high[from..]);
        let mut sum = LEAST;
        for (&feature, (&low, &high)) in features.iter().zip(bounds) {
            let bound = if feature < low { low } else { high };
            // What is not a number lies in no range, and the sum shows it.
            if !(low..=high).contains(&feature) {
                sum += f64::from((feature - bound).abs()) / f64::from(bound.abs() + self.floor);
            }
        }
        sum.ln() as f32
    }
}

/// A sum of excesses below which nothing is told apart.
const LEAST: f64 = 1e-3;

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        // Label 0 leaves the second feature at zero, label 1 the first.
        Ranges { low: vec![1.0, 0.0, 0.0, -4.0], high: vec![2.0, 0.0, 0.0, -2.0], floor: 1e-3 }
    }

    #[test]
    fn what_lies_within_is_no_excess() {
        let inside = ranges().score(&[1.5, 0.0], 0);
        assert_eq!(inside, LEAST.ln() as f32);
        assert_eq!(ranges().score(&[0.0, -3.0], 1), inside);
    }

    #[test]
    fn an_excess_is_measured_by_its_bound() {
        let score = |features: [f32; 2], label| f64::from(ranges().score(&features, label)).exp();
        let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-3, "{a} and {b}");
        close(score([3.0, 0.0], 0), LEAST + 1.0 / 2.001);
        close(score([0.5, 0.0], 0), LEAST + 0.5 / 1.001);
        close(score([0.0, -6.0], 1), LEAST + 2.0 / 4.001);
        // A feature that the label never uses.
        close(score([1.5, 0.25], 0), LEAST + 250.0);
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        assert!(ranges().score(&[f32::NAN, 0.0], 0).is_nan());
        assert_eq!(ranges().score(&[f32::INFINITY, 0.0], 0), f32::INFINITY);
    }
}
