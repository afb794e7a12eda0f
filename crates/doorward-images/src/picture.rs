//! PNG and JPEG pictures.

use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::cursor::{Cursor, Image};
use super::encoded::read_baseline;
use super::error::{Error, Result};
use super::frame::{Frame, Misfit};
use super::listing::Entry;
use super::place::Place;

/// Pictures in files of their own.
pub(super) struct Pictures {
    entries: Vec<Entry>,
    frame: Frame,
    /// Entries moved to.
    passed: usize,
}

// === impl Pictures ===

impl Pictures {
    pub(super) fn new(entries: Vec<Entry>, frame: Frame) -> Self {
        Self { entries, frame, passed: 0 }
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
        Ok(Image { place, label: *label, pixels: decode(path, &self.frame)? })
    }

    fn share(&mut self) -> f64 {
        self.passed as f64 / self.entries.len().max(1) as f64
    }
}

/// The bytes of one picture, row-major CHW, in the model's shape.
pub(super) fn decode(path: &Path, frame: &Frame) -> Result<Vec<u8>> {
    let channels = frame.shape[0];
    if channels != 1 && channels != 3 {
        return Err(Error::Channels { path: path.to_owned(), channels });
    }
    let read = |source| Error::Read { path: path.to_owned(), source };
    let fail = |source| Error::Decode { path: path.to_owned(), source };
    let misfit = |reason| match reason {
        Misfit::Size { width, height, expected } => {
            Error::PictureSize { path: path.to_owned(), width, height, expected }
        }
        reason => Error::Misfit { path: path.to_owned(), reason },
    };
    let mut reader =
        ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(read)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    let is_jpeg = reader.format() == Some(ImageFormat::Jpeg);
    let mut decoder = reader.into_decoder().map_err(fail)?;
    let (width, height) = decoder.dimensions();
    frame.accepts(width as usize, height as usize).map_err(misfit)?;
    let orientation = decoder.orientation().map_err(fail)?;
    // As requests are decoded, where they could be: to the last bit.
    let exact = match is_jpeg && decoder.total_bytes() <= MAX_ALLOCATION {
        true => read_baseline(&std::fs::read(path).map_err(read)?),
        false => None,
    };
    let picture = match exact {
        Some(picture) => picture,
        None => DynamicImage::from_decoder(decoder).map_err(fail)?,
    };
    frame.fit(picture, orientation).map_err(misfit)
}

/// Most bytes a decoder may take for itself. A 1024 x 1024 picture of 16-bit RGBA takes 8 MiB.
const MAX_ALLOCATION: u64 = 256 << 20;
