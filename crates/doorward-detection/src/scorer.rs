//! The scores of a batch of rows, one definition each, for calibration and for live traffic.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor};

use doorward_engine::{Bounds, Classifier, gather, labels, margins};

use crate::Error;
use crate::baselines::Baselines;
use crate::patch::Patch;
use crate::representation::Representation;
use crate::row::RowSignals;
use crate::rule::Needs;
use crate::signal::Signal;

/// A model with everything that was learned to perturb its inputs.
#[derive(Clone)]
pub struct Scorer {
    model: Arc<dyn Classifier>,
    bounds: Bounds,
    /// `[perturbations, C, H, W]`
    universal: Tensor,
    /// `[labels, C, H, W]`
    class_conditional: Tensor,
    /// The patches of infected labels.
    patches: BTreeMap<usize, Patch>,
    /// Of the infected labels whose triggered images were found.
    representations: BTreeMap<usize, Representation>,
    baselines: Baselines,
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
    /// From perturbations `[perturbations, C, H, W]` and the labels' own `[labels, C, H, W]`;
    /// patches and representations are those of infected labels. Fails where the device does.
    pub fn new(
        model: Arc<dyn Classifier>,
        universal: Tensor,
        class_conditional: Tensor,
        patches: BTreeMap<usize, Patch>,
        representations: BTreeMap<usize, Representation>,
        baselines: Baselines,
    ) -> Result<Self, Error> {
        let bounds = Bounds::new(model.domain(), model.device())?;
        Ok(Self {
            model,
            bounds,
            universal,
            class_conditional,
            patches,
            representations,
            baselines,
        })
    }

    /// The model that is asked.
    pub fn model(&self) -> &Arc<dyn Classifier> {
        &self.model
    }

    /// The infected labels.
    pub fn infected(&self) -> impl Iterator<Item = usize> {
        self.patches.keys().copied()
    }

    /// Scores rows `[n, C, H, W]`, in two batches: what needs no label, then what does.
    pub fn score(&self, rows: &Tensor, needs: Needs) -> Result<Vec<RowSignals>, Error> {
        match needs {
            Needs::Baseline(baseline) => self.baselines.score(baseline, &*self.model, rows),
            Needs::Signals(_) => self.score_margins(rows, needs),
        }
    }

    fn score_margins(&self, rows: &Tensor, needs: Needs) -> Result<Vec<RowSignals>, Error> {
        let count = rows.dim(0)?;
        let universal = self.universal_copies(rows, needs)?;
        let mut parts = vec![rows.clone()];
        parts.extend(universal.parts);
        let first = self.model.logits(&Tensor::cat(&parts, 0)?)?;
        let labels = labels(&first.narrow(0, 0, count)?)?;
        let mut signals: Vec<RowSignals> =
            labels.iter().map(|&label| RowSignals::new(label)).collect();
        if !universal.of.is_empty() {
            note(&mut signals, &universal.of, &first.narrow(0, count, universal.of.len())?)?;
        }
        self.score_copies(&self.labelled_copies(rows, needs, &labels)?, &mut signals)?;
        self.represent(rows, needs, &mut signals)?;
        Ok(signals)
    }

    /// Scores rows by margins as if they had been predicted as `labels`.
    pub(crate) fn score_as(
        &self,
        rows: &Tensor,
        needs: Needs,
        labels: &[usize],
    ) -> Result<Vec<RowSignals>, Error> {
        let mut signals: Vec<RowSignals> =
            labels.iter().map(|&label| RowSignals::new(label)).collect();
        self.score_copies(&self.universal_copies(rows, needs)?, &mut signals)?;
        self.score_copies(&self.labelled_copies(rows, needs, labels)?, &mut signals)?;
        self.represent(rows, needs, &mut signals)?;
        Ok(signals)
    }

    /// Notes where the model represents the rows whose labels have such places.
    pub(crate) fn represent(
        &self,
        rows: &Tensor,
        needs: Needs,
        signals: &mut [RowSignals],
    ) -> Result<(), Error> {
        let known = |&row: &usize| self.representations.contains_key(&signals[row].label);
        let own: Vec<usize> = (0..signals.len()).filter(known).collect();
        if !needs.include(Signal::Representation) || own.is_empty() {
            return Ok(());
        }
        let Some(features) = self.model.features(&gather(rows, &own)?)? else { return Ok(()) };
        for (row, features) in own.into_iter().zip(features.to_vec2::<f32>()?) {
            let signals = &mut signals[row];
            let score = self.representations[&signals.label].score(&features);
            signals.scores[Signal::Representation] = Some(score);
            signals.forwards += 1;
        }
        Ok(())
    }

    /// The copies that need no label.
    pub(crate) fn universal_copies(&self, rows: &Tensor, needs: Needs) -> CandleResult<Copied> {
        if !needs.include(Signal::Universal) {
            return Ok(Copied { parts: Vec::new(), of: Vec::new() });
        }
        let (mut parts, mut of) = (Vec::new(), Vec::new());
        for eta in self.universal.chunk(self.universal.dim(0)?, 0)? {
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
            let own = gather(&self.class_conditional, labels)?;
            parts.push(self.bounds.moved(rows, &own)?);
            of.extend((0..labels.len()).map(|row| (row, Signal::ClassConditional)));
        }
        if needs.include(Signal::Patch) {
            for (row, label) in labels.iter().enumerate() {
                if let Some(patch) = self.patches.get(label) {
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
            || (needs.include(Signal::Patch) && !self.patches.is_empty())
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
        signals[row].note(signal, margin);
    }
    Ok(())
}
