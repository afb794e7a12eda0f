//! NumPy's `.npy`: a magic number, a dictionary as text, the data.

use std::path::Path;

use super::error::{Error, Result};

/// The dimensions of an array of unsigned bytes in C order, and where its data begins.
pub(super) fn header(path: &Path, bytes: &[u8]) -> Result<(Vec<usize>, usize)> {
    let fail = |found: &str, expected| {
        let found = found.chars().take(200).collect();
        Err(Error::Header { path: path.to_owned(), found, expected })
    };
    // Version 1 has a length of two bytes, later versions one of four.
    let (length, start) = match bytes {
        [b'\x93', b'N', b'U', b'M', b'P', b'Y', 1, _, a, b, ..] => {
            (usize::from(u16::from_le_bytes([*a, *b])), 10)
        }
        [b'\x93', b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b, c, d, ..] => {
            (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12)
        }
        _ => {
            let found = format!("{:02x?}", &bytes[..bytes.len().min(8)]);
            return fail(&found, "npy's magic and version 1, 2 or 3");
        }
    };
    let end = start + length;
    let Some(Ok(text)) = bytes.get(start..end).map(std::str::from_utf8) else {
        return fail(&format!("{length} bytes of text"), "that much text");
    };
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
    Ok((dims, end))
}

/// What follows `'key':` up to the next comma, or for a tuple all that is left.
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
