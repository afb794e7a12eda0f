//! Values in another order or shape.

use super::folding::{Folding, dot, repeating, strides};
use crate::error::Error;
use crate::onnx::constant::{Constant, Values};

/// ONNX Concat, opsets 4 to 26.
pub(super) fn concat(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axis"])?;
    let first = folding.input(0)?;
    let axis = folding.axis(folding.node.int("axis", 0)?, first.dims.len())?;
    let mut dims = first.dims.clone();
    dims[axis] = 0;
    let mut parts = Vec::with_capacity(folding.inputs.len());
    for index in 0..folding.inputs.len() {
        let part = folding.input(index)?;
        let fits = part.dims.len() == dims.len()
            && (0..dims.len()).all(|i| i == axis || part.dims[i] == first.dims[i]);
        if !fits {
            return Err(folding.error(format!(
                "input {index} of shape {:?} does not join {:?} along axis {axis}",
                part.dims, first.dims
            )));
        }
        dims[axis] = dims[axis].saturating_add(part.dims[axis]);
        // An empty part would be looked at once a row for nothing.
        if part.values.len() > 0 || index == 0 {
            parts.push(part);
        }
    }
    // Without values there is nothing to loop over, however large the other dimensions are.
    let outer = match folding.count(&dims)? {
        0 => 0,
        _ => dims[..axis].iter().product(),
    };
    let values = match &first.values {
        Values::F32(_) => joined(&parts, axis, outer, Constant::floats).map(Values::F32),
        Values::I64(_) => joined(&parts, axis, outer, Constant::integers).map(Values::I64),
    };
    let values = values.ok_or_else(|| folding.error("its inputs differ in type".into()))?;
    Ok(Constant { dims, values })
}

fn joined<'a, T: Copy + 'a>(
    parts: &[&'a Constant],
    axis: usize,
    outer: usize,
    values: impl Fn(&'a Constant) -> Option<&'a [T]>,
) -> Option<Vec<T>> {
    let mut all = Vec::new();
    for row in 0..outer {
        for &part in parts {
            let len: usize = part.dims[axis..].iter().product();
            all.extend_from_slice(&values(part)?[row * len..][..len]);
        }
    }
    Some(all)
}

/// ONNX Expand, opsets 8 to 26.
pub(super) fn expand(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let source = folding.input(0)?;
    let wanted = folding.dims(folding.required("shape", 1)?)?;
    let dims = folding.broadcast(&source.dims, &wanted)?;
    folding.count(&dims)?;
    let strides = repeating(&source.dims, dims.len());
    folding.moved(source, dims, |index| dot(index, &strides))
}

/// ONNX Flatten, opsets 1 to 26.
pub(super) fn flatten(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axis"])?;
    let source = folding.input(0)?;
    let rank = source.dims.len();
    let axis = match folding.node.int("axis", 1)? {
        // One more than an axis: all of them are in front.
        axis if axis == rank as i64 => rank,
        axis => folding.axis(axis, rank)?,
    };
    let (front, back) = source.dims.split_at(axis);
    let product = |dims: &[usize]| match dims.contains(&0) {
        true => Ok(0),
        false => folding.count(dims),
    };
    let dims = vec![product(front)?, product(back)?];
    folding.shaped(source, dims)
}

/// ONNX Reshape, opsets 5 to 26.
pub(super) fn reshape(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["allowzero"])?;
    let source = folding.input(0)?;
    let wanted = folding.required("shape", 1)?;
    let copies = folding.node.int("allowzero", 0)? == 0;
    let refuse = || folding.error(format!("shape {wanted:?} for {:?}", source.dims));
    let mut open = None;
    let mut dims = Vec::with_capacity(wanted.len());
    for (i, &dim) in wanted.iter().enumerate() {
        dims.push(match dim {
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            0 if copies => *source.dims.get(i).ok_or_else(refuse)?,
            dim => usize::try_from(dim).map_err(|_| refuse())?,
        });
    }
    if let Some(open) = open {
        let known = folding.count(&dims)?;
        dims[open] = source.values.len().checked_div(known).ok_or_else(refuse)?;
    }
    folding.shaped(source, dims)
}

/// ONNX Slice, opsets 1 to 26.
pub(super) fn slice(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axes", "ends", "starts"])?;
    let source = folding.input(0)?;
    let (starts, ends) = (folding.required("starts", 1)?, folding.required("ends", 2)?);
    let (axes, steps) = (folding.per_axis("axes", 3)?, folding.per_axis("steps", 4)?);
    let mut dims = source.dims.clone();
    let mut from: Vec<(isize, isize)> = vec![(0, 1); dims.len()];
    for (axis, bounds) in folding.node.slices([starts, ends], axes, steps)? {
        let axis = folding.axis(axis, dims.len())?;
        let (start, step, count) = folding.node.cut(source.dims[axis], bounds)?;
        dims[axis] = count;
        from[axis] = (start, step);
    }
    let strides = strides(&source.dims);
    folding.moved(source, dims, |index| {
        let at = index.iter().zip(&from).map(|(&i, (start, step))| start + i as isize * step);
        at.zip(&strides).map(|(at, stride)| at as usize * stride).sum()
    })
}

/// ONNX Split, opsets 2 to 26.
pub(super) fn split(folding: &Folding<'_>) -> Result<Vec<Constant>, Error> {
    folding.node.only(&["axis", "num_outputs", "split"])?;
    let source = folding.input(0)?;
    folding.count(&source.dims)?;
    let axis = folding.axis(folding.node.int("axis", 0)?, source.dims.len())?;
    let size = source.dims[axis];
    let lengths = match (folding.node.ints("split")?, folding.optional(1)) {
        (Some(lengths), _) => lengths.to_vec(),
        (None, Some(_)) => folding.integers(1)?.to_vec(),
        (None, None) => {
            let parts = folding.node.int("num_outputs", folding.outputs as i64)?;
            let parts = usize::try_from(parts).ok().filter(|parts| (1..=MAX_PARTS).contains(parts));
            let Some(parts) = parts else {
                return Err(folding.error(format!("it gives none or more than {MAX_PARTS} parts")));
            };
            // The last one may be smaller.
            let each = size.div_ceil(parts);
            let left = |part: usize| size.saturating_sub(part * each).min(each) as i64;
            (0..parts).map(left).collect()
        }
    };
    folding.work(lengths.len())?;
    let mut start = 0usize;
    let mut parts = Vec::with_capacity(lengths.len().min(MAX_PARTS));
    let own = strides(&source.dims);
    for &length in &lengths {
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        let Some(end) = end.filter(|&end| end <= size && parts.len() < MAX_PARTS) else {
            return Err(misfit(folding, &lengths, size));
        };
        let mut dims = source.dims.clone();
        dims[axis] = end - start;
        parts.push(folding.moved(source, dims, |index| dot(index, &own) + start * own[axis])?);
        start = end;
    }
    if start != size {
        return Err(misfit(folding, &lengths, size));
    }
    Ok(parts)
}

fn misfit(folding: &Folding<'_>, lengths: &[i64], size: usize) -> Error {
    let (shown, more) = match lengths.split_at_checked(MAX_SHOWN) {
        Some((shown, more)) if !more.is_empty() => (shown, " and more"),
        _ => (lengths, ""),
    };
    folding.error(format!("parts of {shown:?}{more} do not add up to {size}"))
}

/// ONNX Squeeze, opsets 1 to 26.
pub(super) fn squeeze(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axes"])?;
    let source = folding.input(0)?;
    let rank = source.dims.len();
    let mut dropped: Vec<bool> = source.dims.iter().map(|&dim| dim == 1).collect();
    if let Some(axes) = folding.per_axis("axes", 1)? {
        dropped.fill(false);
        for &axis in axes {
            let axis = folding.axis(axis, rank)?;
            if source.dims[axis] != 1 {
                return Err(folding
                    .error(format!("axis {axis} of shape {:?} is not of size 1", source.dims)));
            }
            dropped[axis] = true;
        }
    }
    let kept = source.dims.iter().zip(dropped).filter(|(_, dropped)| !dropped);
    let dims = kept.map(|(&dim, _)| dim).collect();
    folding.shaped(source, dims)
}

/// ONNX Tile, opsets 6 to 26.
pub(super) fn tile(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let source = folding.input(0)?;
    let repeats = folding.dims(folding.required("repeats", 1)?)?;
    if repeats.len() != source.dims.len() {
        let rank = source.dims.len();
        return Err(folding.error(format!("repeats {repeats:?}, expected {rank} of them")));
    }
    let product = |(&dim, &times): (&usize, &usize)| dim.saturating_mul(times);
    let dims = source.dims.iter().zip(&repeats).map(product).collect();
    let strides = strides(&source.dims);
    folding.moved(source, dims, |index| {
        let within = index.iter().zip(&source.dims).map(|(index, dim)| index % dim);
        within.zip(&strides).map(|(index, stride)| index * stride).sum()
    })
}

/// ONNX Transpose, opsets 1 to 26.
pub(super) fn transpose(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["perm"])?;
    let source = folding.input(0)?;
    let permutation = folding.node.permutation(source.dims.len())?;
    let strides = strides(&source.dims);
    let dims = permutation.iter().map(|&axis| source.dims[axis]).collect();
    let strides: Vec<usize> = permutation.iter().map(|&axis| strides[axis]).collect();
    folding.moved(source, dims, |index| dot(index, &strides))
}

/// ONNX Unsqueeze, opsets 1 to 26.
pub(super) fn unsqueeze(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axes"])?;
    let source = folding.input(0)?;
    let axes = folding.required("axes", 1)?;
    let dims = folding.node.unsqueezed(&source.dims, 1, axes)?;
    folding.shaped(source, dims)
}

/// No exporter cuts a constant into more.
const MAX_PARTS: usize = 1 << 12;

/// Values of a long list that an error shows.
const MAX_SHOWN: usize = 16;
