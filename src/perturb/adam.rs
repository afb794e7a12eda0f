//! Adam (Kingma, Ba 2015) on one tensor.

use candle_core::{Result as CandleResult, Tensor};

/// A value and its moments.
pub(super) struct Adam {
    pub(super) value: Tensor,
    first: Tensor,
    second: Tensor,
    steps: i32,
    rate: f64,
}

// === impl Adam ===

impl Adam {
    /// Starts at `value`, with the authors' decay of the moments.
    pub(super) fn new(value: Tensor, rate: f64) -> CandleResult<Self> {
        let zero = value.zeros_like()?;
        Ok(Self { value, first: zero.clone(), second: zero, steps: 0, rate })
    }

    /// Moves against `gradient`.
    pub(super) fn step(&mut self, gradient: &Tensor) -> CandleResult<()> {
        self.steps += 1;
        self.first = ((&self.first * BETAS[0])? + (gradient * (1.0 - BETAS[0]))?)?;
        self.second = ((&self.second * BETAS[1])? + (gradient.sqr()? * (1.0 - BETAS[1]))?)?;
        let first = (&self.first / (1.0 - BETAS[0].powi(self.steps)))?;
        let second = (&self.second / (1.0 - BETAS[1].powi(self.steps)))?;
        self.value = (&self.value - (first / (second.sqrt()? + 1e-8)?)? * self.rate)?;
        Ok(())
    }
}

const BETAS: [f64; 2] = [0.9, 0.999];
