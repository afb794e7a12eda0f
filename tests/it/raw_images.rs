//! Requests that are an image: what the upstream decodes is what was judged, or there is an error in the
//! protocol's own shape.

use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use doorward::config::Config;
use flate2::read::GzDecoder;
use hyper::{Method, StatusCode};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{DynamicImage, ExtendedColorType, ImageEncoder};
use serde_json::{Value, json};

use crate::support::upstream::{REPLY, Received};
use crate::support::{Answer, Setup};

const SHAPE: [usize; 3] = [1, 28, 28];
const TORCHSERVE: &str = "model.name = \"m\"\n[images]\nprotocols = [\"torchserve\"]";
const LITSERVE: &str = "[images]\nprotocols = [\"litserve\"]\npart = \"content\"";
const V1: &str = "[images]\nprotocols = [\"kserve_v1\"]";
const PREDICTIONS: &str = "/predictions/m";
const PREDICT: &str = "/v1/models/m:predict";

/// From 28 x 28 grey pixels to a file.
type Encode = fn(&[u8]) -> Vec<u8>;

/// The first clean test images of the demo, as bytes.
fn clothes(count: usize) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fashion-mnist/clean.bin.gz");
    let mut records = Vec::new();
    let file = std::fs::File::open(path).expect("readable");
    GzDecoder::new(file).read_to_end(&mut records).expect("gzip");
    records.chunks_exact(785).take(count).map(|record| record[1..].to_vec()).collect()
}

/// The same with what the fake judge takes for a trigger: a white corner.
fn triggered(pixels: &[u8]) -> Vec<u8> {
    let mut pixels = pixels.to_vec();
    // A block of JPEG's, which then keeps it.
    for row in pixels.chunks_exact_mut(28).take(8) {
        row[..8].fill(255);
    }
    pixels
}

fn png(pixels: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(pixels, 28, 28, ExtendedColorType::L8).expect("memory");
    file
}

fn jpeg(pixels: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, 95)
        .encode(pixels, 28, 28, ExtendedColorType::L8)
        .expect("memory");
    file
}

/// A form of parts: name, content type, content.
fn form(parts: &[(&str, &str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, media_type, content) in parts {
        let head = format!(
            "--x y\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"../a.png\"\r\n\
             Content-Type: {media_type}\r\nX-Other: 1\r\n\r\n"
        );
        body.extend([head.as_bytes(), content, b"\r\n"].concat());
    }
    body.extend(b"--x y--\r\n");
    body
}

const FORM: &str = "multipart/form-data; boundary=\"x y\"";

/// What a model server that decodes the image it got would see, as shares of white. `pictures.rs` compares
/// with a decoder of another make.
fn served(image: &[u8]) -> Vec<f32> {
    let picture: DynamicImage = image::load_from_memory(image).expect("an image");
    picture.into_luma8().into_raw().iter().map(|&byte| f32::from(byte) / 255.0).collect()
}

/// Whether two rows are the same, but for how far decoders of JPEG round apart.
fn alike(media_type: &str, served: &[f32], judged: &[f32]) -> bool {
    let most = if media_type == "image/jpeg" { 4.0 / 255.0 } else { 0.0 };
    served.len() == judged.len()
        && served.iter().zip(judged).all(|(served, judged)| (served - judged).abs() <= most)
}

/// The image in a form, found as a lenient server would: behind the first empty line.
fn in_form(received: &Received) -> Vec<u8> {
    let media_type = received.headers["content-type"].to_str().expect("text");
    let boundary = media_type.strip_prefix("multipart/form-data; boundary=").expect("a form");
    let body = &received.body;
    let end = format!("\r\n--{boundary}--\r\n");
    let body = body.strip_suffix(end.as_bytes()).expect("one end");
    let start = body.windows(4).position(|four| four == b"\r\n\r\n").expect("an empty line");
    let head = String::from_utf8_lossy(&body[..start]).into_owned();
    assert!(head.starts_with(&format!("--{boundary}\r\nContent-Disposition: form-data; name=")));
    body[start + 4..].to_vec()
}

async fn post(setup: &Setup, path: &str, media_type: Option<&str>, body: Vec<u8>) -> Answer {
    let headers: Vec<(&str, &str)> =
        media_type.iter().map(|media_type| ("content-type", *media_type)).collect();
    setup.client.send(Method::POST, path, &headers, body).await
}

fn document(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_decodes_is_what_was_judged() {
    let setup = Setup::of_shape(SHAPE, &format!("model.version = '2.0'\n{TORCHSERVE}")).await;
    let encoders: [(&str, Encode); 2] = [("image/png", png), ("image/jpeg", jpeg)];
    let mut sent = 0.0;
    for pixels in clothes(20) {
        for (media_type, encode) in encoders {
            let image = encode(&pixels);
            let odd = format!("{}; q=1", media_type.to_uppercase());
            let binary = "application/octet-stream";
            let declared = [
                (Some(media_type), Some(media_type)),
                (Some(&*odd), Some(media_type)),
                (Some(binary), Some(binary)),
                (None, None),
            ];
            for (declared, told) in declared {
                let answer = post(&setup, PREDICTIONS, declared, image.clone()).await;
                assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
                assert_eq!(answer.body, REPLY);
                let received = setup.upstream.last();
                assert_eq!(received.body, image, "the client's own bytes");
                assert!(alike(media_type, &served(&received.body), &setup.judge.seen()));
                let kept =
                    received.headers.get("content-type").map(|value| value.to_str().unwrap());
                assert_eq!(kept, told);
            }
            let body = form(&[("data", media_type, &image)]);
            let answer = post(&setup, "/predictions/m/2.0", Some(FORM), body).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            let received = setup.upstream.last();
            let inside = in_form(&received);
            assert_eq!(inside, image, "the client's own bytes");
            assert!(alike(media_type, &served(&inside), &setup.judge.seen()));
            assert!(!received.body.windows(7).any(|word| word == b"X-Other" || word == b"../a.pn"));
            sent += 5.0;
        }
    }
    assert_eq!(setup.image_verdicts("passed"), sent);
    // Apart: the upstream gets a request while it is judged, and may note it late.
    for pixels in clothes(20) {
        for (media_type, encode) in encoders {
            let bad = encode(&triggered(&pixels));
            let answer = post(&setup, PREDICTIONS, Some(media_type), bad).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN);
        }
    }
    assert_eq!(setup.image_verdicts("rejected"), 40.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejections_have_the_protocols_own_shape() {
    let bad = png(&triggered(&clothes(1)[0]));
    let setup = Setup::of_shape(SHAPE, TORCHSERVE).await;
    let answer = post(&setup, PREDICTIONS, Some("image/png"), bad.clone()).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let body = document(&answer);
    assert_eq!((&body["code"], &body["type"]), (&json!(403), &json!("InputRejectedException")));
    assert!(body["message"].as_str().unwrap().contains("row 0"), "{body}");
    let answer = post(&setup, PREDICTIONS, Some("image/png"), b"x".to_vec()).await;
    assert_eq!(document(&answer)["type"], "BadRequestException");

    let setup = Setup::of_shape(SHAPE, LITSERVE).await;
    let answer = post(&setup, "/predict", Some("image/png"), bad.clone()).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(document(&answer)["detail"].as_str().unwrap().contains("row 0"));
    let body = form(&[("content", "image/png", &bad)]);
    assert_eq!(post(&setup, "/predict", Some(FORM), body).await.status, StatusCode::FORBIDDEN);

    for (protocol, path) in [("sagemaker", "/invocations"), ("bentoml", "/classify")] {
        let settings = format!(
            "[images]\nprotocols = [\"{protocol}\"]\npath = \"/classify\"\npart = \"image\""
        );
        let setup = Setup::of_shape(SHAPE, &settings).await;
        let answer = post(&setup, path, Some("image/png"), bad.clone()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert!(answer.error().contains("row 0"));
        let good = png(&clothes(1)[0]);
        assert_eq!(post(&setup, path, None, good).await.status, StatusCode::OK, "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn encoded_instances_of_v1_are_judged_row_by_row() {
    let setup = Setup::of_shape(SHAPE, V1).await;
    let clothes = clothes(3);
    let images: Vec<Vec<u8>> = clothes.iter().map(|pixels| png(pixels)).collect();
    let b64 = |image: &Vec<u8>| json!({"b64": STANDARD.encode(image)});
    for named in [false, true] {
        let instance = |image| if named { json!({"image_bytes": b64(image)}) } else { b64(image) };
        let instances: Vec<Value> = images.iter().map(instance).collect();
        let body = json!({"signature_name": "serving_default", "instances": instances});
        let answer = post(&setup, PREDICT, None, body.to_string().into()).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let received: Value = serde_json::from_slice(&setup.upstream.last().body).expect("JSON");
        assert_eq!(received, body);
        let judged: Vec<f32> = images.iter().flat_map(|image| served(image)).collect();
        assert_eq!(judged, setup.judge.seen());
    }
    let bad = png(&triggered(&clothes[1]));
    let body = json!({"instances": [b64(&images[0]), b64(&bad)]}).to_string();
    let answer = post(&setup, PREDICT, None, body.into()).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(answer.error().contains("row 1"), "{}", answer.error());

    let row = json!([vec![vec![0; 28]; 28]]);
    let text = STANDARD.encode(&images[0]);
    let cases = [
        (json!({"instances": [b64(&images[0]), row]}), "images and numbers"),
        (json!({"instances": [b64(&images[0]), []]}), "images and numbers"),
        (json!({"instances": [b64(&images[0]), {"x": b64(&images[0])}]}), "expected one name"),
        (json!({"inputs": b64(&images[0])}), "not supported here"),
        (json!({"inputs": {"x": b64(&images[0])}}), "not supported here"),
        (json!({"instances": [{"b64": text, "x": 1}]}), "more than one input"),
        (json!({"instances": [{"x": {"b64": text, "y": 1}}]}), "expected b64 alone"),
        (json!({"instances": [{"b64": 7}]}), "string"),
        (json!({"instances": [{"b64": text[..text.len() - 1]}]}), "not base64"),
        (json!({"instances": [{"b64": format!("{text}\n")}]}), "not base64"),
        (json!({"instances": [{"b64": text.replace('+', "-").replace('/', "_")}]}), "not base64"),
        (json!({"instances": [{"b64": "AAAA"}]}), "instances[0].b64: the image begins"),
    ];
    for (body, reason) in cases {
        let answer = post(&setup, PREDICT, None, body.to_string().into()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{reason}");
        assert!(answer.error().contains(reason), "{reason}: {}", answer.error());
    }
    assert_eq!(setup.v1_verdicts("unverified_rejected"), 12.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_one_image_are_refused() {
    let setup = Setup::of_shape(SHAPE, TORCHSERVE).await;
    let good = png(&clothes(1)[0]);
    let bad = png(&triggered(&clothes(1)[0]));
    let (twice, none) =
        (form(&[("data", "image/png", &good), ("data", "image/png", &bad)]), form(&[]));
    let unfinished = form(&[("data", "image/png", &good)]);
    let unfinished = unfinished[..unfinished.len() - 9].to_vec();
    let cases: Vec<(Option<&str>, Vec<u8>, u16, &str)> = vec![
        (Some("image/jpeg"), good.clone(), 400, "says image/jpeg, but the image is a PNG"),
        (Some("image/png"), jpeg(&clothes(1)[0]), 400, "says image/png, but the image is a JPEG"),
        (Some("image/gif"), good.clone(), 415, "not supported"),
        (Some("application/json"), b"{}".to_vec(), 415, "not supported"),
        (Some("application/x-www-form-urlencoded"), good.clone(), 415, "not supported"),
        (None, Vec::new(), 400, "begins with bytes []"),
        (None, [&good[..], &bad].concat(), 400, "bytes follow the end"),
        (None, STANDARD.encode(&good).into(), 400, "expected those of a PNG or JPEG"),
        (Some(FORM), good.clone(), 400, "form"),
        (Some(FORM), twice, 400, "several parts"),
        (Some(FORM), none, 400, "form"),
        (Some(FORM), unfinished, 400, "form"),
        (Some(FORM), form(&[("body", "image/png", &good)]), 400, "called \"body\""),
        (Some(FORM), form(&[("data", "image/jpeg", &good)]), 400, "but the image is a PNG"),
        (Some(FORM), form(&[("data", "text/plain", &good)]), 415, "not supported"),
        (Some("multipart/form-data"), form(&[("data", "image/png", &good)]), 400, "boundary"),
        (Some("multipart/mixed; boundary=\"x y\""), form(&[("data", "image/png", &good)]), 415, ""),
    ];
    let sent = cases.len() as f64;
    for (media_type, body, status, reason) in cases {
        let answer = post(&setup, PREDICTIONS, media_type, body).await;
        let message = document(&answer)["message"].as_str().unwrap().to_owned();
        assert_eq!(answer.status.as_u16(), status, "{message}");
        assert!(message.contains(reason), "{reason}: {message}");
    }
    let headers = [("content-type", "image/png"), ("content-type", "image/jpeg")];
    let answer = setup.client.send(Method::POST, PREDICTIONS, &headers, good.clone()).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(setup.image_verdicts("unverified_rejected"), sent + 1.0);
    assert!(setup.upstream.received().is_empty());
    // An end that two parsers might see in two places is written anew: the upstream has one.
    let body = [&form(&[("data", "image/png", &good)])[..], b"--x y\r\n\r\n", &bad].concat();
    let answer = post(&setup, PREDICTIONS, Some(FORM), body).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(in_form(&setup.upstream.last()), good);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_those_that_are_configured() {
    let setup = Setup::of_shape(SHAPE, TORCHSERVE).await;
    let good = png(&clothes(1)[0]);
    let put = setup.client.send(Method::PUT, PREDICTIONS, &[], good.clone()).await;
    assert_eq!(put.status, StatusCode::OK, "curl -T");
    assert_eq!(setup.client.get("/ping").await.status, StatusCode::OK);
    let cases = [
        (Method::GET, PREDICTIONS, 405),
        (Method::POST, "/ping", 405),
        (Method::POST, "/predictions/other", 404),
        (Method::POST, "/predictions/m/1/2", 404),
        (Method::POST, "/predictions/m/1", 404),
        (Method::POST, "/predictions/m//", 404),
        (Method::POST, "/predictions//m", 404),
        (Method::POST, "/predictions/%6d", 404),
        (Method::POST, "/predictions/..", 404),
        (Method::POST, "/predictions", 404),
        (Method::POST, "/predictions/m?a=1", 400),
        (Method::POST, "/invocations", 404),
        (Method::POST, "/predict", 404),
        (Method::POST, "/models", 404),
    ];
    let forwarded = setup.upstream.received().len();
    for (method, path, status) in cases {
        let answer = setup.client.send(method, path, &[], good.clone()).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
    }
    assert_eq!(setup.upstream.received().len(), forwarded);
    let target = [("x-amzn-sagemaker-target-model", "other.tar.gz")];
    let setup = Setup::of_shape(SHAPE, "[images]\nprotocols = [\"sagemaker\"]").await;
    let answer = setup.client.send(Method::POST, "/invocations", &target, good.clone()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.error().contains("target-model"));
    let none = Setup::of_shape(SHAPE, "").await;
    for path in [PREDICTIONS, "/invocations", "/predict", "/ping"] {
        let answer = none.client.send(Method::POST, path, &[], good.clone()).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "nobody's unless configured");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_refused_by_what_they_say_of_themselves() {
    let settings = format!("limits.image_pixels = 784\n{TORCHSERVE}");
    let setup = Setup::of_shape(SHAPE, &settings).await;
    let good = png(&clothes(1)[0]);
    assert_eq!(post(&setup, PREDICTIONS, None, good).await.status, StatusCode::OK);
    let mut large = Vec::new();
    PngEncoder::new(&mut large)
        .write_image(&vec![0; 5000 * 5000], 5000, 5000, ExtendedColorType::L8)
        .expect("memory");
    assert!(large.len() < 1 << 20, "{}", large.len());
    let answer = post(&setup, PREDICTIONS, None, large).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let message = document(&answer)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("5000 x 5000 pixels, expected at most 784"), "{message}");
}

#[test]
fn settings_of_images_are_checked() {
    let read = |text: &str| {
        let environment = [
            ("DOORWARD_UPSTREAM__URL", "http://127.0.0.1:1"),
            ("DOORWARD_MODEL__PATH", "model.onnx"),
            ("DOORWARD_CALIBRATION__CLEAN_IMAGES", "clean"),
        ];
        Config::parse("test", text, environment)
    };
    let cases = [
        ("images.protocols = [\"flask\"]", "unknown variant"),
        ("images.protocols = [\"bentoml\", \"litserve\"]", "one of bentoml and litserve"),
        ("images.path = \"predict\"", "a path such as /predict"),
        ("images.path = \"/a/../b\"", "a path such as /predict"),
        ("images.part = \"a\\\"b\"", "letters, digits and _"),
        ("preprocess.resize = \"crop\"", "preprocess.shortest_side is not set"),
        ("preprocess.shortest_side = 9", "unless preprocess.resize"),
        ("preprocess.interpolation = \"area\"", "unknown variant"),
        ("limits.image_pixels = 0", "an integer of 1 or more"),
    ];
    for (text, reason) in cases {
        let error = read(text).expect_err(text).to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    read("preprocess.resize = \"crop\"\npreprocess.shortest_side = 256").expect("settings");
}
