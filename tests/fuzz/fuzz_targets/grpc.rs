//! gRPC messages: what is sent on holds, as a model server reads it, the tensor that is judged.

#![no_main]

use bytes::{Bytes, BytesMut};
use doorward_images::Frame;
use doorward_protocol::oip_grpc::messages::ModelInferRequest;
use doorward_protocol::{Allowed, Bounds, Input, Pictures, grpc_frame, oip_grpc};
use libfuzzer_sys::fuzz_target;
use prost::Message;

#[path = "../../it/support/served.rs"]
#[allow(dead_code, reason = "the other forms are for the target `rest`")]
mod served;

const SHAPE: [usize; 3] = [1, 2, 2];

/// One of each message that reads take.
const READS: [&str; 3] = [
    "/grpc.health.v1.Health/Check",
    "/inference.GRPCInferenceService/ModelReady",
    "/inference.GRPCInferenceService/RepositoryIndex",
];

fuzz_target!(|bytes: &[u8]| {
    let body = Bytes::copy_from_slice(bytes);
    // As a frame, part of a stream, a read, and what a rejection repeats of a message: nothing panics.
    let _ = grpc_frame::single(&body);
    let _ = grpc_frame::cut(&mut BytesMut::from(bytes), 1 << 20);
    for call in READS {
        let Ok(oip_grpc::Call::Read(read)) = oip_grpc::call("POST", call, &[b"application/grpc"])
        else {
            panic!("{call} is a read");
        };
        let _ = oip_grpc::check_read(body.clone(), read, Allowed::default());
    }
    let _ = oip_grpc::stream_error(String::new(), bytes);
    let input =
        Input { shape: SHAPE, lower: &[-1e30], upper: &[1e30], channels_last: false, fp32: true };
    let frame = Frame::from(SHAPE);
    let pictures =
        Pictures { frame: &frame, normalise: &unit, pixels: 1, part: "data", in_instances: false };
    let signature = "serving_default";
    let bounds = Bounds { input, rows: 4, slack: 0.0, signature, pictures };
    let Ok(checked) = oip_grpc::check(body, bounds, Allowed::default()) else { return };
    let judged = bits(&checked.values);
    let framed = grpc_frame::single(&checked.encoded.body).expect("one frame");
    assert!(!framed.compressed);
    let request = ModelInferRequest::decode(framed.message.clone()).expect("a message");
    assert_eq!(bits(&read(&request)), judged);
    assert_eq!(request.inputs[0].shape.iter().product::<i64>(), judged.len() as i64);
    let again = oip_grpc::check(framed.message, bounds, Allowed::default());
    let again = again.expect("the firewall's own encoding");
    assert_eq!(bits(&again.values), judged);
});

fn read(request: &ModelInferRequest) -> Vec<f32> {
    let [input] = request.inputs.as_slice() else { panic!("{request:?} got through") };
    match (request.raw_input_contents.as_slice(), &input.contents) {
        ([raw], None) => served::bytes(&input.datatype, raw),
        ([], Some(contents)) => match input.datatype.as_str() {
            "FP32" => contents.fp32_contents.clone(),
            "FP64" => contents.fp64_contents.iter().map(|&value| value as f32).collect(),
            "INT8" => contents.int_contents.iter().map(|&value| value as f32).collect(),
            "UINT8" => contents.uint_contents.iter().map(|&value| value as f32).collect(),
            other => panic!("{other} got through"),
        },
        _ => panic!("{request:?} got through"),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Bytes as shares of 255.
fn unit(pixels: &[u8]) -> Vec<f32> {
    pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect()
}
