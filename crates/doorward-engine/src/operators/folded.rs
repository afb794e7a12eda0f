//! An operator on images as one on rows of other shapes.

use candle_core::{Result, Tensor};

use super::{Backward, Kernel, Operator, Saves};
use crate::composition::{Kept, with_rows};

/// An operator on images where rows hold several of them, or have them in other dimensions.
#[derive(Debug)]
pub(crate) struct Folded {
    /// An operator on `[n, C, H, W]`, one input.
    pub(crate) operator: Box<dyn Operator>,
    /// An image of the input and of the output.
    pub(crate) images: [[usize; 3]; 2],
    /// Shape of the output's row.
    pub(crate) row: Vec<usize>,
}

impl Folded {
    fn images(&self, tensor: &Tensor, which: usize) -> Result<Tensor> {
        let [channels, height, width] = self.images[which];
        tensor.reshape(((), channels, height, width))
    }

    fn on_images(
        &self,
        inputs: &[Tensor],
        run: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let y = run(&[self.images(&inputs[0], 0)?])?;
        y.reshape(with_rows(inputs[0].dim(0)?, &self.row))
    }

    fn vjp_on_images(
        &self,
        at: &Backward<'_>,
        run: impl Fn(&Backward<'_>) -> Result<Vec<Option<Tensor>>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let Backward { inputs, output, cotangent } = *at;
        // What was not kept is empty, and stays so.
        let kept = |tensor: &Tensor, which: usize| match tensor.elem_count() {
            0 => Ok(tensor.clone()),
            _ => self.images(tensor, which),
        };
        let (x, y) = (kept(&inputs[0], 0)?, kept(output, 1)?);
        let dy = self.images(cotangent, 1)?;
        let rows = |gradient: Tensor| gradient.reshape((cotangent.dim(0)?, ()));
        let gradients = run(&Backward { inputs: &[x], output: &y, cotangent: &dy })?.into_iter();
        gradients.map(|gradient| gradient.map(rows).transpose()).collect()
    }
}

impl Operator for Folded {
    fn name(&self) -> &'static str {
        self.operator.name()
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        self.on_images(inputs, |images| self.operator.compose(images, kept))
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        self.vjp_on_images(at, |at| self.operator.compose_vjp(at, kept))
    }

    fn saves(&self) -> Saves {
        self.operator.saves()
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}

impl Kernel for Folded {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        self.on_images(inputs, |images| match self.operator.kernel() {
            Some(kernel) => kernel.forward(images),
            None => self.operator.compose(images, &Kept::default()),
        })
    }

    fn vjp(&self, at: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        self.vjp_on_images(at, |at| match self.operator.kernel() {
            Some(kernel) => kernel.vjp(at),
            None => self.operator.compose_vjp(at, &Kept::default()),
        })
    }
}
