//! Axes, places and cuts that nodes name: the same for constants, which are folded, and for
//! activations, which are lowered.

use crate::error::Error;
use crate::onnx::node::Node;

/// The start of a slice of an axis, its step, which stays within the axis, and its length.
pub(crate) type Cut = (isize, isize, usize);

impl Node {
    /// An axis below `rank`, where negative ones count from its end.
    pub(crate) fn axis(&self, axis: i64, rank: usize) -> Result<usize, Error> {
        place(axis, rank)
            .ok_or_else(|| self.error(format!("axis {axis} is outside of rank {rank}")))
    }

    /// An index along an axis of `size`, where negative ones count from its end.
    pub(crate) fn index(&self, index: i64, axis: usize, size: usize) -> Result<usize, Error> {
        place(index, size).ok_or_else(|| {
            self.error(format!("index {index} is outside of axis {axis} of size {size}"))
        })
    }

    /// The order of a `Transpose`.
    pub(crate) fn permutation(&self, rank: usize) -> Result<Vec<usize>, Error> {
        let permutation = match self.ints("perm")? {
            None => (0..rank).rev().collect(),
            Some(axes) => {
                axes.iter().map(|&axis| self.axis(axis, rank)).collect::<Result<Vec<_>, _>>()?
            }
        };
        if permutation.len() != rank || (0..rank).any(|axis| !permutation.contains(&axis)) {
            return Err(self.error(format!("{permutation:?} is no permutation of {rank} axes")));
        }
        Ok(permutation)
    }

    /// The shape that an `Unsqueeze` makes of `dims`, whose numbers have this `one`.
    pub(crate) fn unsqueezed<T: Copy>(
        &self,
        dims: &[T],
        one: T,
        axes: &[i64],
    ) -> Result<Vec<T>, Error> {
        let rank = dims.len() + axes.len();
        let mut added = vec![false; rank];
        for &axis in axes {
            added[self.axis(axis, rank)?] = true;
        }
        if added.iter().filter(|&&new| new).count() != axes.len() {
            return Err(self.error(format!("axes {axes:?} repeat")));
        }
        let mut old = dims.iter().copied();
        Ok(added.into_iter().filter_map(|new| if new { Some(one) } else { old.next() }).collect())
    }

    /// The axes that a `Slice` cuts, and start, end and step along each.
    pub(crate) fn slices(
        &self,
        [starts, ends]: [&[i64]; 2],
        axes: Option<&[i64]>,
        steps: Option<&[i64]>,
    ) -> Result<Vec<(i64, [i64; 3])>, Error> {
        let count = starts.len();
        let differ = |other: &[i64]| other.len() != count;
        if differ(ends) || axes.is_some_and(differ) || steps.is_some_and(differ) {
            return Err(self.error("starts, ends, axes and steps differ in number".into()));
        }
        let slice = |i: usize| {
            let axis = axes.map_or(i as i64, |axes| axes[i]);
            (axis, [starts[i], ends[i], steps.map_or(1, |steps| steps[i])])
        };
        Ok((0..count).map(slice).collect())
    }

    /// One such cut of an axis of `size`.
    pub(crate) fn cut(&self, size: usize, [start, end, step]: [i64; 3]) -> Result<Cut, Error> {
        let (size, step) = (size as i128, i128::from(step));
        let (lowest, highest) = match step {
            0 => return Err(self.error("a step is 0".into())),
            1.. => (0, size),
            _ => (-1, size - 1),
        };
        let bound = |value: i64| {
            let value = i128::from(value);
            (if value < 0 { value + size } else { value }).clamp(lowest, highest)
        };
        let (start, end) = (bound(start), bound(end));
        let count = usize::try_from((end - start + step - step.signum()) / step).unwrap_or(0);
        // The step to a second value that is not there may be any number.
        let step = if count > 1 { step as isize } else { 1 };
        Ok((start as isize, step, count))
    }
}

/// A place among `size`, where negative ones count from the end.
fn place(place: i64, size: usize) -> Option<usize> {
    let positive = if place < 0 { place.checked_add(size as i64)? } else { place };
    usize::try_from(positive).ok().filter(|&place| place < size)
}
