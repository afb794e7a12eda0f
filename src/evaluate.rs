//! How well each rule tells clean rows from triggered ones.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::Serialize;

use crate::artifact::Thresholds;
use crate::config::Rule;
use crate::detect::{Error, Needed, RowSignals, Signals, apply, excess, needed};
use crate::images::Images;
use crate::perturb::rows;
use crate::stats::{auroc, true_positive_rate_at};

/// What a rule does to clean and triggered rows. Fractions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleFigures {
    /// Backdoor detection rate: share of the successful triggered rows turned away.
    pub bdr: f64,
    /// Clean image identification rate: share of the clean rows let through.
    pub ciir: f64,
    /// Of the rule's score.
    pub auroc: f64,
    /// By false positive rate; the thresholds are read off the clean rows.
    pub tpr_at_fpr: BTreeMap<&'static str, f64>,
    /// Mean number of predictions per clean row.
    pub forwards_per_input: f64,
}

/// How many rows figures rest on.
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
    /// What the calibrated rule guarantees.
    pub false_rejection_rate_bound: f64,
}

/// Scores both sets and judges them by `rules`.
///
/// Triggered rows count where the unperturbed prediction is one of `targets`; without targets the
/// attack's label is taken to be the one that most triggered rows not of that label are answered
/// with.
pub fn evaluate(
    signals: &Signals,
    thresholds: &Thresholds,
    clean: &Images,
    triggered: &Images,
    targets: &[usize],
    rules: &[Rule],
) -> Result<Evaluation, Error> {
    let clean_rows = score(signals, clean)?;
    let triggered_rows = score(signals, triggered)?;
    let targets = match targets {
        [] => vec![usual_target(&triggered_rows, triggered.labels(), thresholds.labels.len())],
        given => given.to_vec(),
    };
    let successful: Vec<RowSignals> =
        triggered_rows.iter().filter(|row| targets.contains(&row.label)).copied().collect();
    let rules = rules
        .iter()
        .map(|&rule| (rule.name(), figures(rule, thresholds, &clean_rows, &successful)))
        .collect();
    Ok(Evaluation {
        rows: Rows {
            clean: clean_rows.len(),
            triggered: triggered_rows.len(),
            triggered_successful: successful.len(),
        },
        targets,
        rules,
        false_rejection_rate_bound: thresholds.false_rejection_rate_bound,
    })
}

/// All signals of all images.
pub fn score(signals: &Signals, images: &Images) -> Result<Vec<RowSignals>, Error> {
    let model = signals.model();
    let mut scored = Vec::with_capacity(images.len());
    for first in (0..images.len()).step_by(SCORED_AT_ONCE) {
        let last = images.len().min(first + SCORED_AT_ONCE);
        let batch: Tensor =
            rows(model.domain(), (first..last).map(|index| images.image(index)), model.device())?;
        scored.extend(signals.score(&batch, Needed::All)?);
    }
    Ok(scored)
}

/// One rule's figures on scored rows.
pub fn figures(
    rule: Rule,
    thresholds: &Thresholds,
    clean: &[RowSignals],
    successful: &[RowSignals],
) -> RuleFigures {
    let rejected = |rows: &[RowSignals]| {
        let count = rows.iter().filter(|row| apply(rule, row, thresholds).rejected).count();
        count as f64 / rows.len() as f64
    };
    let scores = |rows: &[RowSignals]| -> Vec<f64> {
        rows.iter().map(|row| rank(rule, row, thresholds)).collect()
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

/// What a rule orders rows by.
fn rank(rule: Rule, row: &RowSignals, thresholds: &Thresholds) -> f64 {
    match rule {
        Rule::Calibrated => excess(row, thresholds).into(),
        Rule::Patch => row.patch.map_or(f64::NEG_INFINITY, f64::from),
        Rule::Uap => row.universal.map_or(f64::NEG_INFINITY, f64::from),
    }
}

fn forwards(rule: Rule, row: &RowSignals) -> f64 {
    let patch = usize::from(row.patch.is_some());
    let count = match needed(rule) {
        Needed::All => 3 + patch,
        Needed::Patch => 1 + patch,
        Needed::Universal => 2,
    };
    count as f64
}

fn usual_target(rows: &[RowSignals], truth: &[Option<usize>], labels: usize) -> usize {
    let mut counts = vec![0usize; labels];
    for (row, truth) in rows.iter().zip(truth) {
        if *truth != Some(row.label) {
            counts[row.label] += 1;
        }
    }
    (0..labels).max_by_key(|&label| counts[label]).unwrap_or(0)
}

const SCORED_AT_ONCE: usize = 256;
