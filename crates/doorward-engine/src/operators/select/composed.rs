//! Picking values by candle's operators.

use candle_core::{DType, Result, Tensor, bail};

use super::{Gather, View};
use crate::composition::{Kept, places, with_rows};
use crate::kernels::strided::{Walk, row_major};
use crate::operators::{Backward, Kernel, Operator, Saves};

impl View {
    fn composed(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let from = kept.get("from", || places(self.places(), x.device()))?;
        let n = x.dim(0)?;
        x.reshape((n, ()))?.index_select(&from, 1)?.reshape(with_rows(n, &self.row()))
    }

    fn composed_gradient(&self, cotangent: &Tensor, kept: &Kept) -> Result<Tensor> {
        let n = cotangent.dim(0)?;
        let mut dy = cotangent.clone();
        for (dim, &(_, stride)) in self.dims.iter().enumerate() {
            if stride == 0 {
                dy = dy.sum_keepdim(dim + 1)?;
            }
        }
        let dy = dy.reshape((n, ()))?;
        // candle adds at places one after the other. Every place takes one value at most, so that
        // it can be looked up instead: behind the values there is a zero for the others.
        let from = kept.get("back", || places(self.values_of_places()?, dy.device()))?;
        let zero = Tensor::zeros((n, 1), DType::F32, dy.device())?;
        Tensor::cat(&[&dy, &zero], 1)?
            .contiguous()?
            .index_select(&from, 1)?
            .reshape(with_rows(n, &self.in_row))
    }

    /// Position in the input's row of each value of the output's.
    fn places(&self) -> Vec<usize> {
        let row = self.row();
        let strides: Vec<isize> = self.dims.iter().map(|&(_, stride)| stride).collect();
        let walk = Walk::new(&row, [&row_major(&row), &strides]);
        let mut places = Vec::with_capacity(row.iter().product());
        walk.each(|[_, from], len| {
            let at = |i: usize| (self.offset + from + i as isize * walk.inner[1]).unsigned_abs();
            places.extend((0..len).map(at));
        });
        places
    }

    /// For every place of the input's row the value that it takes of the output's without
    /// repetitions:
    /// one past the last for none.
    fn values_of_places(&self) -> Result<Vec<usize>> {
        let once = |&(size, stride): &(usize, isize)| (if stride == 0 { 1 } else { size }, stride);
        let dims = self.dims.iter().map(once).collect();
        let (name, in_row) = (self.name, self.in_row.clone());
        let places = View { name, in_row, offset: self.offset, dims }.places();
        let mut values = vec![places.len(); self.in_row.iter().product()];
        for (value, place) in places.iter().enumerate() {
            if std::mem::replace(&mut values[*place], value) != places.len() {
                bail!("{}: its values overlap", self.name);
            }
        }
        Ok(values)
    }
}

impl Gather {
    fn composed(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        let n = x.dim(0)?;
        let indices = self.kept_indices(x, kept)?;
        x.reshape(((), self.size, self.inner))?
            .index_select(&indices, 1)?
            .reshape(with_rows(n, &self.rows[1]))
    }

    fn composed_gradient(&self, cotangent: &Tensor, kept: &Kept) -> Result<Tensor> {
        let shape = with_rows(cotangent.dim(0)?, &self.rows[0]);
        let indices = self.kept_indices(cotangent, kept)?;
        let zeros = Tensor::zeros(shape.as_slice(), DType::F32, cotangent.device())?;
        let dy = cotangent.reshape(((), self.indices.len(), self.inner))?;
        zeros.reshape(((), self.size, self.inner))?.index_add(&indices, &dy, 1)?.reshape(shape)
    }

    fn kept_indices(&self, x: &Tensor, kept: &Kept) -> Result<Tensor> {
        kept.get("indices", || places(self.indices.iter().copied(), x.device()))
    }
}

impl Operator for View {
    fn name(&self) -> &'static str {
        self.name
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        self.composed(&inputs[0], kept)
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
        Ok(vec![Some(self.composed_gradient(cotangent, kept)?)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "Gather"
    }

    fn compose(&self, inputs: &[Tensor], kept: &Kept) -> Result<Tensor> {
        self.composed(&inputs[0], kept)
    }

    fn compose_vjp(&self, at: &Backward<'_>, kept: &Kept) -> Result<Vec<Option<Tensor>>> {
        let cotangent = at.cotangent;
        Ok(vec![Some(self.composed_gradient(cotangent, kept)?)])
    }

    fn saves(&self) -> Saves {
        Saves::NOTHING
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        Some(self)
    }
}
