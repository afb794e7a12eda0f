//! Perturbations of clean images, and what they do to a classifier's margins.
//!
//! A radius `epsilon` is a share of the full pixel range: 8/255 moves a pixel by at most eight grey
//! levels, whatever the model's normalisation.

mod adam;
mod carlini_wagner;
mod deepfool;
mod pgd;
mod separating;
mod uap;
mod uap_deepfool;

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::model::{Classifier, Error, InputDomain};

pub(crate) use adam::Adam;
pub use carlini_wagner::{CarliniWagner, Nearest, carlini_wagner};
pub use deepfool::{DeepFool, Fooling, deepfool};
pub use pgd::{Pgd, pgd, random_start};
pub use separating::separating;
pub use uap::{Search, Universal, class_conditional, several, universal};
pub use uap_deepfool::universal_by_deepfool;

/// Rows of a batch with their predicted labels.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[n, C, H, W]`
    pub rows: Tensor,
    /// Per row.
    pub labels: Vec<usize>,
}

/// The bounds of an input domain as tensors that broadcast over a batch.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// `[1, C, 1, 1]`
    pub lower: Tensor,
    /// `[1, C, 1, 1]`
    pub upper: Tensor,
    /// `[1, C, 1, 1]`, upper - lower.
    pub range: Tensor,
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

/// The predicted label of one row of logits; the first of equals.
pub fn label(logits: &[f32]) -> usize {
    arg_max(logits, usize::MAX)
}

/// Predicted labels of logits `[n, labels]`.
pub fn labels(logits: &Tensor) -> CandleResult<Vec<usize>> {
    Ok(logits.to_vec2::<f32>()?.iter().map(|row| label(row)).collect())
}

/// `m_z = f_z - max_{k != z} f_k`
pub fn margin(logits: &[f32], label: usize) -> f32 {
    logits[label] - logits[arg_max(logits, label)]
}

/// Margins of the rows of `logits` for `labels`.
pub fn margins(logits: &Tensor, labels: &[usize]) -> CandleResult<Vec<f32>> {
    let rows = logits.to_vec2::<f32>()?;
    Ok(rows.iter().zip(labels).map(|(row, &label)| margin(row, label)).collect())
}

/// The gradient of `weight * m_label` with respect to each row of logits.
///
/// `weight` sees the margin, so that a hinge is a weight of zero.
pub fn margin_cotangent(
    logits: &Tensor,
    labels: &[usize],
    weight: impl Fn(f32) -> f32,
) -> CandleResult<Tensor> {
    let rows = logits.to_vec2::<f32>()?;
    let mut cotangent = vec![0.0; logits.elem_count()];
    for ((row, &label), out) in rows.iter().zip(labels).zip(cotangent.chunks_mut(rows[0].len())) {
        let weight = weight(margin(row, label));
        out[label] = weight;
        out[arg_max(row, label)] = -weight;
    }
    Tensor::from_vec(cotangent, logits.shape(), logits.device())
}

/// Which rows keep their label under a perturbation that broadcasts over them.
pub fn kept(
    model: &dyn Classifier,
    batch: &Batch,
    perturbation: &Tensor,
) -> Result<Vec<bool>, Error> {
    let bounds = Bounds::new(model.domain(), model.device())?;
    let after = labels(&model.logits(&bounds.moved(&batch.rows, perturbation)?)?)?;
    Ok(after.iter().zip(&batch.labels).map(|(label, original)| label == original).collect())
}

/// Share of rows whose label changes under a perturbation that broadcasts over them.
pub fn fooling_rate(
    model: &dyn Classifier,
    batch: &Batch,
    perturbation: &Tensor,
) -> Result<f64, Error> {
    let kept = kept(model, batch, perturbation)?.into_iter().filter(|kept| *kept).count();
    Ok(1.0 - kept as f64 / batch.labels.len() as f64)
}

/// Index of the largest value but the one at `except`; the first of equals.
fn arg_max(row: &[f32], except: usize) -> usize {
    let mut best = usize::from(except == 0);
    for (index, value) in row.iter().enumerate() {
        if index != except && *value > row[best] {
            best = index;
        }
    }
    best
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

// === impl Bounds ===

impl Bounds {
    /// The bounds of `domain` on `device`.
    pub fn new(domain: &InputDomain, device: &Device) -> CandleResult<Self> {
        let per_channel = |values: &[f32]| Tensor::new(values, device)?.reshape((1, (), 1, 1));
        let (lower, upper) = (per_channel(&domain.lower)?, per_channel(&domain.upper)?);
        let range = upper.sub(&lower)?;
        Ok(Self { lower, upper, range })
    }

    /// Moves every value into the domain.
    pub fn clip(&self, rows: &Tensor) -> CandleResult<Tensor> {
        rows.broadcast_maximum(&self.lower)?.broadcast_minimum(&self.upper)
    }

    /// `clip(rows + perturbation)`, of a perturbation of one row or of as many as there are.
    ///
    /// On the CPU in one pass of its own: candle splits three passes over threads that wait for each
    /// other by spinning, which took half of a request's time where images are large and cores busy.
    pub fn moved(&self, rows: &Tensor, perturbation: &Tensor) -> CandleResult<Tensor> {
        if !rows.device().is_cpu() {
            return self.clip(&rows.broadcast_add(perturbation)?);
        }
        let mut values: Vec<f32> = rows.flatten_all()?.to_vec1()?;
        let added: Vec<f32> = perturbation.flatten_all()?.to_vec1()?;
        let (lower, upper) = (self.lower.flatten_all()?, self.upper.flatten_all()?);
        let (lower, upper) = (lower.to_vec1::<f32>()?, upper.to_vec1::<f32>()?);
        let row = rows.elem_count() / rows.dim(0)?.max(1);
        let plane = (row / lower.len().max(1)).max(1);
        for (values, added) in values.chunks_mut(row.max(1)).zip(added.chunks(row.max(1)).cycle()) {
            let planes = values.chunks_mut(plane).zip(added.chunks(plane));
            for ((values, added), (&lower, &upper)) in planes.zip(lower.iter().zip(&upper)) {
                for (value, added) in values.iter_mut().zip(added) {
                    *value = (*value + added).max(lower).min(upper);
                }
            }
        }
        Tensor::from_vec(values, rows.shape(), rows.device())
    }

    /// Projects a perturbation onto the l-infinity ball of radius `epsilon`.
    pub fn project(&self, perturbation: &Tensor, epsilon: f32) -> CandleResult<Tensor> {
        let radius = (&self.range * f64::from(epsilon))?;
        perturbation.broadcast_minimum(&radius)?.broadcast_maximum(&radius.neg()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margin_is_the_lead_over_the_best_other() {
        assert_eq!(margin(&[1.0, 4.0, 2.0], 1), 2.0);
        assert_eq!(margin(&[1.0, 4.0, 2.0], 0), -3.0);
        assert_eq!(margin(&[4.0, 4.0], 0), 0.0);
    }

    #[test]
    fn margin_cotangent_matches_central_differences() {
        let logits = [0.3f32, -1.2, 2.0, 0.9];
        let tensor = Tensor::new(&[logits], &Device::Cpu).unwrap();
        let cotangent = margin_cotangent(&tensor, &[0], |_| 1.0).unwrap();
        for (k, expected) in cotangent.to_vec2::<f32>().unwrap()[0].iter().enumerate() {
            let (mut up, mut down) = (logits, logits);
            up[k] += 0.01;
            down[k] -= 0.01;
            let slope = (margin(&up, 0) - margin(&down, 0)) / 0.02;
            assert!((slope - expected).abs() < 1e-3);
        }
    }

    /// Of a domain whose channels have ranges of their own.
    fn normalised() -> Bounds {
        let domain = InputDomain {
            shape: [2, 1, 2],
            lower: vec![-1.0, 0.0],
            upper: vec![1.0, 4.0],
            channels_last: false,
            fp32: true,
        };
        Bounds::new(&domain, &Device::Cpu).unwrap()
    }

    #[test]
    fn moving_is_adding_and_clipping() {
        let bounds = normalised();
        let rows = [0.9f32, -0.9, 0.1, 3.9, 0.0, 0.5, 2.0, 1.0];
        let rows = Tensor::new(&rows, &Device::Cpu).unwrap().reshape((2, 2, 1, 2)).unwrap();
        for perturbation in [&[0.25f32, -0.25, -0.25, 0.25][..], &[0.5; 8]] {
            let perturbation = Tensor::new(perturbation, &Device::Cpu).unwrap();
            let perturbation = perturbation.reshape(((), 2, 1, 2)).unwrap();
            let moved = bounds.moved(&rows, &perturbation).unwrap();
            let expected = bounds.clip(&rows.broadcast_add(&perturbation).unwrap()).unwrap();
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&moved), values(&expected));
        }
    }

    #[test]
    fn projection_stays_in_the_ball_of_a_normalised_domain() {
        let bounds = normalised();
        let wild = Tensor::new(&[9.0f32, -9.0, 0.1, 9.0], &Device::Cpu).unwrap();
        let projected = bounds.project(&wild.reshape((1, 2, 1, 2)).unwrap(), 0.1).unwrap();
        let values: Vec<f32> = projected.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, [0.2, -0.2, 0.1, 0.4]);
    }
}
