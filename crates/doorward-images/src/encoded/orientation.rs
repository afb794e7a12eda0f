//! The tag in which a camera notes how a picture has to be turned.

/// The orientation in the first directory of EXIF data, 1 where there is none; an error if decoders
/// might find different ones.
pub(super) fn of_exif(exif: &[u8]) -> Result<u8, &'static str> {
    let large = match exif.get(..4) {
        Some(b"II*\0") => false,
        Some(b"MM\0*") => true,
        _ => return Err("its EXIF data begins with neither II nor MM"),
    };
    let short = |at: usize| {
        let bytes = exif.get(at..)?.first_chunk::<2>()?;
        Some(if large { u16::from_be_bytes(*bytes) } else { u16::from_le_bytes(*bytes) })
    };
    let long = |at: usize| {
        let bytes = exif.get(at..)?.first_chunk::<4>()?;
        Some(if large { u32::from_be_bytes(*bytes) } else { u32::from_le_bytes(*bytes) })
    };
    const CUT: &str = "its EXIF data is cut short";
    let start = long(4).ok_or(CUT)? as usize;
    let count = short(start).ok_or(CUT)?;
    let mut found = None;
    for number in 0..usize::from(count) {
        let entry = start + 2 + number * ENTRY_BYTES;
        let (tag, kind) = (short(entry).ok_or(CUT)?, short(entry + 2).ok_or(CUT)?);
        let (values, value) = (long(entry + 4).ok_or(CUT)?, short(entry + 8).ok_or(CUT)?);
        if tag != ORIENTATION {
            continue;
        }
        let value = match (kind, values, value) {
            (SHORT, 1, 1..=8) => value as u8,
            _ => return Err("its EXIF orientation is none of the eight"),
        };
        if found.replace(value).is_some() {
            return Err("its EXIF data has two orientations");
        }
    }
    Ok(found.unwrap_or(1))
}

/// True if XMP data might name an orientation other than 1.
pub(super) fn in_xmp(xmp: &[u8]) -> bool {
    let name = b"Orientation";
    xmp.windows(name.len()).enumerate().filter(|(_, word)| word == name).any(|(at, _)| {
        let value = xmp[at + name.len()..]
            .iter()
            .find(|byte| !byte.is_ascii_whitespace() && !b"=\"'>".contains(byte));
        // An element's end is followed by the next one's start.
        !matches!(value, Some(b'1' | b'<') | None)
    })
}

const ORIENTATION: u16 = 0x0112;

/// TIFF's type of 16 bits.
const SHORT: u16 = 3;

/// Bytes of a directory entry.
const ENTRY_BYTES: usize = 12;
