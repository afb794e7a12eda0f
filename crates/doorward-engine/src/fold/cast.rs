//! From one type to another.

use candle_onnx::onnx::tensor_proto::DataType;
use half::{bf16, f16};

use super::folding::Folding;
use crate::error::Error;
use crate::onnx::constant::{Constant, Values};

/// ONNX Cast, opsets 9 to 26, between the types that constants are kept as.
///
/// 32-bit integers keep all 64 bits: they stand for sizes, and one may be a multiple of a batch
/// whose size is not known yet.
pub(super) fn cast(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["saturate", "to"])?;
    let source = folding.input(0)?;
    folding.count(&source.dims)?;
    let to = folding.node.int("to", 0)?;
    let kind = i32::try_from(to).ok().and_then(|to| DataType::try_from(to).ok());
    let unsupported = || folding.error(format!("attribute \"to\" is {to}, which is not supported"));
    let kind = kind.ok_or_else(unsupported)?;
    let rounded: fn(f32) -> f32 = match kind {
        DataType::Bfloat16 => |a| bf16::from_f32(a).to_f32(),
        DataType::Float16 => |a| f16::from_f32(a).to_f32(),
        _ => |a| a,
    };
    let narrowed: fn(i64) -> i64 = match kind {
        DataType::Int8 => |a| (a as i8).into(),
        DataType::Int16 => |a| (a as i16).into(),
        DataType::Uint8 => |a| (a as u8).into(),
        DataType::Uint16 => |a| (a as u16).into(),
        _ => |a| a,
    };
    let values = match (kind, &source.values) {
        (DataType::Bool, Values::I64(values)) => {
            Values::I64(values.iter().map(|&value| i64::from(value != 0)).collect())
        }
        (DataType::Bool, Values::F32(values)) => {
            Values::I64(values.iter().map(|&value| i64::from(value != 0.0)).collect())
        }
        (
            DataType::Bfloat16 | DataType::Double | DataType::Float | DataType::Float16,
            Values::F32(values),
        ) => Values::F32(values.iter().map(|&value| rounded(value)).collect()),
        (
            DataType::Bfloat16 | DataType::Double | DataType::Float | DataType::Float16,
            Values::I64(values),
        ) => Values::F32(values.iter().map(|&value| rounded(value as f32)).collect()),
        (
            DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Uint8
            | DataType::Uint16
            | DataType::Uint32
            | DataType::Uint64,
            values,
        ) => Values::I64(match values {
            Values::I64(values) => values.iter().map(|&value| narrowed(value)).collect(),
            Values::F32(values) => values
                .iter()
                .map(|&value| {
                    let undefined = || folding.error(format!("{value} is no 64-bit integer"));
                    whole(value.into()).map(narrowed).ok_or_else(undefined)
                })
                .collect::<Result<_, _>>()?,
        }),
        _ => return Err(unsupported()),
    };
    Ok(Constant { dims: source.dims.clone(), values })
}

/// A number without its fraction; `None` if the result is none of 64 bits.
pub(super) fn whole(value: f64) -> Option<i64> {
    // 2^63 is exact, and the first that is too large.
    let bound = -(i64::MIN as f64);
    (-bound..bound).contains(&value).then_some(value as i64)
}

/// ONNX CastLike, opsets 15 to 26.
///
/// The other input is known only as floats or integers, so integers are converted to
/// when they are the same in all their types, booleans included.
pub(super) fn cast_like(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["saturate"])?;
    let source = folding.input(0)?;
    folding.count(&source.dims)?;
    let values = match (&source.values, &folding.input(1)?.values) {
        (Values::F32(values), Values::F32(_)) => Values::F32(values.clone()),
        (Values::I64(values), Values::F32(_)) => {
            Values::F32(values.iter().map(|&value| value as f32).collect())
        }
        (Values::I64(values), Values::I64(_))
            if values.iter().all(|value| [0, 1].contains(value)) =>
        {
            Values::I64(values.clone())
        }
        (Values::F32(values), Values::I64(_))
            if values.iter().all(|value| [0.0, 1.0].contains(value)) =>
        {
            Values::I64(values.iter().map(|&value| value as i64).collect())
        }
        _ => {
            return Err(folding.error(
                "it converts to integers of a width that is not kept, other than 0 and 1".into(),
            ));
        }
    };
    Ok(Constant { dims: source.dims.clone(), values })
}

/// ONNX DequantizeLinear, opsets 10 to 26, with one scale or one for each index of an axis.
pub(super) fn dequantize_linear(folding: &Folding<'_>) -> Result<Constant, Error> {
    folding.node.only(&["axis", "block_size"])?;
    if folding.node.int("block_size", 0)? != 0 {
        return Err(folding.error("attribute \"block_size\" is not supported".into()));
    }
    let (source, scale) = (folding.input(0)?, folding.input(1)?);
    let (integers, scales) = (folding.integers(0)?, folding.floats(1)?);
    let count = folding.count(&source.dims)?;
    let zero_points = match folding.optional(2) {
        None => &[0],
        Some(_) => folding.integers(2)?,
    };
    let (channels, inner) = match scale.dims.len() {
        0 => (1, count),
        _ if scales.len() == 1 => (1, count),
        1 => {
            let axis = folding.axis(folding.node.int("axis", 1)?, source.dims.len())?;
            let inner = source.dims[axis + 1..].iter().fold(1usize, |a, &b| a.wrapping_mul(b));
            (source.dims[axis], inner)
        }
        rank => return Err(folding.error(format!("input 1 has {rank} axes, expected one"))),
    };
    if scales.len() != channels || ![1, channels].contains(&zero_points.len()) {
        return Err(folding.error(format!(
            "{} scales and {} zero points, expected {channels}",
            scales.len(),
            zero_points.len()
        )));
    }
    let values = integers
        .iter()
        .enumerate()
        .map(|(i, &value)| {
            let channel = i / inner % channels;
            let zero_point = zero_points[if zero_points.len() == 1 { 0 } else { channel }];
            // Exact: both are read from 32 bits or fewer, or saturate.
            value.saturating_sub(zero_point) as f32 * scales[channel]
        })
        .collect();
    Ok(Constant { dims: source.dims.clone(), values: Values::F32(values) })
}
