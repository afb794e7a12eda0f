//! The per-channel affine as an operator.

use candle_core::{Result, Tensor};

use super::{Backward, Fusible, Kernel, Operator, Saves};
use crate::composition::Kept;
use crate::kernels::activation::Activation;
use crate::kernels::affine::ChannelAffine;
use crate::kernels::load::{Affine, Load};
use crate::kernels::loops;

impl Operator for ChannelAffine {
    fn name(&self) -> &'static str {
        "channel affine"
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        self.composed(&inputs[0], kept)
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        Ok(vec![Some(self.composed_gradient(&inputs[0], cotangent, kept)?)])
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }

    fn fusible(&self) -> Option<Fusible<'_>> {
        Some(Fusible::Affine(self))
    }

    fn followed_by(&self, next: &Fusible<'_>) -> Option<Box<dyn Operator>> {
        let Fusible::Affine(next) = next else { return None };
        if self.activation != Activation::Identity {
            return None;
        }
        let scale = self.scale.iter().zip(&next.scale).map(|(a, b)| a * b).collect();
        let shift = self
            .shift
            .iter()
            .zip(next.scale.iter().zip(&next.shift))
            .map(|(shift, (scale, next))| shift * scale + next)
            .collect();
        Some(Box::new(Self { scale, shift, activation: next.activation }))
    }
}

impl Kernel for ChannelAffine {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let plane = self.plane(&inputs[0]);
        let load = Affine { scale: &self.scale, shift: &self.shift, activation: self.activation };
        loops::map("affine", &inputs[0], inputs[0].shape(), |x, out| {
            for (i, (x, out)) in x.chunks_exact(plane).zip(out.chunks_exact_mut(plane)).enumerate()
            {
                load.row(i % self.scale.len(), x, out);
            }
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, cotangent, .. } = *at;
        Ok(vec![Some(self.gradient(&inputs[0], cotangent)?)])
    }
}
