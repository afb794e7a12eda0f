//! A node as its evaluation sees it, and values by their indices.

use std::borrow::Cow;
use std::cell::Cell;

use crate::error::Error;
use crate::layout::broadcast;
use crate::onnx::constant::{Constant, Values};
use crate::onnx::node::Node;
use crate::onnx::wire::MAX_RANK;

/// A node, its constant inputs and the budget.
pub(super) struct Folding<'a> {
    pub(super) node: &'a Node,
    pub(super) inputs: &'a [Option<&'a Constant>],
    /// Number of the node's outputs.
    pub(super) outputs: usize,
    pub(super) budget: Cell<usize>,
}

// === impl Folding ===

impl<'a> Folding<'a> {
    pub(super) fn optional(&self, index: usize) -> Option<&'a Constant> {
        self.inputs.get(index).copied().flatten()
    }

    pub(super) fn input(&self, index: usize) -> Result<&'a Constant, Error> {
        self.optional(index).ok_or_else(|| self.error(format!("input {index} is absent")))
    }

    pub(super) fn floats(&self, index: usize) -> Result<&'a [f32], Error> {
        let integers = || self.error(format!("input {index} holds integers, expected floats"));
        self.input(index)?.floats().ok_or_else(integers)
    }

    pub(super) fn integers(&self, index: usize) -> Result<&'a [i64], Error> {
        let floats = || self.error(format!("input {index} holds floats, expected integers"));
        self.input(index)?.integers().ok_or_else(floats)
    }

    /// One value for each of some axes, which opsets have moved from an attribute to an input.
    pub(super) fn per_axis(&self, name: &str, index: usize) -> Result<Option<&'a [i64]>, Error> {
        let values = match (self.node.ints(name)?, self.optional(index)) {
            (Some(values), _) => values,
            (None, Some(_)) => self.integers(index)?,
            (None, None) => return Ok(None),
        };
        match values.len() {
            0..=MAX_RANK => Ok(Some(values)),
            more => Err(self.error(format!("{name} has {more} values, expected up to {MAX_RANK}"))),
        }
    }

    pub(super) fn required(&self, name: &str, index: usize) -> Result<&'a [i64], Error> {
        let absent = || self.error(format!("{name} is absent"));
        self.per_axis(name, index)?.ok_or_else(absent)
    }

    /// The only value of an input.
    pub(super) fn scalar(&self, index: usize) -> Result<i64, Error> {
        match self.integers(index)? {
            &[value] => Ok(value),
            values => {
                let got = values.len();
                Err(self.error(format!("input {index} holds {got} values, expected one")))
            }
        }
    }

    pub(super) fn axis(&self, axis: i64, rank: usize) -> Result<usize, Error> {
        self.node.axis(axis, rank)
    }

    /// Dimensions as the file writes them.
    pub(super) fn dims(&self, wanted: &[i64]) -> Result<Vec<usize>, Error> {
        let negative = |_| self.error(format!("shape {wanted:?} has a negative dimension"));
        wanted.iter().map(|&dim| usize::try_from(dim).map_err(negative)).collect()
    }

    /// Number of values of a result.
    pub(super) fn count(&self, dims: &[usize]) -> Result<usize, Error> {
        if dims.len() > MAX_RANK {
            let rank = dims.len();
            return Err(self.error(format!("its result has {rank} axes, expected {MAX_RANK}")));
        }
        dims.iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .filter(|&count| count <= self.budget.get())
            .ok_or_else(|| self.error(format!("its result of shape {dims:?} has too many values")))
    }

    /// Takes from the budget, which is for results and what else grows with neither the file nor
    /// them.
    pub(super) fn work(&self, values: usize) -> Result<(), Error> {
        let Some(remaining) = self.budget.get().checked_sub(values) else {
            return Err(self.error(format!("it computes on too many values, {values}")));
        };
        self.budget.set(remaining);
        Ok(())
    }

    /// A result whose value at an index is `source`'s at the flat position `at(index)`.
    pub(super) fn moved(
        &self,
        source: &Constant,
        dims: Vec<usize>,
        at: impl Fn(&[usize]) -> usize,
    ) -> Result<Constant, Error> {
        let count = self.count(&dims)?;
        let values = match &source.values {
            Values::F32(values) => Values::F32(at_each(values, &dims, count, at)),
            Values::I64(values) => Values::I64(at_each(values, &dims, count, at)),
        };
        Ok(Constant { dims, values })
    }

    /// The same values in another shape.
    pub(super) fn shaped(&self, source: &Constant, dims: Vec<usize>) -> Result<Constant, Error> {
        let count = self.count(&dims)?;
        if count != source.values.len() {
            let got = source.values.len();
            return Err(self.error(format!("{got} values do not fill a shape of {dims:?}")));
        }
        Ok(Constant { dims, values: source.values.clone() })
    }

    /// The shape to which two others broadcast, as NumPy does it.
    pub(super) fn broadcast(&self, left: &[usize], right: &[usize]) -> Result<Vec<usize>, Error> {
        broadcast(left, right)
            .ok_or_else(|| self.error(format!("{left:?} and {right:?} do not broadcast")))
    }

    /// `source` repeated to fill a shape that it broadcasts to.
    pub(super) fn expanded<'c>(
        &self,
        source: &'c Constant,
        dims: &[usize],
    ) -> Result<Cow<'c, Constant>, Error> {
        if source.dims == dims {
            return Ok(Cow::Borrowed(source));
        }
        let strides = repeating(&source.dims, dims.len());
        self.moved(source, dims.to_vec(), |index| dot(index, &strides)).map(Cow::Owned)
    }

    pub(super) fn error(&self, reason: String) -> Error {
        self.node.error(reason)
    }
}

/// Counts through the indices of a shape, row by row.
pub(super) struct Indices<'a> {
    pub(super) dims: &'a [usize],
    pub(super) index: Vec<usize>,
}

// === impl Indices ===

impl<'a> Indices<'a> {
    pub(super) fn new(dims: &'a [usize]) -> Self {
        Self { dims, index: vec![0; dims.len()] }
    }

    /// Moves to the next index; from the last back to the first.
    pub(super) fn advance(&mut self) {
        for (index, &dim) in self.index.iter_mut().zip(self.dims).rev() {
            *index += 1;
            if *index < dim {
                break;
            }
            *index = 0;
        }
    }
}

fn at_each<T: Copy>(
    values: &[T],
    dims: &[usize],
    count: usize,
    at: impl Fn(&[usize]) -> usize,
) -> Vec<T> {
    let mut indices = Indices::new(dims);
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(values[at(&indices.index)]);
        indices.advance();
    }
    all
}

/// Strides of a row-major layout. Wraps where another dimension is zero: nothing is read there.
pub(super) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis].wrapping_mul(dims[axis]);
    }
    strides
}

/// Strides of a shape that is broadcast to `rank` axes: zero along the ones that repeat.
pub(super) fn repeating(dims: &[usize], rank: usize) -> Vec<usize> {
    let stepped = dims.iter().zip(strides(dims));
    let mut all = vec![0; rank - dims.len()];
    all.extend(stepped.map(|(&dim, stride)| if dim == 1 { 0 } else { stride }));
    all
}

pub(super) fn dot(index: &[usize], strides: &[usize]) -> usize {
    index.iter().zip(strides).map(|(index, stride)| index * stride).sum()
}
