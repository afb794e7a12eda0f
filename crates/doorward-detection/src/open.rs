//! From an artifact to a detector: how a policy reads what was learned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use doorward_engine::Classifier;

use crate::Error;
use crate::artifact::Artifact;
use crate::baselines::{Baselines, Specific, Strip};
use crate::conformal::{self, Thresholds};
use crate::detector::Detector;
use crate::findings::InspectionSummary;
use crate::patch::Patch;
use crate::rule::Rule;
use crate::scorer::{Parts, Scorer};
use crate::settings::Policy;

/// A detector by `rule` from an artifact, its thresholds fitted to the policy's budget.
///
/// Fails for a rule that the artifact holds nothing for.
pub fn detector(
    model: Arc<dyn Classifier>,
    artifact: &Artifact,
    policy: &Policy,
    rule: Rule,
) -> Result<(Detector, Thresholds), Error> {
    if rule == Rule::Strip && artifact.strip.is_none() {
        return Err(Error::NoOverlays);
    }
    let scorer = scorer(model, artifact, policy)?;
    let thresholds = thresholds(artifact, policy);
    Ok((Detector::new(scorer, rule, thresholds.clone()), thresholds))
}

/// A scorer of rows by an artifact's perturbations, patches and overlays. Fails where the model's
/// device does.
pub fn scorer(
    model: Arc<dyn Classifier>,
    artifact: &Artifact,
    policy: &Policy,
) -> Result<Scorer, Error> {
    let manifest = &artifact.manifest;
    let specific = Specific::new(&*model, manifest.perturbation.epsilon, manifest.seed)?;
    let rate = policy.max_false_rejection_rate.value();
    let strip = artifact.strip.as_ref();
    let strip = strip.map(|strip| Strip::new(strip.overlays.clone(), &strip.entropies, rate));
    Scorer::new(
        model,
        Parts {
            universal: artifact.universal.clone(),
            class_conditional: artifact.class_conditional.clone(),
            patches: used_patches(&artifact.patches, manifest.inspection.as_ref()),
            representations: artifact.representations.clone(),
            layers: artifact.layers.clone(),
            ranges: artifact.ranges.clone(),
            join: artifact.join.clone(),
            baselines: Baselines::new(specific, strip),
        },
    )
}

/// The thresholds that an artifact's held-out scores give for a policy's budget.
pub fn thresholds(artifact: &Artifact, policy: &Policy) -> Thresholds {
    let labels = artifact.manifest.labels;
    conformal::fit(labels, &artifact.holdout, &infected(artifact), policy.budget())
}

/// The patches of infected labels, but for those that do not change what they were learned on: they
/// say nothing of an input.
pub(crate) fn used_patches(
    patches: &BTreeMap<usize, Patch>,
    inspection: Option<&InspectionSummary>,
) -> BTreeMap<usize, Patch> {
    let Some(InspectionSummary { labels, infected }) = inspection else { return BTreeMap::new() };
    let used = labels
        .iter()
        .filter(|finding| infected.contains(&finding.label) && finding.top_k_changed >= LEARNED)
        .filter_map(|finding| Some((finding.label, patches.get(&finding.label)?.clone())));
    used.collect()
}

fn infected(artifact: &Artifact) -> BTreeSet<usize> {
    let inspection = artifact.manifest.inspection.iter();
    inspection.flat_map(|inspection| &inspection.infected).copied().collect()
}

/// A patch is used if it changes this share of the images that it was learned on.
const LEARNED: f64 = 0.9;
