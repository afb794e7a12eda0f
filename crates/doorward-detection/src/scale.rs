//! The places and widths of scores, label by label.

use serde::{Deserialize, Serialize};

use crate::stats::{median, scaled_mad};

/// The place and width of a label's clean scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Their centre.
    pub location: f32,
    /// Their spread, above zero.
    pub spread: f32,
}

// === impl Scale ===

impl Scale {
    /// A score in spreads from the centre.
    pub fn standard(&self, score: f32) -> f32 {
        (score - self.location) / self.spread
    }
}

/// Scales of all labels from the scores of clean images that are not held out.
///
/// A label's own centre and spread count as much as it has images, and those of all images as much
/// as `PRIOR_IMAGES`: seven images a label are no distribution.
pub(crate) fn scales(labels: usize, scores: &[(usize, f32)]) -> Vec<Scale> {
    let all: Vec<f64> = scores.iter().map(|(_, score)| f64::from(*score)).collect();
    let of = |values: &[f64]| (median(values), scaled_mad(values));
    let (centre, spread) = of(&all);
    (0..labels)
        .map(|label| {
            let own: Vec<f64> = scores
                .iter()
                .filter(|(other, _)| *other == label)
                .map(|(_, score)| f64::from(*score))
                .collect();
            let count = own.len() as f64;
            let (own_centre, own_spread) = if own.is_empty() { (0.0, 0.0) } else { of(&own) };
            let shrunk = |own: f64, all: f64| {
                ((own * count + all * PRIOR_IMAGES) / (count + PRIOR_IMAGES)) as f32
            };
            Scale {
                location: shrunk(own_centre, centre),
                spread: shrunk(own_spread, spread).max(MIN_SPREAD),
            }
        })
        .collect()
}

/// Weight of all labels' scale in one label's.
const PRIOR_IMAGES: f64 = 5.0;

/// Keeps equal scores apart from a division by zero.
const MIN_SPREAD: f32 = 1e-3;
