//! The rate of false rejections that is guaranteed, on the scores of a real victim.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use doorward_detection::baselines::{Baselines, Specific};
use doorward_detection::batches::score;
use doorward_detection::conformal::{Budget, fit};
use doorward_detection::join::{Join, Line, Weights};
use doorward_detection::perturb::{class_conditional, universal};
use doorward_detection::{Joined, Needs, Parts, PerSignal, RowSignals, Scorer};
use doorward_engine::{Batch, Classifier, Model, rows};
use doorward_images::Images;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index::sample;

use super::search;
use super::support::models_cannot_be_loaded;

/// The number of labels, and the scores of images that nothing was fitted to.
fn scored() -> (usize, Vec<Joined>) {
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
    let learned = Parts {
        universal: eta,
        class_conditional: own,
        patches: BTreeMap::new(),
        representations: BTreeMap::new(),
        layers: None,
        ranges: None,
        join: Join::default(),
        baselines,
    };
    let scorer = Scorer::new(model, learned).unwrap();
    let signals = |images: &Images| -> Vec<RowSignals> {
        score(&scorer, images, 0..images.len(), Needs::ALL, &|_| ()).unwrap()
    };
    let known = signals(&taught);
    let lines = PerSignal::from_fn(|signal| {
        let scores = known.iter().filter_map(|row| Some((row.label, row.scores[signal]?)));
        Line::new(labels, &scores.collect::<Vec<_>>())
    });
    let join = Join { lines, weights: Weights::new() };
    (labels, signals(&clean).iter().map(|row| join.joined(row).expect("a score")).collect())
}

#[test]
fn the_guaranteed_rate_holds_for_real_scores_over_many_random_splits() {
    if models_cannot_be_loaded() {
        return;
    }
    let (labels, clean) = scored();
    for (rate, held_out, infected) in
        [(0.01, 1500, None), (0.01, 1500, Some(0)), (0.05, 400, Some(3)), (0.02, 150, None)]
    {
        let budget = Budget { rate, infected_weight: 10.0 };
        let infected: BTreeSet<usize> = infected.into_iter().collect();
        let (mut rejected, mut tested, mut bounds) = (0usize, 0usize, 0.0);
        for seed in 0..SPLITS {
            let order = sample(&mut StdRng::seed_from_u64(seed), clean.len(), clean.len());
            let order: Vec<Joined> = order.into_iter().map(|index| clean[index]).collect();
            let (holdout, test) = order.split_at(held_out);
            let fitted = fit(labels, holdout, &infected, budget);
            assert!(fitted.false_rejection_rate_bound <= rate + 1e-9);
            bounds += fitted.false_rejection_rate_bound;
            tested += test.len();
            rejected += test.iter().filter(|row| fitted.excess(row) > 0.0).count();
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
