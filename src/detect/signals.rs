//! The scores of a batch of rows, one definition each, for calibration and for live traffic.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result as CandleResult, Tensor};

use super::Error;
use super::specific::{Generator, Specific};
use super::strip::{Entropy, Strip};
use crate::inspect::Patch;
use crate::model::Classifier;
use crate::perturb::{Batch, Bounds, margins, predictions};

/// A model with everything that was learned to perturb its inputs.
#[derive(Clone)]
pub struct Signals {
    model: Arc<dyn Classifier>,
    bounds: Bounds,
    /// `[1, C, H, W]`
    universal: Tensor,
    /// `[labels, C, H, W]`
    class_conditional: Tensor,
    /// Of the infected labels.
    patches: BTreeMap<usize, Patch>,
    specific: Specific,
    /// Where the artifact holds what it takes.
    strip: Option<Strip>,
}

/// Which signals a rule needs; the prediction itself always comes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Needed {
    /// Every signal: three forward passes a row, four where the label is infected.
    All,
    /// Only the patch flip: one pass, two where the label is infected.
    Patch,
    /// Only a perturbation made for the row.
    Specific(Generator),
    /// Only the entropy of blends: a pass for each overlay.
    Strip,
    /// Only the universal perturbation: two passes.
    Universal,
    /// The universal perturbation and the patch flip: two passes, three where the label is infected.
    UniversalAndPatch,
}

/// A row's prediction and its signals; larger is more like a trigger.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSignals {
    /// `y`, the label predicted for the unperturbed row.
    pub label: usize,
    /// `s_u = m_y(clip(x + eta))`
    pub universal: Option<f32>,
    /// `s_c = m_y(clip(x + eta_y))`
    pub class_conditional: Option<f32>,
    /// `s_p = -m_y((1 - M_y) x + M_y P_y)`, for infected labels.
    pub patch: Option<f32>,
    /// The margin `m_y` that is left under a perturbation made for this row.
    pub specific: Option<f32>,
    /// The entropy of the row's blends.
    pub strip: Option<Entropy>,
    /// Passes through the model this row took, forward and backward.
    pub forwards: usize,
}

// === impl Signals ===

impl Signals {
    /// `universal` is `[1, C, H, W]`, `class_conditional` `[labels, C, H, W]`.
    pub fn new(
        model: Arc<dyn Classifier>,
        universal: Tensor,
        class_conditional: Tensor,
        patches: BTreeMap<usize, Patch>,
        specific: Specific,
    ) -> Result<Self, Error> {
        let bounds = Bounds::new(model.domain(), model.device())?;
        let strip = None;
        Ok(Self { model, bounds, universal, class_conditional, patches, specific, strip })
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
        let with_universal = needed != Needed::Patch;
        let first = if with_universal {
            let moved = self.bounds.clip(&rows.broadcast_add(&self.universal)?)?;
            self.model.logits(&Tensor::cat(&[rows, &moved], 0)?)?
        } else {
            self.model.logits(rows)?
        };
        let labels: Vec<usize> =
            predictions(&first.narrow(0, 0, count)?)?.into_iter().map(|(label, _)| label).collect();
        let mut signals: Vec<RowSignals> = labels
            .iter()
            .map(|&label| RowSignals { label, forwards: 1, ..RowSignals::default() })
            .collect();
        if with_universal {
            let margins = margins(&first.narrow(0, count, count)?, &labels)?;
            for (signals, margin) in signals.iter_mut().zip(margins) {
                signals.universal = Some(margin);
                signals.forwards += 1;
            }
        }
        if needed != Needed::Universal {
            self.score_by_label(rows, needed, &labels, &mut signals)?;
        }
        Ok(signals)
    }

    fn score_by_label(
        &self,
        rows: &Tensor,
        needed: Needed,
        labels: &[usize],
        signals: &mut [RowSignals],
    ) -> Result<(), Error> {
        let with_class_conditional = needed == Needed::All;
        let infected: Vec<usize> =
            (0..labels.len()).filter(|&row| self.patches.contains_key(&labels[row])).collect();
        let mut batch = Vec::new();
        if with_class_conditional {
            let own = self.class_conditional.index_select(&indices(labels, rows)?, 0)?;
            batch.push(self.bounds.clip(&rows.add(&own)?)?);
        }
        for &row in &infected {
            batch.push(self.patches[&labels[row]].apply(&rows.narrow(0, row, 1)?)?);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let mut asked: Vec<usize> =
            if with_class_conditional { (0..labels.len()).collect() } else { Vec::new() };
        let class_conditional = asked.len();
        asked.extend(&infected);
        let logits = self.model.logits(&Tensor::cat(&batch, 0)?)?;
        let asked_labels: Vec<usize> = asked.iter().map(|&row| labels[row]).collect();
        let margins = margins(&logits, &asked_labels)?;
        for (index, (&row, margin)) in asked.iter().zip(margins).enumerate() {
            if index < class_conditional {
                signals[row].class_conditional = Some(margin);
            } else {
                signals[row].patch = Some(-margin);
            }
            signals[row].forwards += 1;
        }
        Ok(())
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
        let labels = predictions(&self.model.logits(rows)?)?;
        let entropies = strip.judge(&*self.model, rows)?;
        let signals = labels.iter().zip(entropies).map(|(&(label, _), entropy)| RowSignals {
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
    /// The score that the calibrated rule compares: the weighted sum of the signals where the
    /// label is infected and has weights, else the least of those that are there.
    ///
    /// A trigger has to survive every perturbation and to fall to the patch of an infected label.
    /// Of the joins tried on four victims without an infected label, sum, weighted sum and minimum,
    /// the last one separates best among the inputs that share the attacker's label; any fixed
    /// score keeps the guarantee.
    pub fn joined(&self, weights: &BTreeMap<usize, [f32; 3]>) -> f32 {
        let signals = [self.universal, self.class_conditional, self.patch];
        if let Some(weights) = weights.get(&self.label) {
            let weighed = signals.iter().zip(weights);
            return weighed.map(|(signal, weight)| signal.unwrap_or(0.0) * weight).sum();
        }
        signals.into_iter().flatten().fold(f32::INFINITY, f32::min)
    }
}

fn indices(labels: &[usize], rows: &Tensor) -> CandleResult<Tensor> {
    let labels: Vec<u32> = labels.iter().map(|&label| label as u32).collect();
    Tensor::from_vec(labels, rows.dim(0)?, rows.device())
}
