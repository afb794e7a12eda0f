//! Universal adversarial perturbations by DeepFool, image by image: Moosavi-Dezfooli et al. 2017,
//! algorithm 1, with the l-infinity projection of "Detecting Backdoor in Deep Neural Networks via
//! Intentional Adversarial Perturbations", section III-B.
//!
//! A pass shuffles the images and, for each that is not fooled yet, adds to the perturbation what
//! DeepFool needs to fool it from where the perturbation has brought it. Images come one after
//! another because each starts from the sum of all before. Differing from the authors' code, images
//! are moved into the pixel range first: that is what the detector will do.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::deepfool::{DeepFool, deepfool};
use super::effect::fooling_rate;
use super::uap::{Universal, ladder};
use doorward_engine::{Batch, Bounds};
use doorward_engine::{Classifier, Error};

use super::settings::Perturbation;

/// Fits one perturbation for all images of `clean`; of `search`, steps and batch play no part.
///
/// The radius grows as that of [`super::universal`] does, one pass a rung, until the target is met;
/// the largest radius gets more passes. `progress` is told the share of the work done.
pub fn universal_by_deepfool(
    model: &dyn Classifier,
    clean: &Batch,
    search: &Perturbation,
    rng: &mut StdRng,
    progress: &dyn Fn(f64),
) -> Result<Universal, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let mut radii = ladder(search.max_epsilon);
    radii.extend([search.max_epsilon; PASSES_AT_MAX - 1]);
    let settings = DeepFool::default();
    let mut eta = clean.rows.narrow(0, 0, 1)?.zeros_like()?;
    let mut reached = Universal { eta: eta.clone(), epsilon: 0.0, fooling_rate: 0.0 };
    let mut order: Vec<usize> = (0..clean.len()).collect();
    for (pass, &epsilon) in radii.iter().enumerate() {
        order.shuffle(rng);
        for (done, &index) in order.iter().enumerate() {
            let image = clean.select(&[index])?;
            let rows = bounds.clip(&(&image.rows + &eta)?)?;
            let found = deepfool(model, &Batch { rows, labels: image.labels }, &settings)?;
            // No step: the image is fooled already. Nearly all of them: nothing that could be
            // trusted.
            if (1..settings.max_steps - 1).contains(&found.steps[0]) {
                eta = bounds.project(&(&eta + found.perturbations)?, epsilon)?;
            }
            let passes = pass as f64 + (done + 1) as f64 / clean.len() as f64;
            progress(passes / radii.len() as f64);
        }
        let fooling_rate = fooling_rate(model, clean, &eta)?;
        reached = Universal { eta: eta.clone(), epsilon, fooling_rate };
        if fooling_rate >= search.fooling_rate.value() {
            break;
        }
    }
    progress(1.0);
    Ok(reached)
}

/// Passes over the images at the largest radius, where no larger one can help; the authors' code
/// has no bound.
const PASSES_AT_MAX: usize = 10;
