//! Every way in which no verdict, or no answer, can be had: named, configured, bounded.

use std::time::Duration;

use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::judge::Behaviour;
use crate::support::upstream::REPLY;
use crate::support::{
    Answer, CLEAN, Client, INFER, Setup, TRIGGERED, eventually, manifest, request,
};

/// Checks that one request ended for want of a verdict, as configured.
fn check(setup: &Setup, answer: &Answer, reason: &str, action: &str, status: u16) {
    let verdict = match action {
        "pass" => {
            assert_eq!(answer.status, StatusCode::OK, "{reason}");
            assert_eq!(answer.body, REPLY, "{reason}");
            "unverified_passed"
        }
        _ => {
            assert_eq!(answer.status.as_u16(), status, "{reason}");
            assert!(answer.error().contains("request"), "{}", answer.error());
            let retry = answer.headers.contains_key("retry-after");
            assert_eq!(retry, status == 503, "{reason}");
            "unverified_rejected"
        }
    };
    assert_eq!(setup.verdicts(verdict), 1.0, "{reason}");
    let name = format!("unverified_total{{reason=\"{reason}\"}}");
    assert_eq!(setup.metric(&name), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_detector() {
    for action in ["pass", "reject"] {
        let setup = Setup::calibrating(&format!("policy.unverified.artifact = '{action}'")).await;
        let body = request(&[TRIGGERED]);
        let answer = setup.client.infer(body.clone()).await;
        check(&setup, &answer, "artifact", action, 503);
        if action == "pass" {
            assert_eq!(setup.upstream.received()[0].body, body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn detection_too_late() {
    for action in ["pass", "reject"] {
        let setup = Setup::new(&format!(
            "policy.unverified.deadline = '{action}'\nlimits.detection_timeout_seconds = 0.05"
        ))
        .await;
        setup.judge.behave(Behaviour::Wait);
        let answer = setup.client.infer(request(&[CLEAN])).await;
        check(&setup, &answer, "deadline", action, 504);
        setup.judge.behave(Behaviour::Answer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn detection_failed() {
    for behaviour in [Behaviour::Fail, Behaviour::Omit, Behaviour::Panic] {
        for action in ["pass", "reject"] {
            let setup = Setup::new(&format!("policy.unverified.internal = '{action}'")).await;
            setup.judge.behave(behaviour);
            let answer = setup.client.infer(request(&[CLEAN])).await;
            check(&setup, &answer, "internal", action, 503);
            // And the thread lives on.
            setup.judge.behave(Behaviour::Answer);
            let answer = setup.client.infer(request(&[TRIGGERED])).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_request() {
    for action in ["pass", "reject"] {
        let setup = Setup::new(&format!("policy.unverified.undecodable = '{action}'")).await;
        let answer = setup.client.infer("{").await;
        check(&setup, &answer, "undecodable", action, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_full() {
    for action in ["pass", "reject"] {
        let setup = Setup::new(&format!(
            "policy.unverified.overload = '{action}'\nlimits.rows = 2\nlimits.queue_rows = 2"
        ))
        .await;
        setup.judge.behave(Behaviour::Wait);
        let client = setup.client.clone();
        let first = tokio::spawn(async move { client.infer(request(&[CLEAN, CLEAN])).await });
        eventually("the queue is full", || setup.judge.entered() == 1).await;
        assert_eq!(setup.metric("queue_depth"), 2.0);
        let answer = setup.client.infer(request(&[CLEAN])).await;
        check(&setup, &answer, "overload", action, 503);
        setup.judge.behave(Behaviour::Answer);
        assert_eq!(first.await.expect("no panic").status, StatusCode::OK);
        assert_eq!(setup.metric("queue_depth"), 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_limit_reached() {
    for action in ["pass", "reject"] {
        let setup =
            Setup::new(&format!("policy.unverified.overload = '{action}'\nlimits.concurrency = 1"))
                .await;
        setup.judge.behave(Behaviour::Wait);
        let client = setup.client.clone();
        let first = tokio::spawn(async move { client.infer(request(&[CLEAN])).await });
        eventually("the place is taken", || setup.judge.entered() == 1).await;
        let answer = setup.client.infer(request(&[CLEAN])).await;
        check(&setup, &answer, "overload", action, 503);
        // Probes of the model server still pass.
        assert_eq!(setup.client.get("/v2/health/ready").await.body, REPLY);
        setup.judge.behave(Behaviour::Answer);
        assert_eq!(first.await.expect("no panic").status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_requests_are_joined_into_one_batch() {
    let setup = Setup::new("limits.batch_rows = 4\nlimits.rows = 6").await;
    setup.judge.behave(Behaviour::Wait);
    let mut tasks = Vec::new();
    let bodies = [
        request(&[CLEAN]),
        request(&[CLEAN]),
        request(&[TRIGGERED]),
        request(&[CLEAN, CLEAN]),
        request(&[CLEAN; 6]),
        request(&[CLEAN]),
    ];
    let mut rows = 0.0;
    for (number, body) in bodies.into_iter().enumerate() {
        let client = setup.client.clone();
        tasks.push(tokio::spawn(async move { client.infer(body).await.status }));
        rows += [1.0, 1.0, 1.0, 2.0, 6.0, 1.0][number];
        eventually("queued in order", || setup.metric("queue_depth") == rows).await;
        eventually("the first is alone", || setup.judge.entered() == 1).await;
    }
    setup.judge.behave(Behaviour::Answer);
    let mut statuses = Vec::new();
    for task in tasks {
        statuses.push(task.await.expect("no panic").as_u16());
    }
    assert_eq!(statuses, [200, 200, 403, 200, 200, 200]);
    // 1 + 1 + 2 rows fill a batch of 4; six rows are more than a batch and are judged alone.
    assert_eq!(setup.judge.batches(), [1, 4, 6, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_whose_client_is_gone_costs_no_detection() {
    let setup = Setup::new("").await;
    setup.judge.behave(Behaviour::Wait);
    let client = setup.client.clone();
    let first = tokio::spawn(async move { client.infer(request(&[CLEAN])).await });
    eventually("the detector is busy", || setup.judge.entered() == 1).await;
    // A client of its own: aborting drops its connection.
    let gone = Client::new(&format!("http://{}", setup.server.proxy_addr()));
    let second = tokio::spawn(async move { gone.infer(request(&[CLEAN; 3])).await });
    eventually("queued", || setup.metric("queue_depth") == 4.0).await;
    second.abort();
    eventually("counted", || setup.verdicts("refused") == 1.0).await;
    setup.judge.behave(Behaviour::Answer);
    assert_eq!(first.await.expect("no panic").status, StatusCode::OK);
    eventually("dropped", || setup.metric("queue_depth") == 0.0).await;
    assert_eq!(setup.judge.batches(), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn body_too_large() {
    let setup = Setup::new("limits.body_bytes = 100\npolicy.mode = 'monitor'").await;
    let answer = setup.client.infer(vec![b' '; 101]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.error().contains("100 bytes"));
    let chunk = " ".repeat(101);
    let chunked = format!(
        "POST {INFER} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n65\r\n{chunk}\r\n"
    );
    let answer = setup.raw(&chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // The length is enough, the body need not come.
    let announced = format!(
        "POST {INFER} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 101\r\n\r\n"
    );
    let answer = setup.raw(&announced).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(setup.verdicts("refused"), 3.0);
    assert_eq!(setup.upstream.received().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_sends_far_too_much_still_reads_why() {
    let setup = Setup::new("limits.body_bytes = 100").await;
    let body = vec![b' '; 8 << 20];
    let answer = setup.client.infer(body.clone()).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    // As a client in blocking style does: all of the request, then the answer.
    let mut stream = TcpStream::connect(setup.proxy_tcp()).await.expect("a listener");
    let head =
        format!("POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&body).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_body() {
    let setup = Setup::new("limits.body_timeout_seconds = 0.05").await;
    let slow = format!("POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{{");
    let answer = setup.raw(&slow).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(setup.verdicts("refused"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_down_and_back() {
    let mut setup = Setup::new("").await;
    assert_eq!(setup.client.get("/v2").await.status, StatusCode::OK);
    setup.upstream.stop().await;
    // The connection that was kept alive has to go first.
    eventually("the port is closed", || {
        std::net::TcpStream::connect(&setup.upstream.url()["http://".len()..]).is_err()
    })
    .await;
    let mut down = setup.client.infer(request(&[CLEAN])).await;
    if down.status == StatusCode::OK {
        down = setup.client.infer(request(&[CLEAN])).await;
    }
    assert_eq!(down.status, StatusCode::BAD_GATEWAY);
    assert!(down.error().contains("upstream"), "{}", down.error());
    // A trigger is turned away all the same.
    let answer = setup.client.infer(request(&[TRIGGERED])).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    setup.upstream.restart().await;
    let answer = setup.client.infer(request(&[CLEAN])).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_fails_again_and_again_is_left_alone_for_a_while() {
    let settings = "upstream.timeout_seconds = 0.1\nupstream.breaker_failures = 2\n\
                    upstream.breaker_seconds = 1.0";
    let setup = Setup::new(settings).await;
    setup.upstream.hold();
    for _ in 0..2 {
        let answer = setup.client.infer(request(&[CLEAN])).await;
        assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    }
    let open = std::time::Instant::now();
    let answer = setup.client.infer(request(&[CLEAN])).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(answer.error().contains("failed too often"), "{}", answer.error());
    // Judged all the same.
    let answer = setup.client.infer(request(&[TRIGGERED])).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(setup.upstream.received().len(), 2, "nobody asks meanwhile");
    assert_eq!(setup.metric("upstream_errors_total{reason=\"open\"}"), 1.0);
    setup.upstream.release();
    tokio::time::sleep_until((open + std::time::Duration::from_millis(1100)).into()).await;
    for _ in 0..3 {
        assert_eq!(setup.client.infer(request(&[CLEAN])).await.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_too_slow() {
    let setup = Setup::new("upstream.timeout_seconds = 0.1").await;
    setup.upstream.hold();
    let answer = setup.client.infer(request(&[CLEAN])).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(answer.error().contains("upstream"), "{}", answer.error());
    let answer = setup.client.get("/v2").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(setup.metric("upstream_errors_total{reason=\"timeout\"}"), 2.0);
    assert_eq!(setup.upstream.received().len(), 2, "nothing is sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_requests_in_flight() {
    let setup = Setup::new("").await;
    setup.judge.behave(Behaviour::Wait);
    let address = setup.proxy_tcp();
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    let body = request(&[CLEAN]);
    let head =
        format!("POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.expect("sent");
    eventually("in flight", || setup.judge.entered() == 1).await;
    let admin = setup.admin();
    let Setup { server, judge, upstream: _upstream, .. } = setup;
    let handle = server.handle();
    let shutdown = tokio::spawn(server.shutdown());
    // Probes see the drain while it lasts, on a connection of their own.
    let mut refused = false;
    for _ in 0..200 {
        refused = TcpStream::connect(address).await.is_err();
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(refused, "no new connections");
    let ready = admin.get("/readyz").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.body.starts_with(b"draining"));
    assert!(handle.ready(judge.clone(), &manifest()).is_err());
    assert!(!shutdown.is_finished());
    judge.behave(Behaviour::Answer);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(answer.ends_with(REPLY), "{answer}");
    assert!(shutdown.await.expect("no panic").is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains() {
    let setup = Setup::new("").await;
    setup.judge.behave(Behaviour::Wait);
    let client = setup.client.clone();
    let in_flight = tokio::spawn(async move { client.infer(request(&[CLEAN])).await });
    eventually("in flight", || setup.judge.entered() == 1).await;
    let mut run = Box::pin(setup.server.run_until_signal());
    // Polled once, it has the signal's handler installed.
    let early = tokio::time::timeout(Duration::from_millis(20), &mut run).await;
    assert!(early.is_err(), "no signal yet");
    let status = std::process::Command::new("kill")
        .args(["-TERM", &std::process::id().to_string()])
        .status();
    assert!(status.expect("kill").success());
    let draining = tokio::time::timeout(Duration::from_millis(600), &mut run).await;
    assert!(draining.is_err(), "a request is in flight");
    setup.judge.behave(Behaviour::Answer);
    run.await.expect("a drain in time");
    assert_eq!(in_flight.await.expect("no panic").body, REPLY);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_under_load_loses_no_request() {
    let setup = Setup::new("").await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let client = Client::new(&format!("http://{}", setup.server.proxy_addr()));
        // Until an answer closes the connection; a request without an answer is a lost one.
        tasks.push(tokio::spawn(async move {
            let mut answered = 0;
            loop {
                let answer = client.infer(request(&[CLEAN])).await;
                assert_eq!(answer.status, StatusCode::OK);
                answered += 1;
                if answer.headers.contains_key("connection") {
                    break;
                }
            }
            answered
        }));
    }
    eventually("under load", || setup.verdicts("passed") > 50.0).await;
    let metrics = setup.server.handle();
    setup.server.shutdown().await.expect("a drain in time");
    let mut answered = 0;
    for task in tasks {
        answered += task.await.expect("no request is lost");
    }
    let page = metrics.metrics().page().expect("a page");
    let line = format!("verdict=\"passed\"}} {answered}\n");
    assert!(page.contains(&line), "{answered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_that_takes_too_long_says_so() {
    let setup = Setup::new("limits.drain_timeout_seconds = 0.05").await;
    setup.judge.behave(Behaviour::Wait);
    let client = setup.client.clone();
    let request = tokio::spawn(async move { client.infer(request(&[CLEAN])).await });
    eventually("in flight", || setup.judge.entered() == 1).await;
    let error = setup.server.shutdown().await.expect_err("one in flight");
    assert!(error.to_string().contains("50ms"), "{error}");
    setup.judge.behave(Behaviour::Answer);
    request.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_detector() {
    let setup = Setup::calibrating("").await;
    let admin = setup.admin();
    assert_eq!(admin.get("/livez").await.status, StatusCode::OK);
    let ready = admin.get("/readyz").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.body.starts_with(b"calibrating"));
    // The life of the upstream does not wait for the detector; that it is ready would be no use.
    assert_eq!(setup.client.get("/v2/health/live").await.body, REPLY);
    let ready = setup.client.get("/v2/health/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    setup.server.ready(setup.judge.clone(), &manifest()).expect("the first detector");
    assert_eq!(admin.get("/readyz").await.status, StatusCode::OK);
    let page = admin.get("/metrics").await;
    let kind = page.headers["content-type"].to_str().expect("text");
    assert!(kind.starts_with("text/plain"), "{kind}");
    assert!(page.body.starts_with(b"# HELP"));
    let other = admin.send(Method::POST, "/readyz", &[], "").await;
    assert_eq!(other.status, StatusCode::METHOD_NOT_ALLOWED);
}
