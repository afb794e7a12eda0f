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
//! pooled, with the smallest of the rest where they are too few together: otherwise all that is
//! predicted as one of them would pass. An infected label in the pool is judged more strictly by a
//! fixed part of that scale.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::join::{Weights, joined};
use crate::row::RowSignals;
use crate::stats::{median, scaled_mad};

/// The place and width of a label's clean scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Their centre.
    pub location: f32,
    /// Their spread, above zero.
    pub spread: f32,
}

/// The share of clean inputs that may be rejected, and its division among labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Upper bound on the rate over all clean inputs.
    pub rate: f64,
    /// The number of times the rate of the other labels an infected label gets.
    pub infected_weight: f64,
}

/// The calibrated rule, fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// One per label, by label.
    pub labels: Vec<LabelThreshold>,
    /// The weights of `s_u`, `s_c`, `s_p` and `s_r` in the score of infected labels; of the others
    /// the least signal is the score.
    pub weights: Weights,
    /// Upper bound on the probability that an input like the calibration images is rejected.
    pub false_rejection_rate_bound: f64,
    /// Share of the held-out images that the thresholds turn away.
    pub holdout_rejected: f64,
}

/// A label's threshold: reject when `(score - location) / spread > threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelThreshold {
    /// Centre of the label's clean scores.
    pub location: f32,
    /// Spread of the label's clean scores.
    pub spread: f32,
    /// Largest standardised score that passes.
    pub threshold: f32,
    /// Held-out images behind the threshold.
    pub images: usize,
    /// True if the threshold is shared with other labels.
    pub pooled: bool,
}

// === impl Thresholds ===

impl Thresholds {
    /// The distance of a row's standardised joined score above its label's threshold.
    pub fn excess(&self, row: &RowSignals) -> f32 {
        self.excess_of(row.label, joined(row, &self.weights))
    }

    /// The same, of a joined score.
    pub fn excess_of(&self, label: usize, joined: f32) -> f32 {
        let label = &self.labels[label];
        (joined - label.location) / label.spread - label.threshold
    }

    /// Fitted to another budget, from the same held-out scores.
    pub fn refit(
        &self,
        holdout: &[(usize, f32)],
        infected: &BTreeSet<usize>,
        budget: Budget,
    ) -> Self {
        let scale =
            |label: &LabelThreshold| Scale { location: label.location, spread: label.spread };
        let scales: Vec<Scale> = self.labels.iter().map(scale).collect();
        fit(&scales, holdout, infected, self.weights.clone(), budget)
    }
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
    weights: Weights,
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
    let counts: Vec<usize> = strata.iter().map(Vec::len).collect();
    let spending = Spending::new(&counts, infected, budget);
    let pooled = spending.pool(&counts, infected);
    let Spending { shares, rates } = &spending;
    let shift = |label: usize| if infected.contains(&label) { shift(&budget) } else { 0.0 };
    let pool: Vec<f32> = pooled
        .iter()
        .flat_map(|&label| strata[label].iter().map(move |score| score + shift(label)))
        .collect();
    let (pool_threshold, pool_allowed) = threshold(&pool, spending.pool_rate(&pooled));
    let pooled_share: f64 = pooled.iter().map(|&label| shares[label]).sum();
    let mut bound = pooled_share * pool_allowed as f64 / (pool.len() + 1) as f64;
    let fitted: Vec<LabelThreshold> = (0..labels)
        .map(|label| {
            let Scale { location, spread } = scales[label];
            if pooled.contains(&label) {
                let (threshold, images) = (pool_threshold - shift(label), pool.len());
                return LabelThreshold { location, spread, threshold, images, pooled: true };
            }
            let (threshold, allowed) = threshold(&strata[label], rates[label]);
            let images = counts[label];
            bound += shares[label] * allowed as f64 / (images + 1) as f64;
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

/// The number of labels have enough held-out images for a threshold of their own, and about how
/// many images with the same shares of the labels all of them would need.
pub fn own_thresholds(
    labels: usize,
    holdout: &[(usize, f32)],
    infected: &BTreeSet<usize>,
    budget: Budget,
) -> (usize, usize) {
    let mut counts = vec![0; labels];
    holdout.iter().for_each(|&(label, _)| counts[label] += 1);
    let spending = Spending::new(&counts, infected, budget);
    let own = labels - spending.pool(&counts, infected).len();
    let needed = (0..labels)
        .map(|label| (images_needed(spending.rates[label]) as f64 / spending.shares[label]).ceil());
    (own, needed.fold(0.0, f64::max) as usize)
}

/// The division of a budget among the labels.
struct Spending {
    /// The share of all inputs that is predicted as each label.
    shares: Vec<f64>,
    /// The rejection rate that each label may have.
    rates: Vec<f64>,
}

impl Spending {
    fn new(counts: &[usize], infected: &BTreeSet<usize>, budget: Budget) -> Self {
        let labels = counts.len();
        let total: usize = counts.iter().sum();
        let shares: Vec<f64> =
            counts.iter().map(|count| (count + 1) as f64 / (total + labels) as f64).collect();
        let weight =
            |label: usize| if infected.contains(&label) { budget.infected_weight } else { 1.0 };
        let mean_weight: f64 = (0..labels).map(|label| shares[label] * weight(label)).sum();
        let base = budget.rate / mean_weight;
        let rates = (0..labels).map(|label| (base * weight(label)).min(1.0)).collect();
        Self { shares, rates }
    }

    /// The labels that share a threshold: those with too few held-out images for one of their own
    /// and, until these have one together, the smallest of the others that are not infected.
    fn pool(&self, counts: &[usize], infected: &BTreeSet<usize>) -> BTreeSet<usize> {
        let has_own = |&label: &usize| allowed(self.rates[label], counts[label]) >= 1;
        let (mut others, few): (Vec<usize>, Vec<usize>) = (0..counts.len()).partition(has_own);
        others.retain(|label| !infected.contains(label));
        others.sort_by_key(|&label| counts[label]);
        let mut pool = BTreeSet::from_iter(few);
        let enough = |pool: &BTreeSet<usize>| {
            let images = pool.iter().map(|&label| counts[label]).sum();
            pool.is_empty() || allowed(self.pool_rate(pool), images) >= 1
        };
        for label in others {
            if enough(&pool) {
                break;
            }
            pool.insert(label);
        }
        pool
    }

    /// The rejection rate of the inputs that are predicted as a label of the pool.
    fn pool_rate(&self, pool: &BTreeSet<usize>) -> f64 {
        let share: f64 = pool.iter().map(|&label| self.shares[label]).sum();
        pool.iter().map(|&label| self.shares[label] * self.rates[label]).sum::<f64>() / share
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

/// The number added to the standardised scores of an infected label that shares the pool's
/// threshold, spreads: a constant of the budget, so that the pool stays exchangeable. Between the
/// upper 0.5 and 5 % of a normal distribution, ten times the rate, lies 0.93 of its deviation.
fn shift(budget: &Budget) -> f32 {
    budget.infected_weight.log10() as f32
}

/// Weight of all labels' scale in one label's.
const PRIOR_IMAGES: f64 = 5.0;

/// Keeps equal scores apart from a division by zero.
const MIN_SPREAD: f32 = 1e-3;

#[cfg(test)]
mod tests;
