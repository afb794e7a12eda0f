//! IDX, MNIST's format: a magic number, big-endian dimensions, unsigned bytes.

use std::path::{Path, PathBuf};

use super::bytes::Bytes;
use super::error::{Error, Result};

/// The labels of a file of images, in their order.
pub(super) struct Labels {
    bytes: Bytes,
    dims: Vec<usize>,
    /// Labels given.
    given: usize,
}

// === impl Labels ===

impl Labels {
    /// Opens a file that must hold one label for each of the `images` of `images_path`.
    pub(super) fn open(path: &Path, images_path: &Path, images: usize) -> Result<Self> {
        let mut bytes = Bytes::open(path)?;
        let mut magic = [0; 4];
        let got = bytes.fill(&mut magic)?;
        if magic != [0, 0, UNSIGNED_BYTE, 1] {
            return Err(Error::Header {
                path: path.to_owned(),
                found: format!("{:02x?}", &magic[..got]),
                expected: "[00, 00, 08, 01], an idx file with one dimension",
            });
        }
        let dims = dimensions(&mut bytes, 1)?;
        if dims[0] != images {
            return Err(Error::LabelCount {
                path: path.to_owned(),
                labels: dims[0],
                images_path: images_path.to_owned(),
                images,
            });
        }
        Ok(Self { bytes, dims, given: 0 })
    }

    /// The next image's label.
    pub(super) fn next(&mut self) -> Result<usize> {
        let mut label = [0];
        if self.bytes.fill(&mut label)? == 0 {
            return Err(self.wrong_size(self.given));
        }
        self.given += 1;
        Ok(usize::from(label[0]))
    }

    /// Checks that there are no more labels.
    pub(super) fn end(&mut self) -> Result<()> {
        let before = self.bytes.given();
        self.bytes.drain()?;
        match (self.bytes.given() - before) as usize {
            0 => Ok(()),
            more => Err(self.wrong_size(self.given + more)),
        }
    }

    fn wrong_size(&self, size: usize) -> Error {
        Error::ArraySize { path: self.bytes.path().to_owned(), dims: self.dims.clone(), size }
    }
}

/// The dimensions of a file of images, three or four, leaving `bytes` where its data begins.
pub(super) fn header(bytes: &mut Bytes) -> Result<Vec<usize>> {
    let mut magic = [0; 4];
    let got = bytes.fill(&mut magic)?;
    match (got, magic) {
        (4, [0, 0, UNSIGNED_BYTE, count @ (3 | 4)]) => dimensions(bytes, count.into()),
        _ => {
            let found = magic[..got].to_vec();
            Err(Error::Format { path: bytes.path().to_owned(), found })
        }
    }
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

/// The dimensions that follow the magic number.
fn dimensions(bytes: &mut Bytes, count: usize) -> Result<Vec<usize>> {
    let mut header = vec![0; 4 * count];
    if bytes.fill(&mut header)? < header.len() {
        return Err(Error::Header {
            path: bytes.path().to_owned(),
            found: format!("{count} dimensions but ends after {} bytes", bytes.given()),
            expected: "four bytes for each dimension",
        });
    }
    let dims = header.chunks_exact(4).map(|dim| {
        let dim = dim.iter().fold(0, |dim, &byte| dim << 8 | u32::from(byte));
        dim as usize
    });
    Ok(dims.collect())
}

/// The type code for unsigned bytes.
const UNSIGNED_BYTE: u8 = 8;
