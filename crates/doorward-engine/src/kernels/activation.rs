//! What happens to a sum before it is stored: the activations that other operators absorb.

use candle_core::{Result, Tensor};

use crate::composition::only_where;
use crate::kernels::loops;

/// A function whose derivative, zero or one, can be told from its output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    /// `min(max(x, low), high)`; the derivative at a bound is 0, as PyTorch's.
    Clip {
        low: f32,
        high: f32,
    },
    Identity,
    Relu,
}

impl Activation {
    /// The least and the largest output: without a bound, an infinity.
    pub(crate) fn bounds(self) -> [f32; 2] {
        match self {
            Self::Clip { low, high } => [low, high],
            Self::Identity => [f32::NEG_INFINITY, f32::INFINITY],
            Self::Relu => [0.0, f32::INFINITY],
        }
    }

    /// The activation of every value, by candle's operators.
    pub(crate) fn compose(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Clip { low, high } => x.clamp(low, high),
            Self::Identity => Ok(x.clone()),
            Self::Relu => x.relu(),
        }
    }

    /// [`Activation::gate`] by candle's operators.
    pub(crate) fn composed_gate(self, output: &Tensor, cotangent: &Tensor) -> Result<Tensor> {
        match self {
            Self::Clip { low, high } => {
                let above = only_where(&output.gt(low)?, cotangent)?;
                only_where(&output.lt(high)?, &above)
            }
            Self::Identity => Ok(cotangent.clone()),
            Self::Relu => only_where(&output.gt(0f32)?, cotangent),
        }
    }

    /// `cotangent` where `output` lies between the bounds.
    pub(crate) fn gate(self, output: &Tensor, cotangent: &Tensor) -> Result<Tensor> {
        if self == Self::Identity {
            return Ok(cotangent.clone());
        }
        let [low, high] = self.bounds();
        loops::zip("activation gradient", output, cotangent, output.shape(), |y, dy, out| {
            for ((out, dy), y) in out.iter_mut().zip(dy).zip(y) {
                // Not the short-circuit: two comparisons and no branch.
                *out = if (*y > low) & (*y < high) { *dy } else { 0.0 };
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_bound_takes_no_gradient() {
        let x = Tensor::new(&[-1.0f32, 0.0, 0.5, 6.0, 7.0], &Device::Cpu).unwrap();
        let dy = x.ones_like().unwrap();
        let clip = Activation::Clip { low: 0.0, high: 6.0 };
        for (activation, value, slope) in [
            (clip, [0.0, 0.0, 0.5, 6.0, 6.0], [0.0, 0.0, 1.0, 0.0, 0.0]),
            (Activation::Relu, [0.0, 0.0, 0.5, 6.0, 7.0], [0.0, 0.0, 1.0, 1.0, 1.0]),
            (Activation::Identity, [-1.0, 0.0, 0.5, 6.0, 7.0], [1.0; 5]),
        ] {
            let y = activation.compose(&x).unwrap();
            assert_eq!(y.to_vec1::<f32>().unwrap(), value);
            assert_eq!(activation.gate(&y, &dy).unwrap().to_vec1::<f32>().unwrap(), slope);
            let composed = activation.composed_gate(&y, &dy).unwrap();
            assert_eq!(composed.to_vec1::<f32>().unwrap(), slope);
        }
    }
}
