//! The per-channel affine as an operator.

use candle_core::{Result, Tensor};

use super::{Operator, Saves};
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

    fn compose_vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
        kept: &Kept,
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.composed_gradient(&inputs[0], cotangent, kept)?)])
    }

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

    fn vjp(
        &self,
        inputs: &[Tensor],
        _output: &Tensor,
        cotangent: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.gradient(&inputs[0], cotangent)?)])
    }

    fn saves(&self) -> Saves {
        Saves::INPUTS
    }

    fn as_channel_affine(&self) -> Option<ChannelAffine> {
        Some(self.clone())
    }

    fn absorb_after(&self, next: &ChannelAffine) -> Option<Box<dyn Operator>> {
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
