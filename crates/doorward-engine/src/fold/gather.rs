//! Values read from, or written to, where others say.

use super::arithmetic;
use super::folding::{Folding, Indices, dot, strides};
use crate::error::Error;
use crate::onnx::constant::{Constant, Values};

/// ONNX Gather, opsets 1 to 26.
pub(super) fn gather(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axis"])?;
    let (source, indices) = (folding.input(0)?, folding.input(1)?);
    let raw = folding.integers(1)?;
    let axis = folding.axis(folding.node.int("axis", 0)?, source.dims.len())?;
    let size = source.dims[axis];
    folding.work(raw.len())?;
    let picked = raw
        .iter()
        .map(|&index| folding.node.index(index, axis, size))
        .collect::<Result<Vec<_>, _>>()?;
    let rank = indices.dims.len();
    let dims = [&source.dims[..axis], indices.dims.as_slice(), &source.dims[axis + 1..]].concat();
    let (strides, index_strides) = (strides(&source.dims), strides(&indices.dims));
    folding.moved(source, dims, |index| {
        let (before, rest) = index.split_at(axis);
        let (within, after) = rest.split_at(rank);
        dot(before, &strides[..axis])
            + picked[dot(within, &index_strides)] * strides[axis]
            + dot(after, &strides[axis + 1..])
    })
}

/// ONNX GatherElements, opsets 11 to 26.
pub(super) fn gather_elements(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axis"])?;
    let (source, indices) = (folding.input(0)?, folding.input(1)?);
    let raw = folding.integers(1)?;
    let rank = source.dims.len();
    let axis = folding.axis(folding.node.int("axis", 0)?, rank)?;
    let fits = indices.dims.len() == rank
        && (0..rank).all(|i| i == axis || indices.dims[i] <= source.dims[i]);
    if !fits {
        return Err(folding.error(format!(
            "indices of shape {:?} for values of shape {:?} along axis {axis}",
            indices.dims, source.dims
        )));
    }
    folding.count(&indices.dims)?;
    let picked = raw
        .iter()
        .map(|&index| folding.node.index(index, axis, source.dims[axis]))
        .collect::<Result<Vec<_>, _>>()?;
    let (strides, index_strides) = (strides(&source.dims), strides(&indices.dims));
    folding.moved(source, indices.dims.clone(), |index| {
        let along = picked[dot(index, &index_strides)];
        dot(index, &strides) - index[axis] * strides[axis] + along * strides[axis]
    })
}

/// ONNX GatherND, opsets 11 to 26.
pub(super) fn gather_nd(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["batch_dims"])?;
    let (source, indices) = (folding.input(0)?, folding.input(1)?);
    let batches = folding.node.int("batch_dims", 0)?;
    let batches = usize::try_from(batches)
        .ok()
        .filter(|&batches| {
            batches < source.dims.len().min(indices.dims.len())
                && source.dims[..batches] == indices.dims[..batches]
        })
        .ok_or_else(|| {
            folding.error(format!(
                "{batches} axes do not stay of values of shape {:?} and indices of shape {:?}",
                source.dims, indices.dims
            ))
        })?;
    let starts = starts(folding, &source.dims, batches)?;
    let (outer, depth) = (&indices.dims[..indices.dims.len() - 1], starts.depth);
    let dims = [outer, &source.dims[batches + depth..]].concat();
    let (rank, outer_strides) = (outer.len(), strides(outer));
    let own = strides(&source.dims);
    folding.moved(source, dims, |index| {
        let (outer, inner) = index.split_at(rank);
        dot(&outer[..batches], &own[..batches])
            + starts.at[dot(outer, &outer_strides)]
            + dot(inner, &own[batches + depth..])
    })
}

/// ONNX ScatterND, opsets 11 to 26, which writes the updates in their order.
pub(super) fn scatter_nd(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["reduction"])?;
    let (source, updates) = (folding.input(0)?, folding.input(2)?);
    folding.count(&source.dims)?;
    if source.dims.is_empty() || folding.input(1)?.dims.is_empty() {
        return Err(folding.error("values or indices have no axes".into()));
    }
    let starts = starts(folding, &source.dims, 0)?;
    let outer = &folding.input(1)?.dims[..folding.input(1)?.dims.len() - 1];
    let expected = [outer, &source.dims[starts.depth..]].concat();
    if updates.dims != expected {
        return Err(
            folding.error(format!("updates of shape {:?}, expected {expected:?}", updates.dims))
        );
    }
    folding.work(updates.values.len())?;
    let reduction = folding.node.text("reduction")?.unwrap_or("none");
    let values = match (&source.values, &updates.values) {
        (Values::F32(values), Values::F32(updates)) => {
            let join: fn(f32, f32) -> Option<f32> = match reduction {
                "none" => |_, new| Some(new),
                "add" => |old, new| Some(old + new),
                "mul" => |old, new| Some(old * new),
                "max" => |old, new| Some(arithmetic::larger(old, new)),
                "min" => |old, new| Some(arithmetic::smaller(old, new)),
                _ => return Err(unknown(folding, reduction)),
            };
            written(values, &starts.at, updates, join).map(Values::F32)
        }
        (Values::I64(values), Values::I64(updates)) => {
            let join: fn(i64, i64) -> Option<i64> = match reduction {
                "none" => |_, new| Some(new),
                "add" => i64::checked_add,
                "mul" => i64::checked_mul,
                "max" => |old, new| Some(old.max(new)),
                "min" => |old, new| Some(old.min(new)),
                _ => return Err(unknown(folding, reduction)),
            };
            written(values, &starts.at, updates, join).map(Values::I64)
        }
        _ => return Err(folding.error("values and updates differ in type".into())),
    };
    let values = values.ok_or_else(|| folding.error("a value exceeds 64 bits".into()))?;
    Ok(Constant { dims: source.dims.clone(), values })
}

fn unknown(folding: &Folding<'_>, reduction: &str) -> Error {
    folding.error(format!("attribute \"reduction\" is {reduction:?}"))
}

fn written<T: Copy>(
    values: &[T],
    starts: &[usize],
    updates: &[T],
    join: impl Fn(T, T) -> Option<T>,
) -> Option<Vec<T>> {
    let mut values = values.to_vec();
    // Without starts there are no updates; and updates may be empty for each start.
    let width = updates.len() / starts.len().max(1);
    for (i, &start) in starts.iter().enumerate().filter(|_| width > 0) {
        let new = &updates[i * width..][..width];
        for (old, &new) in values[start..][..width].iter_mut().zip(new) {
            *old = join(*old, new)?;
        }
    }
    Some(values)
}

/// The places that the tuples of input 1 point to.
struct Starts {
    /// Indices in each tuple.
    depth: usize,
    /// Flat positions, without those of the axes that stay.
    at: Vec<usize>,
}

fn starts(folding: &Folding<'_>, dims: &[usize], batches: usize) -> Result<Starts, Error> {
    let (indices, raw) = (folding.input(1)?, folding.integers(1)?);
    let depth = match indices.dims.last() {
        Some(&depth) if (1..=dims.len() - batches).contains(&depth) => depth,
        _ => {
            return Err(folding.error(format!(
                "indices of shape {:?} for values of shape {dims:?}",
                indices.dims
            )));
        }
    };
    folding.work(raw.len())?;
    let strides = strides(dims);
    let mut at = Vec::with_capacity(raw.len() / depth);
    for tuple in raw.chunks_exact(depth) {
        let mut start = 0usize;
        for (i, &index) in tuple.iter().enumerate() {
            let axis = batches + i;
            // Wraps as its stride does, where there are no values.
            let step = folding.node.index(index, axis, dims[axis])?.wrapping_mul(strides[axis]);
            start = start.wrapping_add(step);
        }
        at.push(start);
    }
    Ok(Starts { depth, at })
}

/// The indices at which `keep` holds, in order; one column each.
pub(super) fn columns(dims: &[usize], keep: impl Iterator<Item = bool>) -> Vec<Vec<i64>> {
    let mut rows = vec![Vec::new(); dims.len()];
    let mut indices = Indices::new(dims);
    for keep in keep {
        if keep {
            for (row, &index) in rows.iter_mut().zip(&indices.index) {
                row.push(index as i64);
            }
        }
        indices.advance();
    }
    rows
}
