//! Values made from sizes, and sizes from values.

use candle_onnx::onnx::tensor_proto::DataType;

use super::folding::{Folding, dot, strides};
use super::gather::columns;
use crate::error::Error;
use crate::onnx::constant::{Constant, Values};

/// ONNX Constant, opsets 9 to 26.
pub(super) fn constant(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.constant()
}

/// ONNX ConstantOfShape, opsets 9 to 26.
pub(super) fn constant_of_shape(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["value"])?;
    let dims = folding.dims(folding.required("shape", 0)?)?;
    let zero = Constant { dims: vec![1], values: Values::F32(vec![0.0]) };
    let value = folding.node.tensor("value")?.unwrap_or(&zero);
    if value.values.len() != 1 {
        let got = value.values.len();
        return Err(folding.error(format!("attribute \"value\" holds {got} values, expected one")));
    }
    folding.moved(value, dims, |_| 0)
}

/// ONNX EyeLike, opsets 9 to 26.
pub(super) fn eye_like(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["dtype", "k"])?;
    let source = folding.input(0)?;
    let &[_, columns] = source.dims.as_slice() else {
        return Err(folding.error(format!("shape {:?}, expected two axes", source.dims)));
    };
    let count = folding.count(&source.dims)?;
    let shift = i128::from(folding.node.int("k", 0)?);
    let ones = (0..count).map(|i| (i % columns) as i128 - (i / columns) as i128 == shift);
    let float = match folding.node.int("dtype", 0)? {
        0 => source.floats().is_some(),
        kind => match i32::try_from(kind).ok().and_then(|kind| DataType::try_from(kind).ok()) {
            Some(DataType::Bfloat16 | DataType::Double | DataType::Float | DataType::Float16) => {
                true
            }
            Some(DataType::Bool | DataType::Int32 | DataType::Int64) => false,
            _ => return Err(folding.error(format!("attribute \"dtype\" is {kind}"))),
        },
    };
    let values = match float {
        true => Values::F32(ones.map(|one| if one { 1.0 } else { 0.0 }).collect()),
        false => Values::I64(ones.map(i64::from).collect()),
    };
    Ok(Constant { dims: source.dims.clone(), values })
}

/// ONNX NonZero, opsets 9 to 26.
pub(super) fn non_zero(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let source = folding.input(0)?;
    let count = source.values.len();
    folding.work(count)?;
    let kept = match &source.values {
        Values::F32(values) => values.iter().filter(|&&value| value != 0.0).count(),
        Values::I64(values) => values.iter().filter(|&&value| value != 0).count(),
    };
    let dims = vec![source.dims.len(), kept];
    folding.count(&dims)?;
    let rows = match &source.values {
        Values::F32(values) => columns(&source.dims, values.iter().map(|&value| value != 0.0)),
        Values::I64(values) => columns(&source.dims, values.iter().map(|&value| value != 0)),
    };
    Ok(Constant { dims, values: Values::I64(rows.concat()) })
}

/// ONNX OneHot, opsets 9 to 26.
pub(super) fn one_hot(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axis"])?;
    let (indices, raw) = (folding.input(0)?, folding.integers(0)?);
    let choices = folding.input(2)?;
    if choices.values.len() != 2 {
        let got = choices.values.len();
        return Err(folding.error(format!("input 2 holds {got} values, expected two")));
    }
    let depth = folding.scalar(1)?;
    let size = usize::try_from(depth)
        .map_err(|_| folding.error(format!("input 1 is {depth}, expected a size")))?;
    let axis = folding.axis(folding.node.int("axis", -1)?, indices.dims.len() + 1)?;
    let mut dims = indices.dims.clone();
    dims.insert(axis, size);
    let own = strides(&indices.dims);
    folding.moved(choices, dims, |index| {
        let (before, rest) = index.split_at(axis);
        let value = raw[dot(before, &own[..axis]) + dot(&rest[1..], &own[axis..])];
        let hot = if value < 0 { value.saturating_add(depth) } else { value };
        usize::from(hot == rest[0] as i64)
    })
}

/// ONNX Range, opsets 11 to 26.
pub(super) fn range(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let refuse =
        || folding.error("expected one start, one limit and one step that is not 0".into());
    let (start, limit, step) = (folding.input(0)?, folding.input(1)?, folding.input(2)?);
    let values = match (&start.values, &limit.values, &step.values) {
        (Values::I64(start), Values::I64(limit), Values::I64(step)) => {
            let (&[start], &[limit], &[step]) =
                (start.as_slice(), limit.as_slice(), step.as_slice())
            else {
                return Err(refuse());
            };
            if step == 0 {
                return Err(refuse());
            }
            let (span, step) = (i128::from(limit) - i128::from(start), i128::from(step));
            let count = ((span + step - step.signum()) / step).max(0);
            let count = folding.count(&[usize::try_from(count).unwrap_or(usize::MAX)])?;
            // All of them lie between the start and the limit.
            let at = |i: usize| (i128::from(start) + i as i128 * step) as i64;
            Values::I64((0..count).map(at).collect())
        }
        (Values::F32(start), Values::F32(limit), Values::F32(step)) => {
            let (&[start], &[limit], &[step]) =
                (start.as_slice(), limit.as_slice(), step.as_slice())
            else {
                return Err(refuse());
            };
            let (start, step) = (f64::from(start), f64::from(step));
            let count = ((f64::from(limit) - start) / step).ceil();
            if count.is_nan() || step == 0.0 {
                return Err(refuse());
            }
            // Negative ones become 0, large ones the largest.
            let count = folding.count(&[count as usize])?;
            Values::F32((0..count).map(|i| (start + i as f64 * step) as f32).collect())
        }
        _ => return Err(folding.error("its inputs differ in type".into())),
    };
    Ok(Constant { dims: vec![values.len()], values })
}

/// ONNX Shape of a constant, opsets 1 to 26.
pub(super) fn shape(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["end", "start"])?;
    let dims = &folding.input(0)?.dims;
    let rank = dims.len() as i64;
    let bound = |value: i64| {
        (if value < 0 { value.saturating_add(rank) } else { value }).clamp(0, rank) as usize
    };
    let start = bound(folding.node.int("start", 0)?);
    let end = bound(folding.node.int("end", rank)?);
    let kept = dims.get(start..end).unwrap_or_default();
    let values = kept.iter().map(|&dim| dim as i64).collect();
    Ok(Constant { dims: vec![kept.len()], values: Values::I64(values) })
}

/// ONNX Size of a constant, opsets 1 to 26.
pub(super) fn size(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&[])?;
    let size = folding.input(0)?.values.len() as i64;
    Ok(Constant { dims: vec![], values: Values::I64(vec![size]) })
}

/// ONNX Trilu, opsets 14 to 26.
pub(super) fn trilu(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["upper"])?;
    let source = folding.input(0)?;
    let &[.., rows, columns] = source.dims.as_slice() else {
        return Err(folding.error(format!("shape {:?}, expected two axes", source.dims)));
    };
    let upper = folding.node.int("upper", 1)? != 0;
    let shift = match folding.optional(1) {
        None => 0,
        Some(_) => folding.scalar(1)?.into(),
    };
    folding.count(&source.dims)?;
    let kept = |i: usize| {
        let (row, column) = (i / columns % rows, i % columns);
        let above = column as i128 - row as i128 - shift;
        if upper { above >= 0 } else { above <= 0 }
    };
    let values = match &source.values {
        Values::F32(values) => Values::F32(masked(values, kept)),
        Values::I64(values) => Values::I64(masked(values, kept)),
    };
    Ok(Constant { dims: source.dims.clone(), values })
}

fn masked<T: Copy + Default>(values: &[T], kept: impl Fn(usize) -> bool) -> Vec<T> {
    let values = values.iter().enumerate();
    values.map(|(i, &value)| if kept(i) { value } else { T::default() }).collect()
}
