//! The rules that make a verdict of a row's signals, one table for all of them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::baselines::Baseline;
use crate::conformal::Thresholds;
use crate::row::RowSignals;
use crate::signal::Signal;

/// A way to make a verdict of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Reject when `Uap` and `Patch` both do.
    Both,
    /// All evidence, joined, against split-conformal thresholds.
    Calibrated,
    /// Reject when the label survives the perturbation that Carlini and Wagner's attack finds for
    /// this input.
    CarliniWagner,
    /// Reject when the label survives the perturbation that DeepFool finds for this input.
    #[serde(rename = "deepfool")]
    DeepFool,
    /// Reject when `Uap` or `Patch` does.
    Either,
    /// DTInspector's: reject when the patch of the predicted, infected label changes the label.
    Patch,
    /// Reject when the label survives the perturbation that PGD finds for this input.
    Pgd,
    /// Reject when the predictions of blends with clean images are too certain.
    Strip,
    /// Intentional adversarial perturbations: reject when the label survives the universal
    /// perturbation.
    Uap,
}

/// The predictions that a rule needs beside that of the row itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Needs {
    /// A baseline's own.
    Baseline(Baseline),
    /// The predictions of some signals.
    Signals(&'static [Signal]),
}

/// All that is to be known of a rule.
struct Row {
    /// As settings write it.
    name: &'static str,
    needs: Needs,
    /// Orders rows; above zero is rejected, unless a baseline has a boundary of its own.
    score: fn(&RowSignals, &Thresholds) -> f64,
}

/// A text that names no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{received:?} is no rule, expected one of {}", Rule::ALL.map(Rule::name).join(", "))]
pub struct UnknownRule {
    /// The text.
    pub received: String,
}

// === impl Needs ===

impl Needs {
    /// Every signal: with one universal perturbation three forward passes a row, up to five where
    /// the label is infected.
    pub const ALL: Self = Self::Signals(&Signal::ALL);

    /// True if a signal is among them.
    pub fn include(self, signal: Signal) -> bool {
        matches!(self, Self::Signals(signals) if signals.contains(&signal))
    }
}

// === impl Rule ===

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 9] = [
        Self::Both,
        Self::Calibrated,
        Self::CarliniWagner,
        Self::DeepFool,
        Self::Either,
        Self::Patch,
        Self::Pgd,
        Self::Strip,
        Self::Uap,
    ];

    fn row(self) -> Row {
        let row = |name, needs, score| Row { name, needs, score };
        let signals = Needs::Signals;
        let baseline = |name, which| row(name, Needs::Baseline(which), baseline);
        match self {
            Self::Both => row("both", signals(&[Signal::Universal, Signal::Patch]), |row, _| {
                or_never(row.scores[Signal::Universal]).min(or_never(row.scores[Signal::Patch]))
            }),
            Self::Calibrated => row("calibrated", Needs::ALL, |row, thresholds| {
                or_never(row.joined.map(|joined| thresholds.excess(&joined)))
            }),
            Self::CarliniWagner => baseline("carlini_wagner", Baseline::CarliniWagner),
            Self::DeepFool => baseline("deepfool", Baseline::DeepFool),
            Self::Either => {
                row("either", signals(&[Signal::Universal, Signal::Patch]), |row, _| {
                    or_never(row.scores[Signal::Universal]).max(or_never(row.scores[Signal::Patch]))
                })
            }
            Self::Patch => row("patch", signals(&[Signal::Patch]), |row, _| {
                or_never(row.scores[Signal::Patch])
            }),
            Self::Pgd => baseline("pgd", Baseline::Pgd),
            Self::Strip => baseline("strip", Baseline::Strip),
            Self::Uap => row("uap", signals(&[Signal::Universal]), |row, _| {
                or_never(row.scores[Signal::Universal])
            }),
        }
    }

    /// The name in settings and reports.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The predictions that it needs.
    pub fn needs(self) -> Needs {
        self.row().needs
    }

    /// True if it is there to compare with: it takes many predictions an input, and those of a
    /// model server do not serve.
    pub fn is_baseline(self) -> bool {
        matches!(self.needs(), Needs::Baseline(_))
    }

    /// The rules that are no baselines: at most four predictions an input.
    pub fn without_baselines() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|rule| !rule.is_baseline())
    }

    /// The number that it orders rows by; larger is more like a trigger.
    pub fn score(self, row: &RowSignals, thresholds: &Thresholds) -> f64 {
        (self.row().score)(row, thresholds)
    }

    /// True if it turns a row away, as it does where the model's answer is no number.
    pub fn rejects(self, row: &RowSignals, thresholds: &Thresholds) -> bool {
        if row.undefined {
            return true;
        }
        match self.needs() {
            Needs::Baseline(_) => row.baseline.is_some_and(|baseline| baseline.rejects),
            Needs::Signals(_) => self.score(row, thresholds) > 0.0,
        }
    }
}

fn baseline(row: &RowSignals, _: &Thresholds) -> f64 {
    or_never(row.baseline.map(|baseline| baseline.score))
}

fn or_never(score: Option<f32>) -> f64 {
    score.map_or(f64::NEG_INFINITY, f64::from)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rule {
    type Err = UnknownRule;

    /// Fails for a text that is no rule's name.
    fn from_str(text: &str) -> Result<Self, UnknownRule> {
        let rule = Self::ALL.into_iter().find(|rule| rule.name() == text);
        rule.ok_or_else(|| UnknownRule { received: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    use super::*;

    #[test]
    fn settings_and_reports_call_a_rule_by_one_name() {
        for rule in Rule::ALL {
            let name: StrDeserializer<'_, Error> = rule.name().into_deserializer();
            assert_eq!(Rule::deserialize(name), Ok(rule));
            assert_eq!(rule.name().parse(), Ok(rule));
        }
    }
}
