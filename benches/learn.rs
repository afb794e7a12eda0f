//! What calibration learns, timed: the universal perturbation and the patches of all labels.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use doorward_detection::Goal;
use doorward_detection::inspect::{Learning, Patches};
use doorward_detection::perturb::{Universal, universal, universal_by_deepfool};
use doorward_detection::{Algorithm, Perturbation, Probability};
use doorward_engine::{Batch, Classifier, Model, rows};
use doorward_images::Images;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// CPU and wall seconds of one universal perturbation, the search for its radius included.
pub(crate) fn time_universal(
    model: &Path,
    images: &[std::path::PathBuf],
    count: usize,
    rate: f64,
    deepfool: bool,
    seed: u64,
) -> Result<serde_json::Value, Box<dyn Error>> {
    let (model, clean) = load(model, images, count)?;
    let count = |count| NonZeroUsize::new(count).ok_or("zero");
    let search = Perturbation {
        fooling_rate: Probability::new(rate).ok_or("expected a fooling rate from 0 to 1")?,
        max_epsilon: 0.125,
        steps: count(100)?,
        batch: count(64)?,
        algorithm: Algorithm::Gradient,
        count: NonZeroUsize::MIN,
    };
    let mut rng = StdRng::seed_from_u64(seed);
    let algorithm = if deepfool { universal_by_deepfool } else { universal };
    let (wall, cpu) = (Instant::now(), super::cpu_seconds()?);
    let Universal { epsilon, fooling_rate, .. } =
        algorithm(&model, &clean, &search, &mut rng, &|_| {})?;
    Ok(serde_json::json!({
        "cpu_s": super::cpu_seconds()? - cpu,
        "wall_s": wall.elapsed().as_secs_f64(),
        "epsilon": epsilon,
        "fooling_rate": fooling_rate,
    }))
}

/// CPU and wall seconds of the patches of all labels, on clean images predicted as each.
pub(crate) fn time_patches(
    model: &Path,
    images: &[std::path::PathBuf],
    count: usize,
    steps: usize,
    seed: u64,
) -> Result<serde_json::Value, Box<dyn Error>> {
    let (model, clean) = load(model, images, count)?;
    let learning = Learning {
        goal: Goal::Leave,
        steps,
        batch: 16,
        first_lambda: 1e-4,
        lambda: 1e-4,
        success_rate: 0.95,
    };
    let tops = (0..model.labels())
        .map(|label| {
            let own = (0..clean.len()).filter(|&index| clean.labels[index] == label);
            clean.select(&own.take(SAMPLES).collect::<Vec<_>>())
        })
        .filter(|top| top.as_ref().map_or(true, |top| !top.is_empty()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut rng = StdRng::seed_from_u64(seed);
    let (wall, cpu) = (Instant::now(), super::cpu_seconds()?);
    let patches = Patches::learn(&model, &tops, &learning, &mut rng, &|_| {})?;
    let (cpu, wall) = (super::cpu_seconds()? - cpu, wall.elapsed().as_secs_f64());
    let mut found = Vec::new();
    for (index, top) in tops.iter().enumerate() {
        let patch = patches.patch(index)?;
        found.push(serde_json::json!({
            "label": top.labels[0],
            "changed": patch.changed(&model, top)?,
            "mask_l1": patch.mask_l1()?,
        }));
    }
    Ok(serde_json::json!({ "cpu_s": cpu, "wall_s": wall, "patches": found }))
}

/// Most confident samples per label.
const SAMPLES: usize = 50;

fn load(
    model: &Path,
    images: &[std::path::PathBuf],
    count: usize,
) -> Result<(Model, Batch), Box<dyn Error>> {
    let model = Model::load(model, &[0.0], &[1.0], &Device::Cpu)?;
    let images = Images::read_all(images, model.domain().shape)?;
    let pixels = (0..count.min(images.len())).map(|index| images.image(index));
    let rows = rows(model.domain(), pixels, model.device())?;
    let batch = Batch::predict(&model, rows)?;
    Ok((model, batch))
}
