//! An inspection as one page for people: what was found, on what, and what it looks like.
//!
//! The page is a single file without scripts, and loads nothing: styles are inline, charts are SVG,
//! pictures are data URIs. It shows training images and the perturbation, so that it is as secret
//! as the artifact.

mod chart;
mod page;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use doorward_detection::LabelInspection;
use doorward_detection::conformal::Thresholds;
use doorward_detection::inspect::{Inspected, Inspection};
use doorward_detection::{Artifact, RowSignals};
use doorward_engine::{Classifier, Error, labels, rows};
use doorward_images::Images;
use doorward_proxy::picture::Painter;

/// The parts of a page.
pub struct Report<'a> {
    /// The inspected model.
    pub model: &'a dyn Classifier,
    /// The findings.
    pub inspection: &'a Inspection,
    /// The training images that were inspected.
    pub images: &'a Images,
    /// Anomaly index above which a label is infected.
    pub anomaly_threshold: f64,
    /// The firewall that stands in front of the model, where it is calibrated.
    pub firewall: Option<Firewall<'a>>,
    /// Why there is none.
    pub without_firewall: String,
    /// Other facts for a reader, name and value: files, digests, seed, settings.
    pub facts: Vec<(String, String)>,
}

/// A calibrated firewall.
pub struct Firewall<'a> {
    /// Its artifact.
    pub artifact: &'a Artifact,
    /// Its thresholds for the policy's budget.
    pub thresholds: &'a Thresholds,
    /// Scored triggered images; empty without any.
    pub triggered: &'a [RowSignals],
}

/// The part of the page on one label.
struct LabelCard {
    figures: LabelInspection,
    infected: bool,
    /// Pictures; absent for labels beyond `PICTURED`.
    patch: Option<PatchPictures>,
}

/// A label's patch, as data URIs.
struct PatchPictures {
    mask: String,
    pattern: String,
    product: String,
    /// The most, then the least confident images.
    examples: [Vec<Example>; 2],
}

/// A training image without and with the patch, as data URIs.
struct Example {
    before: String,
    after: String,
    /// The label predicted with the patch.
    label: usize,
}

/// The scores of one predicted label above its threshold.
struct LabelScores {
    label: usize,
    clean: Vec<f32>,
    triggered: Vec<f32>,
}

// === impl Report ===

impl Report<'_> {
    /// The page, HTML.
    pub fn html(&self) -> Result<String, Error> {
        let painter = Painter::new(self.model.domain());
        let infected = &self.inspection.infected;
        // Infected first, then the most anomalous.
        let mut order: Vec<&Inspected> = self.inspection.labels.iter().collect();
        order.sort_by(|a, b| {
            let key = |label: &Inspected| {
                let LabelInspection { label, anomaly_index, .. } = label.figures;
                (infected.contains(&label), anomaly_index)
            };
            key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal)
        });
        let mut cards = Vec::with_capacity(order.len());
        for (place, inspected) in order.into_iter().enumerate() {
            let patch = match place < PICTURED {
                true => Some(self.patch_pictures(&painter, inspected)?),
                false => None,
            };
            cards.push(LabelCard {
                figures: inspected.figures,
                infected: infected.contains(&inspected.figures.label),
                patch,
            });
        }
        let eta = match &self.firewall {
            None => None,
            Some(firewall) => {
                let epsilon = firewall.artifact.manifest.perturbation.epsilon;
                Some(painter.perturbation(&firewall.artifact.universal, epsilon)?)
            }
        };
        let scores = self.firewall.as_ref().map(scores).unwrap_or_default();
        Ok(page::page(self, &cards, eta.as_deref(), &scores))
    }

    fn patch_pictures(
        &self,
        painter: &Painter<'_>,
        inspected: &Inspected,
    ) -> Result<PatchPictures, Error> {
        let patch = &inspected.patch;
        let product = painter.product(&patch.mask, &patch.pattern)?;
        Ok(PatchPictures {
            mask: painter.share(&patch.mask)?,
            pattern: painter.row(&patch.pattern)?,
            product,
            examples: [
                self.examples(painter, inspected, &inspected.top)?,
                self.examples(painter, inspected, &inspected.bottom)?,
            ],
        })
    }

    fn examples(
        &self,
        painter: &Painter<'_>,
        inspected: &Inspected,
        members: &[usize],
    ) -> Result<Vec<Example>, Error> {
        let shown = &members[..members.len().min(EXAMPLES)];
        let pixels = shown.iter().map(|&index| self.images.image(index));
        let before = rows(self.model.domain(), pixels, self.model.device())?;
        let after = inspected.patch.apply(&before)?;
        let labels = labels(&self.model.logits(&after)?)?;
        (0..shown.len())
            .map(|index| {
                Ok(Example {
                    before: painter.row(&before.narrow(0, index, 1)?)?,
                    after: painter.row(&after.narrow(0, index, 1)?)?,
                    label: labels[index],
                })
            })
            .collect()
    }
}

/// The scores of each label that has any, labels with triggered images first.
fn scores(firewall: &Firewall<'_>) -> Vec<LabelScores> {
    let thresholds = firewall.thresholds;
    let mut by_label: BTreeMap<usize, (Vec<f32>, Vec<f32>)> = BTreeMap::new();
    for joined in &firewall.artifact.holdout {
        by_label.entry(joined.label).or_default().0.push(thresholds.excess(joined));
    }
    for joined in firewall.triggered.iter().filter_map(|row| row.joined) {
        by_label.entry(joined.label).or_default().1.push(thresholds.excess(&joined));
    }
    let mut scores: Vec<LabelScores> = by_label
        .into_iter()
        // Too few images for a threshold: nothing to draw a line at.
        .filter(|(label, _)| thresholds.labels[*label].threshold < f32::MAX)
        .map(|(label, (clean, triggered))| LabelScores { label, clean, triggered })
        .collect();
    scores.sort_by_key(|scores| std::cmp::Reverse(scores.triggered.len()));
    scores.truncate(PICTURED);
    scores
}

/// Labels with pictures: a page of a thousand labels would take hundreds of megabytes.
const PICTURED: usize = 64;

/// Images shown of the most, and of the least, confident ones.
const EXAMPLES: usize = 4;
