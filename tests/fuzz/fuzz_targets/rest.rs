//! V2 in JSON and with binary tensors, and V1: what is sent on holds, as a model server reads it, the tensor that is judged.
//!
//! The first byte says which; of binary tensors the next two say how many bytes follow the JSON.

#![no_main]

use bytes::Bytes;
use doorward_images::Frame;
use doorward_protocol::binary::JSON_LENGTH;
use doorward_protocol::{Bounds, Checked, DecodeError, Encoded, Format, Input, Pictures};
use hyper::HeaderMap;
use libfuzzer_sys::fuzz_target;

#[path = "../../it/support/served.rs"]
mod served;

const SHAPE: [usize; 3] = [1, 2, 2];

fuzz_target!(|bytes: &[u8]| {
    let Some((&form, bytes)) = bytes.split_first() else { return };
    let (format, length, body) = match form % 4 {
        0 => (Format::Oip, None, bytes),
        1 => {
            let Some((behind, body)) = bytes.split_first_chunk() else { return };
            let behind = usize::from(u16::from_le_bytes(*behind));
            (Format::Oip, Some(body.len().saturating_sub(behind)), body)
        }
        2 => (Format::Oip, Some(0), bytes),
        _ => (Format::KserveV1, None, bytes),
    };
    let Ok(checked) = check(format, length, &Bytes::copy_from_slice(body)) else { return };
    let judged = bits(&checked.values);
    assert_eq!(bits(&read(format, &checked.encoded)), judged);
    let again = check(format, checked.encoded.json_length, &checked.encoded.body);
    let again = again.expect("the firewall's own encoding");
    assert_eq!(again.encoded.body, checked.encoded.body);
    assert_eq!(bits(&again.values), judged);
    // With copies behind them the rows stay what they are.
    let copies = [0.5; 4];
    if let Some(enlarged) = format.append(&checked.encoded, &copies, SHAPE) {
        let served = bits(&read(format, &enlarged.encoded));
        assert_eq!(served, [judged, bits(&copies)].concat());
    }
});

fn check(format: Format, length: Option<usize>, body: &Bytes) -> Result<Checked, DecodeError> {
    let input =
        Input { shape: SHAPE, lower: &[-1e30], upper: &[1e30], channels_last: false, fp32: true };
    let frame = Frame::from(SHAPE);
    let pictures =
        Pictures { frame: &frame, normalise: &unit, pixels: 1, part: "data", in_instances: false };
    let headers = HeaderMap::from_iter(
        length.map(|length| (JSON_LENGTH.parse().expect("a name"), length.into())),
    );
    let path = match format {
        Format::KserveV1 => "/v1/models/m:predict",
        _ => "/v2/models/m/infer",
    };
    let signature = "serving_default";
    format.check(path, &headers, body, Bounds { input, rows: 4, slack: 0.0, signature, pictures })
}

fn read(format: Format, encoded: &Encoded) -> Vec<f32> {
    match format {
        Format::KserveV1 => served::v1(&encoded.body),
        _ => served::v2(encoded.json_length, &encoded.body),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Bytes as shares of 255.
fn unit(pixels: &[u8]) -> Vec<f32> {
    pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect()
}
