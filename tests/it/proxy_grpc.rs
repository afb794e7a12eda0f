//! What gRPC clients and the upstream see of the request path.

use half::{bf16, f16};
use tonic::{Code, Request};

use crate::support::grpc::inference::infer_parameter::ParameterChoice;
use crate::support::grpc::inference::model_infer_request::InferRequestedOutputTensor;
use crate::support::grpc::inference::*;
use crate::support::grpc::{
    GrpcSetup, INFER, bytes, field, framed, gzip, parameter, raw_request, reply, tensor_request,
    typed_request,
};
use crate::support::judge::{Behaviour, SCORE};
use crate::support::{CLEAN, TRIGGERED, config, eventually, manifest};

#[tokio::test(flavor = "multi_thread")]
async fn clean_call_gets_the_upstreams_exact_reply_and_raw_contents_stay_untouched() {
    let setup = GrpcSetup::new("").await;
    let mut request = raw_request(&[CLEAN, [-0.0, 1e-40, 0.1, 1.0]]);
    request.parameters.insert("priority".to_owned(), parameter(ParameterChoice::Uint64Param(3)));
    request.inputs[0]
        .parameters
        .insert("scale".to_owned(), parameter(ParameterChoice::DoubleParam(0.1)));
    request.outputs.push(InferRequestedOutputTensor {
        name: "y".to_owned(),
        parameters: [("classification".to_owned(), parameter(ParameterChoice::Int64Param(2)))]
            .into(),
    });
    let mut call = Request::new(request.clone());
    call.metadata_mut().insert("x-request-id", "given-1".parse().expect("a value"));
    call.metadata_mut().insert("ce-source", "tests".parse().expect("a value"));
    let answer = setup.client.clone().model_infer(call).await.expect("a reply");
    assert_eq!(answer.metadata().get("x-model").expect("the upstream's"), "m");
    assert_eq!(answer.metadata().get("x-request-id").expect("ours"), "given-1");
    // NaN is not equal to itself.
    assert_eq!(bytes(answer.get_ref()), bytes(&reply(&request)));
    let (metadata, received) = setup.upstream.last();
    assert_eq!(received, request);
    assert_eq!(metadata.get("x-request-id").expect("passed on"), "given-1");
    assert_eq!(metadata.get("ce-source").expect("passed on"), "tests");
    assert_eq!(setup.verdicts("passed"), 1.0);
    assert_eq!(setup.setup.metric("rows_total{verdict=\"passed\"}"), 2.0);
    assert_eq!(setup.setup.metric("upstream_seconds_count"), 1.0);
    assert_eq!(setup.setup.metric("added_seconds_count"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn triggered_call_is_rejected_by_its_rows_without_a_score() {
    let setup = GrpcSetup::new("").await;
    let rows = [CLEAN, TRIGGERED, CLEAN, TRIGGERED];
    let mut call = Request::new(raw_request(&rows));
    call.metadata_mut().insert("x-request-id", "given-2".parse().expect("a value"));
    let status = setup.client.clone().model_infer(call).await.expect_err("a rejection");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("rows 1, 3"), "{status}");
    assert!(status.message().contains("given-2"), "{status}");
    assert!(!status.message().contains(&SCORE.to_string()), "{status}");
    assert_eq!(status.metadata().get("x-request-id").expect("ours"), "given-2");
    assert_eq!(setup.verdicts("rejected"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reply_is_held_until_the_verdict() {
    let setup = GrpcSetup::new("").await;
    setup.setup.judge.behave(Behaviour::Wait);
    let mut client = setup.client.clone();
    let waiting = tokio::spawn(async move { client.model_infer(raw_request(&[TRIGGERED])).await });
    eventually("the upstream is asked at once", || setup.upstream.received().len() == 1).await;
    assert!(!waiting.is_finished());
    setup.setup.judge.behave(Behaviour::Answer);
    let status = waiting.await.expect("no panic").expect_err("a rejection");
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_datatype_is_judged_as_the_model_sees_it() {
    let setup = GrpcSetup::new("").await;
    type Encode = fn(f32) -> Vec<u8>;
    let encode: [(&str, Encode); 4] = [
        ("FP32", |value| value.to_le_bytes().to_vec()),
        ("FP64", |value| f64::from(value).to_le_bytes().to_vec()),
        ("FP16", |value| f16::from_f32(value).to_le_bytes().to_vec()),
        ("BF16", |value| bf16::from_f32(value).to_le_bytes().to_vec()),
    ];
    for (row, code) in [(CLEAN, Code::Ok), (TRIGGERED, Code::PermissionDenied)] {
        let mut requests: Vec<_> = encode
            .iter()
            .map(|(datatype, encode)| {
                let raw = row.into_iter().flat_map(encode).collect();
                tensor_request(datatype, &[1, 1, 2, 2], raw)
            })
            .collect();
        let contents = InferTensorContents { fp32_contents: row.to_vec(), ..Default::default() };
        requests.push(typed_request("FP32", contents));
        let fp64_contents = row.map(f64::from).to_vec();
        let contents = InferTensorContents { fp64_contents, ..Default::default() };
        requests.push(typed_request("FP64", contents));
        for request in requests {
            let outcome = setup.infer(request.clone()).await.map_err(|status| status.code());
            assert_eq!(outcome.err().unwrap_or(Code::Ok), code, "{request:?}");
            if code == Code::Ok {
                assert_eq!(setup.upstream.last().1, request);
            }
        }
    }
    for (row, code) in [
        ([0_u8, 1, 1, 0], Code::Ok),
        ([1, 0, 0, 0], Code::PermissionDenied),
        ([2, 0, 0, 0], Code::InvalidArgument),
    ] {
        let int_contents = row.map(i32::from).to_vec();
        let uint_contents = row.map(u32::from).to_vec();
        for request in [
            tensor_request("INT8", &[1, 1, 2, 2], row.to_vec()),
            tensor_request("UINT8", &[1, 1, 2, 2], row.to_vec()),
            typed_request("INT8", InferTensorContents { int_contents, ..Default::default() }),
            typed_request("UINT8", InferTensorContents { uint_contents, ..Default::default() }),
        ] {
            let outcome = setup.infer(request.clone()).await.map_err(|status| status.code());
            assert_eq!(outcome.err().unwrap_or(Code::Ok), code, "{request:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_pass_and_everything_else_is_refused() {
    let setup = GrpcSetup::new("model.name = 'm'").await;
    let mut client = setup.client.clone();
    assert!(client.server_live(ServerLiveRequest {}).await.expect("live").into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.expect("ready").into_inner().ready);
    let name = || "m".to_owned();
    let model = ModelReadyRequest { name: name(), version: "2".to_owned() };
    assert!(client.model_ready(model).await.expect("ready").into_inner().ready);
    let server = client.server_metadata(ServerMetadataRequest {}).await.expect("metadata");
    assert_eq!(server.into_inner().extensions, ["statistics"]);
    let model = ModelMetadataRequest { name: name(), version: "2".to_owned() };
    let metadata = client.model_metadata(model).await.expect("metadata").into_inner();
    assert_eq!((metadata.name, metadata.versions), (name(), vec!["2".to_owned()]));
    let model = ModelConfigRequest { name: name(), version: String::new() };
    let config = client.model_config(model).await.expect("a configuration").into_inner();
    assert_eq!(config.config, b"\x0a\x01m");
    let model = ModelStatisticsRequest { name: name(), version: String::new() };
    let status = client.model_statistics(model).await.expect_err("the upstream's");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no statistics: 50 %"));
    assert_eq!(setup.verdicts("bypassed"), 7.0);

    // Of another model, nothing.
    let other = || "other".to_owned();
    let model = ModelReadyRequest { name: other(), version: String::new() };
    assert_eq!(client.model_ready(model).await.expect_err("another").code(), Code::NotFound);
    let mut request = raw_request(&[CLEAN]);
    request.model_name = other();
    assert_eq!(setup.infer(request).await.expect_err("another").code(), Code::NotFound);
    let hidden = [bytes(&raw_request(&[CLEAN])), field(1, b"other")].concat();
    assert_eq!(setup.raw.infer(hidden).await.status, 5);

    let refused = [
        "/inference.GRPCInferenceService/SystemSharedMemoryRegister",
        "/inference.GRPCInferenceService/CudaSharedMemoryRegister",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/TraceSetting",
        "/inference.GRPCInferenceService/Modelinfer",
        "/inference.GRPCInferenceService/ModelInfer/",
        "/inference.GRPCInferenceService/ModelInfer?x=1",
        "/inference.GRPCInferenceService/%4dodelInfer",
        "//inference.GRPCInferenceService/ModelInfer",
        "/inference.grpcinferenceservice/ModelInfer",
        "/other.GRPCInferenceService/ModelInfer",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/v2/models/m/infer",
        "/",
    ];
    for path in refused {
        let answer = setup.raw.send(path, &[], framed(0, &bytes(&raw_request(&[CLEAN])))).await;
        assert_eq!(answer.status, 12, "{path}: {}", answer.message);
        assert!(answer.message.contains("no such call"), "{path}: {}", answer.message);
    }
    assert_eq!(setup.verdicts("refused"), 3.0 + refused.len() as f64);
    assert_eq!(setup.upstream.received().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn monitor_mode_flags_and_changes_nothing() {
    let setup = GrpcSetup::new("policy.mode = 'monitor'\nmodel.name = 'm'").await;
    setup.infer(raw_request(&[TRIGGERED])).await.expect("flagged only");
    assert_eq!(setup.verdicts("flagged"), 1.0);
    // What cannot be judged goes on byte for byte, compression and all.
    let odd = [bytes(&raw_request(&[CLEAN])), field(7, b"odd")].concat();
    let headers = [("grpc-encoding", "gzip")];
    let answer = setup.raw.send(INFER, &headers, framed(1, &gzip(&odd))).await;
    assert_eq!(answer.status, 0, "{}", answer.message);
    let (metadata, received) = setup.upstream.last();
    assert_eq!(received.raw_input_contents.len(), 2);
    assert_eq!(metadata.get("grpc-encoding").expect("as it was sent"), "gzip");
    assert_eq!(setup.verdicts("unverified_passed"), 1.0);
    // Other models and unknown calls are the upstream's business.
    let mut request = raw_request(&[CLEAN]);
    request.model_name = "other".to_owned();
    setup.infer(request).await.expect("the upstream takes it");
    let answer =
        setup.raw.send("/inference.GRPCInferenceService/TraceSetting", &[], framed(0, b"")).await;
    assert_eq!((answer.status, answer.message.as_str()), (12, ""), "the upstream's own words");
    assert_eq!(setup.verdicts("unverified_passed"), 3.0);
    assert_eq!(setup.setup.metric("unverified_total{reason=\"unrecognised\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_waits_for_the_detector_and_a_version_for_its_setting() {
    let setup = GrpcSetup::calibrating("").await;
    let mut client = setup.client.clone();
    let ready = |name: &str| ModelReadyRequest { name: name.to_owned(), ..Default::default() };
    assert!(client.server_live(ServerLiveRequest {}).await.expect("a reply").into_inner().live);
    assert!(!client.server_ready(ServerReadyRequest {}).await.expect("a reply").into_inner().ready);
    assert!(!client.model_ready(ready("m")).await.expect("a reply").into_inner().ready);
    let health = setup.raw.send("/grpc.health.v1.Health/Check", &[], framed(0, b"")).await;
    assert_eq!((health.status, &health.body[..]), (0, &framed(0, &[8, 2])[..]), "NOT_SERVING");
    setup.setup.server.ready(setup.setup.judge.clone(), &manifest()).expect("the first detector");
    assert!(client.server_ready(ServerReadyRequest {}).await.expect("a reply").into_inner().ready);
    assert!(client.model_ready(ready("m")).await.expect("a reply").into_inner().ready);
    // The list of models passes on, as it was understood; the fake upstream has none.
    let index = [field(1, b""), vec![16, 1], field(9, b"odd")].concat();
    let path = "/inference.GRPCInferenceService/RepositoryIndex";
    let answer = setup.raw.send(path, &[], framed(0, &index)).await;
    assert_eq!((answer.status, answer.message.as_str()), (12, ""), "the upstream's own words");
    let answer = setup.raw.send(path, &[], framed(0, &[16])).await;
    assert_eq!(answer.status, 3, "{}", answer.message);
    let mut versioned = raw_request(&[CLEAN]);
    versioned.model_version = "999".to_owned();
    let status = setup.infer(versioned).await.expect_err("another version");
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("model.version"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_takes_effect_for_the_next_call() {
    let setup = GrpcSetup::new("policy.mode = 'monitor'").await;
    setup.infer(raw_request(&[TRIGGERED])).await.expect("flagged only");
    let settings = format!(
        "listen.grpc = '127.0.0.1:0'\nupstream.grpc_url = '{}'\npolicy.mode = 'enforce'",
        setup.upstream.url()
    );
    let config = config(&setup.setup.upstream.url(), &settings);
    setup.setup.server.handle().reload(&config.server).expect("another mode");
    let status = setup.infer(raw_request(&[TRIGGERED])).await.expect_err("a rejection");
    assert_eq!(status.code(), Code::PermissionDenied);
    setup.infer(raw_request(&[CLEAN])).await.expect("a reply");
    let judge = setup.setup.judge.clone();
    assert!(setup.setup.server.ready(judge, &manifest()).is_err(), "the detector stays");
}
