//! Rows of model input with the labels that the model predicts for them.

use std::ops::Range;

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::classifier::Classifier;
use crate::domain::InputDomain;
use crate::error::Error;
use crate::margins::labels;

/// Rows of a batch with their predicted labels.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[n, C, H, W]`
    pub rows: Tensor,
    /// Per row.
    pub labels: Vec<usize>,
}

/// Bytes of images as a batch of model input, `[n, C, H, W]`.
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
pub fn gather(rows: &Tensor, indices: &[usize]) -> CandleResult<Tensor> {
    let index: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
    rows.index_select(&Tensor::from_vec(index, indices.len(), rows.device())?, 0)
}

/// Cuts `rows` rows into ranges of `size`, of which the last may be shorter: what is scored at a
/// time. A size of zero counts as one.
pub fn batches(rows: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.max(1);
    (0..rows).step_by(size).map(move |first| first..rows.min(first + size))
}

// === impl Batch ===

impl Batch {
    /// Predicts the labels of `rows`.
    pub fn predict(model: &dyn Classifier, rows: Tensor) -> Result<Self, Error> {
        let labels = labels(&model.logits(&rows)?)?;
        Ok(Self { rows, labels })
    }

    /// Positions of the rows of one label.
    pub fn members(&self, label: usize) -> Vec<usize> {
        (0..self.len()).filter(|&row| self.labels[row] == label).collect()
    }

    /// The rows of one label.
    pub fn of_label(&self, label: usize) -> CandleResult<Self> {
        self.select(&self.members(label))
    }

    /// The rows at `indices`, which may repeat.
    pub fn select(&self, indices: &[usize]) -> CandleResult<Self> {
        let labels = indices.iter().map(|&index| self.labels[index]).collect();
        Ok(Self { rows: gather(&self.rows, indices)?, labels })
    }

    /// The first `count` rows, or all.
    pub fn first(&self, count: usize) -> CandleResult<Self> {
        let count = count.min(self.len());
        Ok(Self { rows: self.rows.narrow(0, 0, count)?, labels: self.labels[..count].to_vec() })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no rows.
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
