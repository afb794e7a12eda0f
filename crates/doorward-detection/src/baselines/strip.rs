//! STRIP (Gao et al. 2019), the baseline that both papers compare with.
//!
//! An input is blended with clean images one by one. Of a clean input little is left to recognise,
//! and the predictions are uncertain; a trigger survives the blending and keeps them certain. The
//! score is the entropy of the softmax of each blend, averaged over the blends: `H = -sum p log2 p`
//! over the labels of one prediction.

use candle_core::Tensor;

use crate::Error;
use crate::row::BaselineScore;
use crate::stats::softmax_entropy;
use doorward_engine::Classifier;

/// Clean images and what entropy other clean images keep under them.
#[derive(Clone, Debug)]
pub struct Strip {
    /// `[n, C, H, W]`
    overlays: Tensor,
    boundary: f32,
}

/// Mean entropy, in bits, of each row of `[n, C, H, W]` blended with every overlay.
pub fn entropies(
    model: &dyn Classifier,
    overlays: &Tensor,
    rows: &Tensor,
) -> Result<Vec<f32>, Error> {
    let faded = (overlays * (1.0 - BLEND))?;
    (0..rows.dim(0)?)
        .map(|row| {
            let blends = faded.broadcast_add(&(rows.narrow(0, row, 1)? * BLEND)?)?;
            let logits = model.logits(&blends)?.to_vec2::<f32>()?;
            let sum: f64 = logits.iter().map(|logits| softmax_entropy(logits)).sum();
            Ok((sum / logits.len() as f64) as f32)
        })
        .collect()
}

/// The entropy that at most `rate` of inputs like the clean ones stay below.
///
/// The k-th smallest of n with `k = floor(rate * (n + 1))`: a new input that is exchangeable with
/// them lies below it with probability at most `k / (n + 1)`. Where k is 0, none does.
fn boundary(clean: &[f32], rate: f64) -> f32 {
    // The addend keeps 0.01 * 100 from rounding down to 0.
    let allowed = (rate * (clean.len() + 1) as f64 + 1e-9).floor() as usize;
    let mut sorted = clean.to_vec();
    sorted.sort_by(f32::total_cmp);
    match allowed.min(sorted.len()) {
        0 => f32::NEG_INFINITY,
        allowed => sorted[allowed - 1],
    }
}

// === impl Strip ===

impl Strip {
    /// From overlays `[n, C, H, W]` and the entropies of clean images that are not among them.
    pub fn new(overlays: Tensor, clean: &[f32], rate: f64) -> Self {
        Self { overlays, boundary: boundary(clean, rate) }
    }

    /// Judges rows `[n, C, H, W]`.
    pub fn judge(
        &self,
        model: &dyn Classifier,
        rows: &Tensor,
    ) -> Result<Vec<BaselineScore>, Error> {
        let entropies = entropies(model, &self.overlays, rows)?.into_iter();
        let judge = |bits: f32| BaselineScore { score: -bits, rejects: bits < self.boundary };
        Ok(entropies.map(judge).collect())
    }

    /// Predictions that judging one row takes.
    pub fn forwards(&self) -> usize {
        self.overlays.dims()[0]
    }
}

/// Overlays, the authors' lower number.
pub const OVERLAYS: usize = 64;

/// Held-out images scored at most: each takes as many predictions as there are overlays.
pub const SCORED: usize = 500;

/// Share of the input in a blend.
const BLEND: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundary_leaves_the_allowed_number_below() {
        let clean: Vec<f32> = (0..199).rev().map(|value| value as f32).collect();
        // floor(0.01 * 200) = 2 of 200: one of the 199 lies below the second.
        assert_eq!(boundary(&clean, 0.01), 1.0);
        assert_eq!(boundary(&clean, 0.001), f32::NEG_INFINITY);
        assert_eq!(boundary(&[], 0.5), f32::NEG_INFINITY);
    }
}
