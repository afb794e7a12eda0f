//! CIFAR-style records: one label byte, then the pixels, no header.

use std::path::Path;

use super::error::{Error, Result};

/// Labels and pixels of a file of records with `row` pixel bytes each.
pub(super) fn parse(
    path: &Path,
    bytes: &[u8],
    row: usize,
) -> Result<(Vec<Option<usize>>, Vec<u8>)> {
    let record = row + 1;
    if !bytes.len().is_multiple_of(record) {
        return Err(Error::RecordSize { path: path.to_owned(), size: bytes.len(), record });
    }
    let count = bytes.len() / record;
    let mut labels = Vec::with_capacity(count);
    let mut pixels = Vec::with_capacity(count * row);
    for record in bytes.chunks_exact(record) {
        labels.push(Some(usize::from(record[0])));
        pixels.extend_from_slice(&record[1..]);
    }
    Ok((labels, pixels))
}
