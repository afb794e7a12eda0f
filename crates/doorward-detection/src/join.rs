//! The join of a row's signals into one score, and the weights for it.

use std::collections::BTreeMap;

use crate::row::RowSignals;
use crate::signal::{PerSignal, Signal};
use crate::stats::auroc;

/// The weights of the signals of infected labels, by label.
pub type Weights = BTreeMap<usize, PerSignal<f32>>;

const SIGNALS: usize = Signal::COUNT;

/// The score that the calibrated rule compares: the weighted sum of the signals where the label is
/// infected and has weights, else the lesser of `s_u` and `s_c`.
///
/// A trigger has to survive every perturbation. Of the joins tried on four victims without an
/// infected label, sum, weighted sum and minimum, the last one separates best among the inputs that
/// share the attacker's label; any fixed score keeps the guarantee. A patch without a weight has no
/// say: a poor one would let every trigger pass.
pub fn joined(row: &RowSignals, weights: &Weights) -> f32 {
    if let Some(weights) = weights.get(&row.label) {
        let weighed = |signal| row.scores[signal].unwrap_or(0.0) * weights[signal];
        return Signal::ALL.into_iter().map(weighed).sum();
    }
    let survival = [Signal::Universal, Signal::ClassConditional].map(|signal| row.scores[signal]);
    survival.into_iter().flatten().fold(f32::INFINITY, f32::min)
}

/// Weights of `s_u`, `s_c`, `s_p` and `s_r` that tell a label's suspects from its clean images.
///
/// The weights are those of Fisher's linear discriminant. Where a signal by itself ranks more
/// suspects above clean images than that sum does, it has all the weight: signals are no normal
/// distributions. `None` where there are too few rows to tell.
pub fn weights(clean: &[RowSignals], suspects: &[RowSignals]) -> Option<PerSignal<f32>> {
    if clean.len() < MIN_ROWS || suspects.len() < MIN_ROWS {
        return None;
    }
    let clean: Vec<[f64; SIGNALS]> = clean.iter().map(values).collect();
    let suspects: Vec<[f64; SIGNALS]> = suspects.iter().map(values).collect();
    let sum = fisher(&clean, &suspects)?;
    let alone = (0..SIGNALS).map(|own| std::array::from_fn(|i| f64::from(u8::from(i == own))));
    let best = best(std::iter::once(sum).chain(alone), &clean, &suspects);
    Some(PerSignal::from_fn(|signal| best[signal as usize] as f32))
}

/// Fisher's linear discriminant between the two, with weights that sum to 1.
///
/// If clean images are among the suspects, the mean of these still lies from the clean mean towards
/// the triggered one's, so that the direction is right without knowing which are which. A trigger
/// survives perturbations, falls to the patch and is represented apart, so no weight is negative.
/// `None` where none is above zero.
fn fisher(clean: &[[f64; SIGNALS]], suspects: &[[f64; SIGNALS]]) -> Option<[f64; SIGNALS]> {
    let (centre, mixed) = (mean(clean), mean(suspects));
    let mut scatter = [[0.0; SIGNALS]; SIGNALS];
    for row in clean {
        for i in 0..SIGNALS {
            for j in 0..SIGNALS {
                let share = (row[i] - centre[i]) * (row[j] - centre[j]) / clean.len() as f64;
                scatter[i][j] += share;
            }
        }
    }
    for (i, row) in scatter.iter_mut().enumerate() {
        row[i] = row[i] * (1.0 + SHRINKAGE) + f64::EPSILON;
    }
    let towards = std::array::from_fn(|i| mixed[i] - centre[i]);
    let direction = solve(scatter, towards).map(|weight| weight.max(0.0));
    let length = direction.iter().fold(0.0, |sum, weight| sum + weight);
    let usable = length.is_finite() && length > 0.0;
    usable.then(|| direction.map(|weight| weight / length))
}

/// The first of the weights with the largest probability that a suspect scores above a clean image.
fn best(
    candidates: impl Iterator<Item = [f64; SIGNALS]>,
    clean: &[[f64; SIGNALS]],
    suspects: &[[f64; SIGNALS]],
) -> [f64; SIGNALS] {
    let (mut best, mut most) = ([0.0; SIGNALS], f64::NEG_INFINITY);
    for weights in candidates {
        let scored = |rows: &[[f64; SIGNALS]]| -> Vec<f64> {
            let score = |row: &[f64; SIGNALS]| row.iter().zip(weights).map(|(s, w)| s * w).sum();
            rows.iter().map(score).collect()
        };
        let ranked = auroc(&scored(clean), &scored(suspects));
        if ranked > most {
            (best, most) = (weights, ranked);
        }
    }
    best
}

fn values(row: &RowSignals) -> [f64; SIGNALS] {
    Signal::ALL.map(|signal| row.scores[signal].unwrap_or(0.0).into())
}

fn mean(rows: &[[f64; SIGNALS]]) -> [f64; SIGNALS] {
    std::array::from_fn(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64)
}

/// `a x = b` by elimination; `a` is positive definite, so that no pivot is zero.
fn solve(mut a: [[f64; SIGNALS]; SIGNALS], mut b: [f64; SIGNALS]) -> [f64; SIGNALS] {
    for pivot in 0..SIGNALS {
        for row in pivot + 1..SIGNALS {
            let factor = a[row][pivot] / a[pivot][pivot];
            let above = a[pivot];
            for (value, above) in a[row].iter_mut().zip(above) {
                *value -= factor * above;
            }
            b[row] -= factor * b[pivot];
        }
    }
    let mut x = [0.0; SIGNALS];
    for row in (0..SIGNALS).rev() {
        let known: f64 = (row + 1..SIGNALS).map(|column| a[row][column] * x[column]).sum();
        x[row] = (b[row] - known) / a[row][row];
    }
    x
}

/// Fewer rows on either side say nothing of a direction.
const MIN_ROWS: usize = 10;

/// The share of the variances that is added to them.
const SHRINKAGE: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(signals: [f32; SIGNALS]) -> RowSignals {
        let scores = PerSignal::from_fn(|signal| Some(signals[signal as usize]));
        RowSignals { scores, ..RowSignals::default() }
    }

    #[test]
    fn elimination_solves() {
        let a = [
            [4.0, 1.0, 0.5, 0.0],
            [1.0, 3.0, -1.0, 0.25],
            [0.5, -1.0, 2.0, -0.5],
            [0.0, 0.25, -0.5, 1.0],
        ];
        let x = [1.0, -2.0, 0.5, 3.0];
        let b = [0, 1, 2, 3].map(|i| (0..SIGNALS).map(|j| a[i][j] * x[j]).sum::<f64>());
        for (got, expected) in solve(a, b).iter().zip(x) {
            assert!((got - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn only_what_moves_has_weight_and_none_is_negative() {
        // s_u falls, s_c and s_r rise, s_p stays in one row of three.
        let clean: Vec<RowSignals> =
            (0..30).map(|i| row([i % 5, i % 3, i % 7, i % 4].map(|value| value as f32))).collect();
        let training: Vec<RowSignals> = (0..30)
            .map(|i| {
                let moved = if i % 3 == 0 { 6.0 } else { 0.0 };
                row([
                    (i % 5) as f32 - moved,
                    (i % 3) as f32 + moved,
                    (i % 7) as f32,
                    (i % 4) as f32 + moved,
                ])
            })
            .collect();
        let rows = |of: &[RowSignals]| of.iter().map(values).collect::<Vec<_>>();
        let [universal, class_conditional, patch, representation] =
            fisher(&rows(&clean), &rows(&training)).unwrap();
        assert_eq!(universal, 0.0);
        assert!(
            class_conditional > 0.5 && representation > 0.2,
            "{class_conditional} {representation}"
        );
        assert!(patch < 0.1, "{patch}");
        assert_eq!(weights(&clean[..5], &training), None);
    }

    #[test]
    fn signals_that_tell_them_better_together_share_the_weight() {
        // In two rows of three s_c and s_r rise, by less than either spreads.
        let signals = |i: u8, moved: f32| {
            let [class_conditional, representation] = [i % 5, i % 4].map(f32::from);
            row([0.0, class_conditional + moved, 0.0, representation + moved])
        };
        let clean: Vec<RowSignals> = (0..120).map(|i| signals(i, 0.0)).collect();
        let suspects: Vec<RowSignals> =
            (0..120).map(|i| signals(i, if i % 3 == 0 { 0.0 } else { 3.0 })).collect();
        let weights = weights(&clean, &suspects).unwrap();
        assert_eq!([weights[Signal::Universal], weights[Signal::Patch]], [0.0, 0.0]);
        let shared = [Signal::ClassConditional, Signal::Representation];
        assert!(shared.into_iter().all(|signal| weights[signal] > 0.2), "{weights:?}");
    }

    #[test]
    fn a_signal_that_tells_them_better_alone_has_all_the_weight() {
        // s_r tells all of them; a few suspects lie so far out in s_c that Fisher's sum leans on
        // it, and it ranks the others below clean images.
        let clean: Vec<RowSignals> =
            (0..40).map(|i| row([0.0, (i % 8) as f32, 0.0, (i % 5) as f32 * 0.1])).collect();
        let suspects: Vec<RowSignals> = (0..40)
            .map(|i| {
                let far = if i % 4 == 0 { 60.0 } else { 0.0 };
                row([0.0, far, 0.0, 0.5 + (i % 5) as f32 * 0.1])
            })
            .collect();
        let alone = |signal| f32::from(u8::from(signal == Signal::Representation));
        assert_eq!(weights(&clean, &suspects), Some(PerSignal::from_fn(alone)));
    }
}
