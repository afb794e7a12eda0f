use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use std::collections::BTreeMap;

use super::*;

/// Clean scores whose distribution depends on the label, heavy on the right.
fn draw(rng: &mut StdRng, labels: usize) -> (usize, f32) {
    let label = rng.random_range(0..labels * labels).isqrt();
    let score = rng.random_range(0.0..1.0f32).powi(4) * (label + 1) as f32 - label as f32;
    (label, score)
}

fn draws(rng: &mut StdRng, labels: usize, count: usize) -> Vec<(usize, f32)> {
    (0..count).map(|_| draw(rng, labels)).collect()
}

#[test]
fn the_guaranteed_rate_holds_over_many_random_splits() {
    let labels = 10;
    // Few images are of label 0, so that it is infected and pooled.
    let splits = [(0.01, 2000, 3), (0.01, 400, 3), (0.05, 300, 3), (0.02, 120, 3), (0.01, 400, 0)];
    for (rate, holdout, infected) in splits {
        let infected = BTreeSet::from([infected]);
        let budget = Budget { rate, infected_weight: 10.0 };
        let (mut rejected, mut bounds, mut tested) = (0usize, 0.0, 0usize);
        let splits = 400;
        for seed in 0..splits {
            let mut rng = StdRng::seed_from_u64(seed);
            let scales = scales(labels, &draws(&mut rng, labels, 300));
            let fitted =
                fit(&scales, &draws(&mut rng, labels, holdout), &infected, BTreeMap::new(), budget);
            assert!(fitted.false_rejection_rate_bound <= rate + 1e-9);
            bounds += fitted.false_rejection_rate_bound;
            for (label, score) in draws(&mut rng, labels, 500) {
                let label = fitted.labels[label];
                let standard = (score - label.location) / label.spread;
                rejected += usize::from(standard > label.threshold);
                tested += 1;
            }
        }
        let measured = rejected as f64 / tested as f64;
        let bound = bounds / splits as f64;
        // Three standard errors; the splits share their thresholds, hence the factor.
        let slack = 3.0 * (bound / splits as f64 / 5.0).sqrt();
        assert!(measured <= bound + slack, "rate {rate}, {holdout}: {measured} over {bound}");
        assert!(measured >= bound * 0.5, "rate {rate}, {holdout}: {measured} wastes {bound}");
    }
}

#[test]
fn an_infected_label_gets_its_share_of_the_budget() {
    let scores: Vec<(usize, f32)> = (0..2000).map(|i| (i % 10, i as f32)).collect();
    let flat = vec![Scale { location: 0.0, spread: 1.0 }; 10];
    let budget = Budget { rate: 0.01, infected_weight: 10.0 };
    let fitted = fit(&flat, &scores, &BTreeSet::from([4]), BTreeMap::new(), budget);
    let above = |label: usize| {
        let threshold = fitted.labels[label].threshold;
        scores.iter().filter(|(other, score)| *other == label && *score > threshold).count()
    };
    // k = floor(0.0526 * 201) = 10 and floor(0.00526 * 201) = 1; the k-th itself passes.
    assert_eq!(above(4), 9);
    assert_eq!(above(5), 0);
    assert!(fitted.false_rejection_rate_bound <= 0.01);
}

#[test]
fn labels_with_few_images_share_a_threshold() {
    let mut scores: Vec<(usize, f32)> = (0..500).map(|i| (0, i as f32)).collect();
    scores.extend((0..150).map(|i| (1 + i % 3, i as f32)));
    let flat = vec![Scale { location: 0.0, spread: 1.0 }; 4];
    let fitted = fit(
        &flat,
        &scores,
        &BTreeSet::new(),
        BTreeMap::new(),
        Budget { rate: 0.01, infected_weight: 10.0 },
    );
    assert!(!fitted.labels[0].pooled);
    assert!(fitted.labels[1..].iter().all(|label| label.pooled && label.images == 150));
    assert_eq!(fitted.labels[1].threshold, 149.0);
}

#[test]
fn a_label_with_few_images_alone_shares_the_threshold_of_the_smallest_other() {
    let counts = [40, 300, 200, 250];
    let scores: Vec<(usize, f32)> =
        (0..4).flat_map(|label| (0..counts[label]).map(move |i| (label, i as f32))).collect();
    let flat = vec![Scale { location: 0.0, spread: 1.0 }; 4];
    let budget = Budget { rate: 0.01, infected_weight: 10.0 };
    let fitted = fit(&flat, &scores, &BTreeSet::new(), BTreeMap::new(), budget);
    let pooled: Vec<bool> = fitted.labels.iter().map(|label| label.pooled).collect();
    assert_eq!(pooled, [true, false, true, false]);
    // floor(0.01 * 241) = 2: the second largest of 0 to 39 and 0 to 199.
    assert_eq!((fitted.labels[0].threshold, fitted.labels[0].images), (198.0, 240));
    assert!(fitted.false_rejection_rate_bound <= 0.01);
    assert_eq!(own_thresholds(4, &scores, &BTreeSet::new(), budget).0, 2);

    // An infected one, with its larger budget, stays by itself.
    let fitted = fit(&flat, &scores, &BTreeSet::from([2]), BTreeMap::new(), budget);
    assert!(!fitted.labels[2].pooled);
    assert!(fitted.labels[0].pooled && fitted.labels[0].threshold < f32::MAX);
}

#[test]
fn an_infected_label_with_few_images_is_judged_more_strictly_than_its_pool() {
    let mut scores: Vec<(usize, f32)> = (0..600).map(|i| (1 + i % 6, i as f32 / 100.0)).collect();
    scores.extend([(0, 0.1), (0, 3.0)]);
    let flat = vec![Scale { location: 0.0, spread: 1.0 }; 7];
    let budget = Budget { rate: 0.01, infected_weight: 10.0 };
    let fitted = fit(&flat, &scores, &BTreeSet::from([0]), BTreeMap::new(), budget);
    assert!(fitted.labels.iter().all(|label| label.pooled));
    // Ranked with its addend: floor(0.01 * 603) = 6, the sixth largest of 5.99, 5.98, ...
    assert_eq!(fitted.labels[1].threshold, 5.94);
    assert!((fitted.labels[0].threshold - 4.94).abs() < 1e-5);
    assert!(fitted.false_rejection_rate_bound <= 0.01);
}

#[test]
fn the_images_that_all_labels_need_give_all_of_them_a_threshold() {
    let budget = Budget { rate: 0.01, infected_weight: 10.0 };
    let infected = BTreeSet::from([1]);
    // Every sixth image is predicted as label 1, every third as label 2.
    let of = |count: usize| -> Vec<(usize, f32)> {
        (0..count).map(|i| ([0, 0, 0, 1, 2, 2][i % 6], 0.0)).collect()
    };
    let (own, needed) = own_thresholds(3, &of(300), &infected, budget);
    assert_eq!(own, 1);
    let (own, again) = own_thresholds(3, &of(needed + 6), &infected, budget);
    assert_eq!(own, 3);
    assert!(again.abs_diff(needed) < needed / 20, "{needed}, then {again}");
    assert!(own_thresholds(3, &of(needed * 19 / 20), &infected, budget).0 < 3);
}

#[test]
fn too_few_images_reject_nothing() {
    let flat = vec![Scale { location: 0.0, spread: 1.0 }; 2];
    let scores: Vec<(usize, f32)> = (0..90).map(|i| (i % 2, i as f32)).collect();
    let fitted = fit(
        &flat,
        &scores,
        &BTreeSet::new(),
        BTreeMap::new(),
        Budget { rate: 0.01, infected_weight: 10.0 },
    );
    assert_eq!(fitted.false_rejection_rate_bound, 0.0);
    assert_eq!(images_needed(0.01), 99);
}
