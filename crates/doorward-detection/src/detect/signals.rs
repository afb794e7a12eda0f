//! The scores of a batch of rows, one definition each, for calibration and for live traffic.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor};

use super::Error;
use super::specific::{Generator, Specific};
use super::strip::{Entropy, Strip};
use crate::artifact::SIGNALS;
use crate::inspect::{Patch, Representation};
use crate::perturb::{Batch, Bounds, gather, labels, margins};
use doorward_engine::Classifier;

/// A model with everything that was learned to perturb its inputs.
#[derive(Clone)]
pub struct Signals {
    model: Arc<dyn Classifier>,
    bounds: Bounds,
    /// `[perturbations, C, H, W]`
    universal: Tensor,
    /// `[labels, C, H, W]`
    class_conditional: Tensor,
    /// Of the infected labels.
    patches: BTreeMap<usize, Patch>,
    /// Of the infected labels whose triggered images were found.
    representations: BTreeMap<usize, Representation>,
    specific: Specific,
    /// Where the artifact holds what it takes.
    strip: Option<Strip>,
}

/// Which signals a rule needs; the prediction itself always comes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Needed {
    /// Every signal: with one universal perturbation three forward passes a row, up to five where the label is infected.
    All,
    /// Only the patch flip: one pass, two where the label is infected.
    Patch,
    /// Only a perturbation made for the row.
    Specific(Generator),
    /// Only the entropy of blends: a pass for each overlay.
    Strip,
    /// Only the universal perturbation: two passes with one.
    Universal,
    /// The universal perturbation and the patch flip: two passes with one, three where the label is infected.
    UniversalAndPatch,
}

/// Which signal a perturbed copy of a row is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `s_c`
    ClassConditional,
    /// `s_p`
    Patch,
    /// `s_u`
    Universal,
}

/// Perturbed copies of rows.
pub(super) struct Copied {
    /// `[m, C, H, W]` in parts.
    pub(super) parts: Vec<Tensor>,
    /// The row of each copy, and what it is for.
    pub(super) of: Vec<(usize, Kind)>,
}

/// A row's prediction and its signals; larger is more like a trigger.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSignals {
    /// `y`, the label predicted for the unperturbed row.
    pub label: usize,
    /// `s_u = m_y(clip(x + eta))`, of several perturbations the least.
    pub universal: Option<f32>,
    /// `s_c = m_y(clip(x + eta_y))`
    pub class_conditional: Option<f32>,
    /// `s_p = -m_y((1 - M_y) x + M_y P_y)`, for infected labels.
    pub patch: Option<f32>,
    /// `s_r`, see [`Representation::score`]; for infected labels.
    pub representation: Option<f32>,
    /// The margin `m_y` that is left under a perturbation made for this row.
    pub specific: Option<f32>,
    /// The entropy of the row's blends.
    pub strip: Option<Entropy>,
    /// Passes through the model this row took, forward and backward.
    pub forwards: usize,
}

// === impl Signals ===

impl Signals {
    /// `universal` is `[perturbations, C, H, W]`, `class_conditional` `[labels, C, H, W]`.
    pub fn new(
        model: Arc<dyn Classifier>,
        universal: Tensor,
        class_conditional: Tensor,
        patches: BTreeMap<usize, Patch>,
        specific: Specific,
    ) -> Result<Self, Error> {
        let bounds = Bounds::new(model.domain(), model.device())?;
        let (representations, strip) = (BTreeMap::new(), None);
        Ok(Self {
            model,
            bounds,
            universal,
            class_conditional,
            patches,
            representations,
            specific,
            strip,
        })
    }

    /// The same, able to tell how labels' images are represented.
    pub fn with_representations(self, representations: BTreeMap<usize, Representation>) -> Self {
        Self { representations, ..self }
    }

    /// The same, able to score for STRIP as well.
    pub fn with_strip(self, strip: Strip) -> Self {
        Self { strip: Some(strip), ..self }
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
    pub fn score(&self, rows: &Tensor, needed: Needed) -> Result<Vec<RowSignals>, Error> {
        match needed {
            Needed::Specific(generator) => self.score_specific(rows, generator),
            Needed::Strip => self.score_strip(rows),
            _ => self.score_margins(rows, needed),
        }
    }

    fn score_margins(&self, rows: &Tensor, needed: Needed) -> Result<Vec<RowSignals>, Error> {
        let count = rows.dim(0)?;
        let universal = self.universal_copies(rows, needed)?;
        let mut parts = vec![rows.clone()];
        parts.extend(universal.parts);
        let first = self.model.logits(&Tensor::cat(&parts, 0)?)?;
        let labels = labels(&first.narrow(0, 0, count)?)?;
        let mut signals: Vec<RowSignals> =
            labels.iter().map(|&label| RowSignals::new(label)).collect();
        if !universal.of.is_empty() {
            note(&mut signals, &universal.of, &first.narrow(0, count, universal.of.len())?)?;
        }
        self.score_copies(&self.labelled_copies(rows, needed, &labels)?, &mut signals)?;
        self.represent(rows, needed, &mut signals)?;
        Ok(signals)
    }

    /// Scores rows by margins as if they had been predicted as `labels`.
    pub(super) fn score_as(
        &self,
        rows: &Tensor,
        needed: Needed,
        labels: &[usize],
    ) -> Result<Vec<RowSignals>, Error> {
        let mut signals: Vec<RowSignals> =
            labels.iter().map(|&label| RowSignals::new(label)).collect();
        self.score_copies(&self.universal_copies(rows, needed)?, &mut signals)?;
        self.score_copies(&self.labelled_copies(rows, needed, labels)?, &mut signals)?;
        self.represent(rows, needed, &mut signals)?;
        Ok(signals)
    }

    /// Notes where the model represents the rows whose labels have such places.
    pub(super) fn represent(
        &self,
        rows: &Tensor,
        needed: Needed,
        signals: &mut [RowSignals],
    ) -> Result<(), Error> {
        let known = |&row: &usize| self.representations.contains_key(&signals[row].label);
        let own: Vec<usize> = (0..signals.len()).filter(known).collect();
        if needed != Needed::All || own.is_empty() {
            return Ok(());
        }
        let Some(features) = self.model.features(&gather(rows, &own)?)? else { return Ok(()) };
        for (row, features) in own.into_iter().zip(features.to_vec2::<f32>()?) {
            let signals = &mut signals[row];
            signals.representation = Some(self.representations[&signals.label].score(&features));
            signals.forwards += 1;
        }
        Ok(())
    }

    /// The copies that need no label.
    pub(super) fn universal_copies(&self, rows: &Tensor, needed: Needed) -> CandleResult<Copied> {
        if needed == Needed::Patch {
            return Ok(Copied { parts: Vec::new(), of: Vec::new() });
        }
        let (mut parts, mut of) = (Vec::new(), Vec::new());
        for eta in self.universal.chunk(self.universal.dim(0)?, 0)? {
            parts.push(self.bounds.moved(rows, &eta)?);
            of.extend((0..rows.dim(0)?).map(|row| (row, Kind::Universal)));
        }
        Ok(Copied { parts, of })
    }

    /// The copies that the labels call for.
    pub(super) fn labelled_copies(
        &self,
        rows: &Tensor,
        needed: Needed,
        labels: &[usize],
    ) -> CandleResult<Copied> {
        let (mut parts, mut of) = (Vec::new(), Vec::new());
        if needed == Needed::All {
            let own = gather(&self.class_conditional, labels)?;
            parts.push(self.bounds.moved(rows, &own)?);
            of.extend((0..labels.len()).map(|row| (row, Kind::ClassConditional)));
        }
        if needed != Needed::Universal {
            for (row, label) in labels.iter().enumerate() {
                if let Some(patch) = self.patches.get(label) {
                    parts.push(patch.apply(&rows.narrow(0, row, 1)?)?);
                    of.push((row, Kind::Patch));
                }
            }
        }
        Ok(Copied { parts, of })
    }

    /// Whether a row's label is asked for before its copies can be made.
    pub(super) fn needs_labels(&self, needed: Needed) -> bool {
        match needed {
            Needed::All => true,
            Needed::Patch | Needed::UniversalAndPatch => !self.patches.is_empty(),
            Needed::Specific(_) | Needed::Strip | Needed::Universal => false,
        }
    }

    fn score_copies(&self, copied: &Copied, signals: &mut [RowSignals]) -> Result<(), Error> {
        if copied.of.is_empty() {
            return Ok(());
        }
        let logits = self.model.logits(&Tensor::cat(&copied.parts, 0)?)?;
        Ok(note(signals, &copied.of, &logits)?)
    }

    fn score_specific(
        &self,
        rows: &Tensor,
        generator: Generator,
    ) -> Result<Vec<RowSignals>, Error> {
        let batch = Batch::predict(&*self.model, rows.clone())?;
        let left = self.specific.attack(generator, &*self.model, &batch)?;
        let signals = batch.labels.iter().zip(left).map(|(&label, left)| RowSignals {
            label,
            specific: Some(left.margin),
            forwards: 1 + left.passes,
            ..RowSignals::default()
        });
        Ok(signals.collect())
    }

    fn score_strip(&self, rows: &Tensor) -> Result<Vec<RowSignals>, Error> {
        let strip = self.strip.as_ref().ok_or(Error::NoOverlays)?;
        let labels = labels(&self.model.logits(rows)?)?;
        let entropies = strip.judge(&*self.model, rows)?;
        let signals = labels.iter().zip(entropies).map(|(&label, entropy)| RowSignals {
            label,
            strip: Some(entropy),
            forwards: 1 + strip.forwards(),
            ..RowSignals::default()
        });
        Ok(signals.collect())
    }
}

// === impl RowSignals ===

impl RowSignals {
    /// A row predicted as `label`.
    pub(super) fn new(label: usize) -> Self {
        Self { label, forwards: 1, ..Self::default() }
    }

    /// A copy of the row, predicted, has this margin `m_y`.
    pub(super) fn note(&mut self, kind: Kind, margin: f32) {
        match kind {
            Kind::ClassConditional => self.class_conditional = Some(margin),
            Kind::Patch => self.patch = Some(-margin),
            Kind::Universal => {
                self.universal = Some(self.universal.map_or(margin, |least| least.min(margin)));
            }
        }
        self.forwards += 1;
    }

    /// The score that the calibrated rule compares: the weighted sum of the signals where the
    /// label is infected and has weights, else the lesser of `s_u` and `s_c`.
    ///
    /// A trigger has to survive every perturbation. Of the joins tried on four victims without an
    /// infected label, sum, weighted sum and minimum, the last one separates best among the inputs
    /// that share the attacker's label; any fixed score keeps the guarantee. A patch without a
    /// weight has no say: a poor one would let every trigger pass.
    pub fn joined(&self, weights: &BTreeMap<usize, [f32; SIGNALS]>) -> f32 {
        let survival = [self.universal, self.class_conditional];
        if let Some(weights) = weights.get(&self.label) {
            let signals = survival.iter().chain([&self.patch, &self.representation]);
            return signals.zip(weights).map(|(s, weight)| s.unwrap_or(0.0) * weight).sum();
        }
        survival.into_iter().flatten().fold(f32::INFINITY, f32::min)
    }
}

/// Notes what logits `[m, labels]` of copies say of their rows.
fn note(signals: &mut [RowSignals], of: &[(usize, Kind)], logits: &Tensor) -> CandleResult<()> {
    let labels: Vec<usize> = of.iter().map(|&(row, _)| signals[row].label).collect();
    for (&(row, kind), margin) in of.iter().zip(margins(logits, &labels)?) {
        signals[row].note(kind, margin);
    }
    Ok(())
}
