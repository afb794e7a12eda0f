//! List files: one image a line.
//!
//! A line is a path, relative to the list, then optionally a tab and a label. A file that holds
//! many images has `#` and an index from 0 behind it, `records.bin.gz#17`; its own label counts
//! where the line has none. Lines that name rising indices of one file read that file once.

use std::path::{Path, PathBuf};

use super::bytes::Bytes;
use super::cursor::{Cursor, Image};
use super::error::{Error, Result};
use super::format::Format;
use super::frame::Frame;
use super::place::Place;
use super::stream::Stream;
use super::{file, picture};

/// A list that is open at one of its lines.
pub(super) struct List {
    bytes: Bytes,
    base: PathBuf,
    frame: Frame,
    /// The line read last, from 1.
    line: usize,
    place: Place,
    label: Option<usize>,
    /// The file of many images that a line read from last.
    open: Option<(PathBuf, Stream)>,
}

// === impl List ===

impl List {
    pub(super) fn open(path: &Path, frame: Frame) -> Result<Self> {
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        let place = Place { path: base.clone(), number: None };
        let bytes = Bytes::open(path)?;
        Ok(Self { bytes, base, frame, line: 0, place, label: None, open: None })
    }

    /// Takes a line apart: the path with its index, and the label.
    fn parse(&mut self, text: &str) -> Result<()> {
        let (name, label) = match text.rsplit_once('\t') {
            None => (text, None),
            Some((name, label)) => match label.trim().parse() {
                Ok(label) => (name, Some(label)),
                Err(_) => {
                    return Err(Error::Label {
                        path: self.bytes.path().to_owned(),
                        line: self.line,
                        found: label.to_owned(),
                    });
                }
            },
        };
        let (name, number) = match name.rsplit_once('#') {
            Some((file, number)) if is_number(number) => (file, number.parse().ok()),
            _ => (name, None),
        };
        self.place = Place { path: self.base.join(name), number };
        self.label = label;
        Ok(())
    }

    /// The image `number` of a file that holds many.
    fn numbered(&mut self, number: usize) -> Result<Image> {
        let path = &self.place.path;
        let unread =
            matches!(&self.open, Some((open, stream)) if open == path && stream.passed() <= number);
        if !unread {
            let Format::File(format) = Format::of(path) else {
                let expected = "a file of images, which `#` and an index can follow";
                return Err(Error::NotPicture { path: path.clone(), expected });
            };
            let stream = Stream::new(path, file::open(path, format, self.frame)?);
            self.open = Some((path.clone(), stream));
        }
        let image = self.open.as_mut().and_then(|(_, stream)| {
            let passed = stream.passed();
            stream.nth(number - passed)
        });
        image.unwrap_or_else(|| {
            let (path, line) = (self.bytes.path().to_owned(), self.line);
            Err(Error::NoSuchImage { path, line, place: self.place.clone() })
        })
    }
}

impl Cursor for List {
    fn advance(&mut self) -> Result<bool> {
        let wrong = |path: &Path, found: String| Error::Header {
            path: path.to_owned(),
            found,
            expected: "one path per line",
        };
        let mut line = Vec::new();
        loop {
            if self.bytes.line(&mut line, MAX_LINE + 1)? == 0 {
                return Ok(false);
            }
            self.line += 1;
            if line.len() as u64 > MAX_LINE {
                let found = format!("more than {MAX_LINE} bytes in line {}", self.line);
                return Err(wrong(self.bytes.path(), found));
            }
            let Ok(text) = std::str::from_utf8(&line) else {
                let found = format!("something that is not utf-8 in line {}", self.line);
                return Err(wrong(self.bytes.path(), found));
            };
            if !text.trim().is_empty() {
                let text = text.strip_suffix('\n').unwrap_or(text);
                self.parse(text.strip_suffix('\r').unwrap_or(text))?;
                return Ok(true);
            }
        }
    }

    fn image(&mut self) -> Result<Image> {
        match self.place.number {
            None => {
                let pixels = picture::decode(&self.place.path, &self.frame)?;
                Ok(Image { place: self.place.clone(), label: self.label, pixels })
            }
            Some(number) => {
                let image = self.numbered(number)?;
                Ok(Image {
                    place: self.place.clone(),
                    label: self.label.or(image.label),
                    pixels: image.pixels,
                })
            }
        }
    }

    fn share(&mut self) -> f64 {
        self.bytes.share()
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Most bytes of a line: longer than any path.
const MAX_LINE: u64 = 1 << 16;
