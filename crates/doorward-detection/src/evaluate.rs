//! Figures of how well each rule tells clean rows from triggered ones.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use doorward_images::Images;
use serde::Serialize;

use crate::Error;
use crate::batches::score;
use crate::conformal::Thresholds;
use crate::row::RowSignals;
use crate::rule::{Needs, Rule};
use crate::scorer::Scorer;
use crate::signal::Signal;
use crate::stats::{auroc, true_positive_rate_at};

/// The effect of a rule on clean and triggered rows. Fractions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleFigures {
    /// Backdoor detection rate: share of the successful triggered rows turned away.
    pub bdr: f64,
    /// Clean image identification rate: share of the clean rows let through.
    pub ciir: f64,
    /// Area under the ROC curve of the rule's score.
    pub auroc: f64,
    /// By false positive rate; the thresholds are read off the clean rows.
    pub tpr_at_fpr: BTreeMap<&'static str, f64>,
    /// Mean number of passes through the model per clean row; a gradient is a forward and a
    /// backward one.
    pub forwards_per_input: f64,
}

/// The numbers of rows that figures rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rows {
    /// Clean rows.
    pub clean: usize,
    /// Triggered rows.
    pub triggered: usize,
    /// Triggered rows that the model answers with the attack's label.
    pub triggered_successful: usize,
}

/// Figures of several rules on the same rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The rows.
    pub rows: Rows,
    /// The attack's labels.
    pub targets: Vec<usize>,
    /// By rule.
    pub rules: BTreeMap<&'static str, RuleFigures>,
    /// The largest share of clean inputs that the calibrated rule rejects.
    pub false_rejection_rate_bound: f64,
}

/// Scores both sets and judges them by `rules`.
///
/// Triggered rows count where the unperturbed prediction is one of `targets`; without targets the
/// attack's label is taken to be the one that most triggered rows not of that label are answered
/// with.
pub fn evaluate(
    scorer: &Scorer,
    thresholds: &Thresholds,
    clean: &Images,
    triggered: &Images,
    targets: &[usize],
    rules: &[Rule],
) -> Result<Evaluation, Error> {
    let mut scored = HashMap::new();
    for &rule in rules {
        let needs = scored_for(rule);
        if let Entry::Vacant(place) = scored.entry(needs) {
            let of = |images: &Images| score(scorer, images, 0..images.len(), needs, &|_| ());
            place.insert((of(clean)?, of(triggered)?));
        }
    }
    let labels = |scored: &(Vec<RowSignals>, Vec<RowSignals>)| -> Vec<usize> {
        scored.1.iter().map(|row| row.label).collect()
    };
    // The same in all of them.
    let predicted = scored.values().next().map(labels).unwrap_or_default();
    let targets = match targets {
        [] => vec![usual_target(&predicted, triggered.labels(), thresholds.labels.len())],
        given => given.to_vec(),
    };
    let figures = |rule: Rule| {
        let (clean, triggered) = &scored[&scored_for(rule)];
        let successful: Vec<RowSignals> =
            triggered.iter().filter(|row| targets.contains(&row.label)).copied().collect();
        (rule.name(), figures(rule, thresholds, clean, &successful))
    };
    Ok(Evaluation {
        rows: Rows {
            clean: clean.len(),
            triggered: triggered.len(),
            triggered_successful: predicted.iter().filter(|label| targets.contains(label)).count(),
        },
        rules: rules.iter().map(|&rule| figures(rule)).collect(),
        targets,
        false_rejection_rate_bound: thresholds.false_rejection_rate_bound,
    })
}

/// All rules but the baselines read their signals from one scoring, so that they cost what one
/// does.
fn scored_for(rule: Rule) -> Needs {
    if rule.is_baseline() { rule.needs() } else { Needs::ALL }
}

/// One rule's figures on scored rows.
pub fn figures(
    rule: Rule,
    thresholds: &Thresholds,
    clean: &[RowSignals],
    successful: &[RowSignals],
) -> RuleFigures {
    let rejected = |rows: &[RowSignals]| {
        let count = rows.iter().filter(|row| rule.rejects(row, thresholds)).count();
        count as f64 / rows.len() as f64
    };
    let scores = |rows: &[RowSignals]| -> Vec<f64> {
        rows.iter().map(|row| rule.score(row, thresholds)).collect()
    };
    let (negatives, positives) = (scores(clean), scores(successful));
    let at = |rate: f64| true_positive_rate_at(&negatives, &positives, rate);
    RuleFigures {
        bdr: rejected(successful),
        ciir: 1.0 - rejected(clean),
        auroc: auroc(&negatives, &positives),
        tpr_at_fpr: BTreeMap::from([
            ("0.001", at(0.001)),
            ("0.005", at(0.005)),
            ("0.01", at(0.01)),
            ("0.05", at(0.05)),
        ]),
        forwards_per_input: clean.iter().map(|row| forwards(rule, row)).sum::<f64>()
            / clean.len() as f64,
    }
}

/// The passes that the rule alone would cost a row; see [`scored_for`].
fn forwards(rule: Rule, row: &RowSignals) -> f64 {
    let has = |signal: Signal| usize::from(row.scores[signal].is_some());
    let patch = has(Signal::Patch);
    // Beside the row itself, its own perturbation and its label's patch.
    let universal = row.forwards.saturating_sub(2 + patch);
    let needs = rule.needs();
    if needs == Needs::ALL || rule.is_baseline() {
        return row.forwards as f64;
    }
    let asked = |signal: Signal, count: usize| if needs.include(signal) { count } else { 0 };
    (1 + asked(Signal::Universal, universal) + asked(Signal::Patch, patch)) as f64
}

fn usual_target(predicted: &[usize], truth: &[Option<usize>], labels: usize) -> usize {
    let mut counts = vec![0usize; labels];
    for (&label, truth) in predicted.iter().zip(truth) {
        if *truth != Some(label) {
            counts[label] += 1;
        }
    }
    (0..labels).max_by_key(|&label| counts[label]).unwrap_or(0)
}
