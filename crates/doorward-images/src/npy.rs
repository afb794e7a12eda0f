//! NumPy's `.npy`: a magic number, a dictionary as text, the data.

use super::bytes::Bytes;
use super::error::{Error, Result};

/// The dimensions of an array of unsigned bytes in C order, leaving `bytes` where its data begins.
pub(super) fn header(bytes: &mut Bytes) -> Result<Vec<usize>> {
    let path = bytes.path().to_owned();
    let fail = |found: &str, expected| {
        let found = found.chars().take(200).collect();
        Err(Error::Header { path: path.clone(), found, expected })
    };
    let mut start = [0; 8];
    let got = bytes.fill(&mut start)?;
    // Version 1 has a length of two bytes, later versions one of four.
    let size = match start {
        [b'\x93', b'N', b'U', b'M', b'P', b'Y', 1, _] => 2,
        [b'\x93', b'N', b'U', b'M', b'P', b'Y', 2 | 3, _] => 4,
        _ => {
            let found = format!("{:02x?}", &start[..got]);
            return fail(&found, "npy's magic and version 1, 2 or 3");
        }
    };
    let mut length = [0; 4];
    bytes.fill(&mut length[..size])?;
    let length = u32::from_le_bytes(length);
    if length > MAX_TEXT {
        return fail(&format!("{length} bytes of text"), "at most 65536");
    }
    let mut text = vec![0; length as usize];
    let got = bytes.fill(&mut text)?;
    let Ok(text) = std::str::from_utf8(&text[..got]) else {
        return fail(&format!("{length} bytes that are not text"), "text");
    };
    if got < length as usize {
        return fail(&format!("{length} bytes of text"), "that much text");
    }
    match value(text, "descr").trim_matches(['\'', '"']) {
        "|u1" | "u1" | "<u1" => {}
        _ => return fail(text.trim(), "descr |u1, unsigned bytes"),
    }
    if !value(text, "fortran_order").starts_with("False") {
        return fail(text.trim(), "fortran_order False");
    }
    let shape = value(text, "shape");
    let numbers = shape.trim_start_matches('(').split(')').next().unwrap_or_default();
    let mut dims: Vec<usize> = Vec::new();
    for number in numbers.split(',').map(str::trim).filter(|number| !number.is_empty()) {
        let Ok(dim) = number.parse() else {
            return fail(text.trim(), "a shape of numbers");
        };
        dims.push(dim);
    }
    if !(3..=4).contains(&dims.len()) {
        return fail(text.trim(), "a shape of three or four dimensions");
    }
    Ok(dims)
}

/// The value behind `'key':`, up to the next comma, or for a tuple all that is left.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let mut rest = "";
    for quote in ['\'', '"'] {
        if let Some((_, after)) = text.split_once(&format!("{quote}{key}{quote}:")) {
            rest = after.trim_start();
        }
    }
    if rest.starts_with('(') {
        return rest;
    }
    rest.split([',', '}']).next().unwrap_or_default().trim()
}

/// Most bytes that the dictionary may take: what a header of version 1 can say, and a hundred
/// times what NumPy writes.
const MAX_TEXT: u32 = 1 << 16;
