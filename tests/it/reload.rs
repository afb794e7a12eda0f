//! Settings that change while the firewall serves.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor};
use doorward::config::Settings;
use doorward::watch::Reloader;
use doorward_detection::artifact::Artifact;
use doorward_detection::join::{Join, Line};
use doorward_detection::{RowSignals, Signal};
use doorward_engine::Model;
use doorward_proxy::server::Handle;
use hyper::StatusCode;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::judge::Behaviour;
use crate::support::onnx::Graph;
use crate::support::{
    CLEAN, Client, Setup, TRIGGERED, config, eventually, manifest, models_cannot_be_loaded, request,
};

/// Settings in a folder that is laid out as Kubernetes mounts a ConfigMap: the file is a link into
/// `..data`, which is a link to a folder that each update replaces.
struct ConfigMap {
    folder: TempDir,
    updates: usize,
}

impl ConfigMap {
    fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        symlink("..data/doorward.toml", folder.path().join("doorward.toml")).expect("a link");
        let mut map = Self { folder, updates: 0 };
        map.update(settings);
        map
    }

    fn update(&mut self, settings: &str) {
        let old = format!("..{}", self.updates);
        self.updates += 1;
        let new = format!("..{}", self.updates);
        let path = |name: &str| self.folder.path().join(name);
        std::fs::create_dir(path(&new)).expect("a folder");
        let text = format!("{REQUIRED}{settings}\n");
        std::fs::write(path(&new).join("doorward.toml"), text).expect("written");
        symlink(&new, path("..data_tmp")).expect("a link");
        std::fs::rename(path("..data_tmp"), path("..data")).expect("swapped");
        let _ = std::fs::remove_dir_all(path(&old));
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("doorward.toml")
    }
}

const REQUIRED: &str =
    "upstream.url = 'http://u'\nmodel.path = 'm.onnx'\ncalibration.clean_images = 'clean'\n";

/// Watches `file` for the firewall of `handle`; ends with the test.
fn watch(file: &Path, handle: Handle) -> JoinHandle<()> {
    let path = file.to_owned();
    let read = move || Settings::load(Some(&path), std::iter::empty::<(&str, &str)>());
    let reloader = Reloader::new(Some(file), read).expect("settings");
    tokio::spawn(reloader.run(vec![handle]))
}

fn reloads(setup: &Setup, result: &str) -> f64 {
    setup.metric(&format!("config_reloads_total{{result=\"{result}\"}}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_config_map_takes_effect_under_load_without_a_failed_request() {
    let mut map = ConfigMap::new("policy.mode = 'monitor'");
    let setup = Setup::new("policy.mode = 'monitor'").await;
    let watching = watch(&map.file(), setup.server.handle());
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop) = (setup.client.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut rejected = 0;
                while !stop.load(Ordering::Acquire) {
                    assert_eq!(client.infer(request(&[CLEAN])).await.status, StatusCode::OK);
                    match client.infer(request(&[TRIGGERED])).await.status {
                        StatusCode::OK => assert_eq!(rejected, 0, "back to the old mode"),
                        StatusCode::FORBIDDEN => rejected += 1,
                        other => panic!("{other}"),
                    }
                }
                rejected
            })
        })
        .collect();
    eventually("a flagged request", || setup.verdicts("flagged") > 0.0).await;
    map.update("policy.mode = 'enforce'\nlimits.batch_rows = 8");
    eventually("the new mode", || setup.verdicts("rejected") > 20.0).await;
    assert_eq!(reloads(&setup, "success"), 1.0);
    stop.store(true, Ordering::Release);
    let mut rejected = 0;
    for client in clients {
        rejected += client.await.expect("no failed request");
    }
    assert!(rejected > 20);
    watching.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_is_counted() {
    let mut map = ConfigMap::new("");
    let setup = Setup::new("").await;
    let watching = watch(&map.file(), setup.server.handle());
    for (failures, bad) in
        ["policy.mode = 'observe'", "policy.mode = 'monitor'\nlimits.rows = 0"].iter().enumerate()
    {
        map.update(bad);
        eventually("a failure", || reloads(&setup, "failure") > failures as f64).await;
        assert_eq!(setup.client.infer(request(&[TRIGGERED])).await.status, StatusCode::FORBIDDEN);
    }
    map.update("policy.mode = 'monitor'");
    eventually("a success", || reloads(&setup, "success") == 1.0).await;
    assert_eq!(setup.client.infer(request(&[TRIGGERED])).await.status, StatusCode::OK);
    watching.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_flight_keeps_the_policy_it_started_with() {
    let setup = Setup::new("").await;
    setup.judge.behave(Behaviour::Wait);
    let client = setup.client.clone();
    let before = tokio::spawn(async move { client.infer(request(&[TRIGGERED])).await });
    eventually("the request is judged", || setup.judge.entered() == 1).await;
    let monitor = config(&setup.upstream.url(), "policy.mode = 'monitor'\nlimits.body_bytes = 400");
    setup.server.handle().reload(&monitor.server).expect("valid settings");
    setup.judge.behave(Behaviour::Answer);
    assert_eq!(before.await.expect("no panic").status, StatusCode::FORBIDDEN);
    assert_eq!(setup.client.infer(request(&[TRIGGERED])).await.status, StatusCode::OK);
    let large = " ".repeat(401);
    assert_eq!(setup.client.infer(large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    eventually("the queues are empty", || setup.metric("queue_depth") == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_change_before_there_is_a_detector_are_those_it_gets() {
    let setup = Setup::calibrating("").await;
    let monitor = config(&setup.upstream.url(), "policy.mode = 'monitor'");
    setup.server.handle().reload(&monitor.server).expect("valid settings");
    setup.server.ready(setup.judge.clone(), &manifest()).expect("the first detector");
    assert_eq!(setup.client.infer(request(&[TRIGGERED])).await.status, StatusCode::OK);
    assert_eq!(setup.verdicts("flagged"), 1.0);
}

/// The logits are eight times the two pixels, and nothing perturbs them: a row's joined score is eight
/// times the distance of its pixels. The held-out ones are 0.01 to 2, as many for either label.
pub(crate) fn detection() -> (Arc<Model>, Artifact) {
    let graph = Graph::new(&[1, 1, 2])
        .floats("w", &[2, 2], &[8.0, 0.0, 0.0, 8.0])
        .node("Flatten", &["x"], "flat", vec![])
        .node("MatMul", &["flat", "w"], "y", vec![]);
    let model = Model::decode(&graph.encode(), &[0.0], &[1.0], &Device::Cpu).expect("a model");
    let zeros = |rows: usize| {
        Tensor::zeros((rows, 1, 1, 2), candle_core::DType::F32, &Device::Cpu).expect("a tensor")
    };
    let mut manifest = manifest();
    manifest.inspection = None;
    manifest.input_shape = [1, 1, 2];
    // Both margins of a row are its logits' difference: nothing is perturbed.
    let margins = || (1..=200).map(|i| (i % 2, i as f32 / 100.0));
    let line = Line::new(2, &margins().collect::<Vec<_>>());
    let mut join = Join::default();
    join.lines[Signal::Universal] = line.clone();
    join.lines[Signal::ClassConditional] = line;
    let held_out = |(label, margin)| {
        let mut row = RowSignals::new(label);
        row.note(Signal::Universal, margin);
        row.note(Signal::ClassConditional, margin);
        join.joined(&row).expect("a score")
    };
    let artifact = Artifact {
        holdout: margins().map(held_out).collect(),
        manifest,
        universal: zeros(1),
        class_conditional: zeros(2),
        patches: std::collections::BTreeMap::new(),
        representations: std::collections::BTreeMap::new(),
        layers: None,
        ranges: None,
        join: join.clone(),
        strip: None,
    };
    (Arc::new(model), artifact)
}

async fn status(client: &Client, distance: f32) -> StatusCode {
    let body = json!({"inputs": [{
        "name": "x", "shape": [1, 1, 1, 2], "datatype": "FP32", "data": [distance / 8.0, 0.0],
    }]});
    client.infer(body.to_string()).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_and_budget_change_the_detector_itself() {
    if models_cannot_be_loaded() {
        return;
    }
    let setup = Setup::calibrating("").await;
    let handle = setup.server.handle();
    let (model, artifact) = detection();
    let load = handle.clone();
    tokio::task::spawn_blocking(move || load.detect(model, artifact)).await.unwrap().unwrap();
    let reload = async |settings: &str| {
        let (config, handle) = (config(&setup.upstream.url(), settings), handle.clone());
        tokio::task::spawn_blocking(move || handle.reload(&config.server)).await.unwrap()
    };
    let bound = || setup.metric("false_rejection_rate_bound");
    assert!((0.0..=0.01).contains(&bound()), "{}", bound());
    assert_eq!(status(&setup.client, 1.8).await, StatusCode::OK);
    assert_eq!(status(&setup.client, 2.5).await, StatusCode::FORBIDDEN);

    // Held-out scores are what live scores are compared with: the same ones, and then higher ones.
    let drift = || setup.metric("score_drift{signal=\"joined\"}");
    for i in 0..100 {
        assert_eq!(status(&setup.client, (i * 2 + 1) as f32 / 100.0).await, StatusCode::OK);
    }
    assert!((0.0..0.1).contains(&drift()), "{}", drift());
    for _ in 0..240 {
        status(&setup.client, 1.9).await;
    }
    assert!(drift() > 0.5, "{}", drift());

    // A larger budget: lower thresholds, fitted to the scores in the artifact.
    reload("policy.max_false_rejection_rate = 0.2").await.expect("another budget");
    assert!((0.15..=0.2).contains(&bound()), "{}", bound());
    assert_eq!(status(&setup.client, 1.8).await, StatusCode::FORBIDDEN);
    assert_eq!(status(&setup.client, 1.0).await, StatusCode::OK);
    assert!(!setup.server.metrics().page().unwrap().contains("score_drift{"), "a new window");

    // Whatever keeps its label under a perturbation that changes nothing.
    reload("policy.rule = 'uap'").await.expect("another rule");
    assert_eq!(status(&setup.client, 1.0).await, StatusCode::FORBIDDEN);

    let error = reload("policy.rule = 'strip'\npolicy.mode = 'monitor'").await.expect_err("no");
    assert!(error.to_string().contains("policy.rule = \"strip\""), "{error}");
    assert_eq!(status(&setup.client, 1.0).await, StatusCode::FORBIDDEN);
}

#[test]
fn sighup_reloads_and_names_what_needs_a_restart() {
    if models_cannot_be_loaded() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("doorward.toml");
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fashion-mnist");
    let write = |more: &str| {
        let settings = format!(
            "upstream.url = 'http://127.0.0.1:1'\n\
             listen.http = '127.0.0.1:0'\n\
             admin.listen = '127.0.0.1:0'\n\
             model.path = '{0}/model.onnx'\n\
             calibration.clean_images = ['{0}/fit.bin.gz', '{0}/holdout.bin.gz']\n\
             calibration.artifact = '{1}/artifact'\n\
             perturbation.max_epsilon = 0.02\n\
             {more}\n",
            assets.display(),
            folder.path().display(),
        );
        // In one step: a file that is empty for a moment would be read as such.
        let new = file.with_extension("new");
        std::fs::write(&new, settings).expect("written");
        std::fs::rename(&new, &file).expect("renamed");
    };
    write("");
    let mut program = Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(["serve", "-c"])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    let pid = program.id().to_string();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &pid]).status().expect("kill").success());
    };
    let mut lines = BufReader::new(program.stderr.take().expect("a pipe")).lines();
    let mut until = |text: &str| {
        let found = lines.by_ref().map(|line| line.expect("text")).find(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("it ended without {text:?}"))
    };
    until("listening");
    // An unchanged file: what takes effect shows that the signal does it, not the watch.
    signal("-HUP");
    until("SIGHUP");
    until("the settings are in effect");
    write("policy.mode = 'monitor'\nmodel.name = 'm'\nupstream.timeout_seconds = 3.0");
    until("the settings are in effect");
    let ignored = until("after a restart only");
    assert!(ignored.contains("model.name, upstream.timeout_seconds"), "{ignored}");
    write("policy.mode = 'monitored'");
    let refused = until("the settings stay as they were");
    assert!(refused.contains("doorward.toml cannot be used"), "{refused}");
    until("monitored");
    signal("-TERM");
    assert!(program.wait().expect("its end").success());
}
