//! The whole thing in one process: a backdoored model, its server, the firewall, and traffic.
//!
//! Everything is real but small and embedded: a Fashion-MNIST classifier trained on poisoned data,
//! clean images for calibration, a slice of the training data for inspection, clean and triggered
//! test images. No image serves two of these. The files are written to a folder of the run's own
//! and named in an ordinary configuration, so that nothing is special about the demo's firewall.

mod client;
mod upstream;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;

use crate::config::{Config, Rule};
use crate::storage::Store;
use doorward_detection::InspectionSummary;
use doorward_detection::evaluate::{Rows, RuleFigures, evaluate};
use doorward_detection::open;
use doorward_detection::prepare::{self, Preparation, Stage, Stored};
use doorward_detection::stats::quantile;
use doorward_detection::{self, Judge, Judgement};
use doorward_engine::{Classifier, InputDomain, Model, device};
use doorward_images::Images;
use doorward_proxy::server::Server;

use client::{Answer, Client, request};
use upstream::{MODEL_NAME, Upstream};

/// The measurements of a run of the demo. Fractions and seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The rows sent.
    pub rows: Rows,
    /// Share of the clean rows that the model gets right.
    pub clean_accuracy: f64,
    /// Attack success rate without the firewall.
    pub asr_without: f64,
    /// Share of all triggered rows that are answered with the attacker's label through the
    /// firewall.
    pub asr_with: f64,
    /// Share of the successful triggered rows turned away.
    pub bdr: f64,
    /// Share of the clean rows let through.
    pub ciir: f64,
    /// The largest share of clean inputs that the calibrated rule rejects.
    pub false_rejection_rate_bound: f64,
    /// The labels that inspection named.
    pub infected_labels: Vec<usize>,
    /// The findings of the inspection.
    pub inspection: Option<InspectionSummary>,
    /// Every cheap rule on the same rows.
    pub rules: BTreeMap<&'static str, RuleFigures>,
    /// The seconds of one detection batch.
    pub detection_seconds: Percentiles,
    /// Latency through the firewall less the latency of the bare model server, one client.
    pub added_seconds: Percentiles,
    /// The seconds of the whole offline flow.
    pub calibration_seconds: f64,
    /// The seed of the offline flow.
    pub seed: u64,
    /// Radius of the universal perturbation, share of the pixel range.
    pub epsilon: f32,
    /// Share of the held-out images whose label it changes.
    pub fooling_rate: f64,
}

/// The middle and the end of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: f64,
    /// 99 of 100 are below.
    pub p99: f64,
}

/// A firewall that has seen its traffic and still runs.
pub struct Demo {
    /// The measurements.
    pub report: Report,
    server: Server,
    triggered_request: PathBuf,
    clean_request: PathBuf,
    // Holds the files of the run, and removes them.
    _folder: tempfile::TempDir,
}

/// Why a demo did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Calibration failed.
    #[error(transparent)]
    Calibrate(#[from] prepare::Error),
    /// The demo's configuration is not valid.
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    /// Detection failed.
    #[error(transparent)]
    Detect(#[from] doorward_detection::Error),
    /// A request was not answered.
    #[error("a request was not answered: {0}")]
    Exchange(String),
    /// The embedded images cannot be read back.
    #[error(transparent)]
    Images(#[from] doorward_images::Error),
    /// The run's folder cannot be written.
    #[error("cannot write the demo's files")]
    Io(#[from] std::io::Error),
    /// The embedded model cannot be loaded.
    #[error(transparent)]
    Model(#[from] doorward_engine::Error),
    /// The firewall cannot be started.
    #[error(transparent)]
    Server(#[from] doorward_proxy::server::Error),
    /// The artifact cannot be written.
    #[error(transparent)]
    Storage(#[from] crate::storage::Error),
}

/// Runs the demo; the firewall is still up when it returns.
pub async fn run(progress: impl Fn(Stage, f64) + Send + 'static) -> Result<Demo, Error> {
    let folder = tempfile::tempdir()?;
    for (name, bytes) in FILES {
        std::fs::write(folder.path().join(name), bytes)?;
    }
    let model = load(folder.path())?;
    let upstream = Upstream::start(load(folder.path())?).await?;
    let config = configuration(folder.path(), &upstream)?;
    let server = Server::bind(&config.server).await?;

    let start = Instant::now();
    let (calibrated, settings) = (model.clone(), config.detection.clone());
    let store = Store::open(&config.artifact.location, [])?;
    let offline = tokio::task::spawn_blocking(move || {
        Preparation { model: &calibrated, settings: &settings, store: &store, pinned: None }
            .make(&progress)
    });
    let (Stored { artifact, .. }, _) =
        offline.await.map_err(|error| Error::Exchange(error.to_string()))??;
    let calibration_seconds = start.elapsed().as_secs_f64();

    let took = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&took);
    let thresholds = open::thresholds(&artifact, &config.detection.policy);
    server.handle().detect_through(model.clone(), artifact.clone(), |detector| {
        Arc::new(Timed { detector, took: times })
    })?;

    let shape = model.domain().shape;
    let clean = Images::read(folder.path().join(CLEAN), shape)?;
    let triggered = Images::read(folder.path().join(TRIGGERED), shape)?;
    let bare = Client::new(upstream.address);
    let guarded = Client::new(server.proxy_addr());
    let clean_requests = requests(&clean, model.domain());
    let triggered_requests = requests(&triggered, model.domain());
    let clean_bare = send(&bare, &clean_requests).await?;
    let triggered_bare = send(&bare, &triggered_requests).await?;
    let clean_guarded = send(&guarded, &clean_requests).await?;
    let triggered_guarded = send(&guarded, &triggered_requests).await?;
    let detection_seconds = percentiles(&seconds(&took));
    let added_seconds = added(&bare, &guarded, &clean_requests).await?;

    let scorer = open::scorer(model, &artifact, &config.detection.policy)?;
    let evaluation = {
        let (clean, triggered) = (clean.clone(), triggered.clone());
        let measured = tokio::task::spawn_blocking(move || {
            let rules: Vec<Rule> = Rule::without_baselines().collect();
            evaluate(&scorer, &thresholds, &clean, &triggered, &[TARGET], &rules)
        });
        measured.await.map_err(|error| Error::Exchange(error.to_string()))??
    };
    let rejected =
        |answers: &[Answer]| answers.iter().filter(|answer| answer.label.is_none()).count() as f64;
    let hit = |answer: &Answer| answer.label == Some(TARGET);
    let successful = triggered_bare.iter().filter(|answer| hit(answer)).count();
    let caught = triggered_bare
        .iter()
        .zip(&triggered_guarded)
        .filter(|(bare, guarded)| hit(bare) && guarded.label.is_none())
        .count();
    let right =
        clean_bare.iter().zip(clean.labels()).filter(|(answer, truth)| answer.label == **truth);
    let report = Report {
        rows: Rows {
            clean: clean.len(),
            triggered: triggered.len(),
            triggered_successful: successful,
        },
        clean_accuracy: right.count() as f64 / clean.len() as f64,
        asr_without: successful as f64 / triggered.len() as f64,
        asr_with: triggered_guarded.iter().filter(|answer| hit(answer)).count() as f64
            / triggered.len() as f64,
        bdr: caught as f64 / successful as f64,
        ciir: 1.0 - rejected(&clean_guarded) / clean.len() as f64,
        false_rejection_rate_bound: evaluation.false_rejection_rate_bound,
        infected_labels: artifact
            .manifest
            .inspection
            .as_ref()
            .map_or_else(Vec::new, |inspection| inspection.infected.clone()),
        inspection: artifact.manifest.inspection.clone(),
        rules: evaluation.rules,
        detection_seconds,
        added_seconds,
        calibration_seconds,
        seed: artifact.manifest.seed,
        epsilon: artifact.manifest.perturbation.epsilon,
        fooling_rate: artifact.manifest.perturbation.fooling_rate,
    };
    let clean_request = folder.path().join("clean.json");
    let triggered_request = folder.path().join("triggered.json");
    std::fs::write(&clean_request, &clean_requests[0])?;
    std::fs::write(&triggered_request, &triggered_requests[0])?;
    Ok(Demo { report, server, triggered_request, clean_request, _folder: folder })
}

// === impl Demo ===

impl Demo {
    /// Keeps the firewall up until SIGTERM or SIGINT.
    pub async fn serve(self) -> Result<(), Error> {
        Ok(self.server.run_until_signal().await?)
    }

    /// Ends the firewall.
    pub async fn finish(self) -> Result<(), Error> {
        Ok(self.server.shutdown().await?)
    }

    /// The report as a table for people.
    pub fn table(&self) -> String {
        let report = &self.report;
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "{name:34} {value}");
        };
        let rows = &report.rows;
        line("clean rows / triggered rows", format!("{} / {}", rows.clean, rows.triggered));
        line("accuracy on clean rows", percent(report.clean_accuracy));
        line("attack success rate, no firewall", percent(report.asr_without));
        line("attack success rate, firewall", percent(report.asr_with));
        line("triggered rows turned away (BDR)", percent(report.bdr));
        line("clean rows let through (CIIR)", percent(report.ciir));
        line(
            "guaranteed false-rejection rate",
            format!("at most {}", percent(report.false_rejection_rate_bound)),
        );
        line(
            "universal perturbation",
            format!(
                "{:.1}/255, changes {} of held-out labels",
                report.epsilon * 255.0,
                percent(report.fooling_rate)
            ),
        );
        line(
            "inspection names as infected",
            format!("{:?} (the attack's: [{TARGET}])", report.infected_labels),
        );
        let milliseconds =
            |p: Percentiles| format!("p50 {:.2} ms, p99 {:.2} ms", p.p50 * 1e3, p.p99 * 1e3);
        line("detection, per batch", milliseconds(report.detection_seconds));
        line("latency added, one client", milliseconds(report.added_seconds));
        line("calibration", format!("{:.1} s (seed {})", report.calibration_seconds, report.seed));
        let _ = writeln!(out, "\nrule            BDR       CIIR    AUROC  TPR@1% FPR  predictions");
        for (rule, figures) in &report.rules {
            let _ = writeln!(
                out,
                "{rule:11} {:>8}  {:>8}   {:.4}    {:>8}  {:>11.2}",
                percent(figures.bdr),
                percent(figures.ciir),
                figures.auroc,
                percent(figures.tpr_at_fpr.get("0.01").copied().unwrap_or(f64::NAN)),
                figures.forwards_per_input
            );
        }
        let _ =
            write!(out, "\nstatus page while it runs: http://{}/status", self.server.admin_addr());
        out
    }

    /// The commands to type while it serves.
    pub fn invitation(&self) -> String {
        let url = format!("http://{}/v2/models/{MODEL_NAME}/infer", self.server.proxy_addr());
        let curl = |path: &Path| format!("curl -i --json @{} {url}", path.display());
        format!(
            "a clean row       {}\na triggered row   {}\nstatus page       http://{}/status\nCtrl-C ends it",
            curl(&self.clean_request),
            curl(&self.triggered_request),
            self.server.admin_addr()
        )
    }
}

/// A detector whose batches are timed.
struct Timed {
    detector: Arc<dyn Judge>,
    took: Arc<Mutex<Vec<f64>>>,
}

fn seconds(took: &Mutex<Vec<f64>>) -> Vec<f64> {
    took.lock().map_or_else(|poisoned| poisoned.into_inner().clone(), |took| took.clone())
}

impl Judge for Timed {
    fn domain(&self) -> &InputDomain {
        self.detector.domain()
    }

    fn judge(&self, rows: &[f32]) -> Result<Vec<Judgement>, doorward_detection::Error> {
        let start = Instant::now();
        let judged = self.detector.judge(rows);
        if let Ok(mut took) = self.took.lock() {
            took.push(start.elapsed().as_secs_f64());
        }
        judged
    }
}

fn load(folder: &Path) -> Result<Arc<Model>, Error> {
    Ok(Arc::new(Model::load(&folder.join(MODEL), &[0.0], &[1.0], &device())?))
}

fn configuration(folder: &Path, upstream: &Upstream) -> Result<Config, Error> {
    let path = |name: &str| toml::Value::from(folder.join(name).display().to_string());
    let text = format!(
        r#"
[listen]
http = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[upstream]
url = "http://{}"
[model]
path = {}
name = "{MODEL_NAME}"
[calibration]
clean_images = [{}, {}]
training_images = {}
fit_images = 600
holdout_images = 2000
artifact = {}
[inspection]
steps = 200
"#,
        upstream.address,
        path(MODEL),
        path("fit.bin.gz"),
        path("holdout.bin.gz"),
        path("training.bin.gz"),
        path("doorward.safetensors"),
    );
    Ok(Config::parse("the demo's configuration", &text, std::iter::empty::<(&str, &str)>())?)
}

fn requests(images: &Images, domain: &InputDomain) -> Vec<Bytes> {
    (0..images.len())
        .map(|index| request(&domain.normalise(images.image(index)), domain.shape))
        .collect()
}

/// Sends every request, a few at a time, and returns the answers in order.
async fn send(client: &Client, requests: &[Bytes]) -> Result<Vec<Answer>, Error> {
    let lanes = (0..CLIENTS).map(|lane| {
        let client = client.clone();
        let own: Vec<Bytes> = requests.iter().skip(lane).step_by(CLIENTS).cloned().collect();
        tokio::spawn(async move {
            let mut answers = Vec::with_capacity(own.len());
            for body in own {
                answers.push(client.infer(body).await?);
            }
            Ok::<_, Error>(answers)
        })
    });
    let mut lanes_done = Vec::with_capacity(CLIENTS);
    for lane in lanes.collect::<Vec<_>>() {
        lanes_done.push(lane.await.map_err(|error| Error::Exchange(error.to_string()))??);
    }
    Ok((0..requests.len()).map(|index| lanes_done[index % CLIENTS][index / CLIENTS]).collect())
}

/// Pairs of requests by one client, to the bare server and through the firewall in turn.
async fn added(bare: &Client, guarded: &Client, requests: &[Bytes]) -> Result<Percentiles, Error> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for body in requests.iter().take(LATENCY_PAIRS) {
        without.push(bare.infer(body.clone()).await?.took.as_secs_f64());
        with.push(guarded.infer(body.clone()).await?.took.as_secs_f64());
    }
    let (without, with) = (percentiles(&without), percentiles(&with));
    Ok(Percentiles { p50: with.p50 - without.p50, p99: with.p99 - without.p99 })
}

fn percentiles(seconds: &[f64]) -> Percentiles {
    Percentiles { p50: quantile(seconds, 0.5), p99: quantile(seconds, 0.99) }
}

/// Requests under way at once.
const CLIENTS: usize = 8;

/// Requests that the added latency is measured on.
const LATENCY_PAIRS: usize = 300;

/// The attacker's label.
const TARGET: usize = 0;

const MODEL: &str = "model.onnx";
const CLEAN: &str = "clean.bin.gz";
const TRIGGERED: &str = "triggered.bin.gz";

/// The embedded files: `assets/README.md` says what each is.
const FILES: [(&str, &[u8]); 6] = [
    (MODEL, include_bytes!("../../assets/fashion-mnist/model.onnx")),
    ("fit.bin.gz", include_bytes!("../../assets/fashion-mnist/fit.bin.gz")),
    ("holdout.bin.gz", include_bytes!("../../assets/fashion-mnist/holdout.bin.gz")),
    ("training.bin.gz", include_bytes!("../../assets/fashion-mnist/training.bin.gz")),
    (CLEAN, include_bytes!("../../assets/fashion-mnist/clean.bin.gz")),
    (TRIGGERED, include_bytes!("../../assets/fashion-mnist/triggered.bin.gz")),
];
