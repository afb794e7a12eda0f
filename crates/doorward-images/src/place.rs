//! Where an image is.

use std::fmt;
use std::path::PathBuf;

/// The place of an image: as a list file names it, `pictures/cat.png` or `records.bin.gz#17`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Its index in the file, from 0, where the file holds many.
    pub number: Option<usize>,
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
