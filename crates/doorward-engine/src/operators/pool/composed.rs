//! Pooling by candle's operators, one axis after the other.
//!
//! Among equal maxima the first in row order takes the gradient here too: maxima of rows are taken
//! first, so that its row is the first of those that have the maximum, and it the first of its row.

use candle_core::{Result, Tensor};

use super::{Kind, Pool};
use crate::composition::{Kept, along, only_where, places, sums};
use crate::operators::{Backward, Kernel, Operator, Saves};

impl Pool {
    fn composed(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let Kind::Average { count_padding } = self.kind else {
            return self.maxima(&self.maxima(x, 1, kept)?, 0, kept);
        };
        let (batch, channels, height, _) = x.dims4()?;
        let [out_height, out_width] = self.out_size;
        let [down, across] = self.averages(count_padding, x, kept)?;
        let y = along(&x.reshape((batch * channels * height, ()))?, 1, &across)?;
        along(&y, out_width, &down)?.reshape((batch, channels, out_height, out_width))
    }

    fn composed_gradient(&self, x: &Tensor, cotangent: &Tensor, kept: &Kept) -> Result<Tensor> {
        let Kind::Average { count_padding } = self.kind else {
            let of_rows = self.maxima(x, 1, kept)?;
            let y = self.maxima(&of_rows, 0, kept)?;
            let by_row = self.first_of_maxima(&of_rows, &y, cotangent, 0, kept)?;
            return self.first_of_maxima(x, &of_rows, &by_row, 1, kept);
        };
        let [down, across] = self.averages(count_padding, x, kept)?;
        along(&along(cotangent, self.out_size[1], &down.t()?)?, 1, &across.t()?)?.reshape(x.shape())
    }

    /// For every place of the kernel along an axis, the input places that the windows have there:
    /// where one reaches past the image, its first place once more, which changes no maximum.
    fn window_places(&self, axis: usize, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let (kernel, positions) = (self.window.kernel[axis], self.out_size[axis]);
        kept.get(["rows", "columns"][axis], || {
            let at = |(k, position): (usize, usize)| {
                let mut covered = self.covered(axis, position);
                let first = covered.clone().next().unwrap_or(0);
                covered.nth(k).unwrap_or(first)
            };
            let each = (0..kernel).flat_map(|k| (0..positions).map(move |position| (k, position)));
            places(each.map(at), x.device())?.reshape((kernel, positions))
        })
    }

    fn maxima(&self, x: &Tensor, axis: usize, kept: &Kept) -> Result<Tensor> {
        let places = self.window_places(axis, x, kept)?;
        let mut y = x.index_select(&places.get(0)?, axis + 2)?;
        for k in 1..self.window.kernel[axis] {
            y = y.maximum(&x.index_select(&places.get(k)?, axis + 2)?)?;
        }
        Ok(y)
    }

    /// The gradient of [`Pool::maxima`], all of it to the first of equal maxima.
    fn first_of_maxima(
        &self,
        x: &Tensor,
        y: &Tensor,
        cotangent: &Tensor,
        axis: usize,
        kept: &Kept,
    ) -> Result<Tensor> {
        let (places, dim) = (self.window_places(axis, x, kept)?, axis + 2);
        let mut gradient = x.zeros_like()?;
        let mut unclaimed = cotangent.clone();
        for k in 0..self.window.kernel[axis] {
            let places = places.get(k)?;
            let is_maximum = x.index_select(&places, dim)?.eq(y)?;
            gradient = gradient.index_add(&places, &only_where(&is_maximum, &unclaimed)?, dim)?;
            unclaimed = is_maximum.where_cond(&unclaimed.zeros_like()?, &unclaimed)?;
        }
        Ok(gradient)
    }

    /// The matrices of the averages down the columns and along the rows.
    fn averages(&self, count_padding: bool, x: &Tensor, kept: &Kept) -> Result<[Tensor; 2]> {
        let matrix = |axis: usize| {
            kept.get(["rows", "columns"][axis], || {
                let window = |position: usize| {
                    let share = 1.0 / self.counted(axis, position, count_padding) as f32;
                    self.covered(axis, position).map(|from| (from, share)).collect()
                };
                let windows: Vec<_> = (0..self.out_size[axis]).map(window).collect();
                sums(&windows, self.in_size[axis], x.device())
            })
        };
        Ok([matrix(0)?, matrix(1)?])
    }
}

impl Operator for Pool {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Average { .. } => "AveragePool",
            Kind::Max => "MaxPool",
        }
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
}
