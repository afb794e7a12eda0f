//! Attempts over gRPC to let the firewall see another input than the model; `docs/bypasses.md` lists them.

use tonic::Code;
use tonic::codec::CompressionEncoding;

use crate::support::grpc::inference::infer_parameter::ParameterChoice;
use crate::support::grpc::inference::model_infer_request::InferRequestedOutputTensor;
use crate::support::grpc::inference::*;
use crate::support::grpc::{
    GrpcSetup, INFER, bytes, field, framed, gzip, parameter, raw_request, typed_request,
};
use crate::support::{CLEAN, TRIGGERED, fp32};

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_say_two_things_or_no_image_are_refused() {
    let setup = GrpcSetup::new("limits.rows = 4\nlimits.queue_rows = 4").await;
    let clean = || raw_request(&[CLEAN]);
    let fp32_contents = CLEAN.to_vec();
    let typed =
        || InferTensorContents { fp32_contents: fp32_contents.clone(), ..Default::default() };
    let mut cases: Vec<(ModelInferRequest, Code, &str)> = Vec::new();
    let mut case = |code, reason, change: &dyn Fn(&mut ModelInferRequest)| {
        let mut request = clean();
        change(&mut request);
        cases.push((request, code, reason));
    };
    let invalid = Code::InvalidArgument;
    // Two encodings, or none.
    case(invalid, "both", &|r| r.inputs[0].contents = Some(typed()));
    case(invalid, "both", &|r| r.inputs[0].contents = Some(InferTensorContents::default()));
    case(invalid, "holds 0 tensors", &|r| r.raw_input_contents.clear());
    case(invalid, "holds 2 tensors", &|r| r.raw_input_contents.push(fp32(&CLEAN)));
    case(invalid, "0 inputs", &|r| r.inputs.clear());
    case(invalid, "2 inputs", &|r| r.inputs.push(r.inputs[0].clone()));
    // Sizes.
    for size in [0, 1, 15, 17, 32] {
        case(invalid, "expected 16", &|r| r.raw_input_contents[0].resize(size, 0));
    }
    for (datatype, reason) in
        [("FP16", "expected 8"), ("FP64", "expected 32"), ("UINT8", "expected 4")]
    {
        case(invalid, reason, &|r| r.inputs[0].datatype = datatype.to_owned());
    }
    for datatype in ["BYTES", "INT32", "fp32", "BOOL", ""] {
        case(invalid, "inputs[0].datatype", &|r| r.inputs[0].datatype = datatype.to_owned());
    }
    for shape in [vec![], vec![1, 4], vec![1, 2, 1, 2], vec![1, 1, 2, 2, 1], vec![1, 1, 2, 3]] {
        case(invalid, "inputs[0].shape", &|r| r.inputs[0].shape = shape.clone());
    }
    case(invalid, "sizes of 1 or more", &|r| r.inputs[0].shape = vec![-1, 1, 2, 2]);
    case(invalid, "sizes of 1 or more", &|r| r.inputs[0].shape = vec![-1, -1, 2, 2]);
    case(invalid, "0 rows", &|r| r.inputs[0].shape = vec![0, 1, 2, 2]);
    case(invalid, "at most 256", &|r| r.inputs[0].shape = vec![1; 300]);
    case(Code::ResourceExhausted, "5 rows", &|r| r.inputs[0].shape = vec![5, 1, 2, 2]);
    for rows in [i64::MAX, 1 << 62, 1 << 32] {
        case(Code::ResourceExhausted, "rows, expected", &|r| {
            r.inputs[0].shape = vec![rows, 1, 2, 2]
        });
    }
    // Values.
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.5, -0.5, f32::MAX] {
        case(invalid, "data[3]", &|r| r.raw_input_contents = vec![fp32(&[0.0, 0.0, 0.0, value])]);
    }
    // Shared memory.
    let region = || parameter(ParameterChoice::StringParam("r".to_owned()));
    let key = || "shared_memory_region".to_owned();
    case(invalid, "shared memory", &|r| drop(r.inputs[0].parameters.insert(key(), region())));
    case(invalid, "shared memory", &|r| drop(r.parameters.insert(key(), region())));
    case(invalid, "shared memory", &|r| {
        let parameters = [(key(), region())].into();
        r.outputs.push(InferRequestedOutputTensor { name: "y".to_owned(), parameters });
    });
    case(invalid, "shared memory", &|r| {
        r.inputs[0].parameters.insert(key(), region());
        r.raw_input_contents.clear();
    });
    // Typed contents.
    let mut case = |datatype, reason, contents| {
        cases.push((typed_request(datatype, contents), invalid, reason));
    };
    let none = InferTensorContents::default;
    case("FP32", "expected 4", none());
    case("FP32", "holds 3 values", InferTensorContents { fp32_contents: vec![0.0; 3], ..none() });
    case("FP64", "outside of fp64_contents", typed());
    case("UINT8", "outside of uint_contents", typed());
    case("FP16", "send raw_input_contents", typed());
    case("BF16", "send raw_input_contents", typed());
    let both = InferTensorContents { fp64_contents: vec![0.0; 4], ..typed() };
    case("FP32", "outside of fp32_contents", both);
    case("FP32", "bytes_contents", InferTensorContents { bytes_contents: vec![vec![]], ..typed() });
    case("FP32", "bool_contents", InferTensorContents { bool_contents: vec![true], ..typed() });
    case("FP32", "int64_contents", InferTensorContents { int64_contents: vec![1], ..typed() });
    case("FP32", "uint64_contents", InferTensorContents { uint64_contents: vec![1], ..typed() });
    let uint_contents = vec![256, 0, 0, 0];
    case("UINT8", "does not fit", InferTensorContents { uint_contents, ..none() });
    let int_contents = vec![128, 0, 0, 0];
    case("INT8", "does not fit", InferTensorContents { int_contents, ..none() });
    let fp64_contents = vec![0.0, 0.0, 0.0, 1e300];
    case("FP64", "data[3] is inf", InferTensorContents { fp64_contents, ..none() });

    let count = cases.len() as f64;
    for (request, code, reason) in cases {
        let status = setup.infer(request.clone()).await.expect_err(reason);
        assert_eq!(status.code(), code, "{status}: {request:?}");
        assert!(status.message().contains(reason), "{reason}: {status}");
    }
    assert_eq!(setup.upstream.received().len(), 0);
    let reason =
        |reason: &str| setup.setup.metric(&format!("unverified_total{{reason=\"{reason}\"}}"));
    assert_eq!((reason("undecodable"), reason("range")), (count - 3.0, 3.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_that_says_things_twice_reaches_the_upstream_once_as_judged() {
    let setup = GrpcSetup::new("").await;
    let clean = bytes(&raw_request(&[CLEAN]));
    // Another name for the model, an unknown field, another parameter of the same key.
    let entry = |value| {
        let parameter = bytes(&parameter(ParameterChoice::Int64Param(value)));
        field(4, &[field(1, b"k"), field(2, &parameter)].concat())
    };
    let message =
        [field(1, b"other"), entry(1), clean.clone(), field(15, b"unknown"), entry(2)].concat();
    let answer = setup.raw.infer(message).await;
    assert_eq!(answer.status, 0, "{}", answer.message);
    let mut expected = raw_request(&[CLEAN]);
    expected.parameters.insert("k".to_owned(), parameter(ParameterChoice::Int64Param(2)));
    assert_eq!(setup.upstream.last().1, expected);

    // A field of the tensor, in a second copy of its message, holds for both readers or for none.
    let second = [clean.clone(), field(5, &field(2, b"FP16"))].concat();
    assert_eq!(setup.raw.infer(second).await.status, 3);
    // A triggered tensor behind the clean one, or before it.
    let triggered = field(7, &fp32(&TRIGGERED));
    for message in [[&clean[..], &triggered].concat(), [&triggered[..], &clean].concat()] {
        assert_eq!(setup.raw.infer(message).await.status, 3);
    }
    // Typed contents in two copies, which protobuf joins: what is judged is joined as well.
    let contents = |values: &[f32]| {
        let packed = field(6, &fp32(values));
        field(5, &packed)
    };
    let mut tensor = raw_request(&[]);
    tensor.raw_input_contents.clear();
    tensor.inputs[0].shape = vec![1, 1, 2, 2];
    let input = bytes(&tensor.inputs[0]);
    tensor.inputs.clear();
    let joined = |first: &[f32], second: &[f32]| {
        let input = [&input[..], &contents(first), &contents(second)].concat();
        [bytes(&tensor), field(5, &input)].concat()
    };
    let answer = setup.raw.infer(joined(&CLEAN[..1], &CLEAN[1..])).await;
    assert_eq!(answer.status, 0, "{}", answer.message);
    let received = setup.upstream.last().1;
    let contents = received.inputs[0].contents.clone().expect("contents");
    assert_eq!(contents.fp32_contents, CLEAN);
    assert_eq!(setup.setup.judge.seen(), CLEAN);
    assert_eq!(setup.raw.infer(joined(&TRIGGERED[..1], &TRIGGERED[1..])).await.status, 7);
    assert_eq!(setup.raw.infer(joined(&CLEAN, &TRIGGERED)).await.status, 3);

    // Not protobuf at all, cut short, and far more fields than anybody needs.
    for length in 0..clean.len() {
        let answer = setup.raw.infer(&clean[..length]).await;
        assert_eq!(answer.status, 3, "{length} bytes: {}", answer.message);
    }
    let answer = setup.raw.infer([&clean[..], &field(5, b"").repeat(100_000)].concat()).await;
    assert_eq!(answer.status, 3);
    assert!(answer.message.contains("1024 fields"), "{}", answer.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_and_headers_that_say_two_things_are_refused() {
    let setup = GrpcSetup::new("limits.body_bytes = 100000").await;
    let clean = bytes(&raw_request(&[CLEAN]));
    let triggered = bytes(&raw_request(&[TRIGGERED]));
    let frame = |message: &[u8]| framed(0, message);
    let long = [&[0][..], &(clean.len() as u32 + 1).to_be_bytes(), &clean].concat();
    let huge = [&[0, 0xff, 0xff, 0xff, 0xff][..], &clean].concat();
    // Headers, body, status and what the message says.
    type Case<'a> = (Vec<(&'a str, &'a str)>, Vec<u8>, i32, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (vec![], Vec::new(), 3, "without a message"),
        (vec![], vec![0, 0, 0], 3, "without a message"),
        (vec![], long, 3, "announces"),
        (vec![], huge, 3, "announces"),
        (vec![], framed(2, &clean), 3, "flag is 2"),
        (vec![], [frame(&clean), frame(&triggered)].concat(), 3, "more than one message"),
        (vec![], [frame(&clean), vec![0]].concat(), 3, "more than one message"),
        (vec![], frame(&vec![0; 100_001]), 8, "100000 bytes"),
        // Compression.
        (vec![], framed(1, &gzip(&clean)), 12, "identity"),
        (vec![("grpc-encoding", "identity")], framed(1, &clean), 12, "identity"),
        (vec![("grpc-encoding", "br")], framed(1, &gzip(&clean)), 12, "expected one of gzip"),
        (vec![("grpc-encoding", "gzip, gzip")], framed(1, &gzip(&clean)), 12, "expected one of"),
        (
            vec![("grpc-encoding", "gzip"), ("grpc-encoding", "identity")],
            framed(1, &gzip(&clean)),
            12,
            "expected one of",
        ),
        (vec![("grpc-encoding", "gzip")], framed(1, &clean), 3, "cannot be decoded as gzip"),
        (
            vec![("grpc-encoding", "gzip")],
            framed(1, &[gzip(&clean), gzip(&triggered)].concat()),
            3,
            "follow its end",
        ),
        (vec![("grpc-encoding", "gzip")], framed(1, &gzip(&vec![0; 64 << 20])), 8, "larger than"),
        // Content types.
        (vec![("content-type", "application/grpc+json")], frame(&clean), 12, "content-type"),
        (vec![("content-type", "application/grpc-web")], frame(&clean), 12, "content-type"),
        (vec![("content-type", "application/json")], frame(&clean), 12, "content-type"),
        (
            vec![("content-type", "application/grpc"), ("content-type", "application/grpc+json")],
            frame(&clean),
            12,
            "content-type",
        ),
    ];
    for (headers, body, status, reason) in cases {
        let answer = setup.raw.send(INFER, &headers, body).await;
        assert_eq!(answer.status, status, "{headers:?} {reason}: {}", answer.message);
        assert!(answer.message.contains(reason), "{headers:?} {reason}: {}", answer.message);
        assert_eq!(answer.http.as_u16(), if reason == "content-type" { 415 } else { 200 });
        assert_eq!(answer.headers["content-type"], "application/grpc");
    }
    assert_eq!(setup.upstream.received().len(), 0);
    // Nor is a trigger hidden by compression.
    let hidden = framed(1, &gzip(&triggered));
    let answer = setup.raw.send(INFER, &[("grpc-encoding", "gzip")], hidden).await;
    assert_eq!(answer.status, 7, "{}", answer.message);
    assert!(answer.message.contains("row 0"), "{}", answer.message);
    // What is compressed, or calls itself so, is judged, and goes on plainly.
    for (headers, body) in [
        (vec![("grpc-encoding", "gzip")], framed(1, &gzip(&clean))),
        (vec![("grpc-encoding", "gzip")], framed(0, &clean)),
        (vec![("content-type", "application/grpc+proto")], framed(0, &clean)),
    ] {
        let answer = setup.raw.send(INFER, &headers, body).await;
        assert_eq!(answer.status, 0, "{}", answer.message);
        let (metadata, received) = setup.upstream.last();
        assert_eq!(received, raw_request(&[CLEAN]));
        assert!(metadata.get("grpc-encoding").is_none());
        assert_eq!(metadata.get("content-type").expect("ours"), "application/grpc");
    }
    let mut compressing = setup.client.clone().send_compressed(CompressionEncoding::Gzip);
    compressing.model_infer(raw_request(&[CLEAN])).await.expect("a reply");
}
