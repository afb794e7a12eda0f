//! IDX, MNIST's format: a magic number, big-endian dimensions, unsigned bytes.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// The dimensions of a file of images, three or four, and where its data begins.
pub(super) fn header(path: &Path, bytes: &[u8]) -> Result<(Vec<usize>, usize)> {
    match bytes {
        [0, 0, UNSIGNED_BYTE, 3 | 4, ..] => dimensions(path, bytes),
        _ => {
            let found = bytes[..bytes.len().min(4)].to_vec();
            Err(Error::Format { path: path.to_owned(), found })
        }
    }
}

/// The labels of a label file.
pub(super) fn labels(path: &Path, bytes: &[u8]) -> Result<Vec<Option<usize>>> {
    let [0, 0, UNSIGNED_BYTE, 1, ..] = bytes else {
        return Err(Error::Header {
            path: path.to_owned(),
            found: format!("{:02x?}", &bytes[..bytes.len().min(4)]),
            expected: "[00, 00, 08, 01], an idx file with one dimension",
        });
    };
    let (dims, start) = dimensions(path, bytes)?;
    let data = &bytes[start..];
    if data.len() != dims[0] {
        return Err(Error::ArraySize { path: path.to_owned(), dims, size: data.len() });
    }
    Ok(data.iter().map(|&label| Some(usize::from(label))).collect())
}

/// The file beside `path` that holds its labels, packed or not, where there is one.
pub(super) fn labels_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    // The separator is a dash in the published files and a dot in many copies.
    for (images, labels) in
        [("images-idx3", "labels-idx1"), ("images.idx3", "labels.idx1"), ("images", "labels")]
    {
        if !name.contains(images) {
            continue;
        }
        let sibling = name.replacen(images, labels, 1);
        let plain = sibling.strip_suffix(".gz").unwrap_or(&sibling);
        for candidate in [sibling.clone(), plain.to_owned(), format!("{plain}.gz")] {
            let candidate = path.with_file_name(candidate);
            if candidate.is_file() {
                return Some(candidate);
            }
        }
    }
    None
}

/// The dimensions that follow the magic number, and where they end.
fn dimensions(path: &Path, bytes: &[u8]) -> Result<(Vec<usize>, usize)> {
    let count = usize::from(bytes[3]);
    let start = 4 + 4 * count;
    let Some(header) = bytes.get(4..start) else {
        return Err(Error::Header {
            path: path.to_owned(),
            found: format!("{count} dimensions but ends after {} bytes", bytes.len()),
            expected: "four bytes for each dimension",
        });
    };
    let dims = header.chunks_exact(4).map(|dim| {
        let dim = dim.iter().fold(0, |dim, &byte| dim << 8 | u32::from(byte));
        dim as usize
    });
    Ok((dims.collect(), start))
}

/// The type code for unsigned bytes.
const UNSIGNED_BYTE: u8 = 8;
