//! The lines of evidence, and one value for each.
//!
//! To add one: a variant here with its row in each table, and the function in [`crate::Scorer`]
//! that computes it.

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// A number that a row gets from the model; larger is more like a trigger.
///
/// The order is that of the weights in an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    /// The margin that is left under the universal perturbation: `s_u = m_y(clip(x + eta))`; of
    /// several perturbations the least.
    Universal,
    /// The margin that is left under the predicted label's own perturbation:
    /// `s_c = m_y(clip(x + eta_y))`.
    ClassConditional,
    /// The distance by which the patch of the predicted, infected label moves the label:
    /// `s_p = -m_y((1 - M_y) x + M_y P_y)`.
    Patch,
    /// The place along the way to the triggered images of the predicted, infected label where the
    /// model represents the row: `s_r`, see [`crate::Representation::score`].
    Representation,
    /// The strangeness of the activations for the predicted label: `own`, see [`crate::Layers`].
    Own,
    /// The distance of the activations to the predicted label's, less that to the nearest other
    /// label's: `gap`, see [`crate::Layers`].
    Gap,
    /// How far the features that the last layer sees lie outside of the range that clean images of
    /// the label keep to: `range`, see [`crate::Ranges`].
    Range,
}

/// One value a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PerSignal<T>([T; Signal::COUNT]);

/// The signals of a row; `None` where a rule did not need one, or the label has none.
pub type Scores = PerSignal<Option<f32>>;

// === impl Signal ===

impl Signal {
    /// The number of them.
    pub const COUNT: usize = 7;

    /// Every signal.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Universal,
        Self::ClassConditional,
        Self::Patch,
        Self::Representation,
        Self::Own,
        Self::Gap,
        Self::Range,
    ];

    /// The name in metrics and audit lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Universal => "universal",
            Self::ClassConditional => "class_conditional",
            Self::Patch => "patch",
            Self::Representation => "representation",
            Self::Own => "own",
            Self::Gap => "gap",
            Self::Range => "range",
        }
    }

    /// The symbol in formulas, and in the lines of a scan.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Universal => "s_u",
            Self::ClassConditional => "s_c",
            Self::Patch => "s_p",
            Self::Representation => "s_r",
            Self::Own => "own",
            Self::Gap => "gap",
            Self::Range => "range",
        }
    }
}

// === impl PerSignal ===

impl<T> PerSignal<T> {
    /// The value that `of` gives for each signal.
    pub fn from_fn(of: impl FnMut(Signal) -> T) -> Self {
        Self(Signal::ALL.map(of))
    }
}

impl<T> Index<Signal> for PerSignal<T> {
    type Output = T;

    fn index(&self, signal: Signal) -> &T {
        &self.0[signal as usize]
    }
}

impl<T> IndexMut<Signal> for PerSignal<T> {
    fn index_mut(&mut self, signal: Signal) -> &mut T {
        &mut self.0[signal as usize]
    }
}

/// Writes scores under the signals' symbols, and reads them back.
#[cfg(feature = "prepare")]
pub(crate) mod by_symbol {
    use std::collections::BTreeMap;

    use serde::ser::SerializeMap;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Scores, Signal};

    pub(crate) fn serialize<S: Serializer>(scores: &Scores, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(Signal::COUNT))?;
        for signal in Signal::ALL {
            map.serialize_entry(signal.symbol(), &scores[signal])?;
        }
        map.end()
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Scores, D::Error> {
        let mut written = BTreeMap::<String, serde_json::Value>::deserialize(from)?;
        let mut scores = Scores::default();
        for signal in Signal::ALL {
            let value = written.remove(signal.symbol()).unwrap_or_default();
            scores[signal] = serde_json::from_value(value).map_err(serde::de::Error::custom)?;
        }
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_value_of_its_own() {
        for (index, signal) in Signal::ALL.into_iter().enumerate() {
            assert_eq!(signal as usize, index);
            let mut scores = Scores::default();
            scores[signal] = Some(1.0);
            let set = Signal::ALL.into_iter().filter(|&other| scores[other].is_some());
            assert_eq!(set.collect::<Vec<_>>(), [signal]);
        }
    }
}
