//! For each outcome, the metrics that move, and no others.

use std::collections::BTreeMap;

use crate::support::judge::Behaviour;
use crate::support::{CLEAN, Setup, TRIGGERED, request};

/// The counters and histogram counts that differ.
fn moved(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<String> {
    after
        .iter()
        .filter(|(name, _)| name.contains("_total") || name.contains("_count"))
        .filter_map(|(name, value)| {
            let by = value - before.get(name).unwrap_or(&0.0);
            (by != 0.0).then(|| format!("{name} {by}"))
        })
        .collect()
}

/// What one inference request with `body` moves.
async fn moved_by(setup: &Setup, body: &str) -> Vec<String> {
    let before = setup.metrics();
    setup.client.infer(body.to_owned()).await;
    moved(&before, &setup.metrics())
}

fn requests(verdict: &str) -> String {
    format!("requests_total{{protocol=\"oip_http\",verdict=\"{verdict}\"}} 1")
}

fn rows(verdict: &str, count: usize) -> String {
    format!("rows_total{{verdict=\"{verdict}\"}} {count}")
}

fn scores(count: usize) -> [String; 2] {
    ["joined", "universal"].map(|signal| format!("score_count{{signal=\"{signal}\"}} {count}"))
}

fn check(mut moved: Vec<String>, mut expected: Vec<String>) {
    moved.sort();
    expected.sort();
    assert_eq!(moved, expected);
}

const JUDGED: [&str; 2] = ["batch_rows_count 1", "detection_seconds_count 1"];
const EXCHANGED: [&str; 1] = ["upstream_seconds_count 1"];

fn strings<const N: usize>(lines: [&str; N]) -> Vec<String> {
    lines.map(str::to_owned).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn passed() {
    let setup = Setup::new("").await;
    let mut expected = strings(JUDGED);
    expected.extend(strings(EXCHANGED));
    expected.push("added_seconds_count 1".to_owned());
    expected.extend([requests("passed"), rows("passed", 2)]);
    expected.extend(scores(2));
    check(moved_by(&setup, &request(&[CLEAN, CLEAN])).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected() {
    let setup = Setup::new("").await;
    // So that the verdict surely comes before the upstream's answer, which is then not waited for.
    setup.upstream.hold();
    let mut expected = strings(JUDGED);
    expected.extend([requests("rejected"), rows("rejected", 1), rows("passed", 1)]);
    expected.push("rejected_rows_total{label=\"1\"} 1".to_owned());
    expected.extend(scores(2));
    let body = request(&[CLEAN, TRIGGERED]);
    check(moved_by(&setup, &body).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn flagged() {
    let setup = Setup::new("policy.mode = 'monitor'").await;
    let mut expected = strings(JUDGED);
    expected.extend(strings(EXCHANGED));
    expected.push("added_seconds_count 1".to_owned());
    expected.extend([requests("flagged"), rows("flagged", 1)]);
    expected.push("rejected_rows_total{label=\"1\"} 1".to_owned());
    expected.extend(scores(1));
    check(moved_by(&setup, &request(&[TRIGGERED])).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn unverified_passed() {
    let setup = Setup::new("policy.unverified.internal = 'pass'").await;
    setup.judge.behave(Behaviour::Fail);
    let mut expected = strings(JUDGED);
    expected.extend(strings(EXCHANGED));
    expected.push("added_seconds_count 1".to_owned());
    expected.extend([requests("unverified_passed"), rows("unverified_passed", 2)]);
    expected.push("unverified_total{reason=\"internal\"} 1".to_owned());
    check(moved_by(&setup, &request(&[CLEAN, CLEAN])).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn unverified_rejected() {
    let setup = Setup::new("").await;
    let expected = vec![
        requests("unverified_rejected"),
        "unverified_total{reason=\"undecodable\"} 1".to_owned(),
    ];
    check(moved_by(&setup, "{").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn bypassed_and_refused() {
    let setup = Setup::new("").await;
    let before = setup.metrics();
    setup.client.get("/v2").await;
    let mut expected = strings(EXCHANGED);
    expected.push(requests("bypassed"));
    check(moved(&before, &setup.metrics()), expected);
    let before = setup.metrics();
    setup.client.get("/nowhere").await;
    check(moved(&before, &setup.metrics()), vec![requests("refused")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_error() {
    let mut setup = Setup::new("").await;
    setup.upstream.stop().await;
    let mut expected = strings(JUDGED);
    expected.extend(strings(EXCHANGED));
    expected.push("added_seconds_count 1".to_owned());
    expected.extend([requests("passed"), rows("passed", 1)]);
    expected.push("upstream_errors_total{reason=\"unreachable\"} 1".to_owned());
    expected.extend(scores(1));
    check(moved_by(&setup, &request(&[CLEAN])).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn unverified_without_a_detector() {
    let setup = Setup::calibrating("policy.unverified.artifact = 'reject'").await;
    let mut expected = vec![requests("unverified_rejected")];
    expected.push("unverified_total{reason=\"artifact\"} 1".to_owned());
    let moved = moved_by(&setup, &request(&[CLEAN])).await;
    check(moved, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn body_too_large_is_refused() {
    let setup = Setup::new("limits.body_bytes = 2000").await;
    check(moved_by(&setup, &" ".repeat(2001)).await, vec![requests("refused")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn held_out_scores_are_replaced() {
    let setup = Setup::new("").await;
    for held_out in [vec![-3.0, -1.5, 0.5], vec![-1.5]] {
        let count = held_out.len();
        setup.server.metrics().compare_with(held_out);
        assert_eq!(setup.metric("held_out_score_count{signal=\"joined\"}"), count as f64);
    }
    assert_eq!(setup.metric("held_out_score_bucket{signal=\"joined\",le=\"-1\"}"), 1.0);
    assert_eq!(setup.metric("held_out_score_bucket{signal=\"joined\",le=\"-2\"}"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_reload_shows_until_one_succeeds() {
    let setup = Setup::new("").await;
    for (applied, successful) in [(false, 0.0), (false, 0.0), (true, 1.0)] {
        setup.server.metrics().reloaded(applied);
        assert_eq!(setup.metric("config_last_reload_successful"), successful);
    }
    assert_eq!(setup.metric("config_reloads_total{result=\"failure\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_add_up_to_the_requests_received() {
    let setup = Setup::new("limits.body_bytes = 2000").await;
    let bodies = [request(&[CLEAN]), request(&[TRIGGERED]), "{".to_owned(), " ".repeat(2001)];
    let mut tasks = Vec::new();
    for number in 0..100 {
        let (client, body) = (setup.client.clone(), bodies[number % 4].clone());
        tasks.push(tokio::spawn(async move {
            if number % 10 == 0 {
                client.get("/v2").await;
            }
            client.infer(body).await;
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let total: f64 = (setup.metrics().iter())
        .filter(|(name, _)| name.starts_with("requests_total"))
        .map(|(_, count)| count)
        .sum();
    assert_eq!(total, 110.0);
    for verdict in ["passed", "rejected", "unverified_rejected", "refused"] {
        assert_eq!(setup.verdicts(verdict), 25.0, "{verdict}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn artifact_is_published_without_its_secrets() {
    let setup = Setup::new("").await;
    let metrics = setup.metrics();
    for (name, value) in [
        ("model_transfer_ratio{label=\"0\"}", 0.875),
        ("model_transfer_ratio{label=\"1\"}", 0.125),
        ("model_anomaly_index{label=\"1\"}", 7.5),
        ("label_infected{label=\"1\"}", 1.0),
        ("uap_fooling_rate", 0.875),
        ("uap_norm{norm=\"l2\"}", 1.5),
        ("uap_norm{norm=\"linf\"}", 0.0625),
        ("false_rejection_rate_bound", 0.0078125),
        ("artifact_created_timestamp_seconds", 1_700_000_000.0),
        ("model_info{model=\"any\"}", 1.0),
        ("config_last_reload_successful", 1.0),
        ("build_info{version=\"0.1.0\"}", 1.0),
    ] {
        assert_eq!(metrics.get(name), Some(&value), "{name}");
    }
    let page = setup.server.metrics().page().expect("a page");
    assert!(page.contains("doorward_label_infected{label=\"0\"} 0\n"));
    assert!(page.contains("model_digest=\"aa\""));
    assert!(page.contains("process_resident_memory_bytes"));
    assert!(!page.contains("987654321"), "the seed is secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_label_sets_appear_from_the_start() {
    let setup = Setup::calibrating("").await;
    let page = setup.server.metrics().page().expect("a page");
    for verdict in [
        "bypassed",
        "flagged",
        "passed",
        "refused",
        "rejected",
        "unverified_passed",
        "unverified_rejected",
    ] {
        for protocol in ["kserve_v1", "oip_grpc", "oip_http", "raw_image"] {
            let labels = format!("protocol=\"{protocol}\",verdict=\"{verdict}\"");
            let line = format!("doorward_requests_total{{{labels}}} 0\n");
            assert!(page.contains(&line), "{line}");
        }
        let line = format!("doorward_rows_total{{verdict=\"{verdict}\"}} 0\n");
        assert!(page.contains(&line), "{line}");
    }
    for reason in ["artifact", "deadline", "internal", "overload", "undecodable"] {
        let line = format!("doorward_unverified_total{{reason=\"{reason}\"}} 0\n");
        assert!(page.contains(&line), "{line}");
    }
    for reason in ["broken", "timeout", "unreachable"] {
        let line = format!("doorward_upstream_errors_total{{reason=\"{reason}\"}} 0\n");
        assert!(page.contains(&line), "{line}");
    }
    for signal in ["class_conditional", "joined", "patch", "representation", "universal"] {
        let line = format!("doorward_score_count{{signal=\"{signal}\"}} 0\n");
        assert!(page.contains(&line), "{line}");
    }
    for result in ["failure", "success"] {
        let line = format!("doorward_config_reloads_total{{result=\"{result}\"}} 0\n");
        assert!(page.contains(&line), "{line}");
    }
    for result in ["dropped", "exported", "failed"] {
        let line = format!("doorward_spans_total{{result=\"{result}\"}} 0\n");
        assert!(page.contains(&line), "{line}");
    }
    assert!(page.contains("doorward_audit_dropped_total 0\n"));
    assert!(!page.contains("doorward_score_drift{"), "not known yet");
    assert!(page.contains("doorward_rejected_rows_total{label=\"other\"} 0\n"));
}
