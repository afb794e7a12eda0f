//! Quantisation by the range of the values at hand.

use candle_core::{Result, Tensor};

use crate::composition::{Kept, only_where};
use crate::operators::unary::Unary;
use crate::operators::{Backward, Operator, Saves};

/// One output of ONNX `DynamicQuantizeLinear`, whose range is that of a row: what a batch of one
/// gives. The gradient goes straight through the values, and not through the range.
#[derive(Debug)]
pub(crate) struct Dynamic {
    pub(crate) part: Part,
}

/// The outputs of `DynamicQuantizeLinear`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Scale,
    Values,
    ZeroPoint,
}

// === impl Dynamic ===

impl Dynamic {
    /// The scale and the zero point of every row, `[n, 1]`.
    fn range(flat: &Tensor, kept: &Kept) -> Result<[Tensor; 2]> {
        let zero = flat.narrow(1, 0, 1)?.zeros_like()?;
        let low = flat.min_keepdim(1)?.minimum(&zero)?;
        let high = flat.max_keepdim(1)?.maximum(&zero)?;
        let scale = ((&high - &low)? / MOST)?;
        // Zeros alone have no range: any scale will do.
        let scale = scale.gt(0f32)?.where_cond(&scale, &scale.ones_like()?)?;
        let point = (low.neg()? / &scale)?.clamp(0f32, MOST as f32)?;
        Ok([scale, Unary::Round.compose(&[point], kept)?])
    }
}

impl Operator for Dynamic {
    fn name(&self) -> &'static str {
        "DynamicQuantizeLinear"
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        let x = &inputs[0];
        let flat = x.flatten_from(1)?;
        let [scale, zero] = Self::range(&flat, kept)?;
        match self.part {
            Part::Scale => scale.squeeze(1),
            Part::ZeroPoint => zero.squeeze(1),
            Part::Values => {
                let rounded = Unary::Round.compose(&[flat.broadcast_div(&scale)?], kept)?;
                let values = rounded.broadcast_add(&zero)?.clamp(0f32, MOST as f32)?;
                values.reshape(x.shape())
            }
        }
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let x = &at.inputs[0];
        if self.part != Part::Values {
            return Ok(vec![Some(x.zeros_like()?)]);
        }
        let flat = x.flatten_from(1)?;
        let [scale, zero] = Self::range(&flat, kept)?;
        let gradient = at.cotangent.flatten_from(1)?.broadcast_div(&scale)?;
        let values = flat.broadcast_div(&scale)?.broadcast_add(&zero)?;
        // What is cut off at the ends of the range, by half a step at most, still counts.
        let inside = (values.ge(-1f32)? * values.le(MOST as f32 + 1.0)?)?;
        Ok(vec![Some(only_where(&inside, &gradient)?.reshape(x.shape())?)])
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }
}

/// The largest value of an unsigned byte.
const MOST: f64 = 255.0;
