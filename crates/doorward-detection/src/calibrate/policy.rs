//! What rules and policies make of an artifact.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Error;
use crate::artifact::{Artifact, InspectionSummary, Thresholds};
use crate::detect::strip::Strip;
use crate::detect::thresholds::{self, Budget, Scale, fit};
use crate::detect::{self, Detector, Signals, Specific};
use crate::inspect::Patch;
use crate::settings::{Policy, Rule};
use doorward_engine::Classifier;

/// A detector from an artifact, its thresholds fitted to the policy's budget.
///
/// An error if the rule is one that the artifact holds nothing for.
pub fn detector(
    model: Arc<dyn Classifier>,
    artifact: &Artifact,
    policy: &Policy,
    rule: Rule,
) -> Result<(Detector, Thresholds), Error> {
    if rule == Rule::Strip && artifact.strip.is_none() {
        return Err(detect::Error::NoOverlays.into());
    }
    let signals = signals(model, artifact, policy)?;
    let thresholds = thresholds(artifact, policy);
    Ok((Detector::new(signals, rule, thresholds.clone()), thresholds))
}

/// The signals that an artifact's perturbations, patches and overlays give.
pub fn signals(
    model: Arc<dyn Classifier>,
    artifact: &Artifact,
    policy: &Policy,
) -> Result<Signals, Error> {
    let patches = used_patches(&artifact.patches, artifact.manifest.inspection.as_ref());
    let (universal, own) = (artifact.universal.clone(), artifact.class_conditional.clone());
    let manifest = &artifact.manifest;
    let specific = Specific::new(&*model, manifest.perturbation.epsilon, manifest.seed)?;
    let signals = Signals::new(model, universal, own, patches, specific)?
        .with_representations(artifact.representations.clone());
    let rate = policy.max_false_rejection_rate.value();
    Ok(match &artifact.strip {
        Some(strip) => {
            signals.with_strip(Strip::new(strip.overlays.clone(), &strip.entropies, rate))
        }
        None => signals,
    })
}

/// The thresholds that an artifact's held-out scores give for a policy's budget.
pub fn thresholds(artifact: &Artifact, policy: &Policy) -> Thresholds {
    let scales: Vec<Scale> = artifact
        .manifest
        .thresholds
        .labels
        .iter()
        .map(|label| Scale { location: label.location, spread: label.spread })
        .collect();
    let infected = infected(artifact).iter().copied().collect();
    let weights = artifact.manifest.thresholds.weights.clone();
    fit(&scales, &artifact.holdout, &infected, weights, budget(policy))
}

/// How many labels have a threshold of their own under a policy's budget, and about how many held-out
/// images would give every label one.
pub fn own_thresholds(artifact: &Artifact, policy: &Policy) -> (usize, usize) {
    let infected = infected(artifact).iter().copied().collect();
    let labels = artifact.manifest.labels;
    thresholds::own_thresholds(labels, &artifact.holdout, &infected, budget(policy))
}

/// The patches of infected labels, but for those that do not change what they were learned on: they say
/// nothing of an input.
pub(super) fn used_patches(
    patches: &BTreeMap<usize, Patch>,
    inspection: Option<&InspectionSummary>,
) -> BTreeMap<usize, Patch> {
    let Some(InspectionSummary { labels, infected }) = inspection else { return BTreeMap::new() };
    let used = labels
        .iter()
        .filter(|own| infected.contains(&own.label) && own.top_k_changed >= LEARNED)
        .filter_map(|own| Some((own.label, patches.get(&own.label)?.clone())));
    used.collect()
}

fn infected(artifact: &Artifact) -> &[usize] {
    artifact.manifest.inspection.as_ref().map_or(&[], |inspection| &inspection.infected)
}

pub(super) fn budget(policy: &Policy) -> Budget {
    Budget {
        rate: policy.max_false_rejection_rate.value(),
        infected_weight: policy.infected_budget.into(),
    }
}

/// A patch is used if it changes this share of the images that it was learned on.
const LEARNED: f64 = 0.9;
