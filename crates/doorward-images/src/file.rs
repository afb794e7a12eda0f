//! Files that hold images themselves.

use std::path::Path;

use super::array::Array;
use super::cursor::Cursor;
use super::error::Result;
use super::format::FileFormat;
use super::frame::Frame;
use super::listing::Entry;
use super::picture::Pictures;

/// Opens a file of images that have the frame's shape, or of a picture that it brings into it.
pub(super) fn open(path: &Path, format: FileFormat, frame: Frame) -> Result<Box<dyn Cursor>> {
    Ok(match format {
        FileFormat::Binary => Box::new(Array::idx(path, frame.shape)?),
        FileFormat::Npy => Box::new(Array::npy(path, frame.shape)?),
        FileFormat::Picture => {
            let entry = Entry { path: path.to_owned(), label: None };
            Box::new(Pictures::new(vec![entry], frame))
        }
        FileFormat::Records => Box::new(Array::records(path, frame.shape)?),
    })
}
