//! ONNX `PRelu`.

use candle_core::{Result, Tensor};

use crate::composition::Kept;
use crate::kernels::activation::Activation;
use crate::kernels::loops;
use crate::operators::binary::{Arithmetic, Binary, Term};
use crate::operators::{Backward, Kernel, Operator, Saves};

/// `x` above zero, `slope * x` below, slopes repeated as NumPy does.
#[derive(Debug)]
pub(crate) struct PRelu {
    scaled: Binary,
}

impl PRelu {
    /// `slopes` is `[1, ...]` of the rank of `[1, ...row]`.
    pub(crate) fn new(slopes: Tensor, row: Vec<usize>) -> Self {
        let (left, right) = (Term::Input(row.clone()), Term::Constant(slopes));
        Self {
            scaled: Binary {
                function: Arithmetic::Mul,
                left,
                right,
                row,
                activation: Activation::Identity,
            },
        }
    }
}

impl Operator for PRelu {
    fn name(&self) -> &'static str {
        "PRelu"
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        let (x, scaled) = (&inputs[0], self.scaled.compose(inputs, kept)?);
        x.gt(0f32)?.where_cond(x, &scaled)
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        let scaled = self.scaled.compose(std::slice::from_ref(cotangent), kept)?;
        Ok(vec![Some(inputs[0].gt(0f32)?.where_cond(cotangent, &scaled)?)])
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}

impl Kernel for PRelu {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (x, scaled) = (&inputs[0], self.scaled.forward(inputs)?);
        loops::zip(self.name(), x, &scaled, x.shape(), |x, scaled, out| {
            for ((out, x), scaled) in out.iter_mut().zip(x).zip(scaled) {
                *out = if *x > 0.0 { *x } else { *scaled };
            }
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        let (x, dy) = (&inputs[0], cotangent);
        let scaled = self.scaled.forward(std::slice::from_ref(dy))?;
        let gradient =
            loops::zip3(self.name(), x, dy, &scaled, x.shape(), |x, dy, scaled, out| {
                for (((out, x), dy), scaled) in out.iter_mut().zip(x).zip(dy).zip(scaled) {
                    *out = if *x > 0.0 { *dy } else { *scaled };
                }
            })?;
        Ok(vec![Some(gradient)])
    }
}
