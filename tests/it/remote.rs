//! Verdicts by the model server's predictions: one request with all copies, an answer cut back to the
//! client's rows, and a verdict whatever the server answers.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};
use doorward::config::{Config, Rule};
use doorward_detection::Policy;
use doorward_detection::Representation;
use doorward_detection::artifact::{Artifact, Expected};
use doorward_detection::join::Join;
use doorward_detection::{Judge, Judgement};
use doorward_detection::{PerSignal, Signal, open, prepare};
use doorward_engine::{Classifier, Model};
use doorward_images::Images;
use doorward_proxy::server::Server;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::support::model_server::{Answers, ModelServer};
use super::support::{self, Answer, Client, INFER, models_cannot_be_loaded};

const PREDICT: &str = "/v1/models/m:predict";
const LENGTH: &str = "inference-header-content-length";

/// A model with an artifact that calls label 0 infected, so that every kind of copy is made.
struct Victim {
    model: Arc<Model>,
    artifact: Artifact,
    /// Clean rows, then triggered ones.
    rows: Vec<Vec<f32>>,
}

fn victim() -> &'static Victim {
    static VICTIM: OnceLock<Victim> = OnceLock::new();
    VICTIM.get_or_init(|| {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fashion-mnist");
        let asset = |name: &str| assets.join(name).display().to_string();
        let text = format!(
            "upstream.url = 'http://127.0.0.1:1'\nmodel.path = '{}'\n\
             calibration.clean_images = ['{}', '{}']\ncalibration.training_images = '{}'\n\
             calibration.fit_images = 60\ncalibration.holdout_images = 200\n\
             perturbation.steps = 8\nperturbation.batch = 32\n\
             inspection.samples = 12\ninspection.steps = 4\ninspection.batch = 4\n\
             policy.max_false_rejection_rate = 0.05\n",
            asset("model.onnx"),
            asset("fit.bin.gz"),
            asset("holdout.bin.gz"),
            asset("clean.bin.gz"),
        );
        let none = std::iter::empty::<(&str, &str)>();
        let config = Config::parse("test", &text, none).expect("valid");
        let model =
            Model::load(&config.server.model.path, &[0.0], &[1.0], &Device::Cpu).expect("a model");
        let model = Arc::new(model);
        let shape = model.domain().shape;
        let material = prepare::material(&config.detection, shape).expect("images");
        let (mut artifact, _) =
            prepare::calibrate(&model, &config.detection, &material, 5, &|_, _| {})
                .expect("an artifact");
        artifact.manifest.inspection.as_mut().expect("inspected").infected = vec![0];
        let read = |name: &str, count| {
            let images = Images::read(assets.join(name), shape).expect("images");
            let rows = (0..count).map(|index| model.domain().normalise(images.image(index)));
            rows.collect::<Vec<_>>()
        };
        let rows = [read("clean.bin.gz", 12), read("triggered.bin.gz", 12)].concat();
        Victim { model, artifact, rows }
    })
}

struct Setup {
    server: Server,
    upstream: ModelServer,
    client: Client,
    judge: Arc<dyn Judge>,
    policy: Policy,
}

impl Setup {
    async fn new(rule: Rule, settings: &str) -> Self {
        Self::with(rule, settings, &victim().artifact).await
    }

    async fn with(rule: Rule, settings: &str, artifact: &Artifact) -> Self {
        let victim = victim();
        let upstream = ModelServer::start(Arc::clone(&victim.model)).await;
        let settings = format!(
            "model.predictions = 'upstream'\npolicy.max_false_rejection_rate = 0.05\n\
             policy.rule = '{}'\n{settings}",
            rule.name()
        );
        let config = support::config(&upstream.url(), &settings);
        let server = Server::bind(&config.server).await.expect("free ports");
        let model = Arc::clone(&victim.model);
        let (detector, _) =
            open::detector(model, artifact, &config.detection.policy, rule).expect("a detector");
        let judge: Arc<dyn Judge> = Arc::new(detector);
        server.ready(Arc::clone(&judge), &artifact.manifest).expect("the first detector");
        let client = Client::new(&format!("http://{}", server.proxy_addr()));
        Self { server, upstream, client, judge, policy: config.detection.policy }
    }

    fn locally(&self, rows: &[Vec<f32>]) -> Vec<Judgement> {
        self.judge.judge(&rows.concat()).expect("judgements")
    }

    fn remote_rows(&self, kind: &str) -> usize {
        let page = self.server.metrics().page().expect("a page");
        let name = format!("doorward_remote_rows_total{{kind=\"{kind}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name)).expect("a sample");
        line.parse().expect("a number")
    }

    async fn infer(&self, rows: &[Vec<f32>]) -> Answer {
        self.client.infer(json_request(rows, &Value::Null)).await
    }
}

fn json_request(rows: &[Vec<f32>], outputs: &Value) -> String {
    let shape = json!([rows.len(), 1, 28, 28]);
    let input = json!({"name": "input", "shape": shape, "datatype": "FP32", "data": rows.concat()});
    let mut request = json!({"id": "7", "inputs": [input]});
    if !outputs.is_null() {
        request["outputs"] = outputs.clone();
    }
    request.to_string()
}

/// What is written as an `f32` is read as one.
fn floats(value: &Value) -> Vec<f32> {
    let values = value.as_array().expect("an array").iter();
    values.map(|value| value.as_f64().expect("a number") as f32).collect()
}

fn rejections(judgements: &[Judgement]) -> Vec<bool> {
    judgements.iter().map(|judgement| judgement.rejected).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_and_answers_are_those_of_the_serving_model() {
    if models_cannot_be_loaded() {
        return;
    }
    let rows = &victim().rows;
    for rule in [Rule::Calibrated, Rule::Uap, Rule::Patch, Rule::Either, Rule::Both] {
        let setup = Setup::new(rule, "").await;
        let local = setup.locally(rows);
        for answers in [Answers::Logits, Answers::Probabilities] {
            setup.upstream.answer_with(answers);
            for (row, local) in rows.iter().zip(&local) {
                let answer = setup.infer(std::slice::from_ref(row)).await;
                let served = setup.upstream.take_served();
                // One request, with all copies in it.
                let [served] = served.as_slice() else { panic!("{} requests", served.len()) };
                let patched = usize::from(local.label == 0);
                let copies = match rule {
                    Rule::Uap => 1,
                    Rule::Patch => patched,
                    Rule::Both | Rule::Either => 1 + patched,
                    _ => 2 + patched,
                };
                assert_eq!(served.rows, 1 + copies, "{rule:?}");
                assert_eq!(served.appended.as_deref(), Some(&*copies.to_string()));
                let expected = if local.rejected { StatusCode::FORBIDDEN } else { StatusCode::OK };
                assert_eq!(answer.status, expected, "{rule:?} {answers:?}: {local:?}");
                if !local.rejected {
                    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
                    assert_eq!(
                        (&body["id"], &body["parameters"]),
                        (&json!("7"), &json!({"kept": 1.5}))
                    );
                    let output = &body["outputs"][0];
                    assert_eq!(output["shape"], json!([1, 10]));
                    assert_eq!(floats(&output["data"]), served.values[..10]);
                }
            }
        }
        let rejected = local.iter().filter(|row| row.rejected).count();
        assert!(rule == Rule::Both || (1..rows.len()).contains(&rejected), "{rule:?}: {rejected}");
        assert_eq!(setup.remote_rows("judged"), 2 * rows.len());
        assert_eq!(setup.remote_rows("disputed") + setup.remote_rows("untold"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_universal_perturbations_go_in_one_request_and_the_least_margin_counts() {
    if models_cannot_be_loaded() {
        return;
    }
    let mut artifact = victim().artifact.clone();
    let (one, other) = (artifact.universal.clone(), artifact.universal.neg().expect("a tensor"));
    artifact.universal = Tensor::cat(&[&one, &other], 0).expect("two perturbations");
    let setup = Setup::with(Rule::Uap, "", &artifact).await;
    let alone = [one, other].map(|universal| {
        let artifact = Artifact { universal, ..artifact.clone() };
        let (model, policy) = (Arc::clone(&victim().model), &setup.policy);
        open::detector(model, &artifact, policy, Rule::Uap).expect("a detector").0
    });
    for (row, judgement) in victim().rows.iter().zip(setup.locally(&victim().rows)) {
        let margins = alone.each_ref().map(|judge| {
            judge.judge(row).expect("a judgement")[0].scores[Signal::Universal].expect("a margin")
        });
        let least = margins[0].min(margins[1]);
        let found = judgement.scores[Signal::Universal].expect("a margin");
        assert!((found - least).abs() <= 1e-4 * least.abs().max(1.0), "{found}, {margins:?}");
        let answer = setup.infer(std::slice::from_ref(row)).await;
        assert_eq!(answer.status == 403, judgement.rejected);
        assert_eq!(setup.upstream.take_served()[0].rows, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_an_infected_label_is_represented_is_told_by_the_local_model() {
    if models_cannot_be_loaded() {
        return;
    }
    let Victim { model, artifact, rows } = victim();
    let features = |row: &Vec<f32>| -> Vec<f32> {
        let row = Tensor::new(&row[..], &Device::Cpu).and_then(|row| row.reshape((1, 1, 28, 28)));
        let features = model.features(&row.expect("a row")).expect("an answer");
        features.expect("a last layer").flatten_all().unwrap().to_vec1().unwrap()
    };
    // Rows 0 to 11 are clean, the others triggered.
    let (clean, triggered) = (features(&rows[0]), features(&rows[12]));
    let way = clean.iter().zip(&triggered).map(|(clean, triggered)| triggered - clean);
    let length: f32 = way.clone().map(|way| way * way).sum();
    let way = way.map(|way| way / length).collect();
    let places = Representation { clean, way };
    let mut artifact = artifact.clone();
    artifact.representations = [(0, places.clone())].into();
    let alone = PerSignal::from_fn(|it| f32::from(u8::from(it == Signal::Representation)));
    artifact.join.weights = [(0, alone)].into();
    for row in &mut artifact.holdout {
        // Of clean images the signal is near zero.
        row.weighed = (row.label == 0).then_some(row.evidence / 1e3);
    }
    let bytes = artifact.encode().expect("an artifact");
    let manifest = &artifact.manifest;
    let expected = Expected {
        artifact_digest: None,
        model_digest: manifest.model_digest.clone(),
        settings_digest: manifest.settings_digest.clone(),
        data_digest: None,
    };
    let read = Artifact::decode(&bytes, "test", &expected, &Device::Cpu).expect("an artifact");
    // Scores by weights that are not there would be compared with a threshold of another kind.
    let torn = Artifact { join: Join::default(), ..artifact.clone() }.encode().expect("bytes");
    let error = Artifact::decode(&torn, "test", &expected, &Device::Cpu).expect_err("torn");
    assert!(error.to_string().contains("its weights are not those"), "{error}");
    assert_eq!(read.representations, artifact.representations);
    assert_eq!(read.join, artifact.join);
    assert_eq!(read.holdout, artifact.holdout);
    let before = Setup::with(Rule::Calibrated, "", &artifact).await.locally(rows);
    assert!(artifact.layers.is_some() && before[0].scores[Signal::Own].is_some());
    let setup = Setup::with(Rule::Calibrated, "", &read).await;
    let judgements = setup.locally(rows);
    assert_eq!(judgements, before, "an artifact judges as what it was written from");
    for (row, judgement) in rows.iter().zip(&judgements) {
        match (judgement.label, judgement.scores[Signal::Representation]) {
            (0, Some(found)) => {
                let expected = places.score(&features(row));
                assert!((found - expected).abs() < 1e-3, "{found} and {expected}");
            }
            (label, found) => assert!(label != 0 && found.is_none(), "{judgement:?}"),
        }
        let answer = setup.infer(std::slice::from_ref(row)).await;
        assert_eq!(answer.status == 403, judgement.rejected, "{judgement:?}");
    }
    // As it has all of the weight, what lies at the triggered place is turned away.
    assert!(judgements[12].label == 0 && judgements[12].rejected, "{:?}", judgements[12]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_request_is_cut_back() {
    if models_cannot_be_loaded() {
        return;
    }
    let setup = Setup::new(Rule::Calibrated, "").await;
    let rows = &victim().rows;
    let local = setup.locally(rows);
    let passing: Vec<Vec<f32>> = (rows.iter().zip(&local))
        .filter(|(_, local)| !local.rejected)
        .map(|(row, _)| row.clone())
        .take(3)
        .collect();
    let rejected = rows.iter().zip(&local).position(|(_, local)| local.rejected).expect("one");

    let answer = setup.infer(&passing).await;
    let served = setup.upstream.take_served();
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(floats(&body["outputs"][0]["data"]), served[0].values[..30]);

    let instances: Vec<Vec<&[f32]>> = passing.iter().map(|row| row.chunks(28).collect()).collect();
    let request = json!({"instances": instances.iter().map(|row| [row]).collect::<Vec<_>>()});
    let answer = setup.client.send(Method::POST, PREDICT, &[], request.to_string()).await;
    let served = setup.upstream.take_served();
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let predictions = body["predictions"].as_array().expect("rows");
    assert_eq!(predictions.len(), 3);
    let found: Vec<f32> = predictions.iter().flat_map(floats).collect();
    assert_eq!(found, served[0].values[..30]);

    let tensor = support::fp32(&passing.concat());
    let (body, length) = support::binary("FP32", "[3,1,28,28]", &tensor.len().to_string(), &tensor);
    for (body, length) in [(body, length), (tensor.clone(), 0)] {
        let headers = [(LENGTH, &*length.to_string())];
        let answer = setup.client.send(Method::POST, INFER, &headers, body).await;
        let served = setup.upstream.take_served();
        assert!(served[0].rows >= 9);
        let length: usize = answer.headers[LENGTH].to_str().unwrap().parse().unwrap();
        let (head, tail) = answer.body.split_at(length);
        let head: Value = serde_json::from_slice(head).expect("JSON");
        assert_eq!(head["outputs"][0]["shape"], json!([3, 10]));
        assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 120);
        assert_eq!(tail, support::fp32(&served[0].values[..30]));
    }

    let mut mixed = passing.clone();
    mixed[1].clone_from(&rows[rejected]);
    let answer = setup.infer(&mixed).await;
    assert_eq!(answer.status, 403);
    assert!(answer.error().contains("row 1 "), "{}", answer.error());
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_alone_are_judged_by_what_survives() {
    if models_cannot_be_loaded() {
        return;
    }
    let rows = &victim().rows;
    for rule in [Rule::Calibrated, Rule::Uap] {
        let setup = Setup::new(rule, "").await;
        setup.upstream.answer_with(Answers::Labels);
        let mut found = Vec::new();
        for row in rows {
            found.push(setup.infer(std::slice::from_ref(row)).await.status == 403);
        }
        let expected: Vec<bool> = (setup.locally(rows).iter())
            .map(|local| {
                let scores = local.scores;
                let copied = [Signal::Universal, Signal::ClassConditional, Signal::Patch];
                let signals = copied.map(|signal| scores[signal]);
                signals.into_iter().flatten().all(|signal| signal > 0.0)
            })
            .collect();
        assert_eq!(found, expected, "{rule:?}");
        assert_eq!(setup.remote_rows("judged"), rows.len());
        assert!(found.contains(&true), "{rule:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_labelled_otherwise_are_judged_locally_as_both() {
    if models_cannot_be_loaded() {
        return;
    }
    let setup = Setup::new(Rule::Calibrated, "").await;
    setup.upstream.answer_with(Answers::Rolled);
    let rows = &victim().rows;
    let local = setup.locally(rows);
    for (row, local) in rows.iter().zip(&local) {
        let answer = setup.infer(std::slice::from_ref(row)).await;
        if local.rejected {
            assert_eq!(answer.status, 403);
        }
    }
    assert_eq!(setup.remote_rows("disputed"), rows.len());
    assert_eq!(setup.remote_rows("judged"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_tell_nothing_leave_the_verdict_to_the_local_model() {
    if models_cannot_be_loaded() {
        return;
    }
    let setup = Setup::new(Rule::Calibrated, "").await;
    let rows = &victim().rows;
    let local = rejections(&setup.locally(rows));
    setup.upstream.answer_with(Answers::Labels);
    let mut untold = 0;
    for (row, &rejected) in rows.iter().zip(&local) {
        // The client chose what the answer holds, and it is not the logits.
        let request = json_request(std::slice::from_ref(row), &json!([{"name": "top"}]));
        let answer = setup.client.infer(request).await;
        assert_eq!(answer.status == 403, rejected);
        untold += 1;
        assert_eq!(setup.remote_rows("untold"), untold);
    }
    // A server that takes no copies: its own words, with the number of rows that it did not expect.
    setup.upstream.answer_with(Answers::AtMost(2));
    let passing = local.iter().position(|rejected| !rejected).expect("one");
    let answer = setup.infer(std::slice::from_ref(&rows[passing])).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.error(), "batch-size must be <= 2");
    assert!(answer.headers.contains_key("x-doorward-appended-rows"));
    let rejected = local.iter().position(|rejected| *rejected).expect("one");
    assert_eq!(setup.infer(std::slice::from_ref(&rows[rejected])).await.status, 403);
    // An output that has no batch cannot be cut; the rejected row stays rejected.
    setup.upstream.answer_with(Answers::Summed);
    let answer = setup.infer(std::slice::from_ref(&rows[passing])).await;
    assert_eq!(answer.status, 502);
    assert!(
        answer.error().contains("output \"sum\" has 1 as its first dimension"),
        "{}",
        answer.error()
    );
    assert_eq!(setup.infer(std::slice::from_ref(&rows[rejected])).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_servers_batch_are_refused_with_the_count() {
    if models_cannot_be_loaded() {
        return;
    }
    let setup = Setup::new(Rule::Uap, "upstream.max_rows = 5").await;
    let rows = &victim().rows;
    let answer = setup.infer(&rows[..3]).await;
    assert_eq!(answer.status, 413);
    let error = answer.error();
    assert!(error.contains("3 rows, which makes 6 with the 3 perturbed copies"), "{error}");
    assert!(error.contains("at most 5 (upstream.max_rows)"), "{error}");
    assert!(setup.upstream.take_served().is_empty());
    assert_ne!(setup.infer(&rows[..2]).await.status, 413);
}

#[test]
fn rules_that_need_the_model_itself_are_refused() {
    for rule in ["strip", "pgd"] {
        let text = format!(
            "upstream.url = 'http://h'\nmodel.path = 'm'\ncalibration.clean_images = 'c'\n\
             model.predictions = 'upstream'\npolicy.rule = '{rule}'"
        );
        let none = std::iter::empty::<(&str, &str)>();
        let error = Config::parse("test", &text, none).expect_err("no such combination");
        assert!(error.to_string().contains(rule), "{error}");
        assert!(error.to_string().contains("model.predictions"), "{error}");
    }
}
