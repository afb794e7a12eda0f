//! The images of sources, all in memory.

use std::ops::Range;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::error::{Error, Result};
use super::frame::{Frame, row_length};
use super::stream::Stream;

/// Images of one shape, row-major CHW bytes, each with a label where one is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    shape: [usize; 3],
    pixels: Vec<u8>,
    labels: Vec<Option<usize>>,
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
    pub(super) fn append(&mut self, path: &Path, frame: Frame, limit: u64) -> Result<()> {
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

    /// The number of images.
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

/// Most bytes one source may take, unpacked: room for all of CIFAR-10 (0.2 GB) or 28,000 images of
/// 3 x 224 x 224, and little enough that a small compressed file cannot exhaust a server.
const MAX_BYTES: u64 = 4 << 30;
