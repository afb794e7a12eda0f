//! The place of the batch in the shape that the graph sees, and the shape of a row without it.
//!
//! A tensor of the program is `[n, ...row]` whatever the graph does to the batch: the row is what
//! the graph's tensor holds, row-major, with the batch taken out. Attention in `[length, batch,
//! width]`, windows in `[batch * windows, ...]` and heads in `[batch * heads, ...]` are all rows
//! under another name, so a reshape never moves a value, every row stays independent of the others,
//! and a batch can be cut anywhere.

use crate::size::Size;

/// The shape of an activation as the graph sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Sizes by axis, the batch counted as one.
    axes: Vec<usize>,
    /// `None` for a tensor that the graph knows as one row.
    batch: Option<Batch>,
}

/// The axis `before * batch * after` that the batch is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    axis: usize,
    before: usize,
    after: usize,
}

// === impl Layout ===

impl Layout {
    /// `[batch, ...row]`
    pub(crate) fn batch_first(row: &[usize]) -> Self {
        let axes = std::iter::once(1).chain(row.iter().copied()).collect();
        Self { axes, batch: Some(Batch { axis: 0, before: 1, after: 1 }) }
    }

    /// One row for the graph.
    pub(crate) fn row_only(row: &[usize]) -> Self {
        Self { axes: row.to_vec(), batch: None }
    }

    pub(crate) fn rank(&self) -> usize {
        self.axes.len()
    }

    /// Size of an axis without the batch.
    pub(crate) fn size(&self, axis: usize) -> usize {
        self.axes[axis]
    }

    /// True if the batch is part of this axis.
    pub(crate) fn is_batch(&self, axis: usize) -> bool {
        self.batch.is_some_and(|batch| batch.axis == axis)
    }

    /// The row of a layout that is `[batch, ...row]`.
    pub(crate) fn as_batch_first(&self) -> Option<&[usize]> {
        match self.batch {
            Some(Batch { axis: 0, before: 1, after: 1 }) => Some(&self.axes[1..]),
            _ => None,
        }
    }

    /// The shape of a row of the program's tensor.
    pub(crate) fn row(&self) -> Vec<usize> {
        let mut row = Vec::with_capacity(self.axes.len() + 1);
        for (axis, &size) in self.axes.iter().enumerate() {
            match self.batch {
                Some(batch) if batch.axis == axis => row.extend(batch.row_dims()),
                _ => row.push(size),
            }
        }
        row
    }

    /// The dimension of the program's tensor that this axis is; meaningless for the batch's.
    pub(crate) fn dim(&self, axis: usize) -> usize {
        1 + (0..axis)
            .map(|axis| match self.batch {
                Some(batch) if batch.axis == axis => batch.row_dims().count(),
                _ => 1,
            })
            .sum::<usize>()
    }

    /// Values of the axis and all behind it; `None` if the batch is among them.
    pub(crate) fn trailing(&self, axis: usize) -> Option<usize> {
        match self.batch {
            Some(batch) if batch.axis >= axis => None,
            _ => Some(self.axes[axis..].iter().product()),
        }
    }

    /// Values of a row that lie behind an axis.
    pub(crate) fn behind(&self, axis: usize) -> usize {
        self.row()[self.dim(axis)..].iter().product()
    }

    /// The layout with other axes in place of one that the batch is not part of.
    pub(crate) fn replaced(&self, axis: usize, by: &[usize]) -> Self {
        let mut layout = self.clone();
        layout.axes.splice(axis..=axis, by.iter().copied());
        if let Some(batch) = &mut layout.batch
            && batch.axis > axis
        {
            batch.axis = batch.axis + by.len() - 1;
        }
        layout
    }

    /// The layout with other sizes for axes that the batch is not part of.
    pub(crate) fn resized(&self, sizes: &[(usize, usize)]) -> Self {
        let mut layout = self.clone();
        for &(axis, size) in sizes {
            layout.axes[axis] = size;
        }
        layout
    }

    /// The layout with more axes behind.
    pub(crate) fn extended(&self, by: &[usize]) -> Self {
        Self { axes: [self.axes.as_slice(), by].concat(), batch: self.batch }
    }

    /// The layout without an axis that the batch is not part of.
    pub(crate) fn without(&self, axis: usize) -> Self {
        self.replaced(axis, &[])
    }

    /// The axes in another order, and the order of the program's dimensions that this asks for.
    pub(crate) fn transposed(&self, permutation: &[usize]) -> (Self, Vec<usize>) {
        let mut layout = self.clone();
        let mut dims = vec![0];
        for (to, &from) in permutation.iter().enumerate() {
            layout.axes[to] = self.axes[from];
            match self.batch {
                Some(batch) if batch.axis == from => {
                    layout.batch = Some(Batch { axis: to, ..batch });
                    dims.extend(batch.row_dims().enumerate().map(|(i, _)| self.dim(from) + i));
                }
                _ => dims.push(self.dim(from)),
            }
        }
        (layout, dims)
    }

    /// The shape as the graph's nodes see it.
    pub(crate) fn sizes(&self) -> Vec<Size> {
        (0..self.rank())
            .map(|axis| match self.is_batch(axis) {
                true => Size::Batches(self.axes[axis]),
                false => Size::Fixed(self.axes[axis] as i64),
            })
            .collect()
    }

    /// The same values in the shape that an ONNX `Reshape` asks for. `fixed` is the batch that the
    /// graph's constants were written for, if it was written for one.
    pub(crate) fn reshaped(
        &self,
        wanted: &[Size],
        zero_copies: bool,
        fixed: Option<i64>,
    ) -> Option<Self> {
        let values = product(&self.axes)?;
        let mut axes = Vec::with_capacity(wanted.len());
        let (mut batch, mut open) = (None, None);
        for (axis, &size) in wanted.iter().enumerate() {
            let copied = size == Size::Fixed(0) && zero_copies;
            let is_batch = size.batches().is_some() || (copied && self.batch?.axis == axis);
            if is_batch && batch.replace(axis).is_some() {
                return None;
            }
            axes.push(match size {
                Size::Fixed(-1) if open.replace(axis).is_none() => 1,
                Size::Fixed(0) if copied => *self.axes.get(axis)?,
                Size::Fixed(size) => usize::try_from(size).ok()?,
                Size::Batches(count) => count,
            });
        }
        let ahead = match self.batch {
            None => None,
            Some(own) => Some(product(&self.axes[..own.axis])?.checked_mul(own.before)?),
        };
        if let (None, Some(ahead)) = (batch, ahead) {
            // No dimension names the batch: it is the first that is left open, or that has the size
            // the batch was fixed to, in the place where the batch is.
            let stands = |axis: usize| {
                open == Some(axis)
                    || (wanted[axis] == Size::Fixed(fixed.unwrap_or(1))
                        && product(&axes[..axis]) == Some(ahead))
            };
            batch = (0..axes.len()).find(|&axis| stands(axis));
            match (batch, fixed) {
                (Some(axis), _) => axes[axis] = 1,
                // A batch of one that was multiplied into a dimension: the one behind its place,
                // unless that is the last, which holds features; then the one in front.
                (None, Some(1)) => {
                    let begins = |axis: usize| product(&axes[..axis]) == Some(ahead);
                    let last = axes.len().checked_sub(1)?;
                    batch = (0..last)
                        .find(|&axis| begins(axis))
                        .or_else(|| (0..last).find(|&axis| begins(axis + 1)));
                }
                (None, _) => {}
            }
        }
        if let Some(open) = open {
            let known = product(&axes)?;
            if known == 0 || !values.is_multiple_of(known) {
                return None;
            }
            axes[open] = values / known;
        }
        if product(&axes)? != values {
            return None;
        }
        let batch = match (batch, ahead) {
            (None, None) => None,
            (Some(axis), Some(ahead)) => {
                let outside = product(&axes[..axis])?;
                if outside == 0 || !ahead.is_multiple_of(outside) {
                    return None;
                }
                let before = ahead / outside;
                if before == 0 || !axes[axis].is_multiple_of(before) {
                    return None;
                }
                Some(Batch { axis, before, after: axes[axis] / before })
            }
            _ => return None,
        };
        Some(Self { axes, batch })
    }

    /// The layout of an elementwise function of both, as NumPy broadcasts.
    pub(crate) fn broadcast(&self, other: &Self) -> Option<Self> {
        let rank = self.rank().max(other.rank());
        let (a, b) = (self.padded(rank), other.padded(rank));
        let batch = match (a.batch, b.batch) {
            (Some(a), Some(b)) if a == b => Some(a),
            (None, None) => None,
            _ => return None,
        };
        let axes = broadcast(&a.axes, &b.axes)?;
        Some(Self { axes, batch })
    }

    /// The layout of a constant beside `self`: the batch repeats it.
    pub(crate) fn like(&self, dims: &[usize]) -> Self {
        let rank = self.rank().max(dims.len());
        Self { batch: self.padded(rank).batch, ..Self::row_only(dims).padded(rank) }
    }

    /// The layout with axes of size one in front, up to a rank.
    pub(crate) fn padded(&self, rank: usize) -> Self {
        let ones = rank.saturating_sub(self.rank());
        let axes = std::iter::repeat_n(1, ones).chain(self.axes.iter().copied()).collect();
        let batch = self.batch.map(|batch| Batch { axis: batch.axis + ones, ..batch });
        Self { axes, batch }
    }

    /// The layout of a number, or a list, for each row, which a graph knows as one for all, as it is
    /// beside `[batch, ...]` of a higher rank; any other layout as it is.
    pub(crate) fn for_each_row(&self, rank: usize) -> Self {
        match self.as_batch_first() {
            Some(row @ ([] | [_])) if rank > row.len() + 1 => {
                let mut lifted = vec![1; rank - 1];
                let at = lifted.len() - row.len();
                lifted[at..].copy_from_slice(row);
                Self::batch_first(&lifted)
            }
            _ => self.clone(),
        }
    }

    /// True if it is one number for each row.
    pub(crate) fn is_number(&self) -> bool {
        self.as_batch_first() == Some(&[])
    }

    /// The row that a constant of this shape stands for beside rows of `self`; it must not vary
    /// over the batch. Dimensions of one serve where it repeats.
    pub(crate) fn row_of_constant(&self, dims: &[usize]) -> Option<Vec<usize>> {
        if dims.len() > self.rank() {
            return None;
        }
        let ones = self.rank() - dims.len();
        let mut row = Vec::with_capacity(self.rank() + 1);
        for axis in 0..self.rank() {
            let dim = axis.checked_sub(ones).map_or(1, |axis| dims[axis]);
            match self.batch {
                Some(batch) if batch.axis == axis => match dim {
                    1 => row.extend(batch.row_dims().map(|_| 1)),
                    // As many as a batch of one has there: windows, or heads.
                    dim if dim == self.axes[axis] => row.extend(batch.row_dims()),
                    _ => return None,
                },
                _ => row.push(dim),
            }
        }
        Some(row)
    }

    /// Number of images `[C, H, W]`, or `[C, 1, L]`, in a row, and their size.
    pub(crate) fn images(&self) -> Option<(usize, [usize; 3])> {
        let (count, image) = match *self.axes.as_slice() {
            [count, channels, height, width] => (count, [channels, height, width]),
            [count, channels, length] => (count, [channels, 1, length]),
            _ => return None,
        };
        match self.batch {
            Some(batch) if batch.axis != 0 => None,
            _ => Some((count, image)),
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[")?;
        for (axis, size) in self.axes.iter().enumerate() {
            let comma = if axis == 0 { "" } else { ", " };
            match (self.is_batch(axis), size) {
                (true, 1) => write!(f, "{comma}batch")?,
                (true, size) => write!(f, "{comma}{size} * batch")?,
                (false, size) => write!(f, "{comma}{size}")?,
            }
        }
        f.write_str("]")
    }
}

// === impl Batch ===

impl Batch {
    /// Dimensions of a row that are left of the axis.
    fn row_dims(self) -> impl Iterator<Item = usize> {
        [self.before, self.after].into_iter().filter(|&dim| dim != 1)
    }
}

/// Number of values in a row of an activation; `None` for none, or for more than can be meant.
pub(crate) fn row_values(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|count| (1..=MAX_ROW_VALUES).contains(count))
}

/// NumPy's broadcasting of two shapes.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], i: usize| {
        (i + shape.len()).checked_sub(rank).map_or(1, |index| shape[index])
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

fn product(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

/// An image of 4096 x 4096 in three channels, and more than any layer of a classifier: a quarter
/// of a gigabyte of `f32`.
const MAX_ROW_VALUES: usize = 1 << 26;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::BATCH;

    fn sizes<const N: usize>(integers: [i64; N]) -> [Size; N] {
        integers.map(Size::of_integer)
    }

    #[test]
    fn attention_keeps_its_rows_through_every_reshape() {
        let tokens = Layout::batch_first(&[50, 64]);
        let (length_first, dims) = tokens.transposed(&[1, 0, 2]);
        assert_eq!((length_first.to_string().as_str(), dims), ("[50, batch, 64]", vec![0, 1, 2]));
        // As torch's multi-head attention: [length, batch * heads, width / heads].
        let heads = length_first.reshaped(&sizes([50, 4 * BATCH, 16]), true, None).unwrap();
        assert_eq!(
            (heads.to_string().as_str(), heads.row()),
            ("[50, 4 * batch, 16]", vec![50, 4, 16])
        );
        let (heads_first, dims) = heads.transposed(&[1, 0, 2]);
        assert_eq!((heads_first.row(), dims), (vec![4, 50, 16], vec![0, 2, 1, 3]));
        let apart = heads_first.reshaped(&sizes([BATCH, 4, 50, 16]), true, None).unwrap();
        assert_eq!(apart, Layout::batch_first(&[4, 50, 16]));
        // Back, with the length outside of the batch in one axis.
        let (back, _) = apart.transposed(&[2, 0, 1, 3]);
        let joined = back.reshaped(&sizes([50 * BATCH, 64]), true, None).unwrap();
        assert_eq!((joined.to_string().as_str(), joined.row()), ("[50 * batch, 64]", vec![50, 64]));
        let tokens = joined.reshaped(&sizes([50, BATCH, 64]), true, None).unwrap();
        assert_eq!(tokens, length_first);
    }

    #[test]
    fn windows_join_the_batch_and_leave_it() {
        let image = Layout::batch_first(&[2, 7, 2, 7, 96]);
        let (image, dims) = image.transposed(&[0, 1, 3, 2, 4, 5]);
        assert_eq!(dims, [0, 1, 3, 2, 4, 5]);
        let windows = image.reshaped(&sizes([4 * BATCH, 49, 96]), true, None).unwrap();
        assert_eq!(windows.row(), [4, 49, 96]);
        assert_eq!(
            windows.reshaped(&sizes([BATCH, 4, 49, 96]), true, None).unwrap().row(),
            [4, 49, 96]
        );
        assert_eq!(windows.reshaped(&sizes([-1, 49, 96]), true, None).unwrap(), windows);
    }

    #[test]
    fn a_batch_that_the_graph_fixed_is_found_where_it_is() {
        let tokens = Layout::batch_first(&[50, 64]);
        assert_eq!(
            tokens.reshaped(&sizes([1, 50, 4, 16]), true, Some(1)).unwrap().row(),
            [50, 4, 16]
        );
        assert_eq!(
            tokens.reshaped(&sizes([8, 3200]), true, Some(8)).unwrap(),
            Layout::batch_first(&[3200])
        );
        assert_eq!(
            tokens.reshaped(&sizes([0, -1]), true, None).unwrap(),
            Layout::batch_first(&[3200])
        );
        assert_eq!(
            tokens.reshaped(&sizes([-1, 3200]), true, None).unwrap(),
            Layout::batch_first(&[3200])
        );
        let (length_first, _) = tokens.transposed(&[1, 0, 2]);
        assert_eq!(
            length_first.reshaped(&sizes([50, 1, 4, 16]), true, Some(1)).unwrap().row(),
            [50, 4, 16]
        );
    }

    #[test]
    fn a_batch_of_one_that_was_multiplied_away_is_found() {
        let (tokens, _) = Layout::batch_first(&[50, 64]).transposed(&[1, 0, 2]);
        let heads = tokens.reshaped(&sizes([50, 4, 16]), true, Some(1)).unwrap();
        assert_eq!(heads.to_string(), "[50, 4 * batch, 16]");
        let joined = tokens.reshaped(&sizes([50, 64]), true, Some(1)).unwrap();
        assert_eq!(joined.to_string(), "[50 * batch, 64]");
        let windows =
            Layout::batch_first(&[2, 2, 7, 7, 24]).reshaped(&sizes([4, 49, 24]), true, Some(1));
        assert_eq!(windows.unwrap().to_string(), "[4 * batch, 49, 24]");
    }

    #[test]
    fn reshapes_that_cut_through_the_batch_are_refused() {
        let tokens = Layout::batch_first(&[50, 64]);
        assert_eq!(tokens.reshaped(&sizes([50, 64]), true, None), None);
        assert_eq!(tokens.reshaped(&sizes([50, BATCH, 64]), true, None), None);
        assert_eq!(tokens.reshaped(&sizes([BATCH, 7, -1]), true, None), None);
        assert_eq!(tokens.reshaped(&sizes([BATCH, BATCH]), true, None), None);
        assert_eq!(tokens.reshaped(&sizes([i64::MAX, i64::MAX]), true, None), None);
    }

    #[test]
    fn constants_beside_rows_must_not_vary_over_the_batch() {
        let (length_first, _) = Layout::batch_first(&[50, 64]).transposed(&[1, 0, 2]);
        assert_eq!(length_first.row_of_constant(&[64]), Some(vec![1, 64]));
        assert_eq!(length_first.row_of_constant(&[50, 1, 64]), Some(vec![50, 64]));
        assert_eq!(length_first.row_of_constant(&[50, 2, 64]), None);
    }
}
