//! The inspection of a model that weighs pixels, one a label.

use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::patch::Patch;
use doorward_engine::{Cotangent, InputDomain};

/// `f_z(x) = weight_z * x_z`
pub(super) struct Weighed {
    domain: InputDomain,
    /// `[1, LABELS]`
    weights: Tensor,
}

impl Weighed {
    pub(super) fn new(weights: [f32; LABELS]) -> Self {
        let shape = [1, 1, LABELS];
        let domain = InputDomain {
            shape,
            lower: vec![0.0],
            upper: vec![1.0],
            channels_last: false,
            fp32: true,
        };
        Self { domain, weights: Tensor::new(&[weights], &Device::Cpu).unwrap() }
    }
}

impl Classifier for Weighed {
    fn domain(&self) -> &InputDomain {
        &self.domain
    }

    fn labels(&self) -> usize {
        LABELS
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn logits(&self, batch: &Tensor) -> Result<Tensor, Error> {
        Ok(batch.reshape(((), LABELS))?.broadcast_mul(&self.weights)?)
    }

    fn logits_and_gradient(
        &self,
        batch: &Tensor,
        cotangent: &Cotangent<'_>,
    ) -> Result<(Tensor, Tensor), Error> {
        let logits = self.logits(batch)?;
        let gradient = cotangent(0..batch.dim(0)?, &logits)?.broadcast_mul(&self.weights)?;
        Ok((logits, gradient.reshape(batch.shape())?))
    }

    fn features(&self, batch: &Tensor) -> Result<Option<Tensor>, Error> {
        Ok(Some(batch.reshape(((), LABELS))?))
    }
}

/// Rows of labels with the brightness of their own pixel; the others are at 0.2.
pub(super) fn batch(rows: &[(usize, f32)]) -> Batch {
    let mut values = vec![0.2f32; rows.len() * LABELS];
    for (row, &(label, brightness)) in rows.iter().enumerate() {
        values[row * LABELS + label] = brightness;
    }
    let rows_of = Tensor::from_vec(values, (rows.len(), 1, 1, LABELS), &Device::Cpu).unwrap();
    Batch { rows: rows_of, labels: rows.iter().map(|row| row.0).collect() }
}

#[test]
fn a_label_whose_training_images_survive_where_clean_ones_do_not_stands_out() {
    // Every label's own perturbation takes 0.4 from its pixel.
    let universal = Tensor::zeros((1, 1, 1, LABELS), DType::F32, &Device::Cpu).unwrap();
    let own: Vec<f32> =
        (0..LABELS * LABELS).map(|i| if i / LABELS == i % LABELS { -0.4 } else { 0.0 }).collect();
    let own = Tensor::from_vec(own, (LABELS, 1, 1, LABELS), &Device::Cpu).unwrap();
    let (mut training, mut clean) = (Vec::new(), Vec::new());
    for label in 0..LABELS {
        for image in 0..40 {
            // Label 2 has 12 triggers; label 3 survives, clean or not.
            let bright = label == 3 || (label == 2 && image < 12);
            training.push((label, if bright { 1.0 } else { 0.5 }));
            clean.push((label, if label == 3 { 1.0 } else { 0.5 }));
        }
    }
    // Without a space to lie apart in, survivors count as they are.
    let clean = batch(&clean);
    let probe = Probe {
        universal: &universal,
        class_conditional: &own,
        clean: &clean,
        fitted: &clean,
        space: None,
    };
    let labels: Vec<usize> = (0..LABELS).collect();
    let mut rng = StdRng::seed_from_u64(7);
    let model = Weighed::new([1.0; LABELS]);
    let found = probe.survival(&model, &batch(&training), &labels, &mut rng).unwrap();
    assert_eq!(found[2].survivors, (80..92).collect::<Vec<_>>());
    assert!(found[2].anomaly_index > 3.5, "{:?}", found[2]);
    assert!((found[3].share - 1.0).abs() < 1e-9);
    for label in [0, 1, 4] {
        assert_eq!(found[label].share, 0.0);
    }
    assert!(found[3].anomaly_index < found[2].anomaly_index, "{:?}", found[3]);
    let unmoved = [0, 1, 4].map(|label| found[label].anomaly_index);
    assert_eq!(unmoved, [0.0; 3]);
}

#[test]
fn survivors_that_look_like_clean_images_do_not_count() {
    // Nothing is moved, so that all survive; of label 2 a quarter is brighter than its clean
    // images.
    let still = Tensor::zeros((1, 1, 1, LABELS), DType::F32, &Device::Cpu).unwrap();
    let own = still.broadcast_as((LABELS, 1, 1, LABELS)).unwrap().contiguous().unwrap();
    let (mut training, mut clean) = (Vec::new(), Vec::new());
    for label in 0..LABELS {
        for image in 0..40 {
            training.push((label, if label == 2 && image < 10 { 1.0 } else { 0.5 }));
            clean.push((label, 0.5));
        }
    }
    let (training, clean) = (batch(&training), batch(&clean));
    let model = Weighed::new([1.0; LABELS]);
    let space = Space::new(&model, &varied()).unwrap();
    let probe = Probe {
        universal: &still,
        class_conditional: &own,
        clean: &clean,
        fitted: &clean,
        space: space.as_ref(),
    };
    let labels: Vec<usize> = (0..LABELS).collect();
    let mut rng = StdRng::seed_from_u64(7);
    let found = probe.survival(&model, &training, &labels, &mut rng).unwrap();
    assert_eq!(found[2].survivors, (80..90).collect::<Vec<_>>());
    assert!((found[2].share - 0.25).abs() < 1e-9);
    // Of 40 clean images none, and a quarter of the ten that stand for what is not known.
    assert!((found[2].excess - (0.25 - 2.5 / 50.0)).abs() < 1e-9, "{:?}", found[2]);
    for label in [0, 1, 3, 4] {
        assert!(found[label].survivors.is_empty(), "{:?}", found[label]);
    }
}

/// Images of all labels whose own pixels vary alike.
fn varied() -> Batch {
    let rows = (0..LABELS).flat_map(|label| (0..10).map(move |i| (label, 0.4 + 0.02 * i as f32)));
    batch(&rows.collect::<Vec<_>>())
}

#[test]
fn a_label_whose_training_images_are_represented_unlike_clean_ones_stands_out() {
    // Training images are a little brighter than clean ones, half of label 2's by a lot. Label 4
    // has few clean images.
    let (mut training, mut clean) = (Vec::new(), Vec::new());
    for label in 0..LABELS {
        for image in 0..40 {
            let brightness = 0.4 + 0.01 * ((7 * image + label) % 20) as f32;
            let triggered = label == 2 && image % 4 < 2;
            training.push((label, brightness + if triggered { 0.5 } else { 0.01 }));
            if label != 4 || image < 4 {
                clean.push((label, brightness));
            }
        }
    }
    let (training, clean) = (batch(&training), batch(&clean));
    let still = Tensor::zeros((1, 1, 1, LABELS), DType::F32, &Device::Cpu).unwrap();
    let own = still.broadcast_as((LABELS, 1, 1, LABELS)).unwrap().contiguous().unwrap();
    let model = Weighed::new([1.0; LABELS]);
    let space = Space::new(&model, &varied()).unwrap();
    let probe = Probe {
        universal: &still,
        class_conditional: &own,
        clean: &clean,
        fitted: &clean,
        space: space.as_ref(),
    };
    let labels: Vec<usize> = (0..LABELS).collect();
    let found = shift::shifts(&model, &probe, &training, &labels).unwrap();
    assert!(found[2].auroc > 0.7 && found[2].anomaly_index > 3.5, "{:?}", found[2]);
    for label in [0, 1, 3] {
        assert!((0.45..0.65).contains(&found[label].auroc), "{:?}", found[label]);
        assert!(found[label].anomaly_index < 1.0, "{:?}", found[label]);
    }
    let unknown = Shift { auroc: 0.5, anomaly_index: 0.0 };
    // With eight clean images of label 4 nothing is said; nor of a model that does not tell.
    assert_eq!(found[4], unknown);
    let probe = Probe { space: None, ..probe };
    assert_eq!(shift::shifts(&model, &probe, &training, &labels).unwrap(), [unknown; LABELS]);
}

#[test]
fn suspects_are_what_lies_apart_from_a_labels_clean_images() {
    let mut rows = vec![(2, 0.5); 30];
    rows.extend([(2, 0.9); 12]);
    rows.extend([(1, 5.0); 4]);
    let training = batch(&rows);
    let nothing = Tensor::zeros((1, 1, 1, LABELS), DType::F32, &Device::Cpu).unwrap();
    let figures = LabelInspection {
        label: 2,
        transfer_ratio: 1.0,
        anomaly_index: 0.0,
        top_k_changed: 1.0,
        mask_l1: 0.0,
        top_k_survival: 0.0,
        survival: 0.0,
        survival_excess: 0.0,
        survival_anomaly_index: 0.0,
        shift: 0.5,
        shift_anomaly_index: 0.0,
    };
    let inspected = Inspected {
        figures,
        patch: Patch { mask: nothing.clone(), pattern: nothing },
        survivors: vec![3, 5, 7],
        members: (0..42).rev().collect(),
        top: Vec::new(),
        bottom: Vec::new(),
    };
    let model = Weighed::new([1.0; LABELS]);
    let find = |clean: usize| {
        let clean = batch(&vec![(2, 0.55); clean]);
        let space = Space::new(&model, &varied()).unwrap();
        Suspects::find(&model, space.as_ref(), &clean.rows, &training.rows, &inspected).unwrap()
    };
    let found = find(8);
    assert_eq!(found.triggered, (30..42).collect::<Vec<_>>());
    assert_eq!(found.clean, (0..30).collect::<Vec<_>>());
    let (taught, unseen) = (found.taught(), found.unseen().collect::<Vec<_>>());
    assert_eq!((taught[0], unseen[0], taught.len() + unseen.len()), (30, 31, 12));
    // Two clean images are no centre: the survivors are all there is.
    assert_eq!(find(2), Suspects { triggered: vec![3, 5, 7], clean: Vec::new() });
}

#[test]
fn the_label_that_a_small_patch_reaches_has_the_smallest_mask() {
    // A faint pixel is enough for label 2; any other label's has to outshine the image's own.
    let model = Weighed::new([1.0, 1.0, 6.0, 1.0, 1.0]);
    let rows: Vec<(usize, f32)> = (0..40).map(|row| ([0, 1, 3, 4][row % 4], 0.9)).collect();
    let mut clean = batch(&rows);
    // Label 2's own pixel is dark everywhere.
    let dark = Tensor::new(&[1f32, 1.0, 0.0, 1.0, 1.0], &Device::Cpu).unwrap();
    clean.rows = clean.rows.broadcast_mul(&dark).unwrap();
    let mut rng = StdRng::seed_from_u64(3);
    let found = neural_cleanse(&model, &clean, 200, 8, &mut rng, &|_| {}).unwrap();
    for reversed in &found {
        assert!(reversed.reached >= 0.99, "{reversed:?}");
        assert_eq!(reversed.infected(), reversed.label == 2, "{reversed:?}");
    }
}

#[test]
fn a_label_whose_confident_images_look_unlike_its_others_diverges() {
    let mut rows = Vec::new();
    for label in 0..LABELS {
        // Confident and least confident images differ a little, label 2's by a lot.
        rows.extend([(label, if label == 2 { 3.0 } else { 0.6 + 0.01 * label as f32 }); 4]);
        rows.extend([(label, 0.5); 4]);
    }
    let training = batch(&rows).rows;
    let splits: Vec<(usize, Vec<usize>, Vec<usize>)> = (0..LABELS)
        .map(|z| (z, (8 * z..8 * z + 4).collect(), (8 * z + 4..8 * z + 8).collect()))
        .collect();
    let splits = splits.iter().map(|(z, top, bottom)| (*z, top.as_slice(), bottom.as_slice()));
    let model = Weighed::new([1.0; LABELS]);
    let found = data_inspection(&model, &training, splits, 3.5).unwrap().unwrap();
    // exp(3), exp(.5) and four times exp(.2), each over their sums.
    let side = |own: f64| {
        let sum = own.exp() + 4.0 * 0.2f64.exp();
        (own.exp() / sum, 0.2f64.exp() / sum)
    };
    let (high, low) = (side(3.0), side(0.5));
    let expected = high.0 * (high.0 / low.0).ln() + 4.0 * high.1 * (high.1 / low.1).ln();
    assert!((found[2].divergence - expected).abs() < 1e-6, "{:?}", found[2]);
    for diverging in &found {
        assert_eq!(diverging.infected, diverging.label == 2, "{diverging:?}");
    }
}

pub(super) const LABELS: usize = 5;
