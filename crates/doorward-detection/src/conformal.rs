//! Split-conformal thresholds within a false-rejection budget.
//!
//! A threshold is the k-th largest of a label's n held-out clean scores, with
//! `k = floor(rate * (n + 1))`. A new input that is exchangeable with them scores above it with
//! probability at most `k / (n + 1) <= rate`, whatever the distribution (Papadopoulos et al. 2002,
//! Vovk 2012 for strata). No held-out image was seen when the evidence was
//! defined: by perturbations, statistics of activations, and what is usual of either.
//!
//! The evidence against a row is in a unit that means the same for every label (see
//! [`crate::join`]), so that one threshold serves them all. An infected label with enough held-out
//! images is a stratum of its own, with a larger part of the budget, and judged by the weights that
//! its suspects taught where there are any; with too few images it shares the threshold of the
//! others, and counts a fixed part more.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::row::Joined;

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
    /// Upper bound on the probability that an input like the calibration images is rejected.
    pub false_rejection_rate_bound: f64,
    /// Share of the held-out images that the thresholds turn away.
    pub holdout_rejected: f64,
}

/// A label's threshold: reject when the score lies above.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelThreshold {
    /// Largest score that passes.
    pub threshold: f32,
    /// Held-out images behind the threshold.
    pub images: usize,
    /// True if the threshold is shared with other labels.
    pub pooled: bool,
}

// === impl Thresholds ===

impl Thresholds {
    /// The distance of a row's score above its label's threshold. NaN where the score is.
    pub fn excess(&self, joined: &Joined) -> f32 {
        let LabelThreshold { threshold, pooled, .. } = self.labels[joined.label];
        score(joined, pooled) - threshold
    }
}

/// The score of a label's rows: in the pool all have to be of one kind.
fn score(joined: &Joined, pooled: bool) -> f32 {
    match joined.weighed {
        Some(weighed) if !pooled => weighed,
        _ => joined.evidence,
    }
}

/// Thresholds from the scores of held-out clean images.
pub fn fit(
    labels: usize,
    holdout: &[Joined],
    infected: &BTreeSet<usize>,
    budget: Budget,
) -> Thresholds {
    let mut strata: Vec<Vec<&Joined>> = vec![Vec::new(); labels];
    holdout.iter().for_each(|row| strata[row.label].push(row));
    let counts: Vec<usize> = strata.iter().map(Vec::len).collect();
    let spending = Spending::new(&counts, infected, budget);
    let pooled = spending.pool(&counts, infected);
    let Spending { shares, rates } = &spending;
    let shift = |label: usize| if infected.contains(&label) { shift(&budget) } else { 0.0 };
    let pool: Vec<f32> = pooled
        .iter()
        .flat_map(|&label| strata[label].iter().map(move |row| score(row, true) + shift(label)))
        .collect();
    let (pool_threshold, pool_allowed) = threshold(&pool, spending.pool_rate(&pooled));
    let pooled_share: f64 = pooled.iter().map(|&label| shares[label]).sum();
    let mut bound = pooled_share * pool_allowed as f64 / (pool.len() + 1) as f64;
    let fitted: Vec<LabelThreshold> = (0..labels)
        .map(|label| {
            if pooled.contains(&label) {
                let (threshold, images) = (pool_threshold - shift(label), pool.len());
                return LabelThreshold { threshold, images, pooled: true };
            }
            let own: Vec<f32> = strata[label].iter().map(|row| score(row, false)).collect();
            let (threshold, allowed) = threshold(&own, rates[label]);
            let images = counts[label];
            bound += shares[label] * allowed as f64 / (images + 1) as f64;
            LabelThreshold { threshold, images, pooled: false }
        })
        .collect();
    let mut thresholds =
        Thresholds { labels: fitted, false_rejection_rate_bound: bound, holdout_rejected: 0.0 };
    let rejected = holdout.iter().filter(|row| thresholds.excess(row) > 0.0).count();
    thresholds.holdout_rejected = rejected as f64 / holdout.len().max(1) as f64;
    thresholds
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

    /// The labels that share a threshold: all but the infected ones with enough held-out images for
    /// one of their own. Until those that share have one, the infected join them too.
    fn pool(&self, counts: &[usize], infected: &BTreeSet<usize>) -> BTreeSet<usize> {
        let has_own = |label: &usize| {
            infected.contains(label) && allowed(self.rates[*label], counts[*label]) >= 1
        };
        let (mut apart, shared): (Vec<usize>, Vec<usize>) = (0..counts.len()).partition(has_own);
        apart.sort_by_key(|&label| std::cmp::Reverse(counts[label]));
        let mut pool = BTreeSet::from_iter(shared);
        let enough = |pool: &BTreeSet<usize>| {
            let images = pool.iter().map(|&label| counts[label]).sum();
            pool.is_empty() || allowed(self.pool_rate(pool), images) >= 1
        };
        while !enough(&pool) {
            let Some(label) = apart.pop() else { break };
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

/// The number added to the evidence against rows of an infected label that shares the threshold of
/// the others: a constant of the budget, so that the pool stays exchangeable. It is in units of the
/// evidence what so many times the share of clean images comes to.
fn shift(budget: &Budget) -> f32 {
    budget.infected_weight.ln() as f32
}

#[cfg(test)]
mod tests;
