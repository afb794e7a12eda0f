//! Adam (Kingma, Ba 2015) on one tensor.

use candle_core::{Result as CandleResult, Tensor};

/// A value and its moments.
#[derive(Debug)]
pub(crate) struct Adam {
    pub(crate) value: Tensor,
    first: Tensor,
    second: Tensor,
    steps: i32,
    rate: f64,
    decay: [f64; 2],
}

// === impl Adam ===

impl Adam {
    /// Starts at `value`; `decay` is what the moments keep at a step.
    pub(crate) fn new(value: Tensor, rate: f64, decay: [f64; 2]) -> CandleResult<Self> {
        let zero = value.zeros_like()?;
        Ok(Self { value, first: zero.clone(), second: zero, steps: 0, rate, decay })
    }

    /// Moves against `gradient`.
    pub(crate) fn step(&mut self, gradient: &Tensor) -> CandleResult<()> {
        let [beta1, beta2] = self.decay;
        self.steps += 1;
        self.first = ((&self.first * beta1)? + (gradient * (1.0 - beta1))?)?;
        self.second = ((&self.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let first = (&self.first / (1.0 - beta1.powi(self.steps)))?;
        let second = (&self.second / (1.0 - beta2.powi(self.steps)))?;
        self.value = (&self.value - (first / (second.sqrt()? + 1e-8)?)? * self.rate)?;
        Ok(())
    }
}

/// The authors' decay.
pub(crate) const DECAY: [f64; 2] = [0.9, 0.999];
