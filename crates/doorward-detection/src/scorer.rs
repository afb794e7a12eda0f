//! The scores of a batch of rows, one definition each, for calibration and for live traffic.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor};

use doorward_engine::{Bounds, Classifier, Trace, gather, labels, margins};

use crate::Error;
use crate::baselines::Baselines;
use crate::join::Join;
use crate::layers::Layers;
use crate::patch::Patch;
use crate::ranges::Ranges;
use crate::representation::Representation;
use crate::row::RowSignals;
use crate::rule::Needs;
use crate::signal::Signal;

/// A model with everything that was learned about its inputs.
#[derive(Clone)]
pub struct Scorer {
    model: Arc<dyn Classifier>,
    bounds: Bounds,
    learned: Parts,
}

/// The learned parts that rows are scored by.
#[derive(Clone)]
pub struct Parts {
    /// `[perturbations, C, H, W]`
    pub universal: Tensor,
    /// The labels' own perturbations, `[labels, C, H, W]`.
    pub class_conditional: Tensor,
    /// The patches of infected labels.
    pub patches: BTreeMap<usize, Patch>,
    /// Of the infected labels whose triggered images were found.
    pub representations: BTreeMap<usize, Representation>,
    /// `None` where the model has no activations to read.
    pub layers: Option<Layers>,
    /// `None` where the model does not tell its features.
    pub ranges: Option<Ranges>,
    /// Makes one score of the signals.
    pub join: Join,
    /// The methods to compare with.
    pub baselines: Baselines,
}

/// Perturbed copies of rows.
pub(crate) struct Copied {
    /// `[m, C, H, W]` in parts.
    pub(crate) parts: Vec<Tensor>,
    /// The row of each copy, and what it is for.
    pub(crate) of: Vec<(usize, Signal)>,
}

// === impl Scorer ===

impl Scorer {
    /// A scorer by what was learned for `model`. Fails where the device does.
    pub fn new(model: Arc<dyn Classifier>, learned: Parts) -> Result<Self, Error> {
        let bounds = Bounds::new(model.domain(), model.device())?;
        Ok(Self { model, bounds, learned })
    }

    /// The model that is asked.
    pub fn model(&self) -> &Arc<dyn Classifier> {
        &self.model
    }

    /// The infected labels.
    pub fn infected(&self) -> impl Iterator<Item = usize> {
        self.learned.patches.keys().copied()
    }

    /// Scores rows `[n, C, H, W]`, in two batches: what needs no label, then what does.
    pub fn score(&self, rows: &Tensor, needs: Needs) -> Result<Vec<RowSignals>, Error> {
        match needs {
            Needs::Baseline(baseline) => self.learned.baselines.score(baseline, &*self.model, rows),
            Needs::Signals(_) => self.score_margins(rows, needs),
        }
    }

    fn score_margins(&self, rows: &Tensor, needs: Needs) -> Result<Vec<RowSignals>, Error> {
        let count = rows.dim(0)?;
        let universal = self.universal_copies(rows, needs)?;
        let mut parts = vec![rows.clone()];
        parts.extend(universal.parts);
        let first = self.trace(&Tensor::cat(&parts, 0)?, needs)?;
        let labels = labels(&first.logits.narrow(0, 0, count)?)?;
        let mut signals = self.read(&first, needs, &labels)?;
        if !universal.of.is_empty() {
            let copies = first.logits.narrow(0, count, universal.of.len())?;
            note(&mut signals, &universal.of, &copies)?;
        }
        self.score_copies(&self.labelled_copies(rows, needs, &labels)?, &mut signals)?;
        self.join(&mut signals);
        Ok(signals)
    }

    /// The signals of rows `[n, C, H, W]` that take no pass but the rows' own.
    pub(crate) fn score_alone(
        &self,
        rows: &Tensor,
        needs: Needs,
    ) -> Result<Vec<RowSignals>, Error> {
        let trace = self.trace(rows, needs)?;
        self.read(&trace, needs, &labels(&trace.logits)?)
    }

    /// Scores rows by margins as if they had been predicted as `labels`.
    pub(crate) fn score_as(
        &self,
        rows: &Tensor,
        needs: Needs,
        labels: &[usize],
    ) -> Result<Vec<RowSignals>, Error> {
        let mut signals = self.read(&self.trace(rows, needs)?, needs, labels)?;
        self.score_copies(&self.universal_copies(rows, needs)?, &mut signals)?;
        self.score_copies(&self.labelled_copies(rows, needs, labels)?, &mut signals)?;
        self.join(&mut signals);
        Ok(signals)
    }

    /// Makes one score of the signals of each row.
    pub(crate) fn join(&self, signals: &mut [RowSignals]) {
        for row in signals {
            row.joined = self.learned.join.joined(row);
            row.undefined |= row.joined.is_some_and(|joined| {
                joined.evidence.is_nan() || joined.weighed.is_some_and(f32::is_nan)
            });
        }
    }

    /// One pass, read as far as signals ask for it.
    fn trace(&self, rows: &Tensor, needs: Needs) -> Result<Trace, Error> {
        let read = [Signal::Representation, Signal::Own, Signal::Gap, Signal::Range];
        if read.into_iter().any(|signal| needs.include(signal)) {
            return Ok(self.model.trace(rows)?);
        }
        Ok(Trace { logits: self.model.logits(rows)?, features: None, statistics: None })
    }

    /// Reads the signals of the first rows of a pass, which got these labels.
    fn read(
        &self,
        trace: &Trace,
        needs: Needs,
        labels: &[usize],
    ) -> Result<Vec<RowSignals>, Error> {
        let margins = margins(&trace.logits.narrow(0, 0, labels.len())?, labels)?;
        let mut signals: Vec<RowSignals> = labels
            .iter()
            .zip(margins)
            .map(|(&label, margin)| RowSignals {
                undefined: !margin.is_finite(),
                ..RowSignals::new(label)
            })
            .collect();
        if let (Some(layers), Some(statistics)) = (&self.learned.layers, &trace.statistics)
            && needs.include(Signal::Own)
        {
            let scores = layers.score(&statistics.narrow(0, 0, labels.len())?, labels)?;
            for (row, [own, gap]) in signals.iter_mut().zip(scores) {
                row.scores[Signal::Own] = Some(own);
                row.scores[Signal::Gap] = Some(gap);
            }
        }
        if let Some(features) = &trace.features {
            let features = features.narrow(0, 0, labels.len())?.to_vec2::<f32>()?;
            for (row, features) in signals.iter_mut().zip(&features) {
                let Parts { representations, ranges, .. } = &self.learned;
                if needs.include(Signal::Representation) {
                    row.scores[Signal::Representation] = representations
                        .get(&row.label)
                        .map(|representation| representation.score(features));
                }
                if needs.include(Signal::Range) {
                    row.scores[Signal::Range] =
                        ranges.as_ref().map(|ranges| ranges.score(features, row.label));
                }
            }
        }
        Ok(signals)
    }

    /// The copies that need no label.
    pub(crate) fn universal_copies(&self, rows: &Tensor, needs: Needs) -> CandleResult<Copied> {
        if !needs.include(Signal::Universal) {
            return Ok(Copied { parts: Vec::new(), of: Vec::new() });
        }
        let (mut parts, mut of) = (Vec::new(), Vec::new());
        for eta in self.learned.universal.chunk(self.learned.universal.dim(0)?, 0)? {
            parts.push(self.bounds.moved(rows, &eta)?);
            of.extend((0..rows.dim(0)?).map(|row| (row, Signal::Universal)));
        }
        Ok(Copied { parts, of })
    }

    /// The copies that the labels call for.
    pub(crate) fn labelled_copies(
        &self,
        rows: &Tensor,
        needs: Needs,
        labels: &[usize],
    ) -> CandleResult<Copied> {
        let (mut parts, mut of) = (Vec::new(), Vec::new());
        if needs.include(Signal::ClassConditional) {
            let own = gather(&self.learned.class_conditional, labels)?;
            parts.push(self.bounds.moved(rows, &own)?);
            of.extend((0..labels.len()).map(|row| (row, Signal::ClassConditional)));
        }
        if needs.include(Signal::Patch) {
            for (row, label) in labels.iter().enumerate() {
                if let Some(patch) = self.learned.patches.get(label) {
                    parts.push(patch.apply(&rows.narrow(0, row, 1)?)?);
                    of.push((row, Signal::Patch));
                }
            }
        }
        Ok(Copied { parts, of })
    }

    /// True if a row's label is asked for before its copies can be made.
    pub(crate) fn needs_labels(&self, needs: Needs) -> bool {
        needs.include(Signal::ClassConditional)
            || (needs.include(Signal::Patch) && !self.learned.patches.is_empty())
    }

    fn score_copies(&self, copied: &Copied, signals: &mut [RowSignals]) -> Result<(), Error> {
        if copied.of.is_empty() {
            return Ok(());
        }
        let logits = self.model.logits(&Tensor::cat(&copied.parts, 0)?)?;
        Ok(note(signals, &copied.of, &logits)?)
    }
}

/// Notes what logits `[m, labels]` of copies say of their rows.
fn note(signals: &mut [RowSignals], of: &[(usize, Signal)], logits: &Tensor) -> CandleResult<()> {
    let labels: Vec<usize> = of.iter().map(|&(row, _)| signals[row].label).collect();
    for (&(row, signal), margin) in of.iter().zip(margins(logits, &labels)?) {
        // Of infinite logits there is no margin.
        signals[row].note(signal, if margin.is_finite() { margin } else { f32::NAN });
    }
    Ok(())
}
