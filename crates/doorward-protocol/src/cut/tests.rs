use hyper::header::HeaderValue;

use super::*;
use crate::format::Format;

const ASKED: Asked<'static> =
    Asked { rows: 1, total: 3, labels: 2, output: Some("logits"), selective: false };

fn json(format: Format, text: &str, asked: Asked<'_>) -> Result<(String, Option<Told>), CutError> {
    let found = format.cut(&HeaderMap::new(), &Bytes::copy_from_slice(text.as_bytes()), asked)?;
    Ok((String::from_utf8(found.body.to_vec()).expect("text"), found.predictions))
}

fn logits(rows: &[[f32; 2]]) -> Option<Told> {
    Some(Told::Scores(rows.concat()))
}

const FLAT: &str = r#"{"model_name":"m","id":"7","parameters":{"k":1.0},"outputs":[{"name":"logits","shape":[3,2],"datatype":"FP32","data":[1.50,2e0,3,4,5,6]}],"extra":[1,2,3]}"#;

#[test]
fn v2_keeps_the_spelling_of_what_stays() {
    let (text, predictions) = json(Format::Oip, FLAT, ASKED).unwrap();
    let expected = r#"{"model_name":"m","id":"7","parameters":{"k":1.0},"outputs":[{"name":"logits","shape":[1,2],"datatype":"FP32","data":[1.50,2e0]}],"extra":[1,2,3]}"#;
    assert_eq!(text, expected);
    assert_eq!(predictions, logits(&[[1.5, 2.0], [3.0, 4.0], [5.0, 6.0]]));
}

#[test]
fn outputs_of_any_rank_are_cut_and_the_named_one_is_read() {
    let text = r#"{"outputs":[{"name":"map","shape":[3,1,2],"datatype":"FP32","data":[[[1,2]],[[3,4]],[[5,6]]]},
        {"name":"top","shape":[3],"datatype":"INT64","data":[1,0,1]},
        {"name":"word","shape":[3,1],"datatype":"BYTES","data":["a","b","c"]},
        {"name":"aux","shape":[3,2],"datatype":"FP32","data":[9,9,9,9,9,9]},
        {"name":"logits","shape":[3,2],"datatype":"FP32","data":[[1,2],[3,4],[5,6]]}]}"#;
    let (text, predictions) = json(Format::Oip, text, ASKED).unwrap();
    assert_eq!(
        text,
        concat!(
            r#"{"outputs":[{"name":"map","shape":[1,1,2],"datatype":"FP32","data":[[[1,2]]]},"#,
            r#"{"name":"top","shape":[1],"datatype":"INT64","data":[1]},"#,
            r#"{"name":"word","shape":[1,1],"datatype":"BYTES","data":["a"]},"#,
            r#"{"name":"aux","shape":[1,2],"datatype":"FP32","data":[9,9]},"#,
            r#"{"name":"logits","shape":[1,2],"datatype":"FP32","data":[[1,2]]}]}"#
        )
    );
    assert_eq!(predictions, logits(&[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]));
}

#[test]
fn what_the_client_chose_is_read_only_under_the_models_own_name() {
    let selective = Asked { selective: true, ..ASKED };
    assert!(json(Format::Oip, FLAT, selective).unwrap().1.is_some());
    let other = FLAT.replace("\"logits\"", "\"other\"");
    assert!(json(Format::Oip, &other, ASKED).unwrap().1.is_some());
    assert_eq!(json(Format::Oip, &other, selective).unwrap().1, None);
    let labels = r#"{"outputs":[{"name":"top","shape":[3],"datatype":"INT64","data":[1,0,1]}]}"#;
    assert_eq!(json(Format::Oip, labels, ASKED).unwrap().1, Some(Told::Labels(vec![1, 0, 1])));
    assert_eq!(json(Format::Oip, labels, selective).unwrap().1, None);
    // Two tensors that could be it.
    let two = r#"{"outputs":[{"name":"a","shape":[3],"datatype":"INT64","data":[1,0,1]},{"name":"b","shape":[3],"datatype":"INT64","data":[1,0,1]}]}"#;
    assert_eq!(json(Format::Oip, two, ASKED).unwrap().1, None);
}

#[test]
fn tensors_behind_the_json_are_cut_one_by_one() {
    let text = r#"{"outputs":[{"name":"word","shape":[3],"datatype":"BYTES","parameters":{"binary_data_size":17}},{"name":"logits","shape":[3,2],"datatype":"FP16","parameters":{"binary_data_size":12}}]}"#;
    let mut body = text.as_bytes().to_vec();
    for word in ["ab", "", "cde"] {
        body.extend((word.len() as u32).to_le_bytes());
        body.extend(word.as_bytes());
    }
    body.extend([0, 0x3c, 0, 0x40, 0, 0x3c, 0, 0x38, 0, 0, 0, 0x3c]);
    let mut headers = HeaderMap::new();
    headers.insert(JSON_LENGTH, HeaderValue::from(text.len()));
    let found = Format::Oip.cut(&headers, &body.clone().into(), ASKED).unwrap();
    let (head, tail) = found.body.split_at(found.json_length.unwrap());
    let head: serde_json::Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 6);
    assert_eq!(head["outputs"][1]["parameters"]["binary_data_size"], 4);
    assert_eq!(head["outputs"][1]["shape"], serde_json::json!([1, 2]));
    assert_eq!(tail, [&[2, 0, 0, 0][..], b"ab", &[0, 0x3c, 0, 0x40]].concat());
    assert_eq!(found.predictions, logits(&[[1.0, 2.0], [1.0, 0.5], [0.0, 1.0]]));
    for length in text.len()..body.len() {
        let short = Bytes::copy_from_slice(&body[..length]);
        assert!(Format::Oip.cut(&headers, &short, ASKED).is_err(), "{length}");
    }
    body.push(0);
    assert!(Format::Oip.cut(&headers, &body.into(), ASKED).is_err());
}

#[test]
fn v1_is_cut_in_every_form() {
    let read = logits(&[[1.5, 2.0], [3.0, 4.0], [5.0, 6.0]]);
    let labels = Some(Told::Labels(vec![1, 0, 1]));
    for (text, cut, predictions) in [
        (
            r#"{"predictions":[[1.50,2],[3,4],[5,6]],"k":[1]}"#,
            r#"{"predictions":[[1.50,2]],"k":[1]}"#,
            &read,
        ),
        (r#"{"predictions":[1,0,1]}"#, r#"{"predictions":[1]}"#, &labels),
        (r#"{"predictions":[1.0,0.0,1.0]}"#, r#"{"predictions":[1.0]}"#, &None),
        (
            r#"{"predictions":[{"logits":[1.5,2],"top":1},{"logits":[3,4],"top":0},{"logits":[5,6],"top":0}]}"#,
            r#"{"predictions":[{"logits":[1.5,2],"top":1}]}"#,
            &read,
        ),
        (r#"{"outputs":[[1.5,2],[3,4],[5,6]]}"#, r#"{"outputs":[[1.5,2]]}"#, &read),
        (
            r#"{"outputs":{"logits":[[1.5,2],[3,4],[5,6]],"top":[1,0,1]}}"#,
            r#"{"outputs":{"logits":[[1.5,2]],"top":[1]}}"#,
            &read,
        ),
    ] {
        assert_eq!(
            json(Format::KserveV1, text, ASKED).unwrap(),
            (cut.to_owned(), predictions.clone())
        );
    }
}

#[test]
fn what_cannot_be_cut_is_an_error_that_says_why() {
    for (format, text, why) in [
        (
            Format::Oip,
            r#"{"outputs":[{"name":"n","shape":[1],"datatype":"FP32","data":[1]}]}"#,
            "expected the 3 rows",
        ),
        (
            Format::Oip,
            r#"{"outputs":[{"name":"n","shape":[],"datatype":"FP32","data":[1]}]}"#,
            "expected the 3 rows",
        ),
        (
            Format::Oip,
            r#"{"outputs":[{"name":"n","shape":[3,2],"datatype":"FP32","data":[1]}]}"#,
            "does not fit",
        ),
        (Format::Oip, r#"{"model_name":"m"}"#, "no outputs"),
        (
            Format::Oip,
            r#"{"outputs":[{"name":"n","shape":[3],"datatype":"FP32","data":[NaN,1,2]}]}"#,
            "not JSON",
        ),
        (Format::KserveV1, r#"{"predictions":[[1,2]]}"#, "expected the 3 rows"),
        (Format::KserveV1, r#"{"error":"x"}"#, "neither"),
    ] {
        let error = json(format, text, ASKED).expect_err("no answer").to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}
