//! The settings file that is shipped, and what users may write.

use std::path::PathBuf;
use std::time::Duration;

use doorward::config::{Action, Config, EMBEDDED, Location, LogFormat, Mode, Rule, Settings};

const REQUIRED: &str = "upstream.url = 'http://127.0.0.1:1/'\nmodel.path = 'm.onnx'\n\
    calibration.clean_images = 'clean'\n";

const NOTHING: [(&str, &str); 0] = [];

fn parse(settings: &str) -> Config {
    Config::parse("user.toml", &format!("{REQUIRED}{settings}"), NOTHING).expect("settings")
}

fn error(settings: &str) -> String {
    Config::parse("user.toml", &format!("{REQUIRED}{settings}"), NOTHING)
        .expect_err("an error")
        .to_string()
}

fn with(variable: &str, value: &str) -> Result<Config, doorward::config::Error> {
    Config::parse("user.toml", REQUIRED, [(variable, value)])
}

#[test]
fn embedded_file_gives_the_documented_defaults() {
    let config = parse("");
    assert_eq!(config.server.listen.http.to_string(), "127.0.0.1:8080");
    assert_eq!(config.server.admin.listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.server.upstream.url.to_string(), "http://127.0.0.1:1");
    assert_eq!((config.server.listen.grpc, config.server.upstream.grpc_url), (None, None));
    assert!(!config.server.upstream.http2);
    assert_eq!(config.server.upstream.timeout, Duration::from_secs(30));
    assert_eq!(config.server.model.name, None);
    assert_eq!(config.detection.preprocess.mean, [0.0]);
    assert_eq!(config.detection.preprocess.std, [1.0]);
    let calibration = &config.detection.calibration;
    assert_eq!(calibration.clean_images, [PathBuf::from("clean")]);
    assert!(calibration.training_images.is_empty());
    assert_eq!(calibration.fit_images.get(), 300);
    assert_eq!(calibration.holdout_images.get(), 2000);
    assert_eq!(config.artifact.location, Location::File("doorward.safetensors".into()));
    assert_eq!(config.artifact.sha256, None);
    assert_eq!(calibration.seed, None);
    assert_eq!(config.detection.perturbation.fooling_rate.value(), 0.8);
    assert_eq!(config.detection.perturbation.max_epsilon, 0.125);
    assert_eq!(config.detection.perturbation.steps.get(), 100);
    assert_eq!(config.detection.perturbation.batch.get(), 64);
    assert_eq!(config.detection.inspection.samples.get(), 50);
    assert_eq!(config.detection.inspection.steps.get(), 300);
    assert_eq!(config.detection.inspection.lambda, 1e-4);
    assert_eq!(config.detection.inspection.success_rate.value(), 0.95);
    assert_eq!(config.detection.inspection.anomaly_threshold, 3.5);
    assert_eq!(config.detection.inspection.clean_ratio.value(), 0.9);
    assert_eq!(config.server.policy.mode, Mode::Enforce);
    assert_eq!(config.detection.policy.rule, Rule::Calibrated);
    assert_eq!(config.detection.policy.max_false_rejection_rate.value(), 0.01);
    assert_eq!(config.detection.policy.infected_budget, 10.0);
    assert_eq!(config.server.policy.unverified.overload, Action::Reject);
    // Whoever uses the layer alone gets the same.
    assert_eq!(config.server.limits, doorward_proxy::settings::Limits::default());
    assert_eq!(config.server.policy, doorward_proxy::settings::Policy::default());
    let limits = &config.server.limits;
    assert_eq!(limits.body_bytes, 16 << 20);
    assert_eq!(limits.rows.get(), 64);
    assert_eq!(limits.queue_rows.get(), 512);
    assert_eq!(limits.batch_rows.get(), 64);
    assert_eq!(limits.concurrency.get(), 256);
    assert_eq!(limits.body_timeout, Duration::from_secs(10));
    assert_eq!(limits.detection_timeout, Duration::from_secs(10));
    assert_eq!(limits.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.server.telemetry.log, "info");
    assert_eq!(config.server.telemetry.format, LogFormat::Text);
}

#[test]
fn embedded_file_shows_the_keys_without_default() {
    // Uncommented as they stand in the file, they are all that is missing.
    let keys = ["grpc", "grpc_url", "url", "path", "name", "clean_images", "seed"];
    let uncommented: Vec<String> = EMBEDDED
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if keys.iter().any(|key| rest.starts_with(&format!("{key} = "))) => {
                rest.to_owned()
            }
            _ => line.to_owned(),
        })
        .collect();
    let config = Config::parse("all.toml", &uncommented.join("\n"), NOTHING).expect("settings");
    assert_eq!(config.server.model.name.as_deref(), Some("resnet18"));
    assert_eq!(config.detection.calibration.seed, Some(7));
    assert_eq!(config.server.listen.grpc.expect("an address").to_string(), "127.0.0.1:8081");
    assert_eq!(
        config.server.upstream.grpc_url.expect("a URL").to_string(),
        "http://127.0.0.1:18081"
    );
}

#[test]
fn grpc_has_both_ends_or_none() {
    for (settings, key, expected) in [
        ("listen.grpc = '127.0.0.1:1'", "listen.grpc", "upstream.grpc_url as well"),
        ("upstream.grpc_url = 'http://u'", "upstream.grpc_url", "listen.grpc as well"),
        ("listen.grpc = 'here'\nupstream.grpc_url = 'http://u'", "listen.grpc", "an address"),
        ("listen.grpc = '[::1]:1'\nupstream.grpc_url = 'u:1'", "upstream.grpc_url", "http://host"),
        (
            "listen.grpc = '[::1]:1'\nupstream.grpc_url = 'https://u'",
            "upstream.grpc_url",
            "upstream.tls.ca as well",
        ),
    ] {
        let error = error(settings);
        assert!(error.contains(&format!("{key} = ")) && error.contains(expected), "{error}");
    }
    let ca = "upstream.tls.ca = 'ca.crt'";
    parse(&format!("listen.grpc = '[::1]:1'\nupstream.grpc_url = 'https://u'\n{ca}"));
}

#[test]
fn every_rule_is_written_as_it_is_named() {
    for rule in Rule::ALL {
        let settings = format!("{REQUIRED}\npolicy.rule = '{}'", rule.name());
        let config = Config::parse("user.toml", &settings, NOTHING).expect("settings");
        assert_eq!(config.detection.policy.rule, rule);
        assert_eq!(rule.name().parse(), Ok(rule));
    }
}

#[test]
fn required_keys_are_named() {
    for key in ["upstream.url", "model.path", "calibration.clean_images"] {
        let rest: Vec<&str> =
            REQUIRED.lines().filter(|line| !line.trim_start().starts_with(key)).collect();
        let error = Config::parse("user.toml", &rest.join("\n"), NOTHING).expect_err("an error");
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn misspelt_keys_and_sections_are_named_with_file_and_line() {
    for (settings, named) in [
        ("[policy]\nmod = 'enforce'", "mod"),
        ("[polisy]\nmode = 'enforce'", "polisy"),
        ("[policy.unverified]\noverlod = 'pass'", "overlod"),
        ("[limits]\nrowz = 1", "rowz"),
    ] {
        let error = error(settings);
        assert!(error.contains("user.toml"), "{error}");
        assert!(error.contains("line "), "{error}");
        assert!(error.contains(&format!("`{named}`")), "{error}");
    }
}

#[test]
fn values_out_of_range_say_what_was_received_and_expected() {
    for (settings, key, received) in [
        ("listen.http = 'here'", "listen.http", "\"here\""),
        ("listen.http = 'unix:here'", "listen.http", "\"unix:here\""),
        ("admin.listen = 'unix:/run/a'", "admin.listen", "\"unix:/run/a\""),
        ("limits.rows = 0", "limits.rows", "0"),
        ("limits.rows = -3", "limits.rows", "-3"),
        ("limits.rows = 600", "limits.queue_rows", "512"),
        ("limits.body_timeout_seconds = 0", "limits.body_timeout_seconds", "0"),
        ("limits.body_timeout_seconds = nan", "limits.body_timeout_seconds", "NaN"),
        ("limits.body_timeout_seconds = inf", "limits.body_timeout_seconds", "inf"),
        ("limits.body_timeout_seconds = -1.5", "limits.body_timeout_seconds", "-1.5"),
        ("policy.max_false_rejection_rate = nan", "policy.max_false_rejection_rate", "NaN"),
        ("policy.max_false_rejection_rate = 0", "policy.max_false_rejection_rate", "0"),
        ("policy.max_false_rejection_rate = 1.0", "policy.max_false_rejection_rate", "1"),
        ("policy.infected_budget = 0.5", "policy.infected_budget", "0.5"),
        ("perturbation.max_epsilon = 1.5", "perturbation.max_epsilon", "1.5"),
        ("inspection.lambda = 0", "inspection.lambda", "0"),
        ("preprocess.std = [1, 0]", "preprocess.std", "[1.0, 0.0]"),
        ("preprocess.mean = []", "preprocess.mean", "[]"),
        ("model.name = ''", "model.name", "\"\""),
        ("model.output = ''", "model.output", "\"\""),
        ("model.input_shape = []", "model.input_shape", "[]"),
        ("model.input_shape = [3, 0, 8]", "model.input_shape", "[3, 0, 8]"),
        ("calibration.artifact = ''", "calibration.artifact", "\"\""),
        ("calibration.artifact_sha256 = 'ab'", "calibration.artifact_sha256", "\"ab\""),
        ("audit.path = ''", "audit.path", "\"\""),
        ("audit.rotate_bytes = 0", "audit.rotate_bytes", "0"),
        ("audit.quarantine.files = 0", "audit.quarantine.files", "0"),
        ("tls.certificate = ''\ntls.key = 'a'", "tls.certificate", "\"\""),
    ] {
        let error = error(settings);
        assert!(error.starts_with(&format!("{key} = {received}: expected ")), "{error}");
    }
}

#[test]
fn artifacts_are_paths_or_urls() {
    let location =
        |text: &str| parse(&format!("calibration.artifact = '{text}'")).artifact.location;
    for path in ["a", "a b/c:d", "/a", "s3:/a"] {
        assert_eq!(location(path), Location::File(path.into()));
    }
    for url in ["file:///a%20b/c", "file://localhost/a b/c"] {
        assert_eq!(location(url), Location::File("/a b/c".into()));
    }
    let (bucket, key) = ("my-bucket".to_owned(), "a/b.safetensors".to_owned());
    assert_eq!(location("s3://my-bucket/a/b.safetensors"), Location::S3 { bucket, key });
    for wrong in [
        "file://host/a",
        "https://a/b",
        "s3://a",
        "s3://a/",
        "s3:///a",
        "s3://u:p@a/b",
        "s3://a:1/b",
        "s3://a/b?c",
        "s3://a/b#c",
    ] {
        let error = error(&format!("calibration.artifact = '{wrong}'"));
        let expected = "a path, file:///PATH or s3://BUCKET/KEY";
        assert_eq!(error, format!("calibration.artifact = {wrong:?}: expected {expected}"));
    }
}

#[test]
fn wrong_types_and_words_are_refused_with_the_alternatives() {
    let mode = error("policy.mode = 'observe'");
    assert!(mode.contains("`observe`") && mode.contains("`monitor`"), "{mode}");
    let rows = error("limits.rows = 'many'");
    assert!(rows.contains("limits.rows = 'many'"), "{rows}");
    let images = error("calibration.training_images = 3");
    assert!(images.contains("one value or an array"), "{images}");
}

#[test]
fn upstream_urls_are_checked_and_tls_goes_with_https() {
    for url in [
        "https://a",
        "ftp://a",
        "http://",
        "http://a/path",
        "http://u@a",
        "http://a:0",
        "a:1",
        "http://a b",
        "unix:run/a",
        "unix:",
        "unix",
    ] {
        let error = with("DOORWARD_UPSTREAM__URL", url).expect_err("an error");
        assert!(error.to_string().contains("upstream.url"), "{url}: {error}");
    }
    for url in [
        "http://a",
        "http://a:80",
        "http://[::1]:80",
        "http://[::1]",
        "http://a-b.c_d:1",
        "unix:/run/a.sock",
    ] {
        let config = with("DOORWARD_UPSTREAM__URL", url).expect("settings");
        assert_eq!(config.server.upstream.url.to_string(), url);
        assert_eq!((config.server.upstream.tls, config.server.tls), (None, None));
    }
    let ca = "upstream.tls.ca = 'ca.crt'";
    assert!(error(ca).starts_with("upstream.url = "), "{}", error(ca));
    let https = REQUIRED.replace("http://", "https://");
    let config = Config::parse("user.toml", &format!("{https}{ca}"), NOTHING).expect("settings");
    assert!(config.server.upstream.url.is_secured() && config.server.upstream.tls.is_some());
}

#[test]
fn half_a_tls_identity_is_refused() {
    for (settings, missing) in [
        ("tls.certificate = 'a'", "tls.key"),
        ("tls.key = 'a'", "tls.certificate"),
        ("tls.client_ca = 'a'", "tls.certificate"),
        ("upstream.tls.key = 'a'", "upstream.tls.certificate"),
    ] {
        let error = error(settings);
        assert!(error.starts_with(&format!("{missing} is not set")), "{error}");
    }
    let quarantine = error("audit.quarantine.directory = 'q'");
    assert!(quarantine.contains("audit.path"), "{quarantine}");
}

#[test]
fn environment_wins_over_the_file() {
    let environment = [
        ("DOORWARD_POLICY__MODE", "monitor"),
        ("DOORWARD_POLICY__UNVERIFIED__ARTIFACT", "\"reject\""),
        ("DOORWARD_LIMITS__ROWS", "3"),
        ("DOORWARD_MODEL__NAME", "17"),
        ("DOORWARD_PREPROCESS__MEAN", "[0.5, 1]"),
        ("DOORWARD_CALIBRATION__TRAINING_IMAGES", "[\"a\", \"b\"]"),
        // As Kubernetes sets them for a service of this name.
        ("DOORWARD_PORT", "tcp://10.0.0.1:80"),
        ("DOORWARD_SERVICE_HOST", "10.0.0.1"),
        ("PATH", "/bin"),
    ];
    let text = format!("{REQUIRED}limits.rows = 2\npolicy.mode = 'enforce'");
    let config = Config::parse("user.toml", &text, environment).expect("settings");
    assert_eq!(config.server.policy.mode, Mode::Monitor);
    assert_eq!(config.server.policy.unverified.artifact, Action::Reject);
    assert_eq!(config.server.policy.unverified.overload, Action::Pass);
    assert_eq!(config.server.limits.rows.get(), 3);
    assert_eq!(config.server.model.name.as_deref(), Some("17"));
    assert_eq!(config.detection.preprocess.mean, [0.5, 1.0]);
    assert_eq!(config.detection.calibration.training_images.len(), 2);
}

#[test]
fn misspelt_variables_are_named() {
    for (variable, value) in [
        ("DOORWARD_POLICY__MOD", "monitor"),
        ("DOORWARD_POLISY__MODE", "monitor"),
        ("DOORWARD_LIMITS__ROWS", "many"),
        ("DOORWARD_LIMITS__", "1"),
        ("DOORWARD___ROWS", "1"),
    ] {
        let error = with(variable, value).expect_err("an error").to_string();
        assert!(error.contains(variable) && error.contains(value), "{error}");
    }
}

#[test]
fn effective_settings_print_as_a_file_that_gives_them_again() {
    let text = format!("{REQUIRED}policy.mode = 'monitor'\ncalibration.seed = 5");
    let settings = Settings::parse("user.toml", &text, NOTHING).expect("settings");
    let printed = settings.to_toml();
    let again = Settings::parse("printed.toml", &printed, NOTHING).expect("settings");
    assert_eq!(again.to_toml(), printed);
    let (first, second) = (settings.config(), again.config());
    assert_eq!(
        format!("{:?}", first.expect("settings")),
        format!("{:?}", second.expect("settings"))
    );
}

#[test]
fn file_is_read_from_disk_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("doorward.toml");
    std::fs::write(&path, REQUIRED).expect("written");
    let config = Config::load(Some(&path), NOTHING).expect("settings");
    assert_eq!(config.server.model.path, PathBuf::from("m.onnx"));
    let missing = folder.path().join("missing.toml");
    let error = Config::load(Some(&missing), NOTHING).expect_err("an error");
    assert!(error.to_string().contains("missing.toml"), "{error}");
}
