//! Order statistics, the anomaly index, and how well scores separate.

/// The middle value, or the mean of the two middle ones. NaN for no values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Median absolute deviation from the median, scaled to a normal distribution's standard deviation.
pub fn scaled_mad(values: &[f64]) -> f64 {
    let centre = median(values);
    let deviations: Vec<f64> = values.iter().map(|value| (value - centre).abs()).collect();
    MAD_CONSISTENCY * median(&deviations)
}

/// The distance of each value below the median, in scaled median absolute deviations; 0 above it.
///
/// `floor` bounds the deviation from below: where most values are equal it would be zero, and every
/// other value infinitely far.
pub fn low_anomaly_indices(values: &[f64], floor: f64) -> Vec<f64> {
    let centre = median(values);
    let spread = scaled_mad(values).max(floor);
    values.iter().map(|value| ((centre - value) / spread).max(0.0)).collect()
}

/// The value below which a share `q` of the values lies, interpolated linearly. NaN for no values.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * position.fract()
}

/// Entropy of the softmax of one row of logits, bits.
pub fn softmax_entropy(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shares: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - top).exp()).collect();
    let sum: f64 = shares.iter().sum();
    // The limit of p log p at 0 is 0, where the product is NaN.
    let positive = shares.iter().map(|share| share / sum).filter(|&share| share > 0.0);
    positive.map(|share| -share * share.log2()).sum()
}

/// Probability that a positive scores above a negative, ties counted half. NaN without either.
pub fn auroc(negatives: &[f64], positives: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> = negatives.iter().map(|&score| (score, false)).collect();
    all.extend(positives.iter().map(|&score| (score, true)));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut sum) = (0.0, 0.0);
    for ties in all.chunk_by(|a, b| a.0 == b.0) {
        let positive = ties.iter().filter(|(_, positive)| *positive).count() as f64;
        let negative = ties.len() as f64 - positive;
        sum += positive * (below + negative / 2.0);
        below += negative;
    }
    sum / (negatives.len() as f64 * positives.len() as f64)
}

/// Share of positives above the lowest threshold that at most a share `rate` of negatives exceeds.
///
/// The threshold is read off the negatives themselves, as the literature's tables do.
pub fn true_positive_rate_at(negatives: &[f64], positives: &[f64], rate: f64) -> f64 {
    let mut sorted = negatives.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let allowed = (rate * negatives.len() as f64).floor() as usize;
    let threshold = sorted.get(allowed).copied().unwrap_or(f64::NEG_INFINITY);
    positives.iter().filter(|&&score| score > threshold).count() as f64 / positives.len() as f64
}

/// The number of of `images` new values may lie above a threshold that was read off `held_out`
/// values such that a share `rate` is expected to: more than this happens with probability `1 -
/// confidence` at most.
///
/// The threshold is an order statistic of a sample, so that the share above it is itself random:
/// the count is beta-binomial with parameters `rate * (n + 1)` and `(1 - rate) * (n + 1)`, wider
/// than the binomial one by about `images / held_out` (Vovk 2012, proposition 2).
pub fn most_exceedances(images: usize, held_out: usize, rate: f64, confidence: f64) -> usize {
    let total = (held_out + 1) as f64;
    let (above, below) = (rate * total, (1.0 - rate) * total);
    if above <= 0.0 || below <= 0.0 {
        return if above <= 0.0 { 0 } else { images };
    }
    let count = images as f64;
    // Logarithms: the probability of no exceedance underflows where thousands are expected.
    let mut log_probability: f64 =
        (0..images).map(|i| ((below + i as f64) / (total + i as f64)).ln()).sum();
    let mut cumulative = 0.0;
    for exceedances in 0..images {
        cumulative += log_probability.exp();
        if cumulative >= confidence {
            return exceedances;
        }
        let x = exceedances as f64;
        log_probability += ((count - x) / (x + 1.0) * (above + x) / (below + count - x - 1.0)).ln();
    }
    images
}

/// The scale that makes a median absolute deviation a normal distribution's standard deviation.
const MAD_CONSISTENCY: f64 = 1.4826;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn median_takes_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn nine_equal_ratios_and_one_low_one_name_the_low_one() {
        let mut ratios = vec![1.0; 9];
        ratios.push(0.1);
        let indices = low_anomaly_indices(&ratios, 0.05);
        assert!(indices[9] > 3.5 && indices[..9].iter().all(|&index| index == 0.0));
    }

    #[test]
    fn softmax_entropy_is_in_bits() {
        assert_eq!(softmax_entropy(&[3.0; 8]), 3.0);
        // Shares 1/2, 1/4, 1/4.
        let logits = [2f32.ln(), 0.0, 0.0];
        assert!((softmax_entropy(&logits) - 1.5).abs() < 1e-6);
        assert_eq!(softmax_entropy(&[0.0, -2000.0]), 0.0);
    }

    #[test]
    fn auroc_counts_ties_half() {
        assert_eq!(auroc(&[0.0, 1.0], &[2.0, 3.0]), 1.0);
        assert_eq!(auroc(&[1.0], &[1.0]), 0.5);
        assert_eq!(auroc(&[2.0, 3.0], &[0.0]), 0.0);
    }

    #[test]
    fn true_positive_rate_allows_the_given_share_of_negatives() {
        let negatives: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(true_positive_rate_at(&negatives, &[98.5, 50.0], 0.01), 0.5);
        assert_eq!(true_positive_rate_at(&negatives, &[98.5], 0.0), 0.0);
    }

    #[test]
    fn exceedances_follow_the_beta_binomial() {
        // SciPy: betabinom(20_000, 20.01, 1980.99).ppf(0.999), and binom(10_000, 0.01).ppf(0.999).
        assert_eq!(most_exceedances(20_000, 2000, 0.01, 0.999), 374);
        assert_eq!(most_exceedances(10_000, 100_000_000, 0.01, 0.999), 132);
        assert_eq!(most_exceedances(10_000, 2000, 0.0, 0.999), 0);
        assert_eq!(most_exceedances(0, 2000, 0.01, 0.999), 0);
    }

    proptest! {
        #[test]
        fn anomaly_indices_do_not_change_with_a_shift(
            values in prop::collection::vec(0.0..1.0f64, 3..20), shift in -5.0..5.0f64,
        ) {
            let moved: Vec<f64> = values.iter().map(|value| value + shift).collect();
            let pairs = low_anomaly_indices(&values, 0.05);
            for (a, b) in pairs.iter().zip(low_anomaly_indices(&moved, 0.05)) {
                prop_assert!((a - b).abs() < 1e-6);
            }
        }

        #[test]
        fn quantiles_lie_between_the_extremes(
            values in prop::collection::vec(-1.0..1.0f64, 1..30), q in 0.0..=1.0f64,
        ) {
            let value = quantile(&values, q);
            let (min, max) = values.iter().fold((1.0f64, -1.0f64), |(a, b), v| (a.min(*v), b.max(*v)));
            prop_assert!((min..=max).contains(&value));
        }
    }
}
