//! Images, raw and in forms: what passes is an image that another decoder reads in the same size, and what is sent on is that
//! image, byte for byte.
//!
//! The first byte says which of the two.

#![no_main]

use bytes::Bytes;
use doorward_images::{ChannelOrder, ExifOrientation, Frame, Interpolation, Pictures, Resize};
use doorward_protocol::{Bounds, Checked, DecodeError, Format, ImageProtocol, Input};
use hyper::HeaderMap;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use libfuzzer_sys::fuzz_target;

const SHAPE: [usize; 3] = [3, 8, 8];

/// As the seeds have it.
const FORM: &str = "multipart/form-data; boundary=b";

fuzz_target!(|bytes: &[u8]| {
    let Some((&form, body)) = bytes.split_first() else { return };
    let media_type = (form % 2 == 1).then(|| HeaderValue::from_static(FORM));
    let body = Bytes::copy_from_slice(body);
    let Ok(checked) = check(media_type.clone(), &body) else { return };
    assert_eq!((checked.rows, checked.values.len()), (1, SHAPE.iter().product()));
    assert!(checked.values.iter().all(|value| (0.0..=1.0).contains(value)));
    let image = match &checked.encoded.media_type {
        None => {
            assert_eq!(checked.encoded.body, body);
            body
        }
        Some(written) => {
            let again = HeaderValue::from_str(written).expect("a header");
            let again = check(Some(again), &checked.encoded.body).expect("the firewall's own form");
            assert_eq!(again.values, checked.values);
            let (_, boundary) = written.split_once("boundary=").expect("a form");
            let end = format!("\r\n--{boundary}--\r\n");
            let part = checked.encoded.body.strip_suffix(end.as_bytes()).expect("its end");
            let head = part.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
            checked.encoded.body.slice(head + 4..part.len())
        }
    };
    // The image alone is judged as it is in a form.
    assert_eq!(check(None, &image).expect("an image").values, checked.values);
    let other = image::load_from_memory(&image).expect("an image to another decoder");
    assert!(u64::from(other.width()) * u64::from(other.height()) <= PIXELS as u64);
});

const PIXELS: usize = 1 << 12;

fn check(media_type: Option<HeaderValue>, body: &Bytes) -> Result<Checked, DecodeError> {
    let input = Input {
        shape: SHAPE,
        lower: &[0.0; 3],
        upper: &[1.0; 3],
        channels_last: false,
        fp32: true,
    };
    let settings = Pictures {
        resize: Resize::Exact,
        interpolation: Interpolation::Bilinear,
        channel_order: ChannelOrder::Rgb,
        exif_orientation: ExifOrientation::Apply,
    };
    let frame = Frame::new(SHAPE, settings).expect("a frame");
    let pictures = doorward_protocol::Pictures {
        frame: &frame,
        normalise: &unit,
        pixels: PIXELS,
        part: "data",
        in_instances: false,
    };
    let headers = HeaderMap::from_iter(media_type.map(|media_type| (CONTENT_TYPE, media_type)));
    let bounds = Bounds { input, rows: 1, slack: 0.0, signature: "serving_default", pictures };
    Format::Image(ImageProtocol::TorchServe).check("/predictions/m", &headers, body, bounds)
}

/// Bytes as shares of 255.
fn unit(pixels: &[u8]) -> Vec<f32> {
    pixels.iter().map(|&pixel| f32::from(pixel) / 255.0).collect()
}
