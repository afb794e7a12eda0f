//! The distance between live scores and the held-out scores of the calibration.
//!
//! The Kolmogorov-Smirnov distance between the newest [`WINDOW`] scores and the held-out ones: the
//! largest difference of the shares that lie below any one score, from 0, the same distribution, to
//! 1, nothing in common (Massey 1951). Scores of inputs like the held-out ones keep it below
//! `1.63 * sqrt(1 / WINDOW + 1 / held-out)` with probability 0.99, 0.063 for 2,000 of them. It says
//! that the guarantee on false rejections may no longer hold, and not why: other images, another
//! mix of labels and an attack all move it.

use std::collections::VecDeque;

/// Live scores that are compared; of fewer than [`FEWEST`] nothing is said.
pub(super) const WINDOW: usize = 1000;

/// A distance of so few scores is still within 0.17 for clean ones.
pub(super) const FEWEST: usize = 100;

/// A sliding window of scores and what it is compared with.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// Sorted.
    held_out: Vec<f32>,
    /// For each live score how many held-out ones lie below it, and how many do not lie above it.
    window: VecDeque<[usize; 2]>,
    /// Live scores by the first of those numbers, and by the second.
    counts: Vec<[usize; 2]>,
}

// === impl Drift ===

impl Drift {
    /// Compares with other scores from now on, and only scores that are still to come.
    pub(super) fn compare_with(&mut self, mut held_out: Vec<f32>) {
        held_out.sort_by(f32::total_cmp);
        if held_out == self.held_out {
            return;
        }
        self.counts = vec![[0; 2]; held_out.len() + 1];
        self.window.clear();
        self.held_out = held_out;
    }

    /// Takes a live score.
    pub(super) fn observe(&mut self, score: f32) {
        if self.held_out.is_empty() {
            return;
        }
        if self.window.len() == WINDOW
            && let Some([below, up_to]) = self.window.pop_front()
        {
            self.counts[below][0] -= 1;
            self.counts[up_to][1] -= 1;
        }
        let below = self.held_out.partition_point(|held_out| *held_out < score);
        let up_to = self.held_out.partition_point(|held_out| *held_out <= score);
        self.counts[below][0] += 1;
        self.counts[up_to][1] += 1;
        self.window.push_back([below, up_to]);
    }

    /// The distance; `None` before there are enough scores.
    pub(super) fn distance(&self) -> Option<f64> {
        if self.window.len() < FEWEST {
            return None;
        }
        let share = |count: usize, of: usize| count as f64 / of as f64;
        let (live, held_out) = (self.window.len(), self.held_out.len());
        // Between two neighbouring held-out scores their share is constant, and that of the live
        // ones is least at the lower neighbour and largest just below the upper one.
        let (mut at_lower, mut below_upper) = (0, 0);
        let mut distance: f64 = 0.0;
        for lower in 0..=held_out {
            below_upper += self.counts[lower][1];
            let tied =
                lower != 0 && lower != held_out && self.held_out[lower - 1] == self.held_out[lower];
            if !tied {
                for live_ones in [at_lower, below_upper] {
                    let difference = share(live_ones, live) - share(lower, held_out);
                    distance = distance.max(difference.abs());
                }
            }
            at_lower += self.counts[lower][0];
        }
        Some(distance)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// By its definition, in quadratic time.
    fn defined(live: &[f32], held_out: &[f32]) -> f64 {
        let share = |scores: &[f32], up_to: f32| {
            scores.iter().filter(|score| **score <= up_to).count() as f64 / scores.len() as f64
        };
        let difference = |at: &f32| (share(live, *at) - share(held_out, *at)).abs();
        live.iter().chain(held_out).map(difference).fold(0.0, f64::max)
    }

    #[test]
    fn distance_is_the_kolmogorov_smirnov_one_of_the_window() {
        let mut rng = StdRng::seed_from_u64(3);
        for grid in [5.0, 1e6] {
            // A coarse grid makes ties within and between both.
            let mut draw = |shift: f32| ((rng.random::<f32>() + shift) * grid).floor() / grid;
            let held_out: Vec<f32> = (0..300).map(|_| draw(0.0)).collect();
            let live: Vec<f32> = (0..1500).map(|index| draw(index as f32 / 3000.0)).collect();
            let mut drift = Drift::default();
            drift.compare_with(held_out.clone());
            for (index, &score) in live.iter().enumerate() {
                drift.observe(score);
                if (index + 1) % 250 == 0 {
                    let window = &live[(index + 1).saturating_sub(WINDOW)..=index];
                    let (found, expected) = (drift.distance().unwrap(), defined(window, &held_out));
                    assert!((found - expected).abs() < 1e-12, "{found} and {expected}");
                }
            }
        }
    }

    #[test]
    fn scores_like_the_held_out_ones_stay_low_and_shifted_ones_rise() {
        let mut rng = StdRng::seed_from_u64(5);
        // A sum of uniforms, near enough to normal.
        let mut draw = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
        let mut drift = Drift::default();
        drift.observe(1.0);
        assert_eq!(drift.distance(), None, "nothing to compare with");
        drift.compare_with((0..2000).map(|_| draw()).collect());
        for _ in 0..FEWEST - 1 {
            drift.observe(draw());
        }
        assert_eq!(drift.distance(), None, "too few");
        for _ in 0..WINDOW {
            drift.observe(draw());
        }
        assert!(drift.distance() < Some(0.063), "{:?}", drift.distance());
        for _ in 0..WINDOW {
            drift.observe(draw() + 1.0);
        }
        // Normal distributions one deviation apart: 2 * Phi(1/2) - 1.
        let distance = drift.distance().unwrap();
        assert!((distance - 0.383).abs() < 0.05, "{distance}");
        drift.compare_with(vec![0.0]);
        assert_eq!(drift.distance(), None, "other thresholds, other scores");
    }
}
