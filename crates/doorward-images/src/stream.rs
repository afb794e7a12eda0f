//! Images of a source one after the other, whatever the size of the source.

use std::path::{Path, PathBuf};

use super::cursor::{Cursor, Image};
use super::error::{Error, Result};

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

// === impl Stream ===

impl Stream {
    /// The images of a source that is open at its start.
    pub(super) fn new(path: &Path, cursor: Box<dyn Cursor>) -> Self {
        Self { path: path.to_owned(), cursor, passed: 0, ended: false }
    }

    /// The share of the source that is read, 0 to 1.
    pub fn share(&mut self) -> f64 {
        self.cursor.share()
    }

    /// The number of images that were given or passed over.
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
