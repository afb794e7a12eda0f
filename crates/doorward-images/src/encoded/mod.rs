//! Images that strangers send, decoded as the model server behind will decode them.
//!
//! The server decodes the same bytes with another decoder. So an image is taken only if there is
//! one way to read it: one picture, of a plain kind, whole, with nothing around it. [`png`] and
//! [`jpeg`] check that on the file's structure, and find its size, before anything is decoded.
//! JPEG's standard leaves rounding to decoders: here it is that of libjpeg-turbo, which Pillow and
//! OpenCV have.
//!
//! An attacker who finds an image that two decoders read differently shows the firewall a clean one
//! and the model a triggered one.

mod colour;
mod dct;
mod huffman;
mod jpeg;
mod orientation;
mod png;

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, Limits, RgbImage};

use self::jpeg::Jpeg;
use super::frame::{Frame, Misfit};
use crate::settings::ExifOrientation;

/// A format of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// JPEG: baseline, grey or YCbCr.
    Jpeg,
    /// PNG: 8 bits, grey or RGB.
    Png,
}

/// The facts in the structure of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    width: usize,
    height: usize,
    /// As EXIF numbers it; 1: as it is.
    orientation: u8,
}

/// An image whose structure is sound.
enum Checked<'a> {
    Jpeg(Box<Jpeg<'a>>),
    Png(Header),
}

/// Why an image is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodedError {
    /// It breaks the format's rules.
    #[error("the {kind} image is damaged: {reason}")]
    Damaged {
        /// The format.
        kind: Kind,
        /// The fault.
        reason: String,
    },
    /// It does not have the model's shape.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// It would have to be turned.
    #[error("the {kind} image has EXIF orientation {received}, expected 1 or none")]
    Orientation {
        /// The format.
        kind: Kind,
        /// The orientation.
        received: u8,
    },
    /// It has too many pixels.
    #[error("the image is {width} x {height} pixels, expected at most {limit} in all")]
    TooLarge {
        /// Its width.
        width: usize,
        /// Its height.
        height: usize,
        /// Most pixels allowed.
        limit: usize,
    },
    /// Something follows its end.
    #[error("{bytes} bytes follow the end of the {kind} image")]
    Trailing {
        /// The format.
        kind: Kind,
        /// The number of them.
        bytes: usize,
    },
    /// Neither a PNG nor a JPEG.
    #[error("the image begins with bytes {found:02x?}, expected those of a PNG or JPEG")]
    Unknown {
        /// At most its first four bytes.
        found: Vec<u8>,
    },
    /// Decoders do not agree on what it has.
    #[error("the {kind} image has {what}, expected {expected}")]
    Unsupported {
        /// The format.
        kind: Kind,
        /// The value that it has.
        what: String,
        /// The values that would be taken.
        expected: &'static str,
    },
}

type Result<T> = std::result::Result<T, EncodedError>;

/// An image that was decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Row-major CHW bytes of the model's shape.
    pub bytes: Vec<u8>,
    /// The image's format.
    pub kind: Kind,
    /// The number of pixels the image has.
    pub pixels: usize,
}

/// Decodes an image of at most `limit` pixels.
pub fn decode(bytes: &[u8], frame: &Frame, limit: usize) -> Result<Decoded> {
    let kind = Kind::of(bytes)
        .ok_or_else(|| EncodedError::Unknown { found: bytes[..bytes.len().min(4)].to_vec() })?;
    let exif = frame.pictures.exif_orientation;
    let turns = exif != ExifOrientation::Ignore;
    let checked = match kind {
        Kind::Jpeg => Checked::Jpeg(Box::new(jpeg::check(bytes, turns)?)),
        Kind::Png => Checked::Png(png::check(bytes, turns)?),
    };
    let Header { width, height, orientation } = *checked.header();
    if exif == ExifOrientation::Refuse && orientation != 1 {
        return Err(EncodedError::Orientation { kind, received: orientation });
    }
    let pixels = width.saturating_mul(height);
    if pixels > limit {
        return Err(EncodedError::TooLarge { width, height, limit });
    }
    frame.accepts(width, height)?;
    let picture = match checked {
        Checked::Jpeg(jpeg) => read_jpeg(&jpeg)?,
        Checked::Png(_) => read_png(bytes)?,
    };
    let turn = Orientation::from_exif(orientation).unwrap_or(Orientation::NoTransforms);
    Ok(Decoded { bytes: frame.fit(picture, turn)?, kind, pixels })
}

/// A JPEG of a kind that [`decode`] takes.
pub(super) fn read_baseline(bytes: &[u8]) -> Option<DynamicImage> {
    let jpeg = (Kind::of(bytes) == Some(Kind::Jpeg)).then(|| jpeg::check(bytes, false).ok())??;
    read_jpeg(&jpeg).ok()
}

fn read_png(bytes: &[u8]) -> Result<DynamicImage> {
    let damaged = |error: image::ImageError| Kind::Png.damaged(error.to_string());
    // Its size is checked: this bounds what ancillary chunks make the decoder take.
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_DECODER_BYTES);
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(damaged)?;
    DynamicImage::from_decoder(decoder).map_err(damaged)
}

/// By an own decoder: others paint over what is damaged, and round in their own ways.
fn read_jpeg(jpeg: &Jpeg<'_>) -> Result<DynamicImage> {
    let Header { width, height, .. } = jpeg.header;
    let (wide, high) = (width as u32, height as u32);
    let pixels = jpeg.decode()?;
    let picture = match jpeg.channels() {
        1 => GrayImage::from_raw(wide, high, pixels).map(DynamicImage::from),
        _ => RgbImage::from_raw(wide, high, pixels).map(DynamicImage::from),
    };
    picture.ok_or_else(|| Kind::Jpeg.damaged("it has fewer pixels than it says".to_owned()))
}

/// Most bytes that the PNG decoder takes, the picture among them.
const MOST_DECODER_BYTES: u64 = 512 << 20;

// === impl Checked ===

impl Checked<'_> {
    fn header(&self) -> &Header {
        match self {
            Self::Jpeg(jpeg) => &jpeg.header,
            Self::Png(header) => header,
        }
    }
}

// === impl Kind ===

impl Kind {
    /// By an image's first bytes.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(png::SIGNATURE) {
            Some(Self::Png)
        } else {
            bytes.starts_with(&[0xff, 0xd8, 0xff]).then_some(Self::Jpeg)
        }
    }

    /// As content types call it.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
        }
    }

    fn damaged(self, reason: String) -> EncodedError {
        EncodedError::Damaged { kind: self, reason }
    }

    fn unsupported(self, what: impl Into<String>, expected: &'static str) -> EncodedError {
        EncodedError::Unsupported { kind: self, what: what.into(), expected }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
        })
    }
}
