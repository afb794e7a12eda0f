//! NaN and infinity are no verdict.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use doorward_detection::baselines::{Baselines, Specific};
use doorward_detection::conformal::{Budget, fit};
use doorward_detection::join::{Join, Line};
use doorward_detection::{Detector, Joined, Judge, Parts, Rule, Scorer, Signal};
use doorward_engine::{Classifier, Cotangent, Error, InputDomain};

/// Two pixels are two logits; of a pixel above 0.9 the logit is what `beyond` says.
struct Broken {
    domain: InputDomain,
    beyond: f32,
}

impl Classifier for Broken {
    fn domain(&self) -> &InputDomain {
        &self.domain
    }

    fn labels(&self) -> usize {
        2
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn logits(&self, batch: &Tensor) -> Result<Tensor, Error> {
        let rows = batch.reshape(((), 2))?.to_vec2::<f32>()?;
        let of = |value: &f32| if *value > 0.9 { self.beyond } else { *value };
        let logits: Vec<f32> = rows.iter().flatten().map(of).collect();
        Ok(Tensor::from_vec(logits, (rows.len(), 2), &Device::Cpu)?)
    }

    fn logits_and_gradient(
        &self,
        batch: &Tensor,
        _: &Cotangent<'_>,
    ) -> Result<(Tensor, Tensor), Error> {
        Ok((self.logits(batch)?, batch.zeros_like()?))
    }
}

fn detector(rule: Rule, beyond: f32) -> Detector {
    let (lower, upper) = (vec![0.0], vec![1.0]);
    let domain = InputDomain { shape: [1, 1, 2], lower, upper, channels_last: false, fp32: true };
    let model: Arc<dyn Classifier> = Arc::new(Broken { domain, beyond });
    let zeros =
        |count: usize| Tensor::zeros((count, 1, 1, 2), candle_core::DType::F32, &Device::Cpu);
    let reference: Vec<(usize, f32)> = (0..200).map(|i| (i % 2, i as f32 / 100.0)).collect();
    let mut join = Join::default();
    join.lines[Signal::Universal] = Line::new(2, &reference);
    let holdout: Vec<Joined> = (0..200)
        .map(|i| Joined { label: i % 2, evidence: i as f32 / 10.0, weighed: None })
        .collect();
    let budget = Budget { rate: 0.01, infected_weight: 10.0 };
    let thresholds = fit(2, &holdout, &[].into(), budget);
    let specific = Specific::new(&*model, 0.1, 1).unwrap();
    let learned = Parts {
        universal: zeros(1).unwrap(),
        class_conditional: zeros(2).unwrap(),
        patches: BTreeMap::new(),
        representations: BTreeMap::new(),
        layers: None,
        ranges: None,
        join,
        baselines: Baselines::new(specific, None),
    };
    Detector::new(Scorer::new(model, learned).unwrap(), rule, thresholds)
}

#[test]
fn a_row_without_numbers_is_turned_away_and_its_neighbours_are_not() {
    for beyond in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for rule in [Rule::Calibrated, Rule::Uap, Rule::Both, Rule::Either, Rule::Patch] {
            let judgements = detector(rule, beyond).judge(&[0.2, 0.1, 0.95, 0.1]).unwrap();
            let rejected: Vec<bool> = judgements.iter().map(|row| row.rejected).collect();
            // The papers' hard rule turns every row away here, as nothing is perturbed.
            let survives = matches!(rule, Rule::Uap | Rule::Either);
            assert_eq!(rejected, [survives, true], "{rule}, {beyond}");
            let numbers = judgements[1].scores;
            assert!(
                Signal::ALL.into_iter().all(|signal| numbers[signal].is_none_or(f32::is_finite))
            );
            assert_eq!(judgements[1].joined, None, "{rule}, {beyond}");
        }
    }
}
