//! Spans of requests: what a collector gets, what the upstream is told, and that no request waits for either.

use std::collections::BTreeMap;

use hyper::Method;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;

use crate::support::{CLEAN, FakeUpstream, INFER, Setup, TRIGGERED, config, request};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

type Attributes = BTreeMap<String, String>;

async fn traced(collector: &FakeUpstream, more: &str) -> Setup {
    Setup::new(&format!("telemetry.otlp.endpoint = '{}'\n{more}", collector.url())).await
}

/// Ends the firewall, which sends what is left; the spans in all batches, and the resource's attributes.
async fn end(setup: Setup, collector: &FakeUpstream) -> (Vec<Span>, Attributes) {
    setup.server.shutdown().await.expect("a drain in time");
    let (mut spans, mut resource) = (Vec::new(), Attributes::new());
    for batch in collector.received() {
        assert_eq!((batch.method, batch.path.as_str()), (Method::POST, "/v1/traces"));
        assert_eq!(batch.headers["content-type"], "application/x-protobuf");
        let batch = ExportTraceServiceRequest::decode(batch.body).expect("OTLP");
        for of_resource in batch.resource_spans {
            resource = attributes(&of_resource.resource.expect("a resource").attributes);
            spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    (spans, resource)
}

fn attributes(pairs: &[KeyValue]) -> Attributes {
    let text = |pair: &KeyValue| match pair.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    };
    pairs.iter().filter_map(|pair| Some((pair.key.clone(), text(pair)?))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans of requests, in the order of their start.
fn roots(spans: &[Span]) -> Vec<&Span> {
    let mut roots: Vec<_> = spans.iter().filter(|span| span.kind() == SpanKind::Server).collect();
    roots.sort_by_key(|span| span.start_time_unix_nano);
    roots
}

fn child<'a>(spans: &'a [Span], root: &Span, name: &str) -> &'a Span {
    let mut found =
        spans.iter().filter(|span| span.parent_span_id == root.span_id && span.name == name);
    let child = found.next().unwrap_or_else(|| panic!("{name}: none"));
    assert!(found.next().is_none(), "{name}: two");
    assert_eq!(child.trace_id, root.trace_id);
    let within = root.start_time_unix_nano..=root.end_time_unix_nano;
    let ends = [child.start_time_unix_nano, child.end_time_unix_nano];
    // Two clocks are read one after the other.
    let slack = 5_000_000;
    assert!(ends[0] + slack >= *within.start() && ends[1] <= within.end() + slack, "{name}");
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_a_span_of_its_clients_trace_and_the_upstreams_parent() {
    let collector = FakeUpstream::start().await;
    let setup = traced(&collector, "model.name = 'm'").await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", parent.as_str()), ("tracestate", "a=1"), ("x-request-id", "r1")];
    setup.client.send(Method::POST, INFER, &headers, request(&[CLEAN])).await;
    setup.client.infer(request(&[CLEAN, TRIGGERED])).await;
    setup.client.infer("{").await;
    setup.client.get("/v2").await;
    let passed = setup.upstream.of("x-request-id", "r1").headers;
    let (spans, resource) = end(setup, &collector).await;

    assert_eq!(resource["service.name"], "doorward");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    let roots = roots(&spans);
    let verdicts: Vec<_> =
        roots.iter().map(|root| attributes(&root.attributes)["doorward.verdict"].clone()).collect();
    assert_eq!(verdicts, ["passed", "rejected", "unverified_rejected", "bypassed"]);
    let first = roots[0];
    assert_eq!((hex(&first.trace_id), hex(&first.parent_span_id)), (TRACE.into(), CALLER.into()));
    assert_eq!(passed["traceparent"], format!("00-{TRACE}-{}-01", hex(&first.span_id)).as_str());
    assert_eq!(passed["tracestate"], "a=1");
    assert_eq!(first.name, "oip_http");
    let expected = [
        ("doorward.model", "m"),
        ("doorward.rejected_rows", "0"),
        ("doorward.request_id", "r1"),
        ("doorward.rows", "1"),
        ("doorward.verdict", "passed"),
    ];
    assert_eq!(attributes(&first.attributes), expected.map(|(k, v)| (k.into(), v.into())).into());
    assert_eq!(child(&spans, first, "upstream").kind(), SpanKind::Client);
    assert_eq!(child(&spans, first, "detection").kind(), SpanKind::Internal);

    let rejected = roots[1];
    assert!(rejected.parent_span_id.is_empty() && rejected.trace_id != first.trace_id);
    assert_eq!(attributes(&rejected.attributes)["doorward.rejected_rows"], "1");
    child(&spans, rejected, "detection");
    let refused = attributes(&roots[2].attributes);
    assert_eq!(refused["doorward.reason"], "undecodable");
    assert!(refused["doorward.detail"].contains("EOF"), "{refused:?}");
    // A client's mistake is none of the server's.
    assert!(
        roots.iter().all(|root| root.status.as_ref().is_none_or(|s| s.code() == StatusCode::Unset))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_upstream_are_errors() {
    let collector = FakeUpstream::start().await;
    let mut setup = traced(&collector, "").await;
    setup.upstream.stop().await;
    setup.client.infer(request(&[CLEAN])).await;
    let (spans, _) = end(setup, &collector).await;
    let root = roots(&spans)[0];
    for span in [root, child(&spans, root, "upstream")] {
        let status = span.status.as_ref().expect("a status");
        assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "unreachable"));
        assert_eq!(attributes(&span.attributes)["error.type"], "unreachable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sampled_leaves_no_span_and_no_mark() {
    let collector = FakeUpstream::start().await;
    let setup = traced(&collector, "telemetry.otlp.sample_ratio = 0").await;
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    let sampled = format!("00-{TRACE}-{CALLER}-01");
    for parent in [&unsampled, &sampled] {
        let headers = [("traceparent", parent.as_str())];
        setup.client.send(Method::POST, INFER, &headers, request(&[CLEAN])).await;
    }
    setup.client.infer(request(&[CLEAN])).await;
    let received = setup.upstream.received();
    assert_eq!(received[0].headers["traceparent"], unsampled.as_str());
    assert_ne!(received[1].headers["traceparent"], sampled.as_str());
    assert!(!received[2].headers.contains_key("traceparent"));
    let (spans, _) = end(setup, &collector).await;
    assert_eq!(roots(&spans).len(), 1, "the caller's decision stands");
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_parents_are_replaced_with_what_vendors_said_of_them() {
    let collector = FakeUpstream::start().await;
    let setup = traced(&collector, "").await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers =
        [("traceparent", parent.as_str()), ("traceparent", parent.as_str()), ("tracestate", "a=1")];
    setup.client.send(Method::POST, INFER, &headers, request(&[CLEAN])).await;
    let received = setup.upstream.last().headers;
    let (spans, _) = end(setup, &collector).await;
    let root = roots(&spans)[0];
    let made = format!("00-{}-{}-01", hex(&root.trace_id), hex(&root.span_id));
    let given: Vec<_> = received.get_all("traceparent").iter().collect();
    assert_eq!(given, [made.as_str()]);
    assert!(!received.contains_key("tracestate") && root.parent_span_id.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_stuck_costs_spans_and_no_request() {
    let mut collector = FakeUpstream::start().await;
    collector.stop().await;
    let setup = traced(&collector, "").await;
    for _ in 0..100 {
        assert_eq!(setup.client.infer(request(&[CLEAN])).await.status, 200);
    }
    let metrics = std::sync::Arc::clone(setup.server.metrics());
    end(setup, &collector).await;
    let count = |result| metrics.spans().with_label_values(&[result]).get();
    assert_eq!((count("exported"), count("failed"), count("dropped")), (0, 300, 0));

    collector.restart().await;
    collector.hold();
    let setup = traced(&collector, "").await;
    let metrics = std::sync::Arc::clone(setup.server.metrics());
    let count = |result| metrics.spans().with_label_values(&[result]).get();
    let mut requests = 0;
    while count("dropped") == 0 && requests < 3000 {
        assert_eq!(setup.client.infer(request(&[CLEAN])).await.status, 200);
        requests += 1;
    }
    assert!(3 * requests > 2048, "{requests}");
    collector.release();
    end(setup, &collector).await;
    assert!(count("dropped") > 0);
    assert_eq!(count("exported") + count("failed") + count("dropped"), 3 * requests);
}

#[test]
fn endpoints_that_are_none_are_quoted() {
    for (written, expected) in [
        ("telemetry.otlp.endpoint = 'collector:4317'", "collector:4317"),
        ("telemetry.otlp.endpoint = 'ftp://collector'", "ftp://collector"),
        ("telemetry.otlp.endpoint = 'http://collector/?x=1'", "http://collector/?x=1"),
        ("telemetry.otlp.sample_ratio = 1.5", "1.5"),
    ] {
        let error = std::panic::catch_unwind(|| config("http://127.0.0.1:1", written));
        let error = error.expect_err("no settings");
        let text = error.downcast_ref::<String>().expect("a message");
        assert!(text.contains(expected) && text.contains("telemetry.otlp"), "{text}");
    }
}
