//! Every way in which a call gets no verdict, or no reply: named, configured, bounded.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::grpc::{GrpcSetup, STREAM, bytes, framed, named, raw_request, tensor_request};
use crate::support::judge::Behaviour;
use crate::support::{CLEAN, TRIGGERED, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn no_verdict_is_a_status_or_a_pass_as_configured() {
    for action in ["pass", "reject"] {
        let every = |settings: &str| {
            let reasons = ["artifact", "deadline", "internal", "overload", "undecodable"];
            let actions =
                reasons.map(|reason| format!("policy.unverified.{reason} = '{action}'\n"));
            actions.concat() + settings
        };
        let check = async |setup: &GrpcSetup, reason: &str, code: Code| {
            let outcome = setup.infer(raw_request(&[TRIGGERED])).await;
            let verdict = match outcome {
                Ok(_) => "unverified_passed",
                Err(status) => {
                    assert_eq!(status.code(), code, "{reason}: {status}");
                    "unverified_rejected"
                }
            };
            assert_eq!(verdict == "unverified_passed", action == "pass", "{reason}");
            assert_eq!(setup.verdicts(verdict), 1.0, "{reason}");
            let name = format!("unverified_total{{reason=\"{reason}\"}}");
            assert_eq!(setup.setup.metric(&name), 1.0);
        };
        let setup = GrpcSetup::calibrating(&every("")).await;
        check(&setup, "artifact", Code::Unavailable).await;
        let setup = GrpcSetup::new(&every("limits.detection_timeout_seconds = 0.05")).await;
        setup.setup.judge.behave(Behaviour::Wait);
        check(&setup, "deadline", Code::DeadlineExceeded).await;
        setup.setup.judge.behave(Behaviour::Answer);
        let setup = GrpcSetup::new(&every("")).await;
        setup.setup.judge.behave(Behaviour::Fail);
        check(&setup, "internal", Code::Unavailable).await;
        let setup = GrpcSetup::new(&every("limits.concurrency = 1")).await;
        setup.setup.judge.behave(Behaviour::Wait);
        let mut client = setup.client.clone();
        let first = tokio::spawn(async move { client.model_infer(raw_request(&[CLEAN])).await });
        eventually("the place is taken", || setup.setup.judge.entered() == 1).await;
        check(&setup, "overload", Code::ResourceExhausted).await;
        setup.setup.judge.behave(Behaviour::Answer);
        first.await.expect("no panic").expect("a reply");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_down_slow_and_back() {
    let mut setup = GrpcSetup::new("upstream.timeout_seconds = 0.3").await;
    setup.infer(raw_request(&[CLEAN])).await.expect("a reply");
    setup.upstream.hold();
    let status = setup.infer(raw_request(&[CLEAN])).await.expect_err("too slow");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert_eq!(setup.upstream.received().len(), 2, "nothing is sent twice");
    // A stream whose client has ended its half waits no longer than a call.
    let body = framed(0, &bytes(&named(CLEAN, "a")));
    let answer = setup.raw.send(STREAM, &[], body.clone()).await;
    assert_eq!(answer.status, 4, "{}", answer.message);
    assert_eq!(setup.setup.metric("upstream_errors_total{reason=\"timeout\"}"), 2.0);

    setup.upstream.stop();
    let closed = || std::net::TcpStream::connect(&setup.upstream.url()["http://".len()..]).is_err();
    eventually("the port is closed", closed).await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(setup.infer(raw_request(&[CLEAN])).await.expect_err("down").code());
    }
    assert_eq!(statuses.last(), Some(&Code::Unavailable), "{statuses:?}");
    assert_eq!(setup.raw.send(STREAM, &[], body).await.status, 14);
    let status = setup.infer(raw_request(&[TRIGGERED])).await.expect_err("a rejection");
    assert_eq!(status.code(), Code::PermissionDenied);
    setup.upstream.release();
    setup.upstream.restart().await;
    setup.infer(raw_request(&[CLEAN])).await.expect("a reply again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_down_is_left_alone_until_a_probe_finds_it_back() {
    let settings = "upstream.breaker_failures = 2\nupstream.breaker_seconds = 1.0";
    let mut setup = GrpcSetup::new(settings).await;
    setup.infer(raw_request(&[CLEAN])).await.expect("a reply");
    setup.upstream.stop();
    let closed = || std::net::TcpStream::connect(&setup.upstream.url()["http://".len()..]).is_err();
    eventually("the port is closed", closed).await;
    for _ in 0..2 {
        let status = setup.infer(raw_request(&[CLEAN])).await.expect_err("down");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(!status.message().contains("too often"), "{status}");
    }
    let open = std::time::Instant::now();
    setup.upstream.restart().await;
    let status = setup.infer(raw_request(&[CLEAN])).await.expect_err("left alone");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("failed too often"), "{status}");
    let stream = framed(0, &bytes(&named(CLEAN, "a")));
    let answer = setup.raw.send(STREAM, &[], stream.clone()).await;
    assert_eq!(answer.status, 14);
    assert!(answer.message.contains("failed too often"), "{}", answer.message);
    // Judged all the same.
    let status = setup.infer(raw_request(&[TRIGGERED])).await.expect_err("a rejection");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(setup.upstream.received().len(), 1, "nobody asks meanwhile");
    assert_eq!(setup.setup.metric("upstream_errors_total{reason=\"open\"}"), 2.0);
    tokio::time::sleep_until((open + std::time::Duration::from_millis(1100)).into()).await;
    // A stream is as good a probe as a call.
    assert_eq!(setup.raw.send(STREAM, &[], stream).await.status, 0);
    for _ in 0..3 {
        setup.infer(raw_request(&[CLEAN])).await.expect("a reply again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_without_an_answer_count_as_failures() {
    let settings = "upstream.timeout_seconds = 0.1\nupstream.breaker_failures = 2";
    let setup = GrpcSetup::new(settings).await;
    setup.upstream.hold();
    let stream = framed(0, &bytes(&named(CLEAN, "a")));
    for _ in 0..2 {
        assert_eq!(setup.raw.send(STREAM, &[], stream.clone()).await.status, 4);
    }
    let status = setup.infer(raw_request(&[CLEAN])).await.expect_err("left alone");
    assert!(status.message().contains("failed too often"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn call_whose_client_is_gone_costs_no_detection() {
    let setup = GrpcSetup::new("").await;
    let (requests, receiver) = mpsc::channel(1);
    requests.send(named(CLEAN, "a")).await.expect("room");
    let mut client = setup.client.clone();
    let replies = client.model_stream_infer(ReceiverStream::new(receiver)).await.expect("a stream");
    eventually("one has passed", || setup.verdicts("passed") == 1.0).await;

    setup.setup.judge.behave(Behaviour::Wait);
    let mut client = setup.client.clone();
    let first = tokio::spawn(async move { client.model_infer(raw_request(&[CLEAN])).await });
    eventually("the detector is busy", || setup.setup.judge.entered() == 2).await;
    // On the same connection: only its stream is reset.
    let mut client = setup.client.clone();
    let second = tokio::spawn(async move { client.model_infer(raw_request(&[CLEAN; 3])).await });
    eventually("queued", || setup.setup.metric("queue_depth") == 4.0).await;
    requests.send(named(CLEAN, "b")).await.expect("room");
    eventually("queued", || setup.setup.metric("queue_depth") == 5.0).await;
    second.abort();
    eventually("counted", || setup.verdicts("refused") == 1.0).await;
    drop((requests, replies));
    eventually("counted", || setup.verdicts("refused") == 2.0).await;
    setup.setup.judge.behave(Behaviour::Answer);
    first.await.expect("no panic").expect("a reply");
    eventually("dropped", || setup.setup.metric("queue_depth") == 0.0).await;
    assert_eq!(setup.setup.judge.batches(), [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_may_be_as_large_as_the_limit() {
    // Above the 4 MiB at which gRPC libraries stop by themselves.
    let setup = GrpcSetup::new("limits.rows = 400000\nlimits.queue_rows = 400000").await;
    let rows = vec![CLEAN; 400_000];
    setup.infer(raw_request(&rows)).await.expect("6.4 MB");
    assert_eq!(setup.upstream.last().1.raw_input_contents[0].len(), 6_400_000);
    let large = tensor_request("FP32", &[1, 1, 2, 2], vec![0; 17 << 20]);
    let status = setup.infer(large).await.expect_err("17 MiB");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}
