//! The dashboard and the rules of `config/` ask for what the program exports, and every alert has its
//! page. `tests/monitoring/run.sh` has a real Prometheus evaluate them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::{CLEAN, Setup, request};

const DASHBOARD: &str = include_str!("../../config/grafana/doorward.json");
const RULES: &str = include_str!("../../config/prometheus/rules.yaml");
const RUNBOOKS: &str = include_str!("../../docs/runbooks.md");

/// Every family that the program exports, with its type and labels.
const EXPORTED: [(&str, &str, &[&str]); 28] = [
    ("added_seconds", "histogram", &[]),
    ("artifact_created_timestamp_seconds", "gauge", &[]),
    (
        "artifact_info",
        "gauge",
        &["data_digest", "format", "model_digest", "settings_digest", "version"],
    ),
    ("audit_dropped_total", "counter", &[]),
    ("batch_rows", "histogram", &[]),
    ("build_info", "gauge", &["version"]),
    ("config_last_reload_successful", "gauge", &[]),
    ("config_reloads_total", "counter", &["result"]),
    ("detection_seconds", "histogram", &[]),
    ("false_rejection_rate_bound", "gauge", &[]),
    ("held_out_score", "histogram", &["signal"]),
    ("label_infected", "gauge", &["label"]),
    ("model_anomaly_index", "gauge", &["label"]),
    ("model_info", "gauge", &["model"]),
    ("model_transfer_ratio", "gauge", &["label"]),
    ("queue_depth", "gauge", &[]),
    ("rejected_rows_total", "counter", &["label"]),
    ("remote_rows_total", "counter", &["kind"]),
    ("requests_total", "counter", &["protocol", "verdict"]),
    ("rows_total", "counter", &["verdict"]),
    ("score", "histogram", &["signal"]),
    ("score_drift", "gauge", &["signal"]),
    ("spans_total", "counter", &["result"]),
    ("uap_fooling_rate", "gauge", &[]),
    ("uap_norm", "gauge", &["norm"]),
    ("unverified_total", "counter", &["reason"]),
    ("upstream_errors_total", "counter", &["reason"]),
    ("upstream_seconds", "histogram", &[]),
];

#[tokio::test(flavor = "multi_thread")]
async fn families_are_the_documented_ones() {
    let page = full_page().await;
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE doorward_") {
            let (name, kind) = declared.split_once(' ').expect("a type");
            found.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some(sample) = line.strip_prefix("doorward_") {
            let (name, labels) = labels(sample);
            let name = family(name, &|name| found.contains_key(name));
            found.get_mut(&name).expect("a declared family").1.extend(labels);
        }
    }
    let expected = EXPORTED.map(|(name, kind, labels)| {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        (name.to_owned(), (kind.to_owned(), labels))
    });
    assert_eq!(found, BTreeMap::from(expected));
}

#[test]
fn dashboard_and_rules_ask_for_what_is_exported() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut expressions = Vec::new();
    collect_expressions(&dashboard, &mut expressions);
    assert!(expressions.len() > 20, "{}", expressions.len());
    let recorded: BTreeSet<&str> =
        RULES.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    assert!(!recorded.is_empty());
    let known = |name: &str| EXPORTED.iter().any(|(family, _, _)| *family == name);
    for text in expressions.iter().map(String::as_str).chain([RULES]) {
        for name in names(text) {
            if name.contains(':') {
                assert!(recorded.contains(name), "{name} is not recorded");
            } else if let Some(name) = name.strip_prefix("doorward_") {
                assert!(known(&family(name, &known)), "doorward_{name} is not exported");
            }
        }
    }
}

#[test]
fn every_alert_has_its_page() {
    let alerts: Vec<&str> =
        RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for alert in &alerts {
        assert!(RUNBOOKS.contains(&format!("\n## {alert}\n")), "{alert} has no page");
        let url = format!("runbook_url: docs/runbooks.md#{}", alert.to_lowercase());
        assert!(RULES.contains(&url), "{alert} does not name its page");
    }
    for page in RUNBOOKS.lines().filter_map(|line| line.strip_prefix("## Doorward")) {
        assert!(alerts.contains(&format!("Doorward{page}").as_str()), "no alert for {page}");
    }
}

/// A metrics page with samples of every family.
async fn full_page() -> String {
    let setup = Setup::new("").await;
    setup.server.metrics().compare_with(vec![0.0; 10]);
    for _ in 0..2 {
        setup.client.infer(request(&[CLEAN; 50])).await;
    }
    setup.server.metrics().page().expect("a page")
}

/// `name{a="b",c="d"} 1` as its name and the names of its labels, but for histograms' `le`.
fn labels(sample: &str) -> (&str, BTreeSet<String>) {
    let end = sample.find(['{', ' ']).expect("a value");
    let (name, rest) = sample.split_at(end);
    // No label value of the test's has a comma or an equals sign.
    let inside = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |p| p.0);
    let labels = inside.split(',').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
    (name, labels.filter(|label| label != "le").collect())
}

/// The family of a sample: histograms' have a suffix.
fn family(sample: &str, known: &dyn Fn(&str) -> bool) -> String {
    let suffixes = ["", "_bucket", "_count", "_sum"].iter();
    let stems = suffixes.filter_map(|suffix| sample.strip_suffix(suffix));
    stems.into_iter().find(|stem| known(stem)).unwrap_or(sample).to_owned()
}

/// Every `expr` of the dashboard, and the queries of its variables.
fn collect_expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text)
                        if key == "expr" || key == "query" || key == "definition" =>
                    {
                        found.push(text.clone());
                    }
                    _ => collect_expressions(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect_expressions(value, found)),
        _ => {}
    }
}

/// The words that look like a metric of this program.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !(character.is_ascii_alphanumeric() || "_:".contains(character)))
        .filter(|word| word.starts_with("doorward_") || word.starts_with("doorward:"))
}
