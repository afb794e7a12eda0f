//! More rows at the end of a request, for the upstream to predict together with the client's.
//!
//! It works on the firewall's own encoding of a checked request, whose form is known.

use super::datatype::Datatype;
use super::text::{Members, extended, items, members};
use crate::binary;
use crate::request::Encoded;

/// A request with more rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Appended {
    /// The request that the upstream gets.
    pub encoded: Encoded,
    /// True if the client chose what the answer holds.
    pub selective: bool,
}

pub(crate) fn append_v2(encoded: &Encoded, rows: &[f32], shape: [usize; 3]) -> Option<Appended> {
    let (text, tensor) = encoded.body.split_at(encoded.json_length.unwrap_or(encoded.body.len()));
    let mut document = members(std::str::from_utf8(text).ok()?).ok()?;
    let selective = document.get("outputs").is_some_and(|outputs| outputs != "null");
    let [input] = <[&str; 1]>::try_from(items(document.get("inputs")?).ok()?).ok()?;
    let mut input = members(input).ok()?;
    let datatype = Datatype::parse(&string(input.get("datatype")?)?)?;
    if datatype.is_integer() {
        return None;
    }
    let [count, ..] = serde_json::from_str::<[usize; 4]>(input.get("shape")?).ok()?;
    let count = count + rows.len() / shape.iter().product::<usize>().max(1);
    input.set("shape", serde_json::json!([count, shape[0], shape[1], shape[2]]).to_string());
    let mut tensor = tensor.to_vec();
    match encoded.json_length {
        Some(_) => {
            datatype.write(rows, &mut tensor);
            let mut parameters = members(input.get("parameters")?).ok()?;
            parameters.set(binary::SIZE, tensor.len().to_string());
            input.set("parameters", parameters.text());
        }
        None => {
            let data = extended(input.get("data")?, &numbers(rows))?;
            input.set("data", data);
        }
    }
    document.set("inputs", format!("[{}]", input.text()));
    let mut body = document.text().into_bytes();
    let json_length = encoded.json_length.map(|_| body.len());
    body.append(&mut tensor);
    let encoded =
        Encoded { body: body.into(), json_length, media_type: encoded.media_type.clone() };
    Some(Appended { encoded, selective })
}

pub(crate) fn append_v1(encoded: &Encoded, rows: &[f32], shape: [usize; 3]) -> Option<Appended> {
    let mut document = members(std::str::from_utf8(&encoded.body).ok()?).ok()?;
    if document.get("signature_name").is_some() {
        return None;
    }
    if let Some(instances) = document.get("instances") {
        let (name, array) = named(items(instances).ok()?.first()?)?;
        let rows = is_fractional(&array).then(|| {
            let rows = rows.chunks(shape.iter().product::<usize>().max(1));
            let rows = rows.map(|row| match &name {
                Some(name) => format!("{{{name}:{}}}", nested(row, &shape)),
                None => nested(row, &shape),
            });
            rows.collect::<Vec<_>>().join(",")
        })?;
        let instances = extended(instances, &rows)?;
        document.set("instances", instances);
    } else {
        let (name, array) = named(document.get("inputs")?)?;
        let rows = is_fractional(&array).then(|| {
            let rows = rows.chunks(shape.iter().product::<usize>().max(1));
            rows.map(|row| nested(row, &shape)).collect::<Vec<_>>().join(",")
        })?;
        let array = extended(&array, &rows)?;
        let inputs = match name {
            Some(name) => format!("{{{name}:{array}}}"),
            None => array,
        };
        document.set("inputs", inputs);
    }
    let encoded = Encoded { body: document.text().into(), ..encoded.clone() };
    Some(Appended { encoded, selective: false })
}

/// An array, or an object of one, with the name as JSON.
fn named(text: &str) -> Option<(Option<String>, String)> {
    let (name, array) = if text.starts_with('{') {
        let Members(mut members) = members(text).ok()?;
        let (name, array) = members.pop()?;
        (Some(serde_json::Value::from(name).to_string()), array.into_owned())
    } else {
        (None, text.to_owned())
    };
    // An encoded image is a string, or an object of one.
    array.starts_with('[').then_some((name, array))
}

/// True if numbers are written as floats: the firewall writes all of a request in one way.
fn is_fractional(array: &str) -> bool {
    array.starts_with('[') && array.bytes().any(|byte| matches!(byte, b'.' | b'e'))
}

fn numbers(values: &[f32]) -> String {
    let text = serde_json::to_string(values).expect("writing to memory cannot fail");
    text[1..text.len() - 1].to_owned()
}

fn nested(values: &[f32], shape: &[usize]) -> String {
    match *shape {
        [] | [_] => format!("[{}]", numbers(values)),
        [count, ref rest @ ..] => {
            let parts = values.chunks((values.len() / count.max(1)).max(1));
            format!("[{}]", parts.map(|part| nested(part, rest)).collect::<Vec<_>>().join(","))
        }
    }
}

fn string(text: &str) -> Option<String> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::format::Format;

    const SHAPE: [usize; 3] = [1, 1, 2];

    fn json(text: &str) -> Encoded {
        let body = Bytes::copy_from_slice(text.as_bytes());
        Encoded { body, json_length: None, media_type: None }
    }

    fn body(format: Format, text: &str, rows: &[f32]) -> Option<(String, bool)> {
        let appended = format.append(&json(text), rows, SHAPE)?;
        let body = String::from_utf8(appended.encoded.body.to_vec()).expect("text");
        Some((body, appended.selective))
    }

    #[test]
    fn rows_are_appended_to_every_json_form() {
        let input = r#""name":"x","shape":[1,1,1,2],"datatype":"FP32","data":[0.5,1.0]"#;
        let (text, selective) =
            body(Format::Oip, &format!(r#"{{"id":"7","inputs":[{{{input}}}]}}"#), &[0.25, 0.125])
                .unwrap();
        assert_eq!(
            text,
            r#"{"id":"7","inputs":[{"name":"x","shape":[2,1,1,2],"datatype":"FP32","data":[0.5,1.0,0.25,0.125]}]}"#
        );
        assert!(!selective);
        let outputs = r#""outputs":[{"name":"y"}]"#;
        assert!(
            body(Format::Oip, &format!(r#"{{"inputs":[{{{input}}}],{outputs}}}"#), &[]).unwrap().1
        );
        for (before, after) in [
            (
                r#"{"instances":[[[[0.5,1.0]]]]}"#,
                r#"{"instances":[[[[0.5,1.0]]],[[[0.25,0.125]]]]}"#,
            ),
            (
                r#"{"instances":[{"e":[[[0.5,1.0]]]}]}"#,
                r#"{"instances":[{"e":[[[0.5,1.0]]]},{"e":[[[0.25,0.125]]]}]}"#,
            ),
            (r#"{"inputs":[[[[0.5,1.0]]]]}"#, r#"{"inputs":[[[[0.5,1.0]]],[[[0.25,0.125]]]]}"#),
            (
                r#"{"inputs":{"x":[[[[0.5,1.0]]]]}}"#,
                r#"{"inputs":{"x":[[[[0.5,1.0]]],[[[0.25,0.125]]]]}}"#,
            ),
        ] {
            assert_eq!(body(Format::KserveV1, before, &[0.25, 0.125]).unwrap().0, after);
        }
    }

    #[test]
    fn tensors_behind_the_json_grow_with_their_size() {
        let text = r#"{"inputs":[{"name":"x","shape":[1,1,1,2],"datatype":"FP16","parameters":{"binary_data_size":4,"k":1}}]}"#;
        let body = [text.as_bytes(), &[0, 0x3c, 0, 0x38]].concat().into();
        let encoded = Encoded { body, json_length: Some(text.len()), media_type: None };
        let found = Format::Oip.append(&encoded, &[2.0, 0.25], SHAPE).unwrap().encoded;
        let (head, tail) = found.body.split_at(found.json_length.unwrap());
        let head: serde_json::Value = serde_json::from_slice(head).unwrap();
        assert_eq!(head["inputs"][0]["shape"], serde_json::json!([2, 1, 1, 2]));
        assert_eq!(
            head["inputs"][0]["parameters"],
            serde_json::json!({"binary_data_size": 8, "k": 1})
        );
        assert_eq!(tail, [0, 0x3c, 0, 0x38, 0, 0x40, 0, 0x34]);
        let raw = Encoded { body: vec![0; 8].into(), json_length: Some(0), media_type: None };
        let found = Format::Oip.append(&raw, &[1.0, 0.5], SHAPE).unwrap().encoded;
        assert_eq!(found.body, [[0; 8], [0, 0, 0x80, 0x3f, 0, 0, 0, 0x3f]].concat());
        assert_eq!(found.json_length, Some(0));
    }

    #[test]
    fn integers_and_signatures_are_left_alone() {
        let input =
            r#"{"inputs":[{"name":"x","shape":[1,1,1,2],"datatype":"UINT8","data":[0,1]}]}"#;
        assert_eq!(body(Format::Oip, input, &[0.5, 0.5]), None);
        assert_eq!(body(Format::KserveV1, r#"{"instances":[[[[0,1]]]]}"#, &[0.5, 0.5]), None);
        for image in [r#"{"b64":"abcdef=="}"#, r#"{"image":{"b64":"abcdef=="}}"#] {
            let instances = format!(r#"{{"instances":[{image}]}}"#);
            assert_eq!(body(Format::KserveV1, &instances, &[0.5, 0.5]), None, "{image}");
        }
        for image in [r#"{"b64":"a.e="}"#, r#"{"x":{"b64":"a.e="}}"#] {
            let request = format!(r#"{{"instances":[{image}]}}"#);
            assert_eq!(body(Format::KserveV1, &request, &[0.5, 0.5]), None);
        }
        let signed = r#"{"signature_name":"s","instances":[[[[0.5,1.0]]]]}"#;
        assert_eq!(body(Format::KserveV1, signed, &[0.5, 0.5]), None);
    }
}
