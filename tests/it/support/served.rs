//! Tensors of requests as a model server reads them: leniently, and by nothing of the firewall's. The fuzz targets use it too.

use half::{bf16, f16};
use serde_json::Value;

/// Of a V2 request, of which so many bytes are JSON, if tensors follow.
pub(crate) fn v2(json_length: Option<usize>, body: &[u8]) -> Vec<f32> {
    let (text, tail) = body.split_at(json_length.unwrap_or(body.len()));
    if json_length == Some(0) {
        return bytes("FP32", tail);
    }
    let document: Value = serde_json::from_slice(text).expect("JSON");
    let input = &document["inputs"][0];
    let datatype = input["datatype"].as_str().expect("a datatype");
    if json_length.is_some() {
        assert_eq!(input["parameters"]["binary_data_size"].as_u64(), Some(tail.len() as u64));
        return bytes(datatype, tail);
    }
    let mut numbers = Vec::new();
    flatten(&input["data"], &mut numbers);
    let narrowed = numbers.into_iter().map(|number| match datatype {
        "BF16" => bf16::from_f32(number as f32).to_f32(),
        "FP16" => f16::from_f32(number as f32).to_f32(),
        _ => number as f32,
    });
    narrowed.collect()
}

/// Of a V1 request.
pub(crate) fn v1(body: &[u8]) -> Vec<f32> {
    let document: Value = serde_json::from_slice(body).expect("JSON");
    let mut numbers = Vec::new();
    for key in ["instances", "inputs"] {
        flatten(&document[key], &mut numbers);
    }
    numbers.into_iter().map(|number| number as f32).collect()
}

/// Of a tensor's bytes.
pub(crate) fn bytes(datatype: &str, tensor: &[u8]) -> Vec<f32> {
    let half = |bytes: &[u8]| u16::from_le_bytes(bytes.try_into().expect("2"));
    match datatype {
        "BF16" => tensor.chunks(2).map(|bytes| bf16::from_bits(half(bytes)).to_f32()).collect(),
        "FP16" => tensor.chunks(2).map(|bytes| f16::from_bits(half(bytes)).to_f32()).collect(),
        "FP32" => {
            tensor.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4"))).collect()
        }
        "FP64" => tensor
            .chunks(8)
            .map(|bytes| f64::from_le_bytes(bytes.try_into().expect("8")) as f32)
            .collect(),
        "INT8" => tensor.iter().map(|&byte| f32::from(byte as i8)).collect(),
        "UINT8" => tensor.iter().map(|&byte| f32::from(byte)).collect(),
        other => panic!("{other} got through"),
    }
}

fn flatten(value: &Value, numbers: &mut Vec<f64>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| flatten(item, numbers)),
        Value::Object(entries) => entries.values().for_each(|item| flatten(item, numbers)),
        Value::Number(number) => numbers.push(number.as_f64().expect("a number")),
        _ => {}
    }
}
