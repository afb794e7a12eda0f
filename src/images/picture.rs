//! PNG and JPEG pictures.

use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use super::error::{Error, Result};
use super::listing::Entry;
use super::stream::{Cursor, Image, Place};

/// Pictures in files of their own.
pub(super) struct Pictures {
    entries: Vec<Entry>,
    shape: [usize; 3],
    /// Entries moved to.
    passed: usize,
}

// === impl Pictures ===

impl Pictures {
    pub(super) fn new(entries: Vec<Entry>, shape: [usize; 3]) -> Self {
        Self { entries, shape, passed: 0 }
    }
}

impl Cursor for Pictures {
    fn advance(&mut self) -> Result<bool> {
        let more = self.passed < self.entries.len();
        self.passed += usize::from(more);
        Ok(more)
    }

    fn image(&mut self) -> Result<Image> {
        let Entry { path, label } = &self.entries[self.passed - 1];
        let place = Place { path: path.clone(), number: None };
        Ok(Image { place, label: *label, pixels: decode(path, self.shape)? })
    }

    fn share(&mut self) -> f64 {
        self.passed as f64 / self.entries.len().max(1) as f64
    }
}

/// The bytes of one picture, row-major CHW; its size must be the one of `shape`.
pub(super) fn decode(path: &Path, shape: [usize; 3]) -> Result<Vec<u8>> {
    let [channels, height, width] = shape;
    if channels != 1 && channels != 3 {
        return Err(Error::Channels { path: path.to_owned(), channels });
    }
    let read = |source| Error::Read { path: path.to_owned(), source };
    let fail = |source| Error::Decode { path: path.to_owned(), source };
    let mut reader =
        ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(read)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(fail)?;
    let (found_width, found_height) = decoder.dimensions();
    let (found_width, found_height) = (found_width as usize, found_height as usize);
    if (found_width, found_height) != (width, height) {
        return Err(Error::PictureSize {
            path: path.to_owned(),
            width: found_width,
            height: found_height,
            expected: [height, width],
        });
    }
    let picture = DynamicImage::from_decoder(decoder).map_err(fail)?;
    if channels == 1 {
        return Ok(picture.into_luma8().into_raw());
    }
    let mut pixels = Vec::with_capacity(channels * height * width);
    planes(picture.into_rgb8().as_raw(), channels, &mut pixels);
    Ok(pixels)
}

/// Appends one image of interleaved channels plane by plane.
pub(super) fn planes(interleaved: &[u8], channels: usize, pixels: &mut Vec<u8>) {
    for channel in 0..channels {
        pixels.extend(interleaved.iter().skip(channel).step_by(channels));
    }
}

/// Most bytes a decoder may take for itself. A 1024 x 1024 picture of 16-bit RGBA takes 8 MiB.
const MAX_ALLOCATION: u64 = 256 << 20;
