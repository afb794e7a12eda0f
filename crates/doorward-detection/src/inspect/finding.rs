//! The findings of an inspection.

use crate::findings::{InspectionSummary, LabelInspection};
use crate::patch::Patch;

/// The findings on a model, with all that they rest on.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// One per inspected label, in order.
    pub labels: Vec<Inspected>,
    /// The labels named as a backdoor's target.
    pub infected: Vec<usize>,
}

/// The findings on one label, with all that they rest on.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The figures.
    pub figures: LabelInspection,
    /// The patch that changes its most confident samples.
    pub patch: Patch,
    /// Rows of the training images that survive the perturbations.
    pub survivors: Vec<usize>,
    /// Rows of all samples that are predicted as it, the most confident first.
    pub members: Vec<usize>,
    /// Rows of its most confident samples, the most confident first.
    pub top: Vec<usize>,
    /// Rows of its least confident samples, the least confident last.
    pub bottom: Vec<usize>,
}

// === impl Inspection ===

impl Inspection {
    /// The findings on the infected labels.
    pub fn infected(&self) -> impl Iterator<Item = &Inspected> {
        self.labels.iter().filter(|inspected| self.infected.contains(&inspected.figures.label))
    }

    /// The findings without what they rest on.
    pub fn summary(&self) -> InspectionSummary {
        let labels = self.labels.iter().map(|inspected| inspected.figures).collect();
        InspectionSummary { labels, infected: self.infected.clone() }
    }
}
