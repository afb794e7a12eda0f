//! From a name to a source that is open at its start.

use std::path::Path;

use super::cursor::Cursor;
use super::error::Result;
use super::file;
use super::format::Format;
use super::frame::Frame;
use super::list::List;
use super::listing::directory;
use super::picture::Pictures;
use super::stream::Stream;

impl Stream {
    /// Opens a source of images that have a shape C, H, W, or are pictures that a frame brings into
    /// it.
    pub fn open(path: impl AsRef<Path>, frame: impl Into<Frame>) -> Result<Self> {
        let (path, frame) = (path.as_ref(), frame.into());
        let cursor: Box<dyn Cursor> = match Format::of(path) {
            Format::Directory => Box::new(Pictures::new(directory(path)?, frame)),
            Format::File(format) => file::open(path, format, frame)?,
            Format::List => Box::new(List::open(path, frame)?),
        };
        Ok(Self::new(path, cursor))
    }
}
