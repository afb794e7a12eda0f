//! Split-conformal thresholds per predicted label, within a false-rejection budget.
//!
//! A threshold is the k-th largest of a label's n held-out clean scores, with
//! `k = floor(rate * (n + 1))`. A new input that is exchangeable with them scores above it with
//! probability at most `k / (n + 1) <= rate`, whatever the distribution (Papadopoulos et al. 2002,
//! Vovk 2012 for strata). No held-out score was seen when the perturbations were fitted.
//!
//! Across labels scores mean different things, and among the inputs that share the attacker's label
//! clean and triggered separate best; so every label with enough held-out images is a stratum of
//! its own. The others are brought to a common scale, fitted on images that are not held out, and
//! pooled.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::artifact::{LabelThreshold, Thresholds};
use crate::stats::{median, scaled_mad};

/// Where a label's clean scores lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Their centre.
    pub location: f32,
    /// Their spread, above zero.
    pub spread: f32,
}

/// How much may be rejected, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Upper bound on the rate over all clean inputs.
    pub rate: f64,
    /// How many times the rate of the other labels an infected label gets.
    pub infected_weight: f64,
}

/// Scales of all labels from the scores of clean images that are not held out.
///
/// A label's own centre and spread count as much as it has images, and those of all images as much
/// as `PRIOR_IMAGES`: seven images a label are no distribution.
pub fn scales(labels: usize, scores: &[(usize, f32)]) -> Vec<Scale> {
    let all: Vec<f64> = scores.iter().map(|(_, score)| f64::from(*score)).collect();
    let of = |values: &[f64]| (median(values), scaled_mad(values));
    let (centre, spread) = of(&all);
    (0..labels)
        .map(|label| {
            let own: Vec<f64> = scores
                .iter()
                .filter(|(other, _)| *other == label)
                .map(|(_, score)| f64::from(*score))
                .collect();
            let count = own.len() as f64;
            let (own_centre, own_spread) = if own.is_empty() { (0.0, 0.0) } else { of(&own) };
            let shrunk = |own: f64, all: f64| {
                ((own * count + all * PRIOR_IMAGES) / (count + PRIOR_IMAGES)) as f32
            };
            Scale {
                location: shrunk(own_centre, centre),
                spread: shrunk(own_spread, spread).max(MIN_SPREAD),
            }
        })
        .collect()
}

/// Thresholds from held-out clean scores and their predicted labels; `weights` made the scores of
/// infected labels.
pub fn fit(
    scales: &[Scale],
    holdout: &[(usize, f32)],
    infected: &BTreeSet<usize>,
    weights: BTreeMap<usize, [f32; 3]>,
    budget: Budget,
) -> Thresholds {
    let labels = scales.len();
    let standard =
        |label: usize, score: f32| (score - scales[label].location) / scales[label].spread;
    let mut strata: Vec<Vec<f32>> = vec![Vec::new(); labels];
    for &(label, score) in holdout {
        strata[label].push(standard(label, score));
    }
    let total = holdout.len();
    let share = |label: usize| (strata[label].len() + 1) as f64 / (total + labels) as f64;
    let weight =
        |label: usize| if infected.contains(&label) { budget.infected_weight } else { 1.0 };
    let mean_weight: f64 = (0..labels).map(|label| share(label) * weight(label)).sum();
    let base = budget.rate / mean_weight;
    let rate = |label: usize| (base * weight(label)).min(1.0);
    let own = |label: usize| allowed(rate(label), strata[label].len()) >= 1;
    let pool: Vec<f32> =
        (0..labels).filter(|&label| !own(label)).flat_map(|label| strata[label].clone()).collect();
    let (pool_threshold, pool_allowed) = threshold(&pool, base);
    let mut bound = 0.0;
    let pooled_share: f64 = (0..labels).filter(|&label| !own(label)).map(share).sum();
    bound += pooled_share * pool_allowed as f64 / (pool.len() + 1) as f64;
    let fitted: Vec<LabelThreshold> = (0..labels)
        .map(|label| {
            let Scale { location, spread } = scales[label];
            if !own(label) {
                let (threshold, images) = (pool_threshold, pool.len());
                return LabelThreshold { location, spread, threshold, images, pooled: true };
            }
            let (threshold, allowed) = threshold(&strata[label], rate(label));
            let images = strata[label].len();
            bound += share(label) * allowed as f64 / (images + 1) as f64;
            LabelThreshold { location, spread, threshold, images, pooled: false }
        })
        .collect();
    let rejected = holdout
        .iter()
        .filter(|&&(label, score)| standard(label, score) > fitted[label].threshold)
        .count();
    Thresholds {
        labels: fitted,
        weights,
        false_rejection_rate_bound: bound,
        holdout_rejected: rejected as f64 / total.max(1) as f64,
    }
}

/// Held-out images that a rate needs before it rejects anything.
pub fn images_needed(rate: f64) -> usize {
    (1.0 / rate).ceil() as usize - 1
}

fn allowed(rate: f64, images: usize) -> usize {
    // The addend keeps 0.01 * 100 from rounding down to 0.
    (rate * (images + 1) as f64 + 1e-9).floor() as usize
}

/// The largest score that passes, and how many of `n + 1` may lie above it.
fn threshold(scores: &[f32], rate: f64) -> (f32, usize) {
    let allowed = allowed(rate, scores.len());
    if allowed == 0 {
        return (f32::MAX, 0);
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(f32::total_cmp);
    (sorted[sorted.len() - allowed.min(sorted.len())], allowed)
}

/// Weight of all labels' scale in one label's.
const PRIOR_IMAGES: f64 = 5.0;

/// Keeps equal scores apart from a division by zero.
const MIN_SPREAD: f32 = 1e-3;

#[cfg(test)]
mod tests;
