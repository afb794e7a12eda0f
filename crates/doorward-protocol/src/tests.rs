//! Properties of the wire formats: what is judged is what is sent on.

use std::sync::LazyLock;

use bytes::Bytes;
use hyper::HeaderMap;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::binary::JSON_LENGTH;
use super::oip_http::{InferRequest, decode, route};
use super::route::Target;
use super::{
    Allowed, Bounds, Checked, DecodeError, Input, Pictures, Refusal, Route, kserve_v1, oip_http,
};
use doorward_images::Frame;

const CHANNELS: usize = 3;
const HEIGHT: usize = 1;
const WIDTH: usize = 2;

const INPUT: Input<'static> = Input {
    shape: [CHANNELS, HEIGHT, WIDTH],
    lower: &[-f32::MAX; CHANNELS],
    upper: &[f32::MAX; CHANNELS],
    channels_last: false,
    fp32: true,
};

/// None are taken here.
fn pictures() -> Pictures<'static> {
    static FRAME: LazyLock<Frame> = LazyLock::new(|| Frame::from([CHANNELS, HEIGHT, WIDTH]));
    Pictures {
        frame: &FRAME,
        normalise: &|_| Vec::new(),
        pixels: 1,
        part: "data",
        in_instances: false,
    }
}

fn bounds(input: Input<'static>) -> Bounds<'static> {
    let signature = "serving_default";
    Bounds { input, rows: 4, slack: 0.0, signature, pictures: pictures() }
}

fn read(body: &[u8]) -> Result<InferRequest, DecodeError> {
    decode(Target::default(), &HeaderMap::new(), &Bytes::copy_from_slice(body), bounds(INPUT))
}

/// Any finite `f32`, each bit pattern as likely.
fn number() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |value| value.is_finite())
}

/// Whole rows of finite numbers.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    (1..=4_usize).prop_flat_map(|rows| vec(number(), rows * CHANNELS * HEIGHT * WIDTH))
}

/// JSON of any form that parameters and outputs may have.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec(("\\PC{0,6}", inner), 0..4).prop_map(Value::from_iter),
        ]
    })
}

fn document(values: &[f32], extra: &Value) -> Value {
    let rows = values.len() / (CHANNELS * HEIGHT * WIDTH);
    json!({
        "id": "\u{7}\"id",
        "parameters": {"p": extra},
        "inputs": [{
            "name": "x",
            "shape": [rows, CHANNELS, HEIGHT, WIDTH],
            "datatype": "FP32",
            "parameters": {"q": extra},
            "data": values,
        }],
        "outputs": [{"name": "y", "parameters": {"r": extra}}],
    })
}

/// The numbers of the encoded data, as a server reads them: to the nearest `f64`, then narrowed.
fn as_a_server_reads(encoded: &[u8]) -> Vec<f32> {
    let text = std::str::from_utf8(encoded).expect("UTF-8");
    let (_, data) = text.split_once("\"data\":[").expect("data");
    let (data, _) = data.split_once(']').expect("an end");
    data.split(',').map(|number| number.parse::<f64>().expect("a number") as f32).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #[test]
    fn decode_after_encode_is_identity(values in rows(), extra in value()) {
        let body = document(&values, &extra).to_string();
        let request = read(body.as_bytes()).expect("a request");
        let encoded = request.encode();
        let again = read(&encoded).expect("a request");
        prop_assert_eq!(bits(again.values()), bits(request.values()));
        prop_assert_eq!(&again, &request);
        prop_assert_eq!(again.encode(), encoded);
    }

    #[test]
    fn server_reads_the_numbers_that_were_judged(values in rows()) {
        let body = document(&values, &Value::Null).to_string();
        let request = read(body.as_bytes()).expect("a request");
        prop_assert_eq!(bits(request.values()), bits(&values));
        prop_assert_eq!(bits(&as_a_server_reads(&request.encode())), bits(&values));
    }

    #[test]
    fn parameters_arrive_as_they_were(values in rows(), extra in value()) {
        let sent = document(&values, &extra);
        let request = read(sent.to_string().as_bytes()).expect("a request");
        let received: Value = serde_json::from_slice(&request.encode()).expect("JSON");
        for pointer in ["/id", "/parameters", "/inputs/0/parameters", "/outputs"] {
            prop_assert_eq!(received.pointer(pointer), sent.pointer(pointer));
        }
    }

    #[test]
    fn nested_data_is_the_flat_data(values in rows()) {
        let nested: Vec<Vec<Vec<&[f32]>>> = values
            .chunks(CHANNELS * HEIGHT * WIDTH)
            .map(|row| {
                row.chunks(HEIGHT * WIDTH)
                    .map(|channel| channel.chunks(WIDTH).collect())
                    .collect()
            })
            .collect();
        let mut body = document(&values, &Value::Null);
        let flat = read(body.to_string().as_bytes()).expect("a request");
        body["inputs"][0]["data"] = json!(nested);
        prop_assert_eq!(read(body.to_string().as_bytes()).expect("a request"), flat);
    }

    #[test]
    fn damaged_text_is_refused_or_read_as_one_thing(
        values in rows(),
        position in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut body = document(&values, &Value::Null).to_string().into_bytes();
        let position = position.index(body.len());
        body[position] = byte;
        if let Ok(request) = read(&body) {
            let again = read(&request.encode()).expect("a request");
            prop_assert_eq!(bits(again.values()), bits(request.values()));
            prop_assert_eq!(again.encode(), request.encode());
        }
    }

    #[test]
    fn only_plain_paths_are_open(path in "[/v2modelsinfr.%;~ -]{0,24}") {
        if route("POST", &path, Allowed::default()) == Route::Infer {
            let plain = path.strip_prefix("/v2/models/").expect("the prefix");
            prop_assert!(!plain.contains("//") && !plain.contains("..") || plain.contains('/'));
            prop_assert!(path.ends_with("/infer"));
            prop_assert!(!path.contains('%') && !path.contains(';'));
        }
    }
}

#[test]
fn values_are_held_to_their_channels_range() {
    let input = Input {
        shape: [CHANNELS, HEIGHT, WIDTH],
        lower: &[0.0, -2.0, 0.0],
        upper: &[1.0, 2.0, 1.0],
        channels_last: false,
        fp32: true,
    };
    let bounds = bounds(input);
    let mut values = vec![0.5; 2 * CHANNELS * HEIGHT * WIDTH];
    // The second row's second channel, rounded past its end.
    values[8] = 2.000_002;
    let body = document(&values, &Value::Null).to_string();
    assert!(decode(Target::default(), &HeaderMap::new(), &body.into(), bounds).is_ok());
    values[8] = -2.1;
    let body = document(&values, &Value::Null).to_string();
    let sent = Bytes::from(body);
    let read = |bounds| decode(Target::default(), &HeaderMap::new(), &sent, bounds);
    assert!(read(Bounds { slack: 0.03, ..bounds }).is_ok());
    let error = read(bounds).expect_err("out of range");
    assert!(error.is_out_of_range());
    assert_eq!(
        error.to_string(),
        "inputs[0].data[8] is -2.1, expected a number from -2 to 2, or outside by at most 0 of that range (preprocess.range_slack)"
    );
}

#[test]
fn routes_name_the_model_the_version_and_the_method() {
    let infer = "/v2/models/m/versions/3/infer";
    let allowed = |model, version| Allowed { model: Some(model), version, reads: &[] };
    let refused = |refusal| Route::Refused(refusal);
    let get = Refusal::Method { allow: "POST, OPTIONS" };
    assert_eq!(route("POST", infer, allowed("m", Some("3"))), Route::Infer);
    assert_eq!(route("POST", infer, allowed("m", Some("4"))), refused(Refusal::Version));
    assert_eq!(route("POST", infer, allowed("m", None)), refused(Refusal::Version));
    assert_eq!(route("POST", infer, allowed("n", Some("3"))), refused(Refusal::Model));
    assert_eq!(route("GET", infer, Allowed::default()), refused(get));
    assert_eq!(route("OPTIONS", infer, Allowed::default()), Route::Read);
    assert_eq!(route("HEAD", "/v2/health/ready", Allowed::default()), Route::Ready);
    for path in ["", "*", "v2", "/v2/models/m/versions", "/v2/models/../infer"] {
        assert_eq!(route("POST", path, Allowed::default()), refused(Refusal::Path), "{path}");
    }
}

#[test]
fn images_with_their_channels_last_are_checked_as_sent_and_judged_with_them_first() {
    let input = Input {
        shape: [CHANNELS, HEIGHT, WIDTH],
        lower: &[0.0, -2.0, 0.0],
        upper: &[1.0, 2.0, 1.0],
        channels_last: true,
        fp32: true,
    };
    let bounds = bounds(input);
    let sent = |values: &[f32], shape: [usize; 4]| {
        let input = json!({"name": "x", "datatype": "FP32", "shape": shape, "data": values});
        decode(
            Target::default(),
            &HeaderMap::new(),
            &json!({"inputs": [input]}).to_string().into(),
            bounds,
        )
    };
    let last = [1, HEIGHT, WIDTH, CHANNELS];
    let request = sent(&[0.1, -1.5, 0.3, 0.4, 1.5, 0.6], last).expect("in range");
    assert_eq!(input.rows_of_sent(request.values().to_vec()), [0.1, 0.4, -1.5, 1.5, 0.3, 0.6]);
    let error = sent(&[0.1, -1.5, 0.3, 1.5, 0.5, 0.6], last).expect_err("out of range");
    assert_eq!(
        error.to_string(),
        "inputs[0].data[3] is 1.5, expected a number from 0 to 1, or outside by at most 0 of that range (preprocess.range_slack)"
    );
    let error = sent(&[0.5; 6], [1, CHANNELS, HEIGHT, WIDTH]).expect_err("channels first");
    assert_eq!(error.to_string(), "inputs[0].shape is [1, 3, 1, 2], expected [n, 1, 2, 3]");
}

/// A request whose tensor lies behind the JSON.
fn binary_request(values: &[f32]) -> (HeaderMap, Bytes) {
    let mut document = document(values, &Value::Null);
    let input = &mut document["inputs"][0];
    input.as_object_mut().expect("an object").remove("data");
    input["parameters"] = json!({"binary_data_size": values.len() * 4});
    let mut body = document.to_string().into_bytes();
    let mut headers = HeaderMap::new();
    headers.insert(JSON_LENGTH, body.len().into());
    body.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    (headers, body.into())
}

fn check_all(headers: &HeaderMap, body: &Bytes) -> Result<Checked, DecodeError> {
    oip_http::check(Target::default(), headers, body, bounds(INPUT))
}

proptest! {
    #[test]
    fn bytes_behind_the_json_are_judged_and_sent_on(values in rows()) {
        let (headers, body) = binary_request(&values);
        let checked = check_all(&headers, &body).expect("a request");
        prop_assert_eq!(bits(&checked.values), bits(&values));
        let length = checked.encoded.json_length.expect("bytes follow");
        let tensor: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        prop_assert_eq!(&checked.encoded.body[length..], &*tensor);
        let mut again = HeaderMap::new();
        again.insert(JSON_LENGTH, length.into());
        prop_assert_eq!(checked.encoded.media_type, None);
        let twice = check_all(&again, &checked.encoded.body).expect("a request");
        prop_assert_eq!(twice.encoded.body, checked.encoded.body);
        prop_assert_eq!(bits(&twice.values), bits(&values));
    }

    #[test]
    fn raw_bytes_are_whole_finite_rows_or_refused(body in vec(any::<u8>(), 0..120)) {
        let mut headers = HeaderMap::new();
        headers.insert(JSON_LENGTH, 0.into());
        let row = CHANNELS * HEIGHT * WIDTH * 4;
        let body = Bytes::from(body);
        let numbers = body.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let good = !body.is_empty() && body.len() % row == 0 && body.len() / row <= 4
            && numbers.clone().all(f32::is_finite);
        let checked = check_all(&headers, &body);
        prop_assert_eq!(checked.is_ok(), good);
        if let Ok(checked) = checked {
            prop_assert_eq!(checked.encoded.body, body.clone());
            prop_assert_eq!(bits(&checked.values), bits(&numbers.collect::<Vec<_>>()));
        }
    }
}

#[test]
fn bytes_without_a_datatype_are_taken_for_fp32_models_only() {
    let input = Input { fp32: false, ..INPUT };
    let mut headers = HeaderMap::new();
    headers.insert(JSON_LENGTH, 0.into());
    let body = Bytes::from(vec![0; CHANNELS * HEIGHT * WIDTH * 4]);
    let error = oip_http::check(Target::default(), &headers, &body, bounds(input));
    assert!(error.expect_err("another datatype").to_string().contains("only a FP32 model"));
}

#[test]
fn v1_integers_are_integers_as_long_as_fp32_holds_them() {
    let bounds = bounds(INPUT);
    let sent = |last: &str| {
        let body = format!(r#"{{"instances":[[[[1,2]],[[3,4]],[[5,{last}]]]]}}"#);
        let checked = kserve_v1::check(Target::default(), &HeaderMap::new(), &body.into(), bounds)
            .expect("a request");
        (checked.values[5], String::from_utf8(checked.encoded.body.to_vec()).expect("text"))
    };
    for (last, value, ending) in [
        ("6", 6.0, "[[5,6]]]]}"),
        ("-6", -6.0, "[[5,-6]]]]}"),
        ("6.5", 6.5, "[[5.0,6.5]]]]}"),
        ("-0", -0.0, "[[5.0,-0.0]]]]}"),
        ("16777217", 16_777_216.0, "[[5.0,16777216.0]]]]}"),
        ("18446744073709551615", 18_446_744_073_709_551_615.0, "[[5.0,1.8446744e+19]]]]}"),
    ] {
        let (judged, text) = sent(last);
        assert_eq!(judged.to_bits(), f32::to_bits(value), "{last}");
        assert!(text.ends_with(ending), "{text}");
    }
}
