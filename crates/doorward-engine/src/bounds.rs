//! The bounds of a model's input as tensors.

use candle_core::{Device, Result as CandleResult, Tensor};

use crate::domain::InputDomain;

/// The bounds of an input domain as tensors that broadcast over a batch.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use doorward_engine::{Bounds, InputDomain};
///
/// let (lower, upper) = (vec![0.0], vec![1.0]);
/// let domain = InputDomain { shape: [1, 1, 2], lower, upper, channels_last: false, fp32: true };
/// let bounds = Bounds::new(&domain, &Device::Cpu)?;
/// let row = Tensor::new(&[0.25f32, 0.75], &Device::Cpu)?.reshape((1, 1, 1, 2))?;
/// let eta = Tensor::new(&[-0.5f32, 0.5], &Device::Cpu)?.reshape((1, 1, 1, 2))?;
/// let moved = bounds.moved(&row, &eta)?;
/// assert_eq!(moved.flatten_all()?.to_vec1::<f32>()?, [0.0, 1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The least values, `[1, C, 1, 1]`.
    pub lower: Tensor,
    /// The largest values, `[1, C, 1, 1]`.
    pub upper: Tensor,
    /// The difference `upper - lower`, `[1, C, 1, 1]`.
    pub range: Tensor,
}

// === impl Bounds ===

impl Bounds {
    /// The bounds of `domain` on `device`.
    ///
    /// Fails if the device does.
    pub fn new(domain: &InputDomain, device: &Device) -> CandleResult<Self> {
        let per_channel = |values: &[f32]| Tensor::new(values, device)?.reshape((1, (), 1, 1));
        let (lower, upper) = (per_channel(&domain.lower)?, per_channel(&domain.upper)?);
        let range = upper.sub(&lower)?;
        Ok(Self { lower, upper, range })
    }

    /// Moves every value into the domain.
    ///
    /// Fails if `rows` have another number of channels.
    pub fn clip(&self, rows: &Tensor) -> CandleResult<Tensor> {
        rows.broadcast_maximum(&self.lower)?.broadcast_minimum(&self.upper)
    }

    /// Returns `clip(rows + perturbation)` for a perturbation of one row or of as many as there
    /// are.
    ///
    /// Fails if the shapes do not fit.
    ///
    /// On the CPU in one pass of its own: candle splits three passes over threads that wait for
    /// each other by spinning, which took half of a request's time where images are large and cores
    /// busy.
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

    /// Projects a perturbation onto the l-infinity ball of radius `epsilon`, a share of the range.
    ///
    /// Fails if the perturbation has another number of channels.
    pub fn project(&self, perturbation: &Tensor, epsilon: f32) -> CandleResult<Tensor> {
        let radius = (&self.range * f64::from(epsilon))?;
        perturbation.broadcast_minimum(&radius)?.broadcast_maximum(&radius.neg()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bounds of a domain whose channels have ranges of their own.
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
