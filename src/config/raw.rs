//! The settings as users write them, and their conversion to the typed ones.
//!
//! A layer may leave out any key, so every field is optional here; the conversion is the place that
//! misses one, or finds a value outside its range.

use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::Deserialize;

use super::operations::{RawAudit, RawTls, RawUpstreamTls};
use super::pictures::{RawImages, RawPreprocess, paths};
use super::telemetry::RawTelemetry;
use super::value::{
    OneOrMany, address, count, duration, endpoint, file, invalid, location, model_name,
    model_version, networks, positive, probability, required, sha256, share,
};
use super::{
    Action, Address, Admin, Algorithm, Artifact, Breaker, Calibration, Choice, Config, Inspection,
    Limits, Listen, Mode, Model, Origin, Perturbation, Policy, Predictions, Result, Rule,
    Unverified, Upstream,
};

/// The file as users write it; a layer may leave out any key.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    listen: RawListen,
    admin: RawAdmin,
    upstream: RawUpstream,
    tls: RawTls,
    model: RawModel,
    preprocess: RawPreprocess,
    images: RawImages,
    calibration: RawCalibration,
    perturbation: RawPerturbation,
    inspection: RawInspection,
    policy: RawPolicy,
    limits: RawLimits,
    audit: RawAudit,
    telemetry: RawTelemetry,
    #[allow(
        dead_code,
        reason = "each is laid over the file's own sections before they are converted"
    )]
    models: Vec<RawOwn>,
}

/// The sections that one model among several has for itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(dead_code, reason = "it says which sections and keys there are")]
struct RawOwn {
    model: RawModel,
    preprocess: RawPreprocess,
    calibration: RawCalibration,
    perturbation: RawPerturbation,
    inspection: RawInspection,
    policy: RawPolicy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawListen {
    http: Option<String>,
    grpc: Option<String>,
    reads: Option<Vec<String>>,
    trusted_proxies: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawAdmin {
    listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawUpstream {
    url: Option<String>,
    http2: Option<bool>,
    grpc_url: Option<String>,
    timeout_seconds: Option<f64>,
    max_rows: Option<i64>,
    breaker_failures: Option<u32>,
    breaker_seconds: Option<f64>,
    tls: RawUpstreamTls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawModel {
    path: Option<PathBuf>,
    name: Option<String>,
    version: Option<String>,
    signature: Option<String>,
    predictions: Option<Predictions>,
    input_shape: Option<Vec<usize>>,
    output: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawCalibration {
    clean_images: Option<OneOrMany<PathBuf>>,
    training_images: Option<OneOrMany<PathBuf>>,
    fit_images: Option<i64>,
    holdout_images: Option<i64>,
    artifact: Option<String>,
    artifact_sha256: Option<String>,
    seed: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPerturbation {
    fooling_rate: Option<f64>,
    max_epsilon: Option<f64>,
    steps: Option<i64>,
    batch: Option<i64>,
    algorithm: Option<Algorithm>,
    count: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawInspection {
    samples: Option<i64>,
    steps: Option<i64>,
    batch: Option<i64>,
    lambda: Option<f64>,
    success_rate: Option<f64>,
    anomaly_threshold: Option<f64>,
    clean_ratio: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPolicy {
    mode: Option<RawMode>,
    rule: Option<Rule>,
    max_false_rejection_rate: Option<f64>,
    infected_budget: Option<f64>,
    unverified: RawUnverified,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawUnverified {
    artifact: Option<RawAction>,
    deadline: Option<RawAction>,
    internal: Option<RawAction>,
    overload: Option<RawAction>,
    range: Option<RawAction>,
    undecodable: Option<RawAction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLimits {
    body_bytes: Option<i64>,
    rows: Option<i64>,
    image_pixels: Option<i64>,
    queue_rows: Option<i64>,
    batch_rows: Option<i64>,
    concurrency: Option<i64>,
    body_timeout_seconds: Option<f64>,
    detection_timeout_seconds: Option<f64>,
    drain_timeout_seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawMode {
    Enforce,
    Monitor,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawAction {
    Default,
    Pass,
    Reject,
}

// === impl RawConfig ===

impl RawConfig {
    pub(super) fn convert(self) -> Result<Config> {
        let limits = self.limits.convert()?;
        let (policy, judged) = self.policy.convert()?;
        let predictions = required("model.predictions", self.model.predictions)?;
        if predictions == Predictions::Upstream && judged.rule.is_baseline() {
            return invalid(
                "model.predictions",
                format!("\"upstream\" with policy.rule = {:?}", judged.rule.name()),
                "one of the rules both, calibrated, either, patch, uap with it",
            );
        }
        let choice = choice(self.model.input_shape, self.model.output)?;
        let url = endpoint("upstream.url", self.upstream.url)?;
        let (grpc, grpc_url) = grpc(self.listen.grpc, self.upstream.grpc_url)?;
        let pause = duration("upstream.breaker_seconds", self.upstream.breaker_seconds)?;
        // Zero failures: none.
        let failures = required("upstream.breaker_failures", self.upstream.breaker_failures)?;
        let breaker = NonZeroU32::new(failures).map(|failures| Breaker { failures, pause });
        let (calibration, artifact) = self.calibration.convert()?;
        let range_slack = self.preprocess.range_slack()?;
        let preprocess = self.preprocess.convert()?;
        let key = "listen.trusted_proxies";
        let trusted_proxies = networks(key, required(key, self.listen.trusted_proxies)?)?;
        let reads = paths("listen.reads", required("listen.reads", self.listen.reads)?)?;
        let server = doorward_proxy::Settings {
            listen: Listen {
                http: endpoint("listen.http", self.listen.http)?,
                grpc,
                reads,
                trusted_proxies,
            },
            admin: Admin { listen: address("admin.listen", self.admin.listen)? },
            upstream: Upstream {
                tls: self.upstream.tls.convert(&url, grpc_url.as_ref())?,
                url,
                http2: required("upstream.http2", self.upstream.http2)?,
                grpc_url,
                breaker,
                timeout: duration("upstream.timeout_seconds", self.upstream.timeout_seconds)?,
                max_rows: (self.upstream.max_rows)
                    .map(|rows| count("upstream.max_rows", Some(rows)))
                    .transpose()?,
            },
            tls: self.tls.convert()?,
            model: Model {
                path: file("model.path", self.model.path)?,
                name: self.model.name.map(model_name).transpose()?,
                version: self.model.version.map(model_version).transpose()?,
                signature: required("model.signature", self.model.signature)?,
                predictions,
            },
            images: self.images.convert()?,
            pictures: preprocess.pictures,
            range_slack,
            judging: judged,
            policy,
            limits,
            audit: self.audit.convert()?,
            telemetry: self.telemetry.convert()?,
        };
        let detection = doorward_detection::Settings {
            preprocess,
            calibration,
            perturbation: self.perturbation.convert()?,
            inspection: self.inspection.convert()?,
            policy: judged,
        };
        Ok(Config { server, detection, choice, artifact })
    }
}

fn choice(input_shape: Option<Vec<usize>>, output: Option<String>) -> Result<Choice> {
    if let Some(shape) = &input_shape
        && (shape.is_empty() || shape.contains(&0))
    {
        return invalid(
            "model.input_shape",
            format!("{shape:?}"),
            "the sizes of one image without the batch, such as [3, 224, 224]",
        );
    }
    if output.as_deref() == Some("") {
        return invalid("model.output", "\"\"", "the name of one of the model's outputs");
    }
    Ok(Choice { input_shape, output })
}

/// Both ends of gRPC, or neither.
fn grpc(listen: Option<String>, url: Option<String>) -> Result<(Option<Address>, Option<Origin>)> {
    match (&listen, &url) {
        (None, None) => Ok((None, None)),
        (Some(listen), None) => invalid(
            "listen.grpc",
            format!("{listen:?} without upstream.grpc_url"),
            "upstream.grpc_url as well, the model server's gRPC port",
        ),
        (None, Some(url)) => invalid(
            "upstream.grpc_url",
            format!("{url:?} without listen.grpc"),
            "listen.grpc as well, where clients of it connect",
        ),
        (Some(_), Some(_)) => {
            let address = endpoint("listen.grpc", listen)?;
            Ok((Some(address), Some(endpoint("upstream.grpc_url", url)?)))
        }
    }
}

impl RawCalibration {
    fn convert(self) -> Result<(Calibration, Artifact)> {
        let clean_images = required("calibration.clean_images", self.clean_images)?.into_vec();
        if clean_images.is_empty() {
            return invalid("calibration.clean_images", "[]", "at least one path");
        }
        let training_images = required("calibration.training_images", self.training_images)?;
        let calibration = Calibration {
            clean_images,
            training_images: training_images.into_vec(),
            fit_images: count("calibration.fit_images", self.fit_images)?,
            holdout_images: count("calibration.holdout_images", self.holdout_images)?,
            seed: self.seed,
        };
        let artifact = Artifact {
            location: location("calibration.artifact", self.artifact)?,
            sha256: self
                .artifact_sha256
                .map(|digest| sha256("calibration.artifact_sha256", digest))
                .transpose()?,
        };
        Ok((calibration, artifact))
    }
}

impl RawPerturbation {
    fn convert(self) -> Result<Perturbation> {
        let epsilon = share("perturbation.max_epsilon", self.max_epsilon)?;
        Ok(Perturbation {
            fooling_rate: share("perturbation.fooling_rate", self.fooling_rate)?,
            max_epsilon: epsilon.value() as f32,
            steps: count("perturbation.steps", self.steps)?,
            batch: count("perturbation.batch", self.batch)?,
            algorithm: required("perturbation.algorithm", self.algorithm)?,
            count: count("perturbation.count", self.count)?,
        })
    }
}

impl RawInspection {
    fn convert(self) -> Result<Inspection> {
        let threshold = positive("inspection.anomaly_threshold", self.anomaly_threshold)?;
        Ok(Inspection {
            samples: count("inspection.samples", self.samples)?,
            steps: count("inspection.steps", self.steps)?,
            batch: count("inspection.batch", self.batch)?,
            lambda: positive("inspection.lambda", self.lambda)?,
            success_rate: share("inspection.success_rate", self.success_rate)?,
            anomaly_threshold: threshold,
            clean_ratio: probability("inspection.clean_ratio", self.clean_ratio)?,
        })
    }
}

impl RawPolicy {
    fn convert(self) -> Result<(Policy, doorward_detection::Policy)> {
        let mode = match required("policy.mode", self.mode)? {
            RawMode::Enforce => Mode::Enforce,
            RawMode::Monitor => Mode::Monitor,
        };
        let budget_key = "policy.max_false_rejection_rate";
        let max_false_rejection_rate = share(budget_key, self.max_false_rejection_rate)?;
        if max_false_rejection_rate.value() >= 1.0 {
            return invalid(
                budget_key,
                max_false_rejection_rate.value(),
                "a number above 0 and below 1",
            );
        }
        let infected_budget = positive("policy.infected_budget", self.infected_budget)?;
        if infected_budget < 1.0 {
            return invalid(
                "policy.infected_budget",
                infected_budget,
                "a finite number of 1 or more",
            );
        }
        let rule = required("policy.rule", self.rule)?;
        let unverified = self.unverified.convert(mode)?;
        let judged = doorward_detection::Policy { rule, max_false_rejection_rate, infected_budget };
        Ok((Policy { mode, unverified }, judged))
    }
}

impl RawUnverified {
    fn convert(self, mode: Mode) -> Result<Unverified> {
        let action = |key, value| {
            Ok(match (required(key, value)?, mode) {
                (RawAction::Pass, _) | (RawAction::Default, Mode::Monitor) => Action::Pass,
                (RawAction::Reject, _) | (RawAction::Default, Mode::Enforce) => Action::Reject,
            })
        };
        Ok(Unverified {
            artifact: action("policy.unverified.artifact", self.artifact)?,
            deadline: action("policy.unverified.deadline", self.deadline)?,
            internal: action("policy.unverified.internal", self.internal)?,
            overload: action("policy.unverified.overload", self.overload)?,
            range: action("policy.unverified.range", self.range)?,
            undecodable: action("policy.unverified.undecodable", self.undecodable)?,
        })
    }
}

impl RawLimits {
    fn convert(self) -> Result<Limits> {
        let rows = count("limits.rows", self.rows)?;
        let queue_rows = count("limits.queue_rows", self.queue_rows)?;
        if queue_rows < rows {
            // Such a request could never be judged, however idle the detector is.
            return invalid("limits.queue_rows", queue_rows, "at least limits.rows");
        }
        let detection_timeout = self.detection_timeout_seconds;
        Ok(Limits {
            body_bytes: count("limits.body_bytes", self.body_bytes)?.get(),
            rows,
            image_pixels: count("limits.image_pixels", self.image_pixels)?,
            queue_rows,
            batch_rows: count("limits.batch_rows", self.batch_rows)?,
            concurrency: count("limits.concurrency", self.concurrency)?,
            body_timeout: duration("limits.body_timeout_seconds", self.body_timeout_seconds)?,
            detection_timeout: duration("limits.detection_timeout_seconds", detection_timeout)?,
            drain_timeout: duration("limits.drain_timeout_seconds", self.drain_timeout_seconds)?,
        })
    }
}
