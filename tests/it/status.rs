//! What operators see on `/status` and `/status.json`.

use serde_json::Value;

use crate::support::{CLEAN, Setup, TRIGGERED, config, manifest, request};

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
    let label = &ready["labels"][1];
    assert_eq!((&label["infected"], &label["rejected_rows"]), (&true.into(), &2.into()));
    assert_eq!(ready["artifact"]["created"], "2023-11-14T22:13:20Z");
    assert!(ready["artifact"]["age_seconds"].as_u64() > Some(86_400 * 365));
    let text = page(&setup).await;
    assert!(text.contains("ready, mode enforce") && text.contains("At most 0.78 %"), "{text}");
    assert!(!text.contains("987654321"), "the seed is secret");

    let monitor = config(&setup.upstream.url(), "policy.mode = 'monitor'\npolicy.rule = 'uap'");
    setup.server.handle().reload(&monitor).expect("valid settings");
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
