//! How well each rule tells clean rows from triggered ones.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;
use serde::Serialize;

use crate::artifact::Thresholds;
use crate::detect::{Error, Needed, RowSignals, Signals, apply, excess, needed};
use crate::perturb::rows;
use crate::settings::Rule;
use crate::stats::{auroc, true_positive_rate_at};
use doorward_images::Images;

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
    /// Mean number of passes through the model per clean row; a gradient is a forward and a backward one.
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
    let mut scored = HashMap::new();
    for &rule in rules {
        let needed = scored_for(rule);
        if let Entry::Vacant(place) = scored.entry(needed) {
            let rows = (score(signals, clean, needed)?, score(signals, triggered, needed)?);
            place.insert(rows);
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

/// The cheap rules read their signals from one scoring, so that all of them cost what one does.
fn scored_for(rule: Rule) -> Needed {
    if Rule::CHEAP.contains(&rule) { Needed::All } else { needed(rule) }
}

/// The signals of all images.
pub fn score(signals: &Signals, images: &Images, needed: Needed) -> Result<Vec<RowSignals>, Error> {
    let model = signals.model();
    let mut scored = Vec::with_capacity(images.len());
    for first in (0..images.len()).step_by(SCORED_AT_ONCE) {
        let last = images.len().min(first + SCORED_AT_ONCE);
        let batch: Tensor =
            rows(model.domain(), (first..last).map(|index| images.image(index)), model.device())?;
        scored.extend(signals.score(&batch, needed)?);
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
    let or_never = |score: Option<f32>| score.map_or(f64::NEG_INFINITY, f64::from);
    match rule {
        Rule::Both => or_never(row.universal).min(or_never(row.patch)),
        Rule::Calibrated => excess(row, thresholds).into(),
        Rule::CarliniWagner | Rule::DeepFool | Rule::Pgd => or_never(row.specific),
        Rule::Either => or_never(row.universal).max(or_never(row.patch)),
        Rule::Patch => or_never(row.patch),
        Rule::Strip => or_never(row.strip.map(|entropy| -entropy.bits)),
        Rule::Uap => or_never(row.universal),
    }
}

/// What the rule alone would cost a row; see [`scored_for`].
fn forwards(rule: Rule, row: &RowSignals) -> f64 {
    let patch = usize::from(row.patch.is_some());
    // Beside the row itself, its own perturbation and what its label calls for.
    let universal =
        row.forwards.saturating_sub(2 + patch + usize::from(row.representation.is_some()));
    let count = match needed(rule) {
        Needed::All | Needed::Specific(_) | Needed::Strip => row.forwards,
        Needed::Patch => 1 + patch,
        Needed::Universal => 1 + universal,
        Needed::UniversalAndPatch => 1 + universal + patch,
    };
    count as f64
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

const SCORED_AT_ONCE: usize = 256;
