//! What operators see on `/status` and `/status.json`.

use hyper::Method;
use serde_json::{Value, json};

use crate::reload::detection;
use crate::support::{
    CLEAN, Setup, TRIGGERED, config, eventually, manifest, models_cannot_be_loaded, request,
};

async fn status(setup: &Setup) -> Value {
    let answer = setup.admin().get("/status.json").await;
    assert_eq!(answer.headers["content-type"], "application/json");
    serde_json::from_slice(&answer.body).expect("JSON")
}

async fn page(setup: &Setup) -> String {
    let answer = setup.admin().get("/status").await;
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    String::from_utf8(answer.body.to_vec()).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn status_follows_calibration_traffic_and_reloads() {
    let setup = Setup::calibrating("model.name = 'm'").await;
    let early = status(&setup).await;
    assert_eq!(early["phase"], "calibrating");
    assert!(early["artifact"].is_null() && early["labels"] == serde_json::json!([]));
    assert!(page(&setup).await.contains("There is no detector yet."));

    setup.server.ready(setup.judge.clone(), &manifest()).expect("the first detector");
    setup.client.infer(request(&[CLEAN])).await;
    setup.client.infer(request(&[TRIGGERED, TRIGGERED])).await;
    let ready = status(&setup).await;
    assert_eq!(ready["phase"], "ready");
    assert_eq!(ready["model"]["name"], "m");
    assert_eq!(
        (&ready["verdicts"]["passed"], &ready["verdicts"]["rejected"]),
        (&1.into(), &1.into())
    );
    assert_eq!(ready["policy"]["false_rejection_rate_bound"], 0.0078125);
    assert_eq!(ready["minute_so_far"]["rejected"], 1);
    let rejection = &ready["rejections"][0];
    assert_eq!(
        (&rejection["verdict"], &rejection["labels"], &rejection["rows"]),
        (&"rejected".into(), &serde_json::json!({"1": 2}), &2.into())
    );
    let label = &ready["labels"][1];
    assert_eq!((&label["infected"], &label["rejected_rows"]), (&true.into(), &2.into()));
    assert_eq!(ready["artifact"]["created"], "2023-11-14T22:13:20Z");
    assert!(ready["artifact"]["age_seconds"].as_u64() > Some(86_400 * 365));
    let text = page(&setup).await;
    assert!(text.contains("ready, mode enforce") && text.contains("<b>0.78 %</b>"), "{text}");
    assert!(!text.contains("987654321"), "the seed is secret");

    let monitor = config(&setup.upstream.url(), "policy.mode = 'monitor'\npolicy.rule = 'uap'");
    setup.server.handle().reload(&monitor.server).expect("valid settings");
    let reloaded = status(&setup).await;
    assert_eq!(
        (&reloaded["policy"]["mode"], &reloaded["policy"]["rule"]),
        (&"monitor".into(), &"uap".into())
    );
    assert!(
        reloaded["policy"]["false_rejection_rate_bound"].is_null(),
        "no guarantee by this rule"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_for_those_who_come_over_loopback_by_its_name() {
    if models_cannot_be_loaded() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let settings = format!(
        "audit.path = '{}'\naudit.quarantine.directory = '{}'",
        path("audit.jsonl"),
        path("quarantine")
    );
    let setup = Setup::calibrating(&settings).await;
    let (model, artifact) = detection();
    let handle = setup.server.handle();
    tokio::task::spawn_blocking(move || handle.detect(model, artifact)).await.unwrap().unwrap();
    let pictures = async || page(&setup).await.matches("src=\"data:image/png;base64,").count();
    assert_eq!(pictures().await, 1, "the perturbation");
    assert!(page(&setup).await.contains("The quarantine is empty."));

    let body = json!({"inputs": [
        {"name": "x", "shape": [1, 1, 1, 2], "datatype": "FP32", "data": [0.5, 0.0]},
    ]});
    let answer = setup.client.infer(body.to_string()).await;
    assert_eq!(answer.status, 403);
    let id = answer.headers["x-request-id"].to_str().expect("ASCII").to_owned();
    let kept = || std::fs::read_dir(path("quarantine")).is_ok_and(|files| files.count() == 1);
    eventually("the row is in quarantine", kept).await;
    assert_eq!(pictures().await, 2, "and the row");
    assert!(page(&setup).await.contains(&format!("Row 0 of request {id}")));
    // Whose content is another model's, or no row at all.
    std::fs::write(path("quarantine/9999999999999-other-0.npy"), [0; 64]).expect("written");
    assert_eq!(pictures().await, 2);

    let named = [("host", "status.example.org")];
    let answer = setup.admin().send(Method::GET, "/status", &named, "").await;
    let text = String::from_utf8(answer.body.to_vec()).expect("UTF-8");
    assert!(text.contains(&id) && text.contains("kubectl port-forward"));
    assert!(!text.contains("data:"), "{text}");
}
