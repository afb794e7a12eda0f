//! The rate of false rejections that is guaranteed, on the scores of a real victim.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use doorward_detection::baselines::{Baselines, Specific};
use doorward_detection::batches::score;
use doorward_detection::conformal::{Budget, fit, scales};
use doorward_detection::join::joined;
use doorward_detection::perturb::{class_conditional, universal};
use doorward_detection::{Needs, Scorer};
use doorward_engine::{Batch, Classifier, Model, rows};
use doorward_images::Images;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index::sample;

use super::search;
use super::support::models_cannot_be_loaded;

/// Predicted labels and joined scores.
type Scored = Vec<(usize, f32)>;

/// The number of labels, and the images that taught the perturbations and those that did not, scored.
fn scored() -> (usize, Scored, Scored) {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/fashion-mnist");
    let model = Model::load(&assets.join("model.onnx"), &[0.0], &[1.0], &Device::Cpu).unwrap();
    let model: Arc<dyn Classifier> = Arc::new(model);
    let read = |name: &str| Images::read(assets.join(name), model.domain().shape).unwrap();
    let (taught, clean) = (read("fit.bin.gz").slice(0..200), read("holdout.bin.gz"));
    let pixels = (0..taught.len()).map(|index| taught.image(index));
    let pixels: Tensor = rows(model.domain(), pixels, &Device::Cpu).unwrap();
    let batch = Batch::predict(&*model, pixels).unwrap();
    let search = search(0.8, 0.1, 6, 32);
    let mut rng = StdRng::seed_from_u64(11);
    let found = universal(&*model, &batch, &search, &mut rng, &|_| {}).unwrap();
    let (eta, epsilon) = (found.eta, found.epsilon);
    let own =
        class_conditional(&*model, &batch, &eta, epsilon, &search, &mut rng, &|_| {}).unwrap();
    let specific = Specific::new(&*model, epsilon, 11).unwrap();
    let labels = model.labels();
    let baselines = Baselines::new(specific, None);
    let (none, nowhere) = (BTreeMap::new(), BTreeMap::new());
    let scorer = Scorer::new(model, eta, own, none, nowhere, baselines).unwrap();
    let join = |images: &Images| -> Scored {
        let scored = score(&scorer, images, 0..images.len(), Needs::ALL, &|_| ()).unwrap();
        scored.iter().map(|row| (row.label, joined(row, &BTreeMap::new()))).collect()
    };
    (labels, join(&taught), join(&clean))
}

#[test]
fn the_guaranteed_rate_holds_for_real_scores_over_many_random_splits() {
    if models_cannot_be_loaded() {
        return;
    }
    let (labels, taught, clean) = scored();
    let scales = scales(labels, &taught);
    for (rate, held_out, infected) in
        [(0.01, 1500, None), (0.01, 1500, Some(0)), (0.05, 400, Some(3)), (0.02, 150, None)]
    {
        let budget = Budget { rate, infected_weight: 10.0 };
        let infected: BTreeSet<usize> = infected.into_iter().collect();
        let (mut rejected, mut tested, mut bounds) = (0usize, 0usize, 0.0);
        for seed in 0..SPLITS {
            let order = sample(&mut StdRng::seed_from_u64(seed), clean.len(), clean.len());
            let order: Scored = order.into_iter().map(|index| clean[index]).collect();
            let (holdout, test) = order.split_at(held_out);
            let fitted = fit(&scales, holdout, &infected, BTreeMap::new(), budget);
            assert!(fitted.false_rejection_rate_bound <= rate + 1e-9);
            bounds += fitted.false_rejection_rate_bound;
            tested += test.len();
            let above = |&&(label, score): &&(usize, f32)| fitted.excess_of(label, score) > 0.0;
            rejected += test.iter().filter(above).count();
        }
        let (measured, bound) = (rejected as f64 / tested as f64, bounds / SPLITS as f64);
        // A split's rate scatters as its threshold does, which `rate * held_out` scores decide.
        let slack = 3.0 * bound * (2.0 / (rate * held_out as f64) / SPLITS as f64).sqrt();
        println!("rate {rate}, {held_out} held out: {measured:.5} rejected, bound {bound:.5}");
        assert!(measured <= bound + slack, "rate {rate}, {held_out}: {measured} over {bound}");
        assert!(measured >= bound * 0.4, "rate {rate}, {held_out}: {measured} wastes {bound}");
    }
}

const SPLITS: u64 = 400;
