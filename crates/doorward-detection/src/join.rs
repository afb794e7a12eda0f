//! The join of a row's signals into one score.
//!
//! Every line of evidence is first turned into its *surprise*: minus the logarithm of the share of
//! clean images that score higher. Surprises of different lines are of one unit, and those of a clean
//! image are small whatever the line: one that says nothing on a model adds little. Their sum is the
//! evidence against a row (Fisher 1925's combination of p-values; thresholds are fitted to it, so
//! that lines need not be independent).
//!
//! The reference images are not those that thresholds are fitted to, so that the evidence is a score
//! fixed beforehand, and the bound of [`crate::conformal`] holds for it.
//!
//! An infected label whose suspects are known has weights of its own, learned from them.

use std::collections::BTreeMap;

use crate::linear::inverse;
use crate::row::{Joined, RowSignals};
use crate::scale::{Scale, scales};
use crate::signal::{PerSignal, Signal};
use crate::stats::auroc;

/// The weights of the signals of infected labels, by label.
pub type Weights = BTreeMap<usize, PerSignal<f32>>;

const SIGNALS: usize = Signal::COUNT;

/// All that turns a row's signals into one score.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Join {
    /// The signals that are evidence on every label.
    pub lines: PerSignal<Option<Line>>,
    /// The weights of infected labels.
    pub weights: Weights,
}

/// A signal's scores of clean images.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The scale of each label's scores.
    pub scales: Vec<Scale>,
    /// Predicted label and score of each reference image, in the label's scale.
    pub reference: Vec<(usize, f32)>,
    all: Tail,
    /// Ascending, by label.
    by_label: Vec<Vec<f32>>,
}

/// The distribution of scores: as seen, and beyond its upper tenth a generalised Pareto
/// distribution, by probability-weighted moments (Hosking and Wallis 1987, equations 10 and 11).
#[derive(Clone, Debug, PartialEq)]
struct Tail {
    sorted: Vec<f32>,
    /// The score at which the tail begins.
    start: f32,
    /// Share of the scores in it.
    share: f64,
    scale: f64,
    shape: f64,
}

// === impl Join ===

impl Join {
    /// The score of a row. `None` where no line was asked for.
    pub fn joined(&self, row: &RowSignals) -> Option<Joined> {
        let surprise = |(signal, share): (Signal, f32)| {
            let (line, score) = (self.lines[signal].as_ref()?, row.scores[signal]?);
            Some(share * line.surprise(row.label, score))
        };
        let surprises: Vec<f32> = LINES.into_iter().filter_map(surprise).collect();
        if surprises.is_empty() {
            return None;
        }
        let weighed = self.weights.get(&row.label).map(|weights| {
            let weighed = |signal| row.scores[signal].unwrap_or(0.0) * weights[signal];
            Signal::ALL.into_iter().map(weighed).sum()
        });
        Some(Joined { label: row.label, evidence: surprises.iter().sum(), weighed })
    }
}

// === impl Line ===

impl Line {
    /// A line from the predicted labels and scores of reference images. `None` with too few.
    pub fn new(labels: usize, reference: &[(usize, f32)]) -> Option<Self> {
        if reference.len() < MIN_REFERENCE {
            return None;
        }
        let scales = scales(labels, reference);
        let standard = |&(label, score): &(usize, f32)| (label, scales[label].standard(score));
        let reference = reference.iter().map(standard).collect();
        Some(Self::of_standard(scales, reference))
    }

    /// A line from scores that are in their labels' scales.
    pub(crate) fn of_standard(scales: Vec<Scale>, reference: Vec<(usize, f32)>) -> Self {
        let mut by_label = vec![Vec::new(); scales.len()];
        reference.iter().for_each(|&(label, score)| by_label[label].push(score));
        by_label.iter_mut().for_each(|scores| scores.sort_by(f32::total_cmp));
        let all = Tail::new(reference.iter().map(|(_, score)| *score).collect());
        Self { scales, reference, all, by_label }
    }

    /// Minus the natural logarithm of the share of clean images of the label that score higher; NaN
    /// for a score that is.
    ///
    /// The label's own images are counted, and `PRIOR_IMAGES` more that score as those of all
    /// labels do.
    pub fn surprise(&self, label: usize, score: f32) -> f32 {
        let score = self.scales[label].standard(score);
        if score.is_nan() {
            return f32::NAN;
        }
        let own = &self.by_label[label];
        let above = (own.len() - own.partition_point(|other| *other < score)) as f64;
        let share =
            (above + PRIOR_IMAGES * self.all.above(score)) / (own.len() as f64 + PRIOR_IMAGES);
        -share.max(f64::MIN_POSITIVE).ln() as f32
    }
}

// === impl Tail ===

impl Tail {
    fn new(mut sorted: Vec<f32>) -> Self {
        sorted.sort_by(f32::total_cmp);
        let from = sorted.len() * (TAIL_OF - 1) / TAIL_OF;
        let start = sorted[from.saturating_sub(1)];
        let excesses: Vec<f64> =
            sorted[from..].iter().map(|score| f64::from(*score) - f64::from(start)).collect();
        let count = excesses.len() as f64;
        let mean = excesses.iter().sum::<f64>() / count;
        let ranked =
            excesses.iter().zip(1..).map(|(excess, rank)| excess * (count - f64::from(rank)));
        let weighted = ranked.sum::<f64>() / (count * (count - 1.0));
        let shape = 2.0 - mean / (mean - 2.0 * weighted);
        let [least, most] = SHAPES;
        let shape = if shape.is_nan() { most } else { shape.clamp(least, most) };
        let scale = (mean * (1.0 - shape)).max(f64::from(MIN_SCALE));
        Self { share: count / sorted.len() as f64, sorted, start, scale, shape }
    }

    /// The share of scores above.
    fn above(&self, score: f32) -> f64 {
        let excess = f64::from(score) - f64::from(self.start);
        if excess > 0.0 {
            let base = 1.0 + self.shape * excess / self.scale;
            return self.share * base.powf(-1.0 / self.shape);
        }
        let count = self.sorted.len();
        let below = self.sorted.partition_point(|other| *other < score);
        (count - below + 1) as f64 / (count + 1) as f64
    }
}

/// Weights of the signals that tell a label's suspects from its clean images.
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
    let mut scatter = [0.0; SIGNALS * SIGNALS];
    for row in clean {
        for i in 0..SIGNALS {
            for j in 0..SIGNALS {
                let share = (row[i] - centre[i]) * (row[j] - centre[j]) / clean.len() as f64;
                scatter[i * SIGNALS + j] += share;
            }
        }
    }
    for i in 0..SIGNALS {
        let variance = &mut scatter[i * (SIGNALS + 1)];
        *variance = *variance * (1.0 + SHRINKAGE) + f64::EPSILON;
    }
    let inverse = inverse(&scatter, SIGNALS);
    let direction: [f64; SIGNALS] = std::array::from_fn(|i| {
        let towards = (0..SIGNALS).map(|j| inverse[i * SIGNALS + j] * (mixed[j] - centre[j]));
        towards.sum::<f64>().max(0.0)
    });
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

/// Fewer rows on either side say nothing of a direction.
const MIN_ROWS: usize = 10;

/// The signals that are evidence on every label, and what counts of each: both margins are one line.
///
/// Among the joins tried on thirteen victims (sum, maximum, quadratic mean; with either margin, both,
/// or their minimum), this sum misses the fewest triggered images.
pub(crate) const LINES: [(Signal, f32); 5] = [
    (Signal::Universal, 0.5),
    (Signal::ClassConditional, 0.5),
    (Signal::Own, 1.0),
    (Signal::Gap, 1.0),
    (Signal::Range, 1.0),
];

/// Fewer reference images are no distribution.
pub(crate) const MIN_REFERENCE: usize = 20;

/// Images of all labels that count beside a label's own.
const PRIOR_IMAGES: f64 = 50.0;

/// The tail is one in so many of the scores.
const TAIL_OF: usize = 10;

/// Shapes of tails that are believed: an exponential one, and one whose mean is still sure.
const SHAPES: [f64; 2] = [0.05, 0.6];

/// Least scale of a tail, spreads: many equal scores have none.
const MIN_SCALE: f32 = 1e-3;

/// The share of the variances that is added to them.
const SHRINKAGE: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(signals: [f32; SIGNALS]) -> RowSignals {
        let scores = PerSignal::from_fn(|signal| Some(signals[signal as usize]));
        RowSignals { scores, ..RowSignals::default() }
    }

    fn uniform(count: usize) -> Vec<(usize, f32)> {
        (0..count).map(|i| (i % 2, (i * 7919 % count) as f32 / count as f32)).collect()
    }

    #[test]
    fn surprise_is_the_logarithm_of_the_share_above() {
        let line = Line::new(2, &uniform(2000)).expect("a line");
        for share in [0.5, 0.2, 0.05, 0.01] {
            let surprise = line.surprise(0, 1.0 - share);
            assert!((surprise + share.ln()).abs() < 0.15, "{share}: {surprise}");
        }
        // Beyond all of them it goes on to grow.
        assert!(line.surprise(0, 2.0) > line.surprise(0, 1.5));
        assert!(line.surprise(0, 1.5) > 1000f32.ln());
        assert!(line.surprise(0, f32::INFINITY).is_finite());
        assert!(line.surprise(0, f32::NAN).is_nan());
    }

    #[test]
    fn a_label_with_a_heavy_tail_is_less_surprising() {
        // Half of the scores of label 1 lie ten spreads out.
        let mut reference = uniform(1000);
        reference
            .iter_mut()
            .filter(|(label, score)| *label == 1 && *score > 0.6)
            .for_each(|(_, score)| *score += 5.0);
        let line = Line::new(2, &reference).expect("a line");
        assert!(line.surprise(0, 5.8) > line.surprise(1, 5.8) + 1.0);
    }

    #[test]
    fn a_line_without_a_spread_is_no_surprise() {
        let line = Line::new(2, &[(0, 3.0); 100]).expect("a line");
        assert!(line.surprise(0, 3.0) < 0.1);
        assert!(line.surprise(0, 2.0) < 0.1);
        assert_eq!(Line::new(2, &[(0, 3.0); MIN_REFERENCE - 1]), None);
    }

    #[test]
    fn lines_that_are_there_are_summed() {
        let line = Line::new(2, &uniform(400));
        let mut join = Join::default();
        let scored = row([0.9, 0.8, 0.0, 0.0, 0.95, 0.5, 0.0]);
        assert_eq!(join.joined(&scored), None);
        join.lines[Signal::Own] = line.clone();
        let own = join.joined(&scored).expect("a score").evidence;
        join.lines[Signal::Universal] = line.clone();
        let both = join.joined(&scored).expect("a score").evidence;
        let universal = line.expect("a line").surprise(0, 0.9);
        assert!((both - own - universal / 2.0).abs() < 1e-5);
        let undefined = row([0.9, 0.8, 0.0, 0.0, f32::NAN, 0.5, 0.0]);
        assert!(join.joined(&undefined).expect("a score").evidence.is_nan());
    }

    #[test]
    fn only_what_moves_has_weight_and_none_is_negative() {
        // s_u falls, s_c and s_r rise, s_p stays in one row of three.
        let clean: Vec<RowSignals> = (0..30)
            .map(|i| row([i % 5, i % 3, i % 7, i % 4, 0, 0, 0].map(|value| value as f32)))
            .collect();
        let training: Vec<RowSignals> = (0..30)
            .map(|i| {
                let moved = if i % 3 == 0 { 6.0 } else { 0.0 };
                row([
                    (i % 5) as f32 - moved,
                    (i % 3) as f32 + moved,
                    (i % 7) as f32,
                    (i % 4) as f32 + moved,
                    0.0,
                    0.0,
                    0.0,
                ])
            })
            .collect();
        let rows = |of: &[RowSignals]| of.iter().map(values).collect::<Vec<_>>();
        let [universal, class_conditional, patch, representation, ..] =
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
            row([0.0, class_conditional + moved, 0.0, representation + moved, 0.0, 0.0, 0.0])
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
        let clean: Vec<RowSignals> = (0..40)
            .map(|i| row([0.0, (i % 8) as f32, 0.0, (i % 5) as f32 * 0.1, 0.0, 0.0, 0.0]))
            .collect();
        let suspects: Vec<RowSignals> = (0..40)
            .map(|i| {
                let far = if i % 4 == 0 { 60.0 } else { 0.0 };
                row([0.0, far, 0.0, 0.5 + (i % 5) as f32 * 0.1, 0.0, 0.0, 0.0])
            })
            .collect();
        let alone = |signal| f32::from(u8::from(signal == Signal::Representation));
        assert_eq!(weights(&clean, &suspects), Some(PerSignal::from_fn(alone)));
    }
}
