use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const BUDGET: Budget = Budget { rate: 0.01, infected_weight: 10.0 };

fn evidence(label: usize, evidence: f32) -> Joined {
    Joined { label, evidence, weighed: None }
}

/// Scores whose distribution depends on the label, heavy on the right.
fn draw(rng: &mut StdRng, labels: usize) -> Joined {
    let label = rng.random_range(0..labels * labels).isqrt();
    let score = rng.random_range(0.0..1.0f32).powi(4) * (label + 1) as f32 - label as f32;
    Joined { label, evidence: score, weighed: (label == 3).then_some(-score) }
}

fn draws(rng: &mut StdRng, labels: usize, count: usize) -> Vec<Joined> {
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
            let fitted = fit(labels, &draws(&mut rng, labels, holdout), &infected, budget);
            assert!(fitted.false_rejection_rate_bound <= rate + 1e-9);
            bounds += fitted.false_rejection_rate_bound;
            for row in draws(&mut rng, labels, 500) {
                rejected += usize::from(fitted.excess(&row) > 0.0);
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
fn labels_share_a_threshold_and_all_of_the_budget() {
    let scores: Vec<Joined> = (0..1999).map(|i| evidence(i % 10, i as f32)).collect();
    let fitted = fit(10, &scores, &BTreeSet::new(), BUDGET);
    // k = floor(0.01 * 2000) = 20: the twentieth largest passes.
    assert!(fitted.labels.iter().all(|label| label.pooled && label.threshold == 1979.0));
    assert!((fitted.false_rejection_rate_bound - 0.01).abs() < 1e-9);
}

#[test]
fn an_infected_label_gets_its_share_of_the_budget() {
    let scores: Vec<Joined> = (0..2000).map(|i| evidence(i % 10, i as f32)).collect();
    let fitted = fit(10, &scores, &BTreeSet::from([4]), BUDGET);
    let above = |of: &dyn Fn(usize) -> bool| {
        scores.iter().filter(|row| of(row.label) && fitted.excess(row) > 0.0).count()
    };
    // k = floor(0.0526 * 201) = 10 and floor(0.00526 * 1801) = 9; the k-th itself passes.
    assert_eq!(above(&|label| label == 4), 9);
    assert_eq!(above(&|label| label != 4), 8);
    assert!(fitted.false_rejection_rate_bound <= 0.01);
}

#[test]
fn an_infected_label_of_its_own_is_judged_by_its_weights() {
    let mut scores: Vec<Joined> = (0..2000).map(|i| evidence(i % 10, i as f32)).collect();
    for row in &mut scores {
        row.weighed = (row.label == 4).then_some(-row.evidence);
    }
    let fitted = fit(10, &scores, &BTreeSet::from([4]), BUDGET);
    let row = |evidence, weighed| Joined { label: 4, evidence, weighed: Some(weighed) };
    assert!(fitted.excess(&row(1e6, -1e6)) < 0.0);
    assert!(fitted.excess(&row(-1e6, 1e6)) > 0.0);
    // With too few images it shares the threshold of the others, which is one of evidence.
    let few: Vec<Joined> = scores
        .into_iter()
        .enumerate()
        .filter(|(i, row)| row.label != 4 || *i < 50)
        .map(|(_, row)| row)
        .collect();
    let fitted = fit(10, &few, &BTreeSet::from([4]), BUDGET);
    assert!(fitted.labels[4].pooled);
    assert!(fitted.excess(&row(1e6, -1e6)) > 0.0);
}

#[test]
fn an_infected_label_with_few_images_is_judged_more_strictly_than_its_pool() {
    let mut scores: Vec<Joined> = (0..600).map(|i| evidence(1 + i % 6, i as f32 / 100.0)).collect();
    scores.extend([evidence(0, 0.1), evidence(0, 3.0)]);
    let fitted = fit(7, &scores, &BTreeSet::from([0]), BUDGET);
    assert!(fitted.labels.iter().all(|label| label.pooled));
    // Ranked with its addend: floor(0.01 * 603) = 6, the sixth largest of 5.99, 5.98, ... and
    // 3 + ln 10 = 5.30.
    assert_eq!(fitted.labels[1].threshold, 5.94);
    assert!((fitted.labels[0].threshold - (5.94 - 10f32.ln())).abs() < 1e-5);
    assert!(fitted.false_rejection_rate_bound <= 0.01);
}

#[test]
fn what_is_no_number_lies_above_no_threshold() {
    let scores: Vec<Joined> = (0..200).map(|i| evidence(i % 2, i as f32)).collect();
    let fitted = fit(2, &scores, &BTreeSet::new(), BUDGET);
    assert!(fitted.excess(&evidence(0, f32::NAN)).is_nan());
}

#[test]
fn too_few_images_reject_nothing() {
    let scores: Vec<Joined> = (0..90).map(|i| evidence(i % 2, i as f32)).collect();
    let fitted = fit(2, &scores, &BTreeSet::new(), BUDGET);
    assert_eq!(fitted.false_rejection_rate_bound, 0.0);
    assert_eq!(images_needed(0.01), 99);
}
