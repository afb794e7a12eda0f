//! The audit log: what is in it, what is not, and that nothing waits or fails for it.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use doorward_proxy::server::Server;
use hyper::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{CLEAN, INFER, Setup, TRIGGERED, config, eventually, request};

/// A firewall with an audit log in `folder`; `more` is TOML.
async fn audited(folder: &TempDir, more: &str) -> Setup {
    let path = folder.path().join("audit.jsonl");
    Setup::new(&format!("audit.path = '{}'\n{more}", path.display())).await
}

/// The lines of a file, each one a whole object.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("an audit log");
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

/// Ends the firewall, which writes what is queued.
async fn end(setup: Setup, folder: &TempDir) -> Vec<Value> {
    setup.server.shutdown().await.expect("a drain in time");
    lines(&folder.path().join("audit.jsonl"))
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn keys(line: &Value) -> BTreeSet<&str> {
    line.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rejections_are_noted_row_by_row_without_payload_or_score() {
    let folder = tempfile::tempdir().expect("a folder");
    let setup = audited(&folder, "").await;
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let headers = [
        ("x-request-id", "id-1"),
        ("traceparent", parent.as_str()),
        ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
    ];
    setup.client.send(Method::POST, INFER, &headers, request(&[TRIGGERED, CLEAN, TRIGGERED])).await;
    setup.client.infer(request(&[CLEAN])).await;
    setup.client.infer("{").await;
    setup.client.get("/nowhere").await;
    setup.client.get("/v2").await;
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join("audit.jsonl")), 0o600);
    let lines = end(setup, &folder).await;

    let summary: Vec<_> = lines
        .iter()
        .map(|line| (line["verdict"].as_str().unwrap(), line["row"].as_u64()))
        .collect();
    let expected = [
        ("rejected", Some(0)),
        ("rejected", Some(2)),
        ("unverified_rejected", None),
        ("refused", None),
    ];
    assert_eq!(summary, expected);
    let first = &lines[0];
    assert_eq!(first["request_id"], "id-1");
    assert_eq!(first["trace_id"], TRACE);
    assert_eq!(first["protocol"], "oip_http");
    assert_eq!(first["model"], "m");
    assert_eq!(first["label"], 1);
    assert_eq!(first["rule"], "calibrated");
    assert_eq!(first["rejected"], true);
    let time = first["time"].as_str().expect("a time");
    assert!(time.len() == 24 && time.ends_with('Z') && &time[10..11] == "T", "{time}");
    let hash = first["input_hash"].as_str().expect("a hash");
    assert!(hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()), "{hash}");
    assert_eq!(lines[1]["input_hash"], hash, "equal inputs");
    let expected =
        "time request_id trace_id protocol model verdict rule row label rejected input_hash";
    assert_eq!(keys(first), expected.split(' ').collect());
    assert_eq!(lines[2]["reason"], "undecodable");
    assert!(!keys(&lines[3]).contains("model") && !keys(&lines[3]).contains("trace_id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_events_with_scores_and_a_salt_that_lasts() {
    let salt = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(salt.path(), [7; 16]).expect("written");
    let more = format!(
        "audit.events = 'all'\naudit.scores = true\naudit.salt_file = '{}'\n\
         policy.mode = 'monitor'\nmodel.name = 'm'",
        salt.path().display()
    );
    let mut hashes = Vec::new();
    for more in [more.as_str(), more.as_str(), "audit.events = 'all'"] {
        let folder = tempfile::tempdir().expect("a folder");
        let setup = audited(&folder, more).await;
        setup.client.infer(request(&[CLEAN, TRIGGERED])).await;
        setup.client.get("/v2").await;
        let lines = end(setup, &folder).await;
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[0]["rejected"], &lines[1]["rejected"]), (&false.into(), &true.into()));
        assert_ne!(lines[0]["input_hash"], lines[1]["input_hash"]);
        assert_eq!(lines[2]["verdict"], "bypassed");
        if more.contains("scores") {
            assert_eq!(lines[0]["verdict"], "flagged");
            assert_eq!(lines[1]["scores"]["joined"], 4.375);
        }
        hashes.push(lines[1]["input_hash"].as_str().expect("a hash").to_owned());
    }
    assert_eq!(hashes[0], hashes[1], "the same salt");
    assert_ne!(hashes[0], hashes[2], "a salt of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_rotated_by_size_and_count() {
    let folder = tempfile::tempdir().expect("a folder");
    let setup = audited(&folder, "audit.rotate_bytes = 1000\naudit.rotated_files = 2").await;
    for _ in 0..20 {
        setup.client.infer(request(&[TRIGGERED])).await;
    }
    let newest = end(setup, &folder).await;
    let mut times = Vec::new();
    for name in ["audit.jsonl.2", "audit.jsonl.1"] {
        let path = folder.path().join(name);
        let bytes = std::fs::metadata(&path).expect("rotated").len();
        assert!((600..=1000).contains(&bytes), "{bytes}");
        times.extend(lines(&path));
    }
    times.extend(newest);
    let times: Vec<&str> = times.iter().map(|line| line["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn quarantine_keeps_the_newest_rejected_inputs() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = folder.path().join("kept");
    let more = format!(
        "audit.quarantine.directory = '{}'\naudit.quarantine.files = 3\naudit.events = 'all'",
        kept.display()
    );
    let setup = audited(&folder, &more).await;
    for number in 0..5 {
        let mut row = TRIGGERED;
        row[3] = number as f32 / 8.0;
        setup.client.infer(request(&[CLEAN, row])).await;
    }
    let lines = end(setup, &folder).await;
    let named: Vec<&str> =
        lines.iter().filter_map(|line| line.get("quarantined")?.as_str()).collect();
    assert_eq!(named.len(), 5);
    let mut files: Vec<String> = std::fs::read_dir(&kept)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    files.sort();
    assert_eq!(files, named[2..]);
    let newest = kept.join(&files[2]);
    let mode = std::fs::metadata(&newest).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let bytes = std::fs::read(&newest).expect("readable");
    let header = String::from_utf8_lossy(&bytes[10..128]);
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00\x76\x00") && header.ends_with('\n'));
    assert!(header.contains("'descr': '<f4'") && header.contains("(1, 2, 2)"), "{header}");
    let values: Vec<f32> =
        bytes[128..].chunks(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect();
    assert_eq!(values, [TRIGGERED[0], TRIGGERED[1], TRIGGERED[2], 0.5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_no_request_and_is_counted() {
    let setup = Setup::new("audit.path = '/dev/full'\naudit.events = 'all'").await;
    for _ in 0..3 {
        let answer = setup.client.infer(request(&[CLEAN, CLEAN])).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    eventually("lost lines", || setup.metric("audit_dropped_total") == 6.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_opens_the_file_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let setup = Setup::new("").await;
    setup.client.infer(request(&[TRIGGERED])).await;
    let path = folder.path().join("audit.jsonl");
    let settings = config(&setup.upstream.url(), &format!("audit.path = '{}'", path.display()));
    setup.server.handle().reload(&settings.server).expect("an audit log from now on");
    setup.client.infer(request(&[TRIGGERED])).await;
    eventually("a line", || path.metadata().is_ok_and(|file| file.len() > 0)).await;
    std::fs::rename(&path, folder.path().join("moved")).expect("moved");
    setup.server.handle().reload(&settings.server).expect("the same settings");
    setup.client.infer(request(&[TRIGGERED])).await;
    setup.client.infer(request(&[TRIGGERED])).await;
    assert_eq!(end(setup, &folder).await.len(), 2);
    assert_eq!(lines(&folder.path().join("moved")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_is_named() {
    let error = async |settings: &str| {
        let error =
            Server::bind(&config("http://u", settings).server).await.expect_err("no audit log");
        error.to_string()
    };
    let missing = error("audit.path = '/nowhere/audit.jsonl'").await;
    assert!(missing.contains("audit.path = /nowhere/audit.jsonl"), "{missing}");
    let salt = error("audit.path = '-'\naudit.salt_file = '/dev/null'").await;
    assert!(salt.contains("0 bytes, expected a file of 16 bytes or more"), "{salt}");
    let setup = Setup::new("").await;
    let bad = config(&setup.upstream.url(), "audit.path = '/nowhere/a'\npolicy.mode = 'monitor'");
    setup.server.handle().reload(&bad.server).expect_err("no audit log");
    assert_eq!(setup.client.infer(request(&[TRIGGERED])).await.status, StatusCode::FORBIDDEN);
}
