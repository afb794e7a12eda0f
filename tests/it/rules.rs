//! Every rule, from calibration to the verdict on a real victim.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use doorward::config::{Config, Rule};
use doorward_detection::Judge;
use doorward_detection::artifact::Artifact;
use doorward_detection::baselines::strip;
use doorward_detection::evaluate::evaluate;
use doorward_detection::open;
use doorward_detection::prepare::{self, Material};
use doorward_engine::{Classifier, Model};
use doorward_images::Images;

use super::support::{models_cannot_be_loaded, onnx::Graph};

#[test]
fn strip_averages_the_entropy_of_each_blend_over_the_blends() {
    if models_cannot_be_loaded() {
        return;
    }
    // Logits are eight times the two pixels.
    let graph = Graph::new(&[1, 1, 2])
        .floats("w", &[2, 2], &[8.0, 0.0, 0.0, 8.0])
        .node("Flatten", &["x"], "flat", vec![])
        .node("MatMul", &["flat", "w"], "y", vec![]);
    let model = Model::decode(&graph.encode(), &[0.0], &[1.0], &Device::Cpu).expect("a model");
    let tensor = |values: &[f32], rows: usize| {
        Tensor::from_slice(values, (rows, 1, 1, 2), &Device::Cpu).expect("a tensor")
    };
    let overlays = tensor(&[0.5, 0.5, 1.0, 0.0], 2);
    // Blends (0.5, 0.5) and (0.75, 0.25): logits 0 and 4 apart, entropies 1 and 0.12998 bits. Over the
    // other axis, the two blends' values of one label, they would be another number.
    let found = strip::entropies(&model, &overlays, &tensor(&[0.5, 0.5], 1)).expect("entropies");
    assert!((found[0] - 0.564_99).abs() < 1e-4, "{found:?}");
    // Blends (0.75, 0.25) and (1, 0), 4 and 8 apart: the second row is judged by itself.
    let rows = tensor(&[0.5, 0.5, 1.0, 0.0], 2);
    let found = strip::entropies(&model, &overlays, &rows).expect("entropies");
    assert!((found[1] - (0.129_98 + 0.004_35) / 2.0).abs() < 1e-4, "{found:?}");
}

/// Data that is not in this repository.
fn data() -> PathBuf {
    let data = std::env::var("DOORWARD_DATA").unwrap_or_else(|_| "../shared".into());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(data)
}

#[test]
fn every_rule_judges_a_real_victim_the_same_in_evaluation_and_service() {
    let victim = data().join("zoo/cifar10-cnn6-badnets");
    if models_cannot_be_loaded() || !victim.exists() {
        println!("skipped: no {}", victim.display());
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "upstream.url = 'http://127.0.0.1:1'\n\
         model.path = '{}'\n\
         calibration.clean_images = 'unused'\n\
         calibration.artifact = '{}'\n\
         perturbation.steps = 12\n\
         perturbation.batch = 16\n\
         perturbation.fooling_rate = 0.7\n\
         policy.rule = 'strip'\n\
         policy.max_false_rejection_rate = 0.1\n",
        victim.join("model.onnx").display(),
        folder.path().join("artifact").display(),
    );
    let config = Config::parse("test", &text, std::iter::empty::<(&str, &str)>()).expect("valid");
    let model =
        Model::load(&config.server.model.path, &[0.0], &[1.0], &Device::Cpu).expect("a model");
    let model = Arc::new(model);
    let shape = model.domain().shape;
    let clean = Images::read(data().join("data/cifar10/test.bin.gz"), shape).expect("images");
    let triggered = Images::read(victim.join("triggered.bin.gz"), shape).expect("images");
    let material = Material {
        fit: clean.slice(0..80),
        reference: clean.slice(140..200),
        holdout: clean.slice(80..140),
        probe: clean.slice(200..200),
        training: None,
        data_digest: String::new(),
    };
    let (artifact, _) = prepare::calibrate(&model, &config.detection, &material, 2, &|_, _| {})
        .expect("an artifact");

    // What STRIP needs survives the file, and is wanted by the settings.
    let stored = artifact.encode().expect("encoded");
    let mut expected = prepare::expected(&config.detection, &model, None).expect("digests");
    expected.data_digest = None;
    let mut artifact = Artifact::decode(&stored, "test", &expected, &Device::Cpu).expect("read");
    let strip = artifact.strip.as_ref().expect("overlays");
    assert_eq!(strip.overlays.dims(), [64, shape[0], shape[1], shape[2]]);
    assert_eq!(strip.entropies.len(), 60);
    let text = text.replace("policy.rule = 'strip'", "policy.rule = 'uap'");
    let other = Config::parse("test", &text, std::iter::empty::<(&str, &str)>()).expect("valid");
    let other = prepare::expected(&other.detection, &model, None).expect("digests");
    assert_ne!(other.settings_digest, expected.settings_digest);

    let (clean, triggered) = (clean.slice(9000..9006), triggered.slice(0..4));
    let signals =
        open::scorer(model.clone(), &artifact, &config.detection.policy).expect("signals");
    let thresholds = open::thresholds(&artifact, &config.detection.policy);
    let evaluation =
        evaluate(&signals, &thresholds, &clean, &triggered, &[0], &Rule::ALL).expect("figures");
    let rules: &BTreeMap<_, _> = &evaluation.rules;
    assert_eq!(rules.len(), Rule::ALL.len());
    let passes = |rule: Rule| rules[rule.name()].forwards_per_input;
    assert_eq!(passes(Rule::Uap), 2.0);
    assert_eq!(passes(Rule::Strip), 65.0);
    assert_eq!(passes(Rule::Pgd), 42.0);
    assert_eq!(passes(Rule::CarliniWagner), 302.0);
    // Without an infected label there is no patch.
    assert_eq!((rules["both"].bdr, rules["both"].ciir), (0.0, 1.0));
    assert_eq!((rules["either"].bdr, rules["either"].ciir), (rules["uap"].bdr, rules["uap"].ciir));
    assert!(rules["uap"].bdr > 0.9);
    // How well a rule separates is for `doorward evaluate` on more rows than these.
    for (rule, figures) in rules {
        for share in [figures.bdr, figures.ciir, figures.auroc] {
            assert!((0.0..=1.0).contains(&share), "{rule}: {figures:?}");
        }
    }

    let rows: Vec<f32> =
        (0..clean.len()).flat_map(|index| model.domain().normalise(clean.image(index))).collect();
    for rule in Rule::ALL {
        let (detector, _) =
            open::detector(model.clone(), &artifact, &config.detection.policy, rule).expect("one");
        let judged = detector.judge(&rows).expect("judgements");
        let passed = judged.iter().filter(|judgement| !judgement.rejected).count();
        let evaluated = rules[rule.name()].ciir * clean.len() as f64;
        assert!((passed as f64 - evaluated).abs() < 1e-6, "{rule:?}: {passed} and {evaluated}");
    }

    artifact.strip = None;
    let signals = open::scorer(model, &artifact, &config.detection.policy).expect("signals");
    let error = evaluate(&signals, &thresholds, &clean, &triggered, &[0], &[Rule::Strip])
        .expect_err("no overlays");
    assert!(error.to_string().contains("policy.rule = \"strip\""), "{error}");
}
