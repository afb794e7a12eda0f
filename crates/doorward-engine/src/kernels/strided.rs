//! Walks over several tensors at once by their strides, in runs along the innermost dimension.

/// The index space of `dims`, one stride a dimension for each of `N` tensors, zero where a tensor
/// repeats.
#[derive(Clone, Debug)]
pub(crate) struct Walk<const N: usize> {
    outer: Vec<(usize, [isize; N])>,
    /// Length of a run, and the tensors' strides in it.
    len: usize,
    pub(crate) inner: [isize; N],
}

impl<const N: usize> Walk<N> {
    /// Joins dimensions that every tensor walks through as one.
    pub(crate) fn new(dims: &[usize], strides: [&[isize]; N]) -> Self {
        let mut joined: Vec<(usize, [isize; N])> = Vec::with_capacity(dims.len());
        for (axis, &dim) in dims.iter().enumerate() {
            if dim == 1 {
                continue;
            }
            let axis_strides: [isize; N] = std::array::from_fn(|i| strides[i][axis]);
            match joined.last_mut() {
                Some((count, last))
                    if (0..N).all(|i| last[i] == axis_strides[i] * dim as isize) =>
                {
                    *count *= dim;
                    *last = axis_strides;
                }
                _ => joined.push((dim, axis_strides)),
            }
        }
        let (len, inner) = joined.pop().unwrap_or((1, [1; N]));
        Self { outer: joined, len, inner }
    }

    /// Calls `run` with the offset of every tensor and the length, for each run in order.
    #[inline(always)]
    pub(crate) fn each(&self, mut run: impl FnMut([isize; N], usize)) {
        let mut index = vec![0; self.outer.len()];
        let mut offsets = [0isize; N];
        loop {
            run(offsets, self.len);
            let mut axis = self.outer.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                let (dim, strides) = &self.outer[axis];
                index[axis] += 1;
                (0..N).for_each(|i| offsets[i] += strides[i]);
                if index[axis] < *dim {
                    break;
                }
                (0..N).for_each(|i| offsets[i] -= strides[i] * *dim as isize);
                index[axis] = 0;
            }
        }
    }
}

/// From the strides of `walk`'s second tensor, `offset` values on, to those of its first, which has
/// runs of stride one.
#[inline(always)]
pub(crate) fn copy(walk: &Walk<2>, offset: isize, x: &[f32], out: &mut [f32]) {
    let [_, stride] = walk.inner;
    walk.each(|[to, from], len| {
        let from = from + offset;
        let out = &mut out[to as usize..][..len];
        match stride {
            1 => out.copy_from_slice(&x[from as usize..][..len]),
            0 => out.fill(x[from as usize]),
            stride if stride > 0 => {
                let values = x[from as usize..].iter().step_by(stride.unsigned_abs());
                out.iter_mut().zip(values).for_each(|(out, x)| *out = *x);
            }
            stride => {
                let values = x[..=from as usize].iter().rev().step_by(stride.unsigned_abs());
                out.iter_mut().zip(values).for_each(|(out, x)| *out = *x);
            }
        }
    });
}

/// Strides of a row-major layout.
pub(crate) fn row_major(dims: &[usize]) -> Vec<isize> {
    let mut strides = vec![1isize; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis] as isize;
    }
    strides
}

/// Strides by which a row-major tensor of `dims` is repeated to a shape of the same rank.
pub(crate) fn repeated(dims: &[usize]) -> Vec<isize> {
    row_major(dims)
        .iter()
        .zip(dims)
        .map(|(&stride, &dim)| if dim == 1 { 0 } else { stride })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_visits_every_index_once_and_joins_what_it_can() {
        let dims = [2, 3, 4, 5];
        let whole = Walk::new(&dims, [&row_major(&dims)]);
        let mut runs = Vec::new();
        whole.each(|[offset], len| runs.push((offset, len)));
        assert_eq!(runs, [(0, 120)]);
        let channel = [1, 3, 1, 1];
        let walk = Walk::new(&dims, [&row_major(&dims), &repeated(&channel)]);
        let mut runs = Vec::new();
        walk.each(|offsets, len| runs.push((offsets, len)));
        let expected: Vec<_> = (0..6).map(|i| ([i * 20, i % 3], 20)).collect();
        assert_eq!((runs, walk.inner), (expected, [1, 0]));
    }
}
