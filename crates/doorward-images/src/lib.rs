//! Labelled images from the formats that data sets come in.
//!
//! [`Images::read`] takes one source and the shape the model wants. A source is
//!
//! - CIFAR-style records, `*.bin` or `*.bin.gz`: one label byte, then the pixels, no header;
//! - IDX, `*-idx3-ubyte` and the like, gzipped or not, told by its magic number; the labels come
//!   from the sibling file (`images-idx3` -> `labels-idx1`) where there is one;
//! - `.npy` with unsigned bytes, without labels;
//! - one PNG or JPEG file, without a label;
//! - a directory of pictures: flat and without labels, or one directory per label;
//! - a list, `*.txt` or `*.lst`: one picture per line, then optionally a tab and its label. An image
//!   of a file that holds many is named by its index, `records.bin.gz#17`.
//!
//! [`Stream`] gives the images of a source one after the other, for sets that are larger than
//! memory.
//!
//! Reading is strict and deterministic: the same source gives the same images in the same order,
//! pictures sorted by name, and nothing is skipped or guessed. Pictures are brought into the
//! model's shape by a [`Frame`]. A directory with one directory per label is dealt one picture of
//! each label in turn, so that a prefix is a fair sample.
//!
//! Sources may come from people who wish the reader harm: sizes are bounded before memory is
//! taken for them, and a picture's dimensions are checked before it is decoded. [`decode`] is for
//! pictures of strangers, which it takes only where every decoder reads them alike.

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod array;
mod bytes;
mod encoded;
mod error;
mod frame;
mod idx;
mod list;
mod listing;
mod npy;
mod picture;
mod resample;
mod settings;
mod stream;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use sha2::{Digest as _, Sha256};

pub use encoded::{Decoded, EncodedError, Kind, decode};
pub use error::Error;
use error::Result;
pub use frame::{Frame, Misfit};
pub use settings::{ChannelOrder, ExifOrientation, Interpolation, Pictures, Resize};
pub use stream::{Image, Place, Stream};

/// Images of one shape, row-major CHW bytes, each with a label where one is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    shape: [usize; 3],
    pixels: Vec<u8>,
    labels: Vec<Option<usize>>,
}

/// SHA-256 over the names and bytes of the files that sources consist of, hexadecimal.
///
/// `None` where a source is not there: an artifact can travel without its images. Pictures that a
/// list names are not followed, their list is.
pub fn digest_sources<P: AsRef<Path>>(sources: &[P]) -> Result<Option<String>> {
    let mut hash = Sha256::new();
    for source in sources {
        if !source.as_ref().exists() {
            return Ok(None);
        }
        let path = source.as_ref();
        digest_path(path, &mut hash)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    }
    Ok(Some(hex::encode(hash.finalize())))
}

fn digest_path(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    if path.is_dir() {
        let mut entries = std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| digest_path(entry, hash));
    }
    hash.update(path.metadata()?.len().to_le_bytes());
    let mut file = File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(()),
            len => hash.update(&block[..len]),
        }
    }
}

// === impl Images ===

impl Images {
    /// Images from parts; `None` unless there are `shape` bytes of pixels for every label.
    pub fn from_parts(
        shape: [usize; 3],
        pixels: Vec<u8>,
        labels: Vec<Option<usize>>,
    ) -> Option<Self> {
        let fits = row_length(shape).checked_mul(labels.len()) == Some(pixels.len());
        fits.then_some(Self { shape, pixels, labels })
    }

    /// Reads one source of images of shape C, H, W, or of pictures that a frame brings into it; one
    /// without images is an error.
    pub fn read(path: impl AsRef<Path>, frame: impl Into<Frame>) -> Result<Self> {
        Self::read_all(&[path], frame)
    }

    /// Reads sources one after the other, in the order given.
    pub fn read_all<P: AsRef<Path>>(paths: &[P], frame: impl Into<Frame>) -> Result<Self> {
        let frame = frame.into();
        let mut all = Self { shape: frame.shape, pixels: Vec::new(), labels: Vec::new() };
        for path in paths {
            all.append(path.as_ref(), frame, MAX_BYTES)?;
        }
        Ok(all)
    }

    /// Reads one more source, which may take at most `limit` bytes, decoded.
    fn append(&mut self, path: &Path, frame: Frame, limit: u64) -> Result<()> {
        let mut taken = 0;
        for image in Stream::open(path, frame)? {
            let image = image?;
            // With a byte for the label.
            taken += image.pixels.len() as u64 + 1;
            if taken > limit {
                return Err(Error::TooLarge { path: path.to_owned(), limit });
            }
            self.pixels.extend_from_slice(&image.pixels);
            self.labels.push(image.label);
        }
        Ok(())
    }

    /// Channels, height, width of every image.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The number of images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The labels, in order; `None` where the source has none.
    pub fn labels(&self) -> &[Option<usize>] {
        &self.labels
    }

    /// The bytes of all images, in order.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes of one image, row-major CHW.
    ///
    /// # Panics
    ///
    /// When `index` is not below [`len`](Self::len).
    pub fn image(&self, index: usize) -> &[u8] {
        let row = row_length(self.shape);
        &self.pixels[index * row..(index + 1) * row]
    }

    /// The images at `indices`, in their order.
    ///
    /// # Panics
    ///
    /// When an index is not below [`len`](Self::len).
    pub fn subset(&self, indices: &[usize]) -> Self {
        let mut pixels = Vec::with_capacity(indices.len() * row_length(self.shape));
        for &index in indices {
            pixels.extend_from_slice(self.image(index));
        }
        let labels = indices.iter().map(|&index| self.labels[index]).collect();
        Self { shape: self.shape, pixels, labels }
    }

    /// The images of a range.
    ///
    /// # Panics
    ///
    /// When the range ends above [`len`](Self::len).
    pub fn slice(&self, range: Range<usize>) -> Self {
        let row = row_length(self.shape);
        Self {
            shape: self.shape,
            pixels: self.pixels[range.start * row..range.end * row].to_vec(),
            labels: self.labels[range].to_vec(),
        }
    }

    /// SHA-256 in hex over the shape, the labels and the pixels: equal digests, equal images.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        let [channels, height, width] = self.shape;
        for number in [channels, height, width, self.len()] {
            hasher.update((number as u64).to_le_bytes());
        }
        for label in &self.labels {
            hasher.update(label.map_or(u64::MAX, |label| label as u64).to_le_bytes());
        }
        hasher.update(&self.pixels);
        hex::encode(hasher.finalize())
    }
}

fn row_length(shape: [usize; 3]) -> usize {
    shape.iter().product()
}

/// Most bytes one source may take, unpacked: room for all of CIFAR-10 (0.2 GB) or 28,000 images of
/// 3 x 224 x 224, and little enough that a small compressed file cannot exhaust a server.
const MAX_BYTES: u64 = 4 << 30;
