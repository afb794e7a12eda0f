//! Perturbations made for one input, which the paper compares with the universal one.
//!
//! "Detecting Backdoor in Deep Neural Networks via Intentional Adversarial Perturbations", sections
//! III-D and IV-D, figures 6 and 7: the same rule, reject when the label survives, with the
//! perturbation that an attack finds for this very input, away from the label predicted for it. For
//! a triggered input that label is the attacker's, so the perturbation works against the trigger,
//! and the paper found all three to detect worse than the universal one.
//!
//! The paper names no parameters. PGD gets the universal perturbation's radius; DeepFool and
//! Carlini and Wagner's attack look for the smallest perturbation in l2, without a radius, so that
//! what is measured is whether they find one whose label holds after moving it into the pixel
//! range.

use candle_core::Tensor;
use rand::SeedableRng;
use rand::rngs::StdRng;

use doorward_engine::{Batch, Bounds, Classifier, margins};

use super::carlini_wagner::{CarliniWagner, carlini_wagner};
use super::pgd::{Pgd, pgd, random_start};
use crate::Error;
use crate::perturb::{DeepFool, deepfool};

/// An attack that finds a perturbation for one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Carlini and Wagner's, in l2.
    CarliniWagner,
    /// DeepFool, in l2.
    DeepFool,
    /// Projected gradient descent in the l-infinity ball.
    Pgd,
}

/// The settings of the attacks.
#[derive(Clone, Debug)]
pub struct Specific {
    epsilon: f32,
    /// One for all inputs, so that an input's verdict does not depend on the batch it is in.
    start: Tensor,
}

/// The rest that an attack left of one row's margin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Left {
    /// The margin of the row's label.
    pub margin: f32,
    /// Passes through the model, forward and backward ones each counted.
    pub passes: usize,
}

// === impl Specific ===

impl Specific {
    /// `epsilon` is PGD's radius, `seed` that of its start.
    pub fn new(model: &dyn Classifier, epsilon: f32, seed: u64) -> Result<Self, Error> {
        let start = random_start(model, epsilon, &mut StdRng::seed_from_u64(seed))?;
        Ok(Self { epsilon, start })
    }

    /// Perturbs rows away from their predicted labels and returns what is left of these.
    pub fn attack(
        &self,
        attack: Attack,
        model: &dyn Classifier,
        batch: &Batch,
    ) -> Result<Vec<Left>, Error> {
        let (rows, passes) = match attack {
            Attack::CarliniWagner => {
                let settings = CarliniWagner::default();
                let found = carlini_wagner(model, batch, &settings)?;
                (found.rows, vec![2 * settings.rounds * settings.steps; batch.len()])
            }
            Attack::DeepFool => {
                let settings = DeepFool::default();
                let found = deepfool(model, batch, &settings)?;
                let bounds = Bounds::new(model.domain(), model.device())?;
                // A step asks for one gradient for each other label and then for the new label.
                let step = 2 * (settings.candidates.min(model.labels()) - 1) + 1;
                let passes = found.steps.iter().map(|steps| 1 + steps * step).collect();
                (bounds.clip(&(&batch.rows + found.perturbations)?)?, passes)
            }
            Attack::Pgd => {
                let settings = Pgd { epsilon: self.epsilon, steps: PGD_STEPS };
                (pgd(model, batch, &self.start, &settings)?, vec![2 * PGD_STEPS; batch.len()])
            }
        };
        let margins = margins(&model.logits(&rows)?, &batch.labels)?;
        let left = |(margin, passes)| Left { margin, passes: passes + 1 };
        Ok(margins.into_iter().zip(passes).map(left).collect())
    }
}

/// The authors' number for evaluating a model.
const PGD_STEPS: usize = 20;
