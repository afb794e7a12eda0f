//! The l2 attack of Carlini and Wagner (2017), section VI, untargeted, kappa 0.
//!
//! ```text
//! x' = (tanh(w) + 1) / 2        minimise  |x' - x|_2^2 + c * max(m_y(x'), 0)
//! ```
//!
//! Over `w`, by Adam, with pixels in [0, 1], so that no bound has to be kept. A search over `c`
//! finds the smallest one that still changes the label, per row: tenfold until one does, then
//! halving.

use candle_core::{Result as CandleResult, Tensor};

use doorward_engine::{Batch, Bounds, Classifier, Error, margin_cotangent, margins};

use crate::perturb::adam::{Adam, DECAY};

/// The length of a search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CarliniWagner {
    /// Values of `c` tried.
    pub rounds: usize,
    /// Gradient steps for each.
    pub steps: usize,
}

/// The nearest row found with another label.
#[derive(Clone, Debug)]
pub struct Nearest {
    /// `[n, C, H, W]`, inside the input domain; the row itself where none was found.
    pub rows: Tensor,
    /// Distance in l2 per row, in units of the pixel range; infinite where none was found.
    pub distances: Vec<f32>,
}

/// Moves every row away from its label in `batch` by as little as it finds.
pub fn carlini_wagner(
    model: &dyn Classifier,
    batch: &Batch,
    settings: &CarliniWagner,
) -> Result<Nearest, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let count = batch.len();
    let per_row = |values: Vec<f32>| Tensor::from_vec(values, (count, 1, 1, 1), model.device());
    let pixels = batch.rows.broadcast_sub(&bounds.lower)?.broadcast_div(&bounds.range)?;
    let start = inverse_tanh(&pixels.affine(2.0 * INSIDE, -INSIDE)?)?;
    let mut nearest = Nearest { rows: batch.rows.clone(), distances: vec![f32::INFINITY; count] };
    let mut weights = vec![Weight::default(); count];
    for _ in 0..settings.rounds {
        let current = per_row(weights.iter().map(|weight| weight.current).collect())?;
        let mut changed = vec![false; count];
        let mut moving = Adam::new(start.clone(), LEARNING_RATE, DECAY)?;
        for _ in 0..settings.steps {
            let tanh = moving.value.tanh()?;
            let unit = tanh.affine(0.5, 0.5)?;
            let rows =
                bounds.clip(&unit.broadcast_mul(&bounds.range)?.broadcast_add(&bounds.lower)?)?;
            let (logits, gradient) = model.logits_and_gradient(&rows, &|rows, logits| {
                margin_cotangent(logits, &batch.labels[rows], |m| if m > 0.0 { 1.0 } else { 0.0 })
            })?;
            let moved = (&unit - &pixels)?;
            let distances = moved.sqr()?.flatten_from(1)?.sum(1)?.sqrt()?.to_vec1::<f32>()?;
            let beyond: Vec<bool> =
                margins(&logits, &batch.labels)?.iter().map(|&margin| margin < 0.0).collect();
            nearest.keep_nearer(&rows, &distances, &beyond)?;
            changed.iter_mut().zip(&beyond).for_each(|(changed, beyond)| *changed |= beyond);
            // d x' / d w = (1 - tanh(w)^2) / 2, and d row / d x' = range.
            let pull = gradient.broadcast_mul(&bounds.range)?.broadcast_mul(&current)?;
            let slope = tanh.sqr()?.affine(-0.5, 0.5)?;
            moving.step(&((moved * 2.0)? + pull)?.mul(&slope)?)?;
        }
        weights.iter_mut().zip(changed).for_each(|(weight, changed)| weight.update(changed));
    }
    Ok(nearest)
}

fn inverse_tanh(values: &Tensor) -> CandleResult<Tensor> {
    (values.affine(1.0, 1.0)?.log()? - values.affine(-1.0, 1.0)?.log()?)? * 0.5
}

// === impl Nearest ===

impl Nearest {
    /// Takes over the rows that are beyond the boundary and nearer than what was found before.
    fn keep_nearer(
        &mut self,
        rows: &Tensor,
        distances: &[f32],
        beyond: &[bool],
    ) -> CandleResult<()> {
        let nearer: Vec<u8> = (0..distances.len())
            .map(|row| u8::from(beyond[row] && distances[row] < self.distances[row]))
            .collect();
        for (row, _) in nearer.iter().enumerate().filter(|(_, nearer)| **nearer == 1) {
            self.distances[row] = distances[row];
        }
        let mask = Tensor::from_vec(nearer, (distances.len(), 1, 1, 1), rows.device())?;
        self.rows = mask.broadcast_as(rows.shape())?.where_cond(rows, &self.rows)?;
        Ok(())
    }
}

/// The search over one row's `c`.
#[derive(Clone, Copy, Debug)]
struct Weight {
    current: f32,
    /// The largest that did not change the label.
    lower: f32,
    /// The smallest that did.
    upper: f32,
}

// === impl Weight ===

impl Default for Weight {
    fn default() -> Self {
        Self { current: FIRST_WEIGHT, lower: 0.0, upper: f32::INFINITY }
    }
}

impl Weight {
    fn update(&mut self, changed: bool) {
        if changed {
            self.upper = self.current;
        } else {
            self.lower = self.current;
        }
        self.current = match self.upper.is_finite() {
            true => f32::midpoint(self.lower, self.upper),
            false => self.current * 10.0,
        };
    }
}

impl Default for CarliniWagner {
    /// The authors take 9 or more rounds of 1,000 steps or more, a hundred times as many passes.
    fn default() -> Self {
        Self { rounds: 5, steps: 30 }
    }
}

/// Pixels are drawn in by this much: at 0 and 1 `w` would be infinite.
const INSIDE: f64 = 0.9999;

const FIRST_WEIGHT: f32 = 0.1;

/// Five times the authors', for a hundredth of their steps.
const LEARNING_RATE: f64 = 0.05;
