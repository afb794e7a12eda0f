//! Rows of model input with the labels that the model predicts for them.

use std::ops::Range;

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::classifier::Classifier;
use crate::domain::InputDomain;
use crate::error::Error;
use crate::margins::labels;

/// Rows of a batch with their predicted labels.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use doorward_engine::Batch;
///
/// let rows = Tensor::zeros((3, 1, 2, 2), DType::F32, &Device::Cpu)?;
/// let batch = Batch { rows, labels: vec![1, 0, 1] };
/// assert_eq!(batch.members(1), [0, 2]);
/// assert_eq!(batch.of_label(1)?.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Batch {
    /// The rows, `[n, C, H, W]`.
    pub rows: Tensor,
    /// The predicted label of each row.
    pub labels: Vec<usize>,
}

/// Bytes of images as a batch of model input, `[n, C, H, W]`.
///
/// Fails if the bytes are not whole images of the domain's shape, or if the device fails.
///
/// ```
/// use candle_core::Device;
/// use doorward_engine::{InputDomain, rows};
///
/// let (lower, upper) = (vec![0.0], vec![1.0]);
/// let domain = InputDomain { shape: [1, 1, 2], lower, upper, channels_last: false, fp32: true };
/// let images: [&[u8]; 2] = [&[0, 255], &[255, 0]];
/// let batch = rows(&domain, images.into_iter(), &Device::Cpu)?;
/// assert_eq!(batch.flatten_all()?.to_vec1::<f32>()?, [0.0, 1.0, 1.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn rows<'a>(
    domain: &InputDomain,
    images: impl Iterator<Item = &'a [u8]>,
    device: &Device,
) -> Result<Tensor, Error> {
    // Reserved: a training set that grows by doubling would take twice its size.
    let mut values = Vec::with_capacity(images.size_hint().0 * domain.len());
    images.for_each(|image| values.extend(domain.normalise(image)));
    let [channels, height, width] = domain.shape;
    let count = values.len() / domain.len();
    Ok(Tensor::from_vec(values, (count, channels, height, width), device)?)
}

/// The rows of a tensor at `indices`, which may repeat.
///
/// Fails if an index is not a row's.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let rows = Tensor::new(&[[1f32], [2.0], [3.0]], &Device::Cpu)?;
/// let picked = doorward_engine::gather(&rows, &[2, 0, 2])?;
/// assert_eq!(picked.flatten_all()?.to_vec1::<f32>()?, [3.0, 1.0, 3.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn gather(rows: &Tensor, indices: &[usize]) -> CandleResult<Tensor> {
    let index: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
    rows.index_select(&Tensor::from_vec(index, indices.len(), rows.device())?, 0)
}

/// Cuts `rows` rows into ranges of `size`, of which the last may be shorter: what is scored at a
/// time. A size of zero counts as one.
///
/// ```
/// let batches: Vec<_> = doorward_engine::batches(7, 3).collect();
/// assert_eq!(batches, [0..3, 3..6, 6..7]);
/// ```
pub fn batches(rows: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.max(1);
    (0..rows).step_by(size).map(move |first| first..rows.min(first + size))
}

// === impl Batch ===

impl Batch {
    /// Predicts the labels of `rows`.
    ///
    /// Fails if the model cannot be evaluated on them.
    pub fn predict(model: &dyn Classifier, rows: Tensor) -> Result<Self, Error> {
        let labels = labels(&model.logits(&rows)?)?;
        Ok(Self { rows, labels })
    }

    /// Positions of the rows of one label.
    pub fn members(&self, label: usize) -> Vec<usize> {
        (0..self.len()).filter(|&row| self.labels[row] == label).collect()
    }

    /// The rows of one label.
    ///
    /// Fails if the device does.
    pub fn of_label(&self, label: usize) -> CandleResult<Self> {
        self.select(&self.members(label))
    }

    /// The rows at `indices`, which may repeat.
    ///
    /// Fails if the device does, and panics if an index is not a row's.
    pub fn select(&self, indices: &[usize]) -> CandleResult<Self> {
        let labels = indices.iter().map(|&index| self.labels[index]).collect();
        Ok(Self { rows: gather(&self.rows, indices)?, labels })
    }

    /// The first `count` rows, or all.
    ///
    /// Fails if the device does.
    pub fn first(&self, count: usize) -> CandleResult<Self> {
        let count = count.min(self.len());
        Ok(Self { rows: self.rows.narrow(0, 0, count)?, labels: self.labels[..count].to_vec() })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_every_row_once() {
        assert_eq!(batches(7, 3).collect::<Vec<_>>(), [0..3, 3..6, 6..7]);
        assert_eq!(batches(4, 4).next(), Some(0..4));
        assert_eq!(batches(4, 4).count(), 1);
        assert_eq!(batches(0, 4).count(), 0);
    }
}
