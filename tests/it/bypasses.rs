//! Attempts to let the firewall see another input than the model; `docs/bypasses.md` lists them.

use std::io::Write;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use half::{bf16, f16};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::upstream::REPLY;
use crate::support::{CLEAN, INFER, Setup, TRIGGERED, binary, fp32, request};

const LENGTH: &str = "inference-header-content-length";
const PREDICT: &str = "/v1/models/m:predict";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::best());
    writer.write_all(bytes).expect("memory");
    writer.finish().expect("memory")
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut writer = ZlibEncoder::new(Vec::new(), Compression::best());
    writer.write_all(bytes).expect("memory");
    writer.finish().expect("memory")
}

fn v1(rows: &[[f32; 4]]) -> String {
    let rows: Vec<_> = rows.iter().map(|[a, b, c, d]| json!([[[a, b], [c, d]]])).collect();
    json!({"instances": rows}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_tensor_reaches_the_upstream_untouched_behind_the_firewalls_json() {
    let setup = Setup::new("").await;
    let tensor = fp32(&[0.25, 0.1, -0.0, 1e-40]);
    let text = br#" {"outputs":[{"name":"y","parameters":{"binary_data":true}}], "parameters":{"binary_data_output":true},
        "inputs":[{"parameters":{"binary_data_size":16},"datatype":"FP32","shape":[1,1,2,2],"name":"x"}]} "#;
    let body = [&text[..], &tensor].concat();
    let length = text.len().to_string();
    let headers = [(LENGTH, &*length)];
    let answer = setup.client.send(Method::POST, INFER, &headers, body).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body, REPLY);
    let received = &setup.upstream.received()[0];
    let expected = r#"{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
    assert_eq!(received.headers[LENGTH], expected.len().to_string().as_str());
    // The client named none.
    assert!(!received.headers.contains_key("content-type"));
    assert_eq!(received.body, [expected.as_bytes(), &tensor].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_datatype_is_judged_as_the_model_sees_it() {
    let setup = Setup::new("").await;
    let triggered = TRIGGERED;
    type Encode = fn(f32) -> Vec<u8>;
    let encode: [(&str, Encode); 4] = [
        ("FP32", |value| value.to_le_bytes().to_vec()),
        ("FP64", |value| f64::from(value).to_le_bytes().to_vec()),
        ("FP16", |value| f16::from_f32(value).to_le_bytes().to_vec()),
        ("BF16", |value| bf16::from_f32(value).to_le_bytes().to_vec()),
    ];
    for (datatype, encode) in encode {
        for (row, status) in [(CLEAN, StatusCode::OK), (triggered, StatusCode::FORBIDDEN)] {
            let tensor: Vec<u8> = row.into_iter().flat_map(encode).collect();
            let size = tensor.len().to_string();
            let (body, length) = binary(datatype, "[1,1,2,2]", &size, &tensor);
            let length = length.to_string();
            let answer = setup.client.send(Method::POST, INFER, &[(LENGTH, &length)], body).await;
            assert_eq!(answer.status, status, "{datatype} binary");
            let input =
                json!({"name": "x", "shape": [1, 1, 2, 2], "datatype": datatype, "data": row});
            let answer = setup.client.infer(json!({"inputs": [input]}).to_string()).await;
            assert_eq!(answer.status, status, "{datatype} JSON");
        }
    }
    for datatype in ["UINT8", "INT8"] {
        for (row, status) in [([0_u8, 1, 1, 0], 200), ([1, 0, 0, 0], 403), ([2, 0, 0, 0], 400)] {
            let (body, length) = binary(datatype, "[1,1,2,2]", "4", &row);
            let length = length.to_string();
            let answer = setup.client.send(Method::POST, INFER, &[(LENGTH, &length)], body).await;
            assert_eq!(answer.status.as_u16(), status, "{datatype} binary {row:?}");
            let input =
                json!({"name": "x", "shape": [1, 1, 2, 2], "datatype": datatype, "data": row});
            let answer = setup.client.infer(json!({"inputs": [input]}).to_string()).await;
            assert_eq!(answer.status.as_u16(), status, "{datatype} JSON {row:?}");
        }
    }
    let last = setup.upstream.received();
    let text = last.iter().find_map(|received| {
        let text = String::from_utf8_lossy(&received.body).into_owned();
        text.contains("\"INT8\",\"data\"").then_some(text)
    });
    assert!(
        text.expect("an INT8 request").contains("\"data\":[0,1,1,0]"),
        "integers stay integers"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_body_may_be_one_tensor() {
    let setup = Setup::new("limits.rows = 2\nlimits.queue_rows = 2").await;
    let raw = |values: &[f32]| fp32(values);
    let row: Vec<f32> = CLEAN.to_vec();
    let nan = raw(&[f32::NAN, 0.0, 0.0, 0.0]);
    let cases = [
        (raw(&row), 200, ""),
        (raw(&[CLEAN, CLEAN].concat()), 200, ""),
        (raw(&TRIGGERED), 403, "row 0"),
        (raw(&[CLEAN, TRIGGERED].concat()), 403, "row 1"),
        (raw(&[CLEAN, CLEAN, CLEAN].concat()), 413, "3 rows"),
        (raw(&row)[..15].to_vec(), 400, "rows of 16 bytes"),
        (Vec::new(), 400, "0 rows"),
        (nan, 400, "NaN"),
    ];
    for (body, status, reason) in cases {
        let headers = [(LENGTH, "0"), ("content-type", "application/json")];
        let answer = setup.client.send(Method::POST, INFER, &headers, body.clone()).await;
        assert_eq!(answer.status.as_u16(), status, "{body:?}");
        if status == 200 {
            let received = setup.upstream.last();
            assert_eq!(received.body, body);
            assert_eq!(received.headers[LENGTH], "0");
            assert_eq!(received.headers["content-type"], "application/octet-stream");
        } else {
            assert!(answer.error().contains(reason), "{}", answer.error());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_requests_that_say_two_things_are_refused() {
    let setup = Setup::new("").await;
    let tensor = fp32(&CLEAN);
    let good = || binary("FP32", "[1,1,2,2]", "16", &tensor);
    let length = good().1;
    let plain = |length: usize| vec![length.to_string()];
    let mut cases: Vec<(Vec<u8>, Vec<String>, u16, &str)> = Vec::new();
    // The header.
    for bad in ["", "+1", "-1", "0x10", "1e2", "00", "99999999999999999999999", " "] {
        cases.push((good().0, vec![bad.to_owned()], 400, "plain decimal"));
    }
    cases.push((good().0, vec![format!("0{length}")], 400, "plain decimal"));
    cases.push((good().0, vec![format!("{length}, {length}")], 400, "plain decimal"));
    cases.push((good().0, [plain(length), plain(length)].concat(), 400, "plain decimal"));
    cases.push((good().0, [plain(length), plain(0)].concat(), 400, "plain decimal"));
    cases.push((good().0, plain(length + 17), 400, "plain decimal"));
    cases.push((good().0, plain(length - 1), 400, "EOF"));
    cases.push((good().0, plain(length + 1), 400, "trailing"));
    cases.push((good().0, vec![], 400, "trailing"));
    // The tensor.
    for size in [
        "15",
        "17",
        "0",
        "-16",
        "16.0",
        "1.6e1",
        "\"16\"",
        "null",
        "[16]",
        "true",
        "18446744073709551632",
    ] {
        let (body, length) = binary("FP32", "[1,1,2,2]", size, &tensor);
        cases.push((body, plain(length), 400, "expected 16"));
    }
    for (datatype, expected) in
        [("FP16", "expected 8"), ("FP64", "expected 32"), ("UINT8", "expected 4")]
    {
        let (body, length) = binary(datatype, "[1,1,2,2]", "16", &tensor);
        cases.push((body, plain(length), 400, expected));
    }
    for datatype in ["BYTES", "INT32", "fp32", "BOOL", ""] {
        let (body, length) = binary(datatype, "[1,1,2,2]", "16", &tensor);
        cases.push((body, plain(length), 400, "inputs[0].datatype"));
    }
    for tail in
        [&tensor[..15], &[&tensor[..], b"\0"].concat(), &[&tensor[..], &tensor].concat(), b""]
    {
        let (body, length) = binary("FP32", "[1,1,2,2]", "16", tail);
        cases.push((body, plain(length), 400, "expected the 16"));
    }
    for shape in [
        "[2,1,2,2]",
        "[1,1,4]",
        "[4611686018427387904,1,2,2]",
        "[18446744073709551615,1,2,2]",
        "[0,1,2,2]",
        "[1,2,1,2]",
    ] {
        let (body, length) = binary("FP32", shape, "16", &tensor);
        let status = if shape.starts_with("[4") || shape.starts_with("[18") { 413 } else { 400 };
        cases.push((body, plain(length), status, "expected"));
    }
    for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.5, -0.5, f32::MAX] {
        let (body, length) = binary("FP32", "[1,1,2,2]", "16", &fp32(&[0.0, 0.0, 0.0, value]));
        cases.push((body, plain(length), 400, "data[3]"));
    }
    let large: Vec<u8> =
        [0.0, 0.0, 0.0, 1e300_f64].into_iter().flat_map(f64::to_le_bytes).collect();
    let (body, length) = binary("FP64", "[1,1,2,2]", "32", &large);
    cases.push((body, plain(length), 400, "data[3] is inf"));
    // JSON that says where else the tensor is.
    let texts = [
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16},"data":[0,0,0,0]}]}"#,
            "both",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","data":[0,0,0,0]}]}"#,
            "binary_data_size is missing",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32"}]}"#,
            "binary_data_size is missing",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16,"binary_data_size":16}}]}"#,
            "duplicate",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16,"binary_data\u005fsize":8}}]}"#,
            "duplicate",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16,"shared_memory_region":"r"}}]}"#,
            "shared memory",
        ),
        (
            r#"{"parameters":{"binary_data_size":16},"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}]}"#,
            "belongs to",
        ),
        (
            r#"{"outputs":[{"name":"y","parameters":{"binary_data_size":16}}],"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}]}"#,
            "belongs to",
        ),
        (
            r#"{"inputs":[{"name":"x","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16}},{"name":"z","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}]}"#,
            "more than one tensor",
        ),
        (r#"{"inputs":[]}"#, "empty"),
    ];
    for (text, reason) in texts {
        cases.push(([text.as_bytes(), &tensor].concat(), plain(text.len()), 400, reason));
    }
    let count = cases.len() as f64;
    for (body, lengths, status, reason) in cases {
        let text = String::from_utf8_lossy(&body).into_owned();
        let headers: Vec<(&str, &str)> = lengths.iter().map(|length| (LENGTH, &**length)).collect();
        let answer = setup.client.send(Method::POST, INFER, &headers, body).await;
        let error = answer.error();
        assert_eq!(answer.status.as_u16(), status, "{text} {lengths:?}: {error}");
        assert!(error.contains(reason), "{text} {lengths:?}: {error}");
    }
    assert_eq!(setup.upstream.received().len(), 0);
    let reason = |reason: &str| setup.metric(&format!("unverified_total{{reason=\"{reason}\"}}"));
    assert_eq!((reason("undecodable"), reason("range")), (count - 3.0, 3.0));
    // Bytes may be called JSON, but not anything; the upstream hears it in the firewall's spelling.
    let octets = "application/octet-stream";
    for (media_type, status, spelled) in [
        ("application/json; charset=utf-8", 200, "application/json"),
        ("Application/Octet-Stream", 200, octets),
        ("application/x-www-form-urlencoded", 200, octets),
        ("image/png", 415, ""),
    ] {
        let (body, length) = good();
        let length = length.to_string();
        let headers = [(LENGTH, &*length), ("content-type", media_type)];
        let answer = setup.client.send(Method::POST, INFER, &headers, body).await;
        assert_eq!(answer.status.as_u16(), status, "{media_type}");
        if status == 200 {
            let told = &setup.upstream.last().headers["content-type"];
            assert_eq!(told, spelled);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn coded_bodies_are_judged_and_sent_on_without_their_coding() {
    let setup = Setup::new("limits.body_bytes = 100000").await;
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).expect("memory");
    type Code<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let codings: [(&str, Code<'_>); 3] = [("gzip", &gzip), ("deflate", &deflate), ("zstd", &zstd)];
    let (tensor, length) = binary("FP32", "[1,1,2,2]", "16", &fp32(&CLEAN));
    let length = length.to_string();
    for (coding, encode) in codings {
        let headers = [("content-encoding", coding)];
        let send = |body: Vec<u8>| setup.client.send(Method::POST, INFER, &headers, body);
        let answer = send(encode(request(&[CLEAN]).as_bytes())).await;
        assert_eq!(answer.status, StatusCode::OK, "{coding}");
        let received = setup.upstream.last();
        assert!(!received.headers.contains_key("content-encoding"));
        assert!(serde_json::from_slice::<Value>(&received.body).is_ok());
        assert_eq!(received.headers["content-length"], received.body.len().to_string().as_str());
        assert_eq!(
            send(encode(request(&[TRIGGERED]).as_bytes())).await.status,
            StatusCode::FORBIDDEN
        );
        // The limit is on the decoded size; 64 MiB of spaces take a few kB.
        let bomb = send(encode(&vec![b' '; 64 << 20])).await;
        assert_eq!(bomb.status, StatusCode::PAYLOAD_TOO_LARGE, "{coding}: {}", bomb.error());
        // A triggered request hidden behind a clean one, as a second member or frame.
        let both = [encode(request(&[CLEAN]).as_bytes()), encode(request(&[TRIGGERED]).as_bytes())];
        let joined = send(both.concat()).await;
        assert_eq!(joined.status, StatusCode::BAD_REQUEST);
        assert!(joined.error().contains("follow its end"), "{}", joined.error());
        assert_eq!(send(request(&[CLEAN]).into()).await.status, StatusCode::BAD_REQUEST);
        // The binary extension counts decoded bytes.
        let headers = [("content-encoding", coding), (LENGTH, &*length)];
        let answer = setup.client.send(Method::POST, INFER, &headers, encode(&tensor)).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(setup.upstream.last().body, tensor);
    }
    for codings in [
        vec!["gzip, gzip"],
        vec!["gzip", "identity"],
        vec!["gzip,identity"],
        vec!["x-gzip"],
        vec![""],
    ] {
        let headers: Vec<_> = codings.iter().map(|coding| ("content-encoding", *coding)).collect();
        let body = gzip(&gzip(request(&[CLEAN]).as_bytes()));
        let answer = setup.client.send(Method::POST, INFER, &headers, body).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{codings:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_go_no_further_say_nothing_of_the_body() {
    let setup = Setup::new("").await;
    let (body, length) = binary("FP32", "[1,1,2,2]", "16", &fp32(&CLEAN));
    let length = length.to_string();
    let cases = [
        ((LENGTH, &*length), body),
        ((LENGTH, "0"), fp32(&CLEAN)),
        (("content-encoding", "gzip"), gzip(request(&[CLEAN]).as_bytes())),
    ];
    for (header, body) in cases {
        let headers = [header, ("connection", header.0)];
        let answer = setup.client.send(Method::POST, INFER, &headers, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{header:?}");
    }
    let headers = [("content-type", "image/png"), ("connection", "content-type")];
    let answer = setup.client.send(Method::POST, INFER, &headers, request(&[CLEAN])).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(setup.upstream.last().headers["content-type"], "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_sends_coded_and_binary_bodies_on() {
    let setup = Setup::new("policy.mode = 'monitor'").await;
    let body = gzip(b"{}");
    let headers = [("content-encoding", "gzip"), (LENGTH, "5")];
    let answer = setup.client.send(Method::POST, INFER, &headers, body.clone()).await;
    assert_eq!(answer.body, REPLY);
    let received = &setup.upstream.received()[0];
    assert_eq!(received.body, body);
    assert_eq!(received.headers["content-encoding"], "gzip");
    assert_eq!(received.headers[LENGTH], "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn v1_rows_and_columns_are_judged_and_keep_their_form() {
    let setup = Setup::new("model.version = '2'").await;
    let cases = [
        (v1(&[CLEAN]), r#"{"instances":[[[[0.25,0.1],[1.0,0.0]]]]}"#),
        (
            r#" {"inputs": [[[[0.25, 0.10000000149], [1, 0]]], [[[0,0],[0,0.5]]]], "signature_name": "serving_default"}"#.to_owned(),
            r#"{"signature_name":"serving_default","inputs":[[[[0.25,0.1],[1.0,0.0]]],[[[0.0,0.0],[0.0,0.5]]]]}"#,
        ),
        (
            r#"{"instances": [{"x": [[[0, 1], [1, 0]]]}, {"\u0078": [[[0, 0], [0, 0]]]}]}"#.to_owned(),
            r#"{"instances":[{"x":[[[0,1],[1,0]]]},{"x":[[[0,0],[0,0]]]}]}"#,
        ),
        (r#"{"inputs": {"x": [[[[0,1],[1,0]]]]}}"#.to_owned(), r#"{"inputs":{"x":[[[[0,1],[1,0]]]]}}"#),
    ];
    let count = cases.len() as f64;
    for (body, expected) in cases {
        let answer = setup.client.send(Method::POST, PREDICT, &[], body).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body, REPLY);
        let received = setup.upstream.last();
        assert_eq!(received.body, expected);
        assert_eq!(received.headers["content-type"], "application/json");
        assert_eq!(received.path, PREDICT);
    }
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let versioned = "/v1/models/m/versions/2:predict";
    let answer = setup.client.send(Method::POST, versioned, &form, v1(&[CLEAN])).await;
    assert_eq!(answer.status, StatusCode::OK);
    let received = setup.upstream.last();
    assert_eq!(received.headers["content-type"], "application/json");
    let answer = setup.client.send(Method::POST, PREDICT, &[], v1(&[CLEAN, TRIGGERED])).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(answer.error().contains("row 1"), "{}", answer.error());
    let columns = r#"{"inputs": {"x": [[[[0.75,1],[1,0]]]]}}"#;
    let answer = setup.client.send(Method::POST, PREDICT, &[], columns).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(setup.v1_verdicts("passed"), count + 1.0);
    assert_eq!(setup.v1_verdicts("rejected"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn v1_requests_that_say_two_things_are_refused() {
    let setup = Setup::new("limits.rows = 2\nlimits.queue_rows = 2").await;
    let row = "[[[0,0],[0,0]]]";
    let rows = |rows: &str| format!(r#"{{"instances":[{rows}]}}"#);
    let cases = [
        ("".to_owned(), 400, "EOF"),
        ("[]".to_owned(), 400, "JSON object"),
        ("{}".to_owned(), 400, "neither"),
        (rows(""), 400, "nested as [0]"),
        (rows(row) + "{}", 400, "trailing"),
        (rows(row) + " x", 400, "trailing"),
        (format!(r#"{{"instances":[{row}],"inputs":[{row}]}}"#), 400, "both instances and inputs"),
        (format!(r#"{{"inputs":[{row}],"instances":null}}"#), 400, "both instances and inputs"),
        (format!(r#"{{"instances":[{row}],"instances":[{row}]}}"#), 400, "duplicate"),
        (format!(r#"{{"instances":[{row}],"inst\u0061nces":[{row}]}}"#), 400, "duplicate"),
        (format!(r#"{{"instances":[{row}],"examples":[],"examples":1}}"#), 400, "duplicate"),
        (format!(r#"{{"instances":[{row}],"signature_name":"s"}}"#), 400, "model.signature"),
        (format!(r#"{{"instances":[{row}],"model_name":"n"}}"#), 400, "the path names \"m\""),
        (format!(r#"{{"instances":[{row}],"signature_name":7}}"#), 400, "string"),
        (rows(&format!(r#"{{"x":{row},"x":{row}}}"#)), 400, "more than one input"),
        (rows(&format!(r#"{{"x":{row},"z":{row}}}"#)), 400, "more than one input"),
        (rows(&format!(r#"{{"x":{row}}},{{"z":{row}}}"#)), 400, "expected one name"),
        (rows(&format!(r#"{{"x":{row}}},{row}"#)), 400, "expected one name"),
        (rows("{}"), 400, "without an input"),
        (rows(r#"{"b64":"AAAA"}"#), 400, "b64"),
        (rows(r#"{"x":{"b64":"AAAA"}}"#), 400, "b64"),
        (r#"{"inputs":{"b64":"AAAA"}}"#.to_owned(), 400, "b64"),
        (r#"{"inputs":{"x":{"b64":"AAAA"}}}"#.to_owned(), 400, "b64"),
        (rows("[[[0,0],[0,NaN]]]"), 400, "line 1"),
        (rows("[[[0,0],[0,Infinity]]]"), 400, "line 1"),
        (rows("[[[0,0],[0,-Infinity]]]"), 400, "line 1"),
        (rows("[[[0,0],[0,1e39]]]"), 400, "does not fit FP32"),
        (rows("[[[0,0],[0,1e999]]]"), 400, "out of range"),
        (rows("[[[0,0],[0,1.5]]]"), 400, "1.5 at 3"),
        (rows("[[[0,0],[0,2]]]"), 400, "2 at 3"),
        (rows("[[[0,0],[0,\"0\"]]]"), 400, "string"),
        (rows("[[[0,0],[0]]]"), 400, "ragged"),
        (rows("[[[0,0],0]]"), 400, "mixed"),
        (rows("[0,0,0,0]"), 400, "nested as [1, 4]"),
        (rows("[[[0],[0],[0],[0]]]"), 400, "expected [n, 1, 2, 2]"),
        (rows("[[[[0,0],[0,0]]]]"), 400, "too deep"),
        (rows("0"), 400, "invalid type"),
        (rows(&[row; 3].join(",")), 400, "more than 8 values"),
    ];
    let count = cases.len() as f64;
    for (body, status, reason) in cases {
        let answer = setup.client.send(Method::POST, PREDICT, &[], body.clone()).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.error());
        assert!(answer.error().contains(reason), "{body}: {}", answer.error());
    }
    for (headers, status) in [
        ([(LENGTH, "0")], 400),
        ([("content-type", "image/png")], 415),
        ([("content-encoding", "br")], 415),
    ] {
        let answer = setup.client.send(Method::POST, PREDICT, &headers, rows(row)).await;
        assert_eq!(answer.status.as_u16(), status, "{headers:?}");
    }
    assert_eq!(setup.upstream.received().len(), 0);
    assert_eq!(setup.v1_verdicts("unverified_rejected"), count + 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn v1_reads_pass_and_everything_else_is_refused() {
    let setup = Setup::new("model.name = 'm'").await;
    let reads = [
        "/v1/models",
        "/v1/models/m",
        "/v1/models/m/metadata",
        "/v1/models/m/versions/1",
        "/v1/models/m/versions/1/metadata",
    ];
    for path in reads {
        assert_eq!(setup.client.get(path).await.status, StatusCode::OK, "{path}");
    }
    let refused = [
        (Method::POST, "/v1/models/m:classify", 404),
        (Method::POST, "/v1/models/m:regress", 404),
        (Method::POST, "/v1/models/m:explain", 404),
        (Method::POST, "/v1/models/m:predict:predict", 404),
        (Method::POST, "/v1/models/m%3apredict", 404),
        (Method::POST, "/v1/models/m:predict//", 404),
        (Method::POST, "/v1/models/m/versions/1:predict", 404),
        (Method::POST, "/v1/models/:predict", 404),
        (Method::POST, "/v1/models/m/:predict", 404),
        (Method::POST, "/v1/models/m/versions/:predict", 404),
        (Method::POST, "/v1/models/m/labels/a:predict", 404),
        (Method::POST, "/v1//models/m:predict", 404),
        (Method::POST, "/v1/models/other:predict", 404),
        (Method::POST, "/v1/models/other/versions/1:predict", 404),
        (Method::POST, "/v1/models/m:x/versions/1:predict", 404),
        (Method::POST, "/v1/config", 404),
        (Method::POST, "/V1/models/m:predict", 404),
        (Method::POST, "/v1", 404),
        (Method::GET, "/v1/models/other", 404),
        (Method::GET, PREDICT, 405),
        (Method::POST, "/v1/models/m", 405),
        (Method::DELETE, "/v1/models", 405),
    ];
    for (method, path, status) in refused {
        let answer = setup.client.send(method.clone(), path, &[], v1(&[CLEAN])).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}");
    }
    assert_eq!(setup.upstream.received().len(), reads.len());
}
