//! The chunks of a PNG, as its specification (third edition) has them, and no others that matter.

use flate2::Crc;

use super::{EncodedError, Header, Kind, Result, orientation};

pub(super) const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The part of it that has been read so far.
struct Chunks {
    header: Option<Header>,
    data: Data,
    /// True if orientation counts.
    turns: bool,
    oriented: bool,
}

/// The place of the image data.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    Ahead,
    Here,
    Behind,
}

/// The size of an image that every decoder reads alike.
pub(super) fn check(bytes: &[u8], turns: bool) -> Result<Header> {
    let mut chunks = Chunks { header: None, data: Data::Ahead, turns, oriented: false };
    let mut rest = &bytes[SIGNATURE.len()..];
    loop {
        let Some((&[a, b, c, d], after)) = rest.split_first_chunk::<4>() else {
            return Err(damaged("it ends before its IEND chunk"));
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let cut = || damaged("a chunk is longer than what is left");
        let (name, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        let (content, after) = after.split_at_checked(length).ok_or_else(cut)?;
        let (sum, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        let mut crc = Crc::new();
        crc.update(name);
        crc.update(content);
        if crc.sum() != u32::from_be_bytes(*sum) {
            return Err(damaged(&format!("the checksum of chunk {} is wrong", spell(*name))));
        }
        rest = after;
        if chunks.take(*name, content)? {
            break;
        }
    }
    if !rest.is_empty() {
        return Err(EncodedError::Trailing { kind: Kind::Png, bytes: rest.len() });
    }
    match chunks.header {
        Some(header) if chunks.data != Data::Ahead => Ok(header),
        _ => Err(damaged("it has no IDAT chunk")),
    }
}

// === impl Chunks ===

impl Chunks {
    /// Takes one chunk; `true` for the last one.
    fn take(&mut self, name: [u8; 4], content: &[u8]) -> Result<bool> {
        if self.data == Data::Here && name != *b"IDAT" {
            self.data = Data::Behind;
        }
        if self.header.is_none() && name != *b"IHDR" {
            return Err(damaged("its first chunk is not IHDR"));
        }
        match &name {
            b"IHDR" if self.header.is_some() => return Err(damaged("it has two IHDR chunks")),
            b"IHDR" => self.header = Some(header(content)?),
            b"IDAT" if self.data == Data::Behind => {
                return Err(damaged("other chunks lie between its IDAT chunks"));
            }
            b"IDAT" => self.data = Data::Here,
            b"IEND" if content.is_empty() => return Ok(true),
            b"IEND" => return Err(damaged("its IEND chunk is not empty")),
            // A suggestion for screens without true colours; it changes nothing.
            b"PLTE" => {}
            b"acTL" | b"fcTL" | b"fdAT" => {
                return Err(Kind::Png.unsupported("several frames (APNG)", "one picture"));
            }
            b"tRNS" => return Err(Kind::Png.unsupported("transparency", GREY_OR_RGB)),
            [first, ..] if first & CRITICAL_BIT == 0 => {
                let what = format!("a chunk {}", spell(name));
                return Err(Kind::Png.unsupported(what, "chunks of the specification"));
            }
            b"eXIf" if self.turns => self.orient(content)?,
            b"iTXt" | b"tEXt" | b"zTXt" if self.turns => text(content)?,
            _ => {}
        }
        Ok(false)
    }

    fn orient(&mut self, exif: &[u8]) -> Result<()> {
        if std::mem::replace(&mut self.oriented, true) {
            return Err(Kind::Png.unsupported("two eXIf chunks", "at most one"));
        }
        let orientation = orientation::of_exif(exif).map_err(damaged)?;
        if let Some(header) = &mut self.header {
            header.orientation = orientation;
        }
        Ok(())
    }
}

fn header(content: &[u8]) -> Result<Header> {
    let &[a, b, c, d, e, f, g, h, depth, colours, compression, filter, interlace] = content else {
        return Err(damaged(&format!("its IHDR chunk has {} bytes, expected 13", content.len())));
    };
    let width = u32::from_be_bytes([a, b, c, d]) as usize;
    let height = u32::from_be_bytes([e, f, g, h]) as usize;
    if width == 0 || height == 0 {
        return Err(damaged(&format!("its size is {width} x {height}")));
    }
    if compression != 0 || filter != 0 || interlace > 1 {
        return Err(damaged("its IHDR chunk names an unknown method"));
    }
    match colours {
        0 | 2 => {}
        3 => return Err(Kind::Png.unsupported("a palette", GREY_OR_RGB)),
        4 | 6 => return Err(Kind::Png.unsupported("an alpha channel", GREY_OR_RGB)),
        _ => return Err(damaged(&format!("its colour type is {colours}"))),
    }
    if depth != 8 {
        return Err(Kind::Png.unsupported(format!("{depth} bits a sample"), "8"));
    }
    if interlace == 1 {
        return Err(Kind::Png.unsupported("interlaced rows", "rows in order"));
    }
    Ok(Header { width, height, orientation: 1 })
}

/// Refuses text that some decoders read an orientation from.
fn text(content: &[u8]) -> Result<()> {
    let end = content.iter().position(|&byte| byte == 0).unwrap_or(content.len());
    let (keyword, rest) = content.split_at(end);
    let hidden = match keyword {
        // Behind the keyword: a zero, whether it is compressed, how.
        b"XML:com.adobe.xmp" => rest.get(1) != Some(&0) || orientation::in_xmp(rest),
        _ => keyword.to_ascii_lowercase().starts_with(b"raw profile type"),
    };
    if hidden {
        return Err(Kind::Png.unsupported("an orientation, possibly, in a text", "it in eXIf"));
    }
    Ok(())
}

fn damaged(reason: &str) -> EncodedError {
    Kind::Png.damaged(reason.to_owned())
}

fn spell(name: [u8; 4]) -> String {
    name.escape_ascii().to_string()
}

const GREY_OR_RGB: &str = "grey or RGB without transparency";

/// The bit of a chunk's first letter: a small letter means that the chunk may be passed over.
const CRITICAL_BIT: u8 = 0x20;
