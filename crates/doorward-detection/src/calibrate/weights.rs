//! Weights of the signals of infected labels.

use std::collections::BTreeMap;

use super::{Error, Material, SCORED_AT_ONCE, tensor};
use crate::artifact::SIGNALS;
use crate::detect::{Needed, RowSignals, Signals, weights};
use crate::inspect::{Inspection, Suspects};
use crate::perturb::rows;
use doorward_images::Images;

/// Of every infected label whose clean and training images are enough to tell.
///
/// Neither the images that fitted the thresholds nor training images that a patch or a perturbation
/// was learned on are looked at.
pub(super) fn infected_weights(
    signals: &Signals,
    material: &Material,
    inspection: &Inspection,
    suspects: &BTreeMap<usize, Suspects>,
) -> Result<BTreeMap<usize, [f32; SIGNALS]>, Error> {
    let Some(training) = &material.training else { return Ok(BTreeMap::new()) };
    let model = &**signals.model();
    let clean = scored(signals, &material.probe, (0..material.probe.len()).collect())?;
    let fit = tensor(model, &material.fit)?;
    let fitted = signals.score(&fit, Needed::All)?;
    let mut found = BTreeMap::new();
    for inspected in inspection.infected() {
        let label = inspected.label;
        let of_label = |row: &&RowSignals| row.label == label;
        let mut own: Vec<RowSignals> = clean.iter().filter(of_label).copied().collect();
        if own.len() < FEW {
            // Better those that the perturbations know than none.
            own.extend(fitted.iter().filter(of_label));
        }
        let unseen = suspects[&label].unseen().filter(|row| !inspected.top.contains(row)).collect();
        let triggered = scored(signals, training, unseen)?;
        if let Some(weights) = weights(&own, &triggered) {
            found.insert(label, weights);
        }
    }
    Ok(found)
}

fn scored(
    signals: &Signals,
    images: &Images,
    indices: Vec<usize>,
) -> Result<Vec<RowSignals>, Error> {
    let model = signals.model();
    let mut scored = Vec::with_capacity(indices.len());
    for some in indices.chunks(SCORED_AT_ONCE) {
        let pixels = some.iter().map(|&index| images.image(index));
        let batch = rows(model.domain(), pixels, model.device())?;
        scored.extend(signals.score(&batch, Needed::All)?);
    }
    Ok(scored)
}

/// With fewer clean images of a label the covariance of its signals is noise.
const FEW: usize = 20;
