//! Streams of inferences: each message judged by itself.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::grpc::inference::*;
use crate::support::grpc::{GrpcSetup, STREAM, bytes, framed, gzip, named, raw_request};
use crate::support::judge::{Behaviour, SCORE};
use crate::support::{CLEAN, TRIGGERED, eventually};

/// Opens a stream; what is sent in goes to the firewall.
async fn stream(
    setup: &GrpcSetup,
) -> (mpsc::Sender<ModelInferRequest>, tonic::Streaming<ModelStreamInferResponse>) {
    let (sender, receiver) = mpsc::channel(8);
    // The answer may begin no earlier than the first reply.
    let mut client = setup.client.clone();
    sender.send(named(CLEAN, "first")).await.expect("room");
    let replies = client.model_stream_infer(ReceiverStream::new(receiver)).await.expect("a stream");
    let mut replies = replies.into_inner();
    let first = replies.message().await.expect("a reply").expect("a reply");
    assert_eq!(first.infer_response.expect("a reply").id, "first");
    (sender, replies)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_of_a_stream_is_judged_by_itself() {
    let setup = GrpcSetup::new("model.name = 'm'").await;
    let (requests, mut replies) = stream(&setup).await;
    let mut send = async |request: ModelInferRequest| {
        requests.send(request).await.expect("room");
        replies.message().await.expect("the stream goes on").expect("a reply")
    };
    let rejected = send(named(TRIGGERED, "bad")).await;
    assert!(rejected.error_message.contains("row 0"), "{}", rejected.error_message);
    assert!(!rejected.error_message.contains(&SCORE.to_string()));
    assert_eq!(rejected.infer_response.expect("whose it is").id, "bad");
    let mut both = named(CLEAN, "both");
    both.inputs[0].contents = Some(InferTensorContents::default());
    assert!(send(both).await.error_message.contains("both"));
    let mut other = named(CLEAN, "other");
    other.model_name = "other".to_owned();
    assert!(send(other).await.error_message.contains("no such model"));
    let passed = send(named(CLEAN, "good")).await;
    assert_eq!(passed.error_message, "");
    let reply = bytes(&passed.infer_response.expect("a reply"));
    assert_eq!(reply, bytes(&crate::support::grpc::reply(&named(CLEAN, "good"))));
    drop(requests);
    assert!(replies.message().await.expect("a good end").is_none());
    let ids: Vec<String> =
        setup.upstream.received().into_iter().map(|request| request.id).collect();
    assert_eq!(ids, ["first", "good"]);
    for (verdict, count) in
        [("passed", 2.0), ("rejected", 1.0), ("unverified_rejected", 1.0), ("refused", 1.0)]
    {
        assert_eq!(setup.verdicts(verdict), count, "{verdict}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_may_begin_with_a_rejection_or_be_one_only() {
    let setup = GrpcSetup::new("").await;
    let body = [framed(0, &bytes(&named(TRIGGERED, "a"))), framed(0, &bytes(&named(CLEAN, "b")))];
    let answer = setup.raw.send(STREAM, &[], body.concat()).await;
    assert_eq!(answer.status, 0, "{}", answer.message);
    assert!(answer.headers.contains_key("x-request-id"));
    assert_eq!(setup.upstream.received().len(), 1);
    let only = setup.raw.send(STREAM, &[], framed(0, &bytes(&named(TRIGGERED, "a")))).await;
    assert_eq!(only.status, 0, "{}", only.message);
    let id = only.headers["x-request-id"].to_str().expect("text");
    let text = String::from_utf8_lossy(&only.body).into_owned();
    assert!(text.contains(&format!("(request {id}.0)")), "{text}");
    // None at all.
    assert_eq!(setup.raw.send(STREAM, &[], "").await.status, 0);
    // Frames that are none end the stream, as nothing behind them can be read.
    for (body, status, reason) in [
        (framed(2, b""), 3, "flag"),
        (vec![0, 0, 0, 0, 9, 1], 3, "broke off"),
        (vec![0, 0xff, 0, 0, 0], 8, "at most"),
    ] {
        let body = [framed(0, &bytes(&named(CLEAN, "b"))), body].concat();
        let answer = setup.raw.send(STREAM, &[], body).await;
        assert_eq!(answer.status, status, "{}", answer.message);
        assert!(answer.message.contains(reason), "{}", answer.message);
    }
    assert_eq!(setup.verdicts("refused"), 3.0);
    // Each message may be compressed by itself.
    let body =
        [framed(1, &gzip(&bytes(&named(CLEAN, "c")))), framed(0, &bytes(&named(CLEAN, "d")))];
    let answer = setup.raw.send(STREAM, &[("grpc-encoding", "gzip")], body.concat()).await;
    assert_eq!(answer.status, 0, "{}", answer.message);
    assert_eq!(setup.upstream.last().1.id, "d");
}

#[tokio::test(flavor = "multi_thread")]
async fn monitored_stream_passes_everything_on() {
    let setup = GrpcSetup::new("policy.mode = 'monitor'").await;
    let mut odd = named(CLEAN, "odd");
    odd.raw_input_contents.push(Vec::new());
    let body = [framed(0, &bytes(&named(TRIGGERED, "a"))), framed(1, &gzip(&bytes(&odd)))].concat();
    let answer = setup.raw.send(STREAM, &[("grpc-encoding", "gzip")], body).await;
    assert_eq!(answer.status, 0, "{}", answer.message);
    assert_eq!(setup.upstream.received(), [named(TRIGGERED, "a"), odd]);
    assert_eq!((setup.verdicts("flagged"), setup.verdicts("unverified_passed")), (1.0, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_finishes_calls_and_ends_idle_streams() {
    let setup = GrpcSetup::new("").await;
    let (_requests, mut replies) = stream(&setup).await;
    setup.setup.judge.behave(Behaviour::Wait);
    let mut client = setup.client.clone();
    let call = tokio::spawn(async move { client.model_infer(raw_request(&[CLEAN])).await });
    eventually("in flight", || setup.setup.judge.entered() == 2).await;
    let judge = setup.setup.judge.clone();
    let GrpcSetup { setup, upstream: _upstream, .. } = setup;
    let shutdown = tokio::spawn(setup.server.shutdown());
    let status = replies.message().await.expect_err("the stream ends");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("shutting down"), "{status}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!shutdown.is_finished(), "a call is in flight");
    judge.behave(Behaviour::Answer);
    call.await.expect("no panic").expect("a reply");
    shutdown.await.expect("no panic").expect("a drain in time");
}
