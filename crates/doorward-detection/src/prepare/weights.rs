//! Weights of the signals of infected labels.

use std::collections::BTreeMap;

use super::material::{Material, tensor};
use crate::Error;
use crate::batches::score;
use crate::inspect::{Inspection, Suspects};
use crate::join::{Weights, weights};
use crate::row::RowSignals;
use crate::rule::Needs;
use crate::scorer::Scorer;

/// Learns the weights of every infected label with enough clean and training images.
///
/// Neither the images that fitted the thresholds nor training images that a patch or a perturbation
/// was learned on are looked at.
pub(super) fn infected_weights(
    scorer: &Scorer,
    material: &Material,
    inspection: &Inspection,
    suspects: &BTreeMap<usize, Suspects>,
) -> Result<Weights, Error> {
    let Some(training) = &material.training else { return Ok(Weights::new()) };
    let model = &**scorer.model();
    let probe = 0..material.probe.len();
    let clean = score(scorer, &material.probe, probe, Needs::ALL, &|_| ())?;
    let fit = tensor(model, &material.fit)?;
    let fitted = scorer.score(&fit, Needs::ALL)?;
    let mut learned = Weights::new();
    for inspected in inspection.infected() {
        let label = inspected.figures.label;
        let of_label = |row: &&RowSignals| row.label == label;
        let mut own: Vec<RowSignals> = clean.iter().filter(of_label).copied().collect();
        if own.len() < FEW {
            // Better those that the perturbations know than none.
            own.extend(fitted.iter().filter(of_label));
        }
        let unseen = suspects[&label].unseen().filter(|row| !inspected.top.contains(row));
        let triggered = score(scorer, training, unseen, Needs::ALL, &|_| ())?;
        if let Some(weights) = weights(&own, &triggered) {
            learned.insert(label, weights);
        }
    }
    Ok(learned)
}

/// With fewer clean images of a label the covariance of its signals is noise.
const FEW: usize = 20;
