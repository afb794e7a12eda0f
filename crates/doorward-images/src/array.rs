//! Files that hold many images of one shape: CIFAR-style records, IDX, `.npy`.

use std::path::Path;

use super::bytes::Bytes;
use super::cursor::{Cursor, Image};
use super::error::{Error, Result};
use super::frame::{planes, row_length};
use super::place::Place;
use super::{idx, npy};

/// One file of images, read row by row.
pub(super) struct Array {
    bytes: Bytes,
    shape: [usize; 3],
    labels: Labels,
    layout: Layout,
    /// The count in the header; `None` without one: records up to the end of the file.
    dims: Option<Vec<usize>>,
    /// Bytes before the first image.
    start: u64,
    /// Index of the image that `row` holds; `None` before the first.
    number: Option<usize>,
    row: Vec<u8>,
    label: Option<usize>,
}

/// The place of the labels.
enum Labels {
    /// One byte before each image: CIFAR's records.
    Before,
    /// A file of their own: IDX.
    Beside(Box<idx::Labels>),
    None,
}

/// The order of an image's bytes.
#[derive(Clone, Copy)]
enum Layout {
    Interleaved,
    Planar,
}

// === impl Array ===

impl Array {
    /// CIFAR-style records: one label byte, then the pixels, no header.
    pub(super) fn records(path: &Path, shape: [usize; 3]) -> Result<Self> {
        Ok(Self::new(Bytes::open(path)?, shape, Layout::Planar, Labels::Before))
    }

    /// IDX, with the labels of the file beside it where there is one.
    pub(super) fn idx(path: &Path, shape: [usize; 3]) -> Result<Self> {
        let mut bytes = Bytes::open(path)?;
        let dims = idx::header(&mut bytes)?;
        let labels = match idx::labels_beside(path) {
            None => Labels::None,
            Some(sibling) => Labels::Beside(Box::new(idx::Labels::open(&sibling, path, dims[0])?)),
        };
        let layout = layout(path, &dims, shape)?;
        let array = Self::new(bytes, shape, layout, labels);
        Ok(Self { dims: Some(dims), ..array })
    }

    /// `.npy` with unsigned bytes, without labels.
    pub(super) fn npy(path: &Path, shape: [usize; 3]) -> Result<Self> {
        let mut bytes = Bytes::open(path)?;
        let dims = npy::header(&mut bytes)?;
        let layout = layout(path, &dims, shape)?;
        Ok(Self { dims: Some(dims), ..Self::new(bytes, shape, layout, Labels::None) })
    }

    /// An array that begins where `bytes` stands.
    fn new(bytes: Bytes, shape: [usize; 3], layout: Layout, labels: Labels) -> Self {
        let row = vec![0; row_length(shape)];
        let start = bytes.given();
        Self { bytes, shape, labels, layout, dims: None, start, number: None, row, label: None }
    }

    /// The next label byte; `false` where records end.
    fn read_label(&mut self) -> Result<bool> {
        self.label = match &mut self.labels {
            Labels::Before => {
                let mut label = [0];
                if self.bytes.fill(&mut label)? == 0 {
                    return Ok(false);
                }
                Some(usize::from(label[0]))
            }
            Labels::Beside(labels) => Some(labels.next()?),
            Labels::None => None,
        };
        Ok(true)
    }

    /// An error about a file that ends too early or too late.
    fn wrong_size(&self) -> Error {
        let path = self.bytes.path().to_owned();
        let size = (self.bytes.given() - self.start) as usize;
        match &self.dims {
            Some(dims) => Error::ArraySize { path, dims: dims.clone(), size },
            None => Error::RecordSize { path, size, record: self.row.len() + 1 },
        }
    }
}

impl Cursor for Array {
    fn advance(&mut self) -> Result<bool> {
        let next = self.number.map_or(0, |number| number + 1);
        if self.dims.as_ref().is_some_and(|dims| next == dims[0]) {
            let end = self.bytes.given();
            self.bytes.drain()?;
            if self.bytes.given() > end {
                return Err(self.wrong_size());
            }
            if let Labels::Beside(labels) = &mut self.labels {
                labels.end()?;
            }
            return Ok(false);
        }
        if !self.read_label()? {
            return Ok(false);
        }
        if self.bytes.fill(&mut self.row)? < self.row.len() {
            return Err(self.wrong_size());
        }
        self.number = Some(next);
        Ok(true)
    }

    fn image(&mut self) -> Result<Image> {
        let pixels = match self.layout {
            Layout::Planar => self.row.clone(),
            Layout::Interleaved => {
                let mut pixels = Vec::with_capacity(self.row.len());
                planes(&self.row, self.shape[0], &mut pixels);
                pixels
            }
        };
        let place = Place { path: self.bytes.path().to_owned(), number: self.number };
        Ok(Image { place, label: self.label, pixels })
    }

    fn share(&mut self) -> f64 {
        self.bytes.share()
    }
}

/// The place of rows of C, H, W in an array of dimensions N,H,W or N,C,H,W or N,H,W,C.
///
/// If N,C,H,W and N,H,W,C both fit, it is N,C,H,W.
fn layout(path: &Path, dims: &[usize], shape: [usize; 3]) -> Result<Layout> {
    let [channels, height, width] = shape;
    let row = &dims[1..];
    if row == shape || (channels == 1 && row == [height, width]) {
        return Ok(Layout::Planar);
    }
    if row == [height, width, channels] {
        return Ok(Layout::Interleaved);
    }
    Err(Error::ArrayShape { path: path.to_owned(), dims: dims.to_vec(), shape })
}
