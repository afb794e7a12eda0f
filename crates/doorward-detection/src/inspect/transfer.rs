//! From transfer ratios to infected labels: DTInspector, section 3.3.

use crate::stats::low_anomaly_indices;

/// The verdict on a model's labels, by position.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Scaled median absolute deviations below the median.
    pub anomaly_indices: Vec<f64>,
    /// Positions of the infected labels.
    pub infected: Vec<usize>,
}

/// Names the ratios that lie too far below the others.
///
/// A model whose ratios are all above `clean_ratio` is clean whatever the indices.
pub fn judge(ratios: &[f64], threshold: f64, clean_ratio: f64) -> Judged {
    let anomaly_indices = low_anomaly_indices(ratios, MAD_FLOOR);
    let infected = if ratios.iter().all(|&ratio| ratio > clean_ratio) {
        Vec::new()
    } else {
        (0..ratios.len()).filter(|&index| anomaly_indices[index] > threshold).collect()
    };
    Judged { anomaly_indices, infected }
}

/// Two of fifty samples: less is the grain of a ratio. Nine ratios of 1.0 would make any tenth one
/// infinitely anomalous without it.
const MAD_FLOOR: f64 = 0.04;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_low_ratio_is_named() {
        let judged = judge(&[1.0, 0.98, 1.0, 0.04, 1.0, 0.96, 1.0, 1.0, 1.0, 1.0], 3.5, 0.9);
        assert_eq!(judged.infected, [3]);
    }

    #[test]
    fn ratios_that_are_all_high_are_clean() {
        let judged = judge(&[1.0, 1.0, 1.0, 0.91, 1.0], 1.0, 0.9);
        assert!(judged.anomaly_indices[3] > 1.0);
        assert!(judged.infected.is_empty());
    }

    #[test]
    fn scattered_ratios_name_nobody() {
        assert!(judge(&[0.5, 0.6, 0.7, 0.8, 0.9, 0.4], 3.5, 0.9).infected.is_empty());
    }
}
