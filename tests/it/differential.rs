//! Whatever is done to a request: if it passes, the upstream got the tensor that was judged.
//!
//! Seeded mutations of requests in every form go through the whole request path. The upstream's copy is
//! read here by a lenient parser of its own, as a model server would read it; over gRPC by a gRPC server.

use half::{bf16, f16};
use hyper::Method;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::support::grpc::inference::{InferTensorContents, ModelInferRequest};
use crate::support::grpc::{GrpcSetup, INFER as CALL, bytes, framed, raw_request};
use crate::support::grpc::{tensor_request, typed_request};
use crate::support::served;
use crate::support::upstream::Received;
use crate::support::{CLEAN, INFER, Setup, binary, fp32, request};

const LENGTH: &str = "inference-header-content-length";
const PREDICT: &str = "/v1/models/m:predict";
/// Tells requests apart at the upstream.
const ROUND: &str = "x-round";
const SEED: u64 = 20_261_122;
const ROUNDS: usize = 20_000;

/// A request on its way to be damaged.
#[derive(Clone, Debug)]
struct Attempt {
    path: &'static str,
    body: Vec<u8>,
    lengths: Vec<String>,
}

/// What mutations put in.
const PIECES: [&str; 26] = [
    "\"data\":[0,0,0,0]",
    "\"data\":[[[[0.3,0],[0,0]]]]",
    "\"shape\":[1,1,2,2]",
    "\"shape\":[2,1,2,2]",
    "\"datatype\":\"FP16\"",
    "\"datatype\":\"FP64\"",
    "\"datatype\":\"UINT8\"",
    "\"parameters\":{\"binary_data_size\":16}",
    "\"parameters\":{\"binary_data_size\":8}",
    "\"inputs\":[",
    "\"instances\":[",
    "\"id\":\"x\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\u0064",
    "0.5",
    "1e-1",
    "-0.0",
    "0.30000001192092896",
    "NaN",
    " ",
];

fn originals() -> Vec<Attempt> {
    let json = |body: String| Attempt { path: INFER, body: body.into_bytes(), lengths: vec![] };
    let mut all = vec![json(request(&[CLEAN])), json(request(&[CLEAN, [0.1, 0.2, 0.3, 0.4]]))];
    for (datatype, data) in [
        ("FP16", "[0.1,0.2,1,0.00001]"),
        ("BF16", "[0.1,0.2,1,0.00001]"),
        ("FP64", "[[[[0.1,0.2],[1,0.3]]]]"),
        ("UINT8", "[0,1,1,0]"),
        ("INT8", "[0,1,1,-0]"),
    ] {
        all.push(json(format!(
            r#"{{"inputs":[{{"data":{data},"name":"x","shape":[1,1,2,2],"datatype":"{datatype}"}}]}}"#
        )));
    }
    let halves =
        |halves: [u16; 4]| halves.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let doubles = CLEAN.into_iter().flat_map(|value| f64::from(value).to_le_bytes()).collect();
    let tensors = [
        ("FP32", fp32(&CLEAN)),
        ("FP16", halves(CLEAN.map(|value| f16::from_f32(value).to_bits()))),
        ("BF16", halves(CLEAN.map(|value| bf16::from_f32(value).to_bits()))),
        ("FP64", doubles),
        ("UINT8", vec![0, 1, 0, 1]),
    ];
    for (datatype, tensor) in tensors {
        let (body, length) = binary(datatype, "[1,1,2,2]", &tensor.len().to_string(), &tensor);
        all.push(Attempt { path: INFER, body, lengths: vec![length.to_string()] });
    }
    all.push(Attempt { path: INFER, body: fp32(&CLEAN), lengths: vec!["0".to_owned()] });
    for body in [
        r#"{"instances":[[[[0.25,0.1],[1,0]]],[[[0.3,0.4],[0.5,0.6]]]]}"#,
        r#"{"instances":[{"x":[[[0.25,0.1],[1,0]]]}]}"#,
        r#"{"inputs":{"x":[[[[0,1],[1,0]]]]},"signature_name":"serving_default"}"#,
    ] {
        all.push(Attempt { path: PREDICT, body: body.into(), lengths: vec![] });
    }
    all
}

fn mutate(attempt: &mut Attempt, others: &[Attempt], rng: &mut StdRng) {
    let body = &mut attempt.body;
    let at = rng.random_range(0..=body.len());
    match rng.random_range(0..11) {
        0 if at < body.len() => body[at] ^= 1 << rng.random_range(0..8),
        1 if at < body.len() => body[at] = rng.random(),
        2 if at < body.len() => {
            let end = (at + rng.random_range(1..12)).min(body.len());
            body.drain(at..end);
        }
        3 => {
            let piece = PIECES.choose(rng).expect("some").as_bytes();
            body.splice(at..at, piece.iter().copied());
        }
        4 => {
            let end = (at + rng.random_range(1..40)).min(body.len());
            let copy = body[at..end].to_vec();
            let to = rng.random_range(0..=body.len());
            body.splice(to..to, copy);
        }
        5 => {
            let other = &others.choose(rng).expect("some").body;
            let from = rng.random_range(0..other.len());
            let end = (from + rng.random_range(1..60)).min(other.len());
            body.splice(at..at, other[from..end].iter().copied());
        }
        6 => {
            // Digits are where numbers can become others and stay numbers.
            let digits: Vec<usize> =
                (0..body.len()).filter(|&position| body[position].is_ascii_digit()).collect();
            if let Some(&position) = digits.choose(rng) {
                body[position] = b'0' + rng.random_range(0..10);
            }
        }
        7 => {
            if let Some(length) = attempt.lengths.first_mut()
                && let Ok(number) = length.parse::<i64>()
            {
                *length = (number + rng.random_range(-3..=3)).max(0).to_string();
            }
        }
        8 | 9 if attempt.path == INFER && !attempt.lengths.is_empty() && body.len() >= 4 => {
            // Behind the JSON, where every byte is part of a value.
            let at = body.len() - rng.random_range(1..=4);
            body[at] ^= 1 << rng.random_range(0..8);
        }
        _ => match rng.random_range(0..4) {
            0 => attempt.lengths.push(body.len().to_string()),
            1 => attempt.lengths.push("0".to_owned()),
            2 => {
                attempt.lengths.pop();
            }
            _ => attempt.path = [INFER, PREDICT].choose(rng).expect("some"),
        },
    }
}

/// The tensor of a request as a model server reads it.
fn tensor(received: &Received) -> Vec<f32> {
    let length = received
        .headers
        .get(LENGTH)
        .map(|length| length.to_str().expect("text").parse::<usize>().expect("a number"));
    match received.path == INFER {
        true => served::v2(length, &received.body),
        false => served::v1(&received.body),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_what_was_judged() {
    let setup = Setup::new("").await;
    let originals = originals();
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut passed, mut changed) = (0, 0);
    for round in 0..ROUNDS {
        let original = originals.choose(&mut rng).expect("some");
        let mut attempt = original.clone();
        for _ in 0..rng.random_range(1..3) {
            mutate(&mut attempt, &originals, &mut rng);
        }
        let number = round.to_string();
        let mut headers: Vec<(&str, &str)> =
            attempt.lengths.iter().map(|length| (LENGTH, &**length)).collect();
        headers.push((ROUND, &number));
        let body = attempt.body.clone();
        let answer = setup.client.send(Method::POST, attempt.path, &headers, body).await;
        if answer.status != 200 {
            assert!(answer.status.is_client_error(), "round {round}: {attempt:?}");
            continue;
        }
        passed += 1;
        changed += usize::from(attempt.body != original.body);
        let received = setup.upstream.of(ROUND, &number);
        let (served, judged) = (tensor(&received), setup.judge.seen());
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&served), bits(&judged), "round {round}: {attempt:?}");
    }
    println!(
        "seed {SEED}: {ROUNDS} requests, {passed} passed, {changed} of them with a changed body"
    );
    assert!(passed > ROUNDS / 10 && changed > ROUNDS / 20, "{passed} passed, {changed} changed");
}

const CALLS: usize = 10_000;

fn messages() -> Vec<Vec<u8>> {
    let halves = |bits: [u16; 4]| bits.into_iter().flat_map(u16::to_le_bytes).collect();
    let none = InferTensorContents::default;
    let row = [1, 1, 2, 2];
    let requests = [
        raw_request(&[CLEAN]),
        raw_request(&[CLEAN, [0.1, 0.2, 0.3, 0.4]]),
        tensor_request("FP16", &row, halves(CLEAN.map(|value| f16::from_f32(value).to_bits()))),
        tensor_request("BF16", &row, halves(CLEAN.map(|value| bf16::from_f32(value).to_bits()))),
        tensor_request("UINT8", &row, vec![0, 1, 0, 1]),
        typed_request("FP32", InferTensorContents { fp32_contents: CLEAN.to_vec(), ..none() }),
        typed_request(
            "FP64",
            InferTensorContents { fp64_contents: CLEAN.map(f64::from).to_vec(), ..none() },
        ),
        typed_request("UINT8", InferTensorContents { uint_contents: vec![0, 1, 1, 0], ..none() }),
        typed_request("INT8", InferTensorContents { int_contents: vec![0, 1, 0, 0], ..none() }),
    ];
    requests.iter().map(bytes).collect()
}

fn mutate_message(message: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut StdRng) {
    let at = rng.random_range(0..=message.len());
    match rng.random_range(0..7) {
        0 if at < message.len() => message[at] ^= 1 << rng.random_range(0..8),
        1 if at < message.len() => message[at] = rng.random(),
        2 if at < message.len() => {
            let end = (at + rng.random_range(1..12)).min(message.len());
            message.drain(at..end);
        }
        // Behind one another, protobuf's messages are one that says things twice.
        3 => message.extend_from_slice(others.choose(rng).expect("some")),
        4 => {
            let other = others.choose(rng).expect("some");
            let from = rng.random_range(0..other.len());
            let end = (from + rng.random_range(1..40)).min(other.len());
            message.splice(at..at, other[from..end].iter().copied());
        }
        _ if message.len() >= 20 => {
            // Where the tensor is, most of the time.
            let at = message.len() - rng.random_range(1..=20);
            message[at] ^= 1 << rng.random_range(0..8);
        }
        _ => {}
    }
}

/// The tensor of a message as a model server reads it.
fn message_tensor(request: &ModelInferRequest) -> Vec<f32> {
    let [input] = request.inputs.as_slice() else { panic!("{request:?} got through") };
    match (input.datatype.as_str(), request.raw_input_contents.as_slice(), &input.contents) {
        (datatype, [raw], None) => served::bytes(datatype, raw),
        ("FP32", [], Some(contents)) => contents.fp32_contents.clone(),
        ("FP64", [], Some(contents)) => {
            contents.fp64_contents.iter().map(|&value| value as f32).collect()
        }
        ("INT8", [], Some(contents)) => {
            contents.int_contents.iter().map(|&value| value as f32).collect()
        }
        ("UINT8", [], Some(contents)) => {
            contents.uint_contents.iter().map(|&value| value as f32).collect()
        }
        _ => panic!("{request:?} got through"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_over_grpc_is_what_was_judged() {
    let setup = GrpcSetup::new("").await;
    let originals = messages();
    let mut rng = StdRng::seed_from_u64(SEED);
    let (mut passed, mut changed) = (0, 0);
    for round in 0..CALLS {
        let original = originals.choose(&mut rng).expect("some");
        let mut message = original.clone();
        for _ in 0..rng.random_range(1..3) {
            mutate_message(&mut message, &originals, &mut rng);
        }
        let number = round.to_string();
        let answer = setup.raw.send(CALL, &[(ROUND, &*number)], framed(0, &message)).await;
        if answer.status != 0 {
            assert!([3, 5, 7, 8].contains(&answer.status), "round {round}: {answer:?} {message:?}");
            continue;
        }
        passed += 1;
        changed += usize::from(message != *original);
        let received = setup.upstream.of(ROUND, &number);
        let (served, judged) = (message_tensor(&received), setup.setup.judge.seen());
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&served), bits(&judged), "round {round}: {message:?}");
        let shape = &received.inputs[0].shape;
        assert_eq!(shape.iter().product::<i64>(), served.len() as i64, "round {round}");
    }
    println!("seed {SEED}: {CALLS} calls, {passed} passed, {changed} of them changed");
    assert!(passed > CALLS / 10 && changed > CALLS / 20, "{passed} passed, {changed} changed");
}
