//! Images of a source one after the other, whatever the size of the source.

use std::fmt;
use std::path::{Path, PathBuf};

use super::array::Array;
use super::error::{Error, Result};
use super::frame::Frame;
use super::list::List;
use super::listing;
use super::picture::Pictures;

/// Reads a source from its start, one image at a time.
///
/// It holds one image, and of a directory the names of its pictures. `nth` and `skip` pass over
/// pictures without decoding them. The iterator ends after the first error; a source without images
/// is one.
pub struct Stream {
    path: PathBuf,
    cursor: Box<dyn Cursor>,
    passed: usize,
    ended: bool,
}

/// One image of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its place.
    pub place: Place,
    /// Its label, where the source has one.
    pub label: Option<usize>,
    /// Row-major CHW.
    pub pixels: Vec<u8>,
}

/// The place of an image: as a list file names it, `pictures/cat.png` or `records.bin.gz#17`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Its index in the file, from 0, where the file holds many.
    pub number: Option<usize>,
}

/// A source that is open at one of its images.
pub(super) trait Cursor {
    /// Moves to the next image; `false` behind the last one.
    fn advance(&mut self) -> Result<bool>;

    /// The image it is at.
    fn image(&mut self) -> Result<Image>;

    /// The share of the source that is read, 0 to 1.
    fn share(&mut self) -> f64;
}

/// The kind of source that a name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Not known by its name: its first bytes decide.
    Binary,
    Directory,
    List,
    Npy,
    Picture,
    Records,
}

// === impl Stream ===

impl Stream {
    /// Opens a source of images that have a shape C, H, W, or are pictures that a frame brings into
    /// it.
    pub fn open(path: impl AsRef<Path>, frame: impl Into<Frame>) -> Result<Self> {
        let (path, frame) = (path.as_ref(), frame.into());
        let shape = frame.shape;
        let cursor: Box<dyn Cursor> = match Format::of(path) {
            Format::Binary => Box::new(Array::idx(path, shape)?),
            Format::Directory => Box::new(Pictures::new(listing::directory(path)?, frame)),
            Format::List => Box::new(List::open(path, frame)?),
            Format::Npy => Box::new(Array::npy(path, shape)?),
            Format::Picture => {
                let entry = listing::Entry { path: path.to_owned(), label: None };
                Box::new(Pictures::new(vec![entry], frame))
            }
            Format::Records => Box::new(Array::records(path, shape)?),
        };
        Ok(Self { path: path.to_owned(), cursor, passed: 0, ended: false })
    }

    /// The share of the source that is read, 0 to 1.
    pub fn share(&mut self) -> f64 {
        self.cursor.share()
    }

    /// The number of images were given or passed over.
    pub fn passed(&self) -> usize {
        self.passed
    }

    fn read(&mut self, skipped: usize) -> Result<Option<Image>> {
        for _ in 0..=skipped {
            if !self.cursor.advance()? {
                let empty = self.passed == 0;
                return if empty {
                    Err(Error::Empty { path: self.path.clone() })
                } else {
                    Ok(None)
                };
            }
            self.passed += 1;
        }
        self.cursor.image().map(Some)
    }
}

impl Iterator for Stream {
    type Item = Result<Image>;

    fn next(&mut self) -> Option<Self::Item> {
        self.nth(0)
    }

    fn nth(&mut self, skipped: usize) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let image = self.read(skipped).transpose();
        self.ended = !matches!(image, Some(Ok(_)));
        image
    }
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.number {
            Some(number) => write!(f, "#{number}"),
            None => Ok(()),
        }
    }
}

// === impl Format ===

impl Format {
    pub(super) fn of(path: &Path) -> Self {
        if path.is_dir() {
            return Self::Directory;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let stem = name.strip_suffix(".gz").unwrap_or(&name);
        match stem.rsplit_once('.').map(|(_, extension)| extension) {
            Some("bin") => Self::Records,
            Some("npy") => Self::Npy,
            Some("lst" | "txt") => Self::List,
            Some(extension) if listing::PICTURES.contains(&extension) => Self::Picture,
            _ => Self::Binary,
        }
    }
}
