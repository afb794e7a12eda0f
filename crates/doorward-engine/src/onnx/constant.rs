//! Tensors that the file holds, decoded.

use candle_core::{DType, Tensor};
use candle_onnx::onnx::tensor_proto::DataType;
use half::{bf16, f16};

use crate::onnx::wire::{TensorProto, little_endian};

/// A decoded constant, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constant {
    pub(crate) dims: Vec<usize>,
    pub(crate) values: Values,
}

/// Floats of 16 to 64 bits are read as `F32`, integers and booleans as `I64`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

// === impl Constant ===

impl Constant {
    /// A tensor whose values are in the file itself.
    pub(super) fn decode(tensor: &TensorProto<'_>) -> Result<Self, String> {
        if tensor.external || !tensor.external_data.is_empty() {
            return Err("its data are in another file, which is not supported here".into());
        }
        let dims = dims(tensor)?;
        let kind = element(tensor.data_type)?;
        let typed = tensor.float_data.len()
            + tensor.double_data.len()
            + tensor.int32_data.len()
            + tensor.int64_data.len()
            + tensor.uint64_data.len();
        let values = match (tensor.raw_data.is_empty(), typed) {
            (false, 0) => Values::from_raw(kind, tensor.raw_data)?,
            (true, _) => {
                let values = Values::from_typed(kind, tensor)?;
                if values.len() != typed {
                    return Err(format!("holds values of another type than {}", name(kind)));
                }
                values
            }
            (false, _) => return Err("holds both raw and typed data".into()),
        };
        Self::filled(dims, values)
    }

    pub(super) fn filled(dims: Vec<usize>, values: Values) -> Result<Self, String> {
        let needed = count(&dims)?;
        if values.len() != needed {
            return Err(format!("shape {dims:?} needs {needed} values, got {}", values.len()));
        }
        Ok(Self { dims, values })
    }

    pub(crate) fn from_tensor(tensor: &Tensor) -> candle_core::Result<Self> {
        let flat = tensor.flatten_all()?;
        let values = match tensor.dtype().is_float() {
            true => Values::F32(flat.to_dtype(DType::F32)?.to_vec1()?),
            false => Values::I64(flat.to_dtype(DType::I64)?.to_vec1()?),
        };
        Ok(Self { dims: tensor.dims().to_vec(), values })
    }

    pub(crate) fn floats(&self) -> Option<&[f32]> {
        match &self.values {
            Values::F32(values) => Some(values),
            Values::I64(_) => None,
        }
    }

    pub(crate) fn integers(&self) -> Option<&[i64]> {
        match &self.values {
            Values::F32(_) => None,
            Values::I64(values) => Some(values),
        }
    }
}

/// The checked dimensions of a tensor.
pub(super) fn dims(tensor: &TensorProto<'_>) -> Result<Vec<usize>, String> {
    let dims = tensor
        .dims
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| format!("negative dimension {dim}")))
        .collect::<Result<Vec<_>, _>>()?;
    count(&dims).map(|_| dims)
}

pub(super) fn count(dims: &[usize]) -> Result<usize, String> {
    dims.iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|&count| count <= MAX_VALUES)
        .ok_or_else(|| format!("shape {dims:?} has more than {MAX_VALUES} values"))
}

/// A type that values are read from.
pub(super) fn element(data_type: i32) -> Result<DataType, String> {
    match DataType::try_from(data_type) {
        Ok(kind) if size(kind).is_some() => Ok(kind),
        _ => Err(format!("element type {}, which is not supported", type_name(data_type))),
    }
}

/// Bytes of a value, `None` for types that are not supported.
pub(super) fn size(kind: DataType) -> Option<usize> {
    Some(match kind {
        DataType::Bool | DataType::Int8 | DataType::Uint8 => 1,
        DataType::Bfloat16 | DataType::Float16 | DataType::Int16 | DataType::Uint16 => 2,
        DataType::Float | DataType::Int32 | DataType::Uint32 => 4,
        DataType::Double | DataType::Int64 | DataType::Uint64 => 8,
        _ => return None,
    })
}

pub(super) fn type_name(data_type: i32) -> String {
    match DataType::try_from(data_type) {
        Ok(known) => name(known).to_owned(),
        Err(_) => format!("number {data_type}"),
    }
}

fn name(kind: DataType) -> &'static str {
    kind.as_str_name()
}

// === impl Values ===

impl Values {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I64(values) => values.len(),
        }
    }

    /// Values from little-endian bytes side by side.
    pub(super) fn from_raw(kind: DataType, raw: &[u8]) -> Result<Self, String> {
        fn floats<const N: usize>(raw: &[u8], read: fn([u8; N]) -> f32) -> Result<Values, String> {
            Ok(Values::F32(little_endian(raw, read)?.collect()))
        }
        fn integers<const N: usize>(
            raw: &[u8],
            read: fn([u8; N]) -> i64,
        ) -> Result<Values, String> {
            Ok(Values::I64(little_endian(raw, read)?.collect()))
        }
        match kind {
            DataType::Bfloat16 => floats(raw, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            DataType::Bool => integers(raw, |[byte]| i64::from(byte != 0)),
            DataType::Double => floats(raw, |bytes| f64::from_le_bytes(bytes) as f32),
            DataType::Float => floats(raw, f32::from_le_bytes),
            DataType::Float16 => floats(raw, |bytes| f16::from_le_bytes(bytes).to_f32()),
            DataType::Int8 => integers(raw, |bytes| i8::from_le_bytes(bytes).into()),
            DataType::Int16 => integers(raw, |bytes| i16::from_le_bytes(bytes).into()),
            DataType::Int32 => integers(raw, |bytes| i32::from_le_bytes(bytes).into()),
            DataType::Int64 => integers(raw, i64::from_le_bytes),
            DataType::Uint8 => integers(raw, |[byte]| byte.into()),
            DataType::Uint16 => integers(raw, |bytes| u16::from_le_bytes(bytes).into()),
            DataType::Uint32 => integers(raw, |bytes| u32::from_le_bytes(bytes).into()),
            DataType::Uint64 => {
                let values = little_endian(raw, u64::from_le_bytes)?;
                Ok(Self::I64(values.map(signed).collect::<Result<_, _>>()?))
            }
            _ => Err(format!("element type {}", name(kind))),
        }
    }

    /// Values from the field that ONNX keeps values of this type in.
    fn from_typed(kind: DataType, tensor: &TensorProto<'_>) -> Result<Self, String> {
        let within = |least: i64, most: i64| {
            let checked = |&value: &i32| {
                let value = i64::from(value);
                let outside = || format!("{value} is no {}", name(kind));
                (least..=most).contains(&value).then_some(value).ok_or_else(outside)
            };
            tensor.int32_data.iter().map(checked).collect::<Result<Vec<_>, _>>()
        };
        let halves = |read: fn(u16) -> f32| {
            let bits = within(0, u16::MAX.into())?;
            Ok::<_, String>(Self::F32(bits.into_iter().map(|bits| read(bits as u16)).collect()))
        };
        Ok(match kind {
            DataType::Bfloat16 => halves(|bits| bf16::from_bits(bits).to_f32())?,
            DataType::Bool => Self::I64(within(0, 1)?),
            DataType::Double => {
                Self::F32(tensor.double_data.iter().map(|&value| value as f32).collect())
            }
            DataType::Float => Self::F32(tensor.float_data.clone()),
            DataType::Float16 => halves(|bits| f16::from_bits(bits).to_f32())?,
            DataType::Int8 => Self::I64(within(i8::MIN.into(), i8::MAX.into())?),
            DataType::Int16 => Self::I64(within(i16::MIN.into(), i16::MAX.into())?),
            DataType::Int32 => Self::I64(within(i32::MIN.into(), i32::MAX.into())?),
            DataType::Int64 => Self::I64(tensor.int64_data.clone()),
            DataType::Uint8 => Self::I64(within(0, u8::MAX.into())?),
            DataType::Uint16 => Self::I64(within(0, u16::MAX.into())?),
            DataType::Uint32 | DataType::Uint64 => {
                let values = tensor.uint64_data.iter();
                Self::I64(values.map(|&value| signed(value)).collect::<Result<_, _>>()?)
            }
            _ => return Err(format!("element type {}", name(kind))),
        })
    }
}

fn signed(value: u64) -> Result<i64, String> {
    i64::try_from(value).map_err(|_| format!("{value} exceeds 63 bits"))
}

/// A gigabyte of `f32`.
const MAX_VALUES: usize = 1 << 28;

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(kind: DataType, raw_data: &[u8]) -> Result<Values, String> {
        let dims = vec![(raw_data.len() / size(kind).unwrap()) as i64];
        let data_type = kind.into();
        let tensor = TensorProto { dims, data_type, raw_data, ..TensorProto::default() };
        Constant::decode(&tensor).map(|constant| constant.values)
    }

    fn typed(kind: DataType, int32_data: &[i32]) -> Result<Values, String> {
        let (dims, data_type) = (vec![int32_data.len() as i64], kind.into());
        let int32_data = int32_data.to_vec();
        let tensor = TensorProto { dims, data_type, int32_data, ..TensorProto::default() };
        Constant::decode(&tensor).map(|constant| constant.values)
    }

    #[test]
    fn floats_of_all_widths_are_read() {
        let values = Ok(Values::F32(vec![1.0, -2.5]));
        assert_eq!(raw(DataType::Float16, &[0x00, 0x3c, 0x00, 0xc1]), values);
        assert_eq!(typed(DataType::Float16, &[0x3c00, 0xc100]), values);
        assert_eq!(raw(DataType::Bfloat16, &[0x80, 0x3f, 0x20, 0xc0]), values);
        assert_eq!(typed(DataType::Bfloat16, &[0x3f80, 0xc020]), values);
        assert_eq!(raw(DataType::Float, &[0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]), values);
        let double = [1f64.to_le_bytes(), (-2.5f64).to_le_bytes()].concat();
        assert_eq!(raw(DataType::Double, &double), values);
        // Half a smallest half, a subnormal one, and infinity.
        let halves = [0x0001, 0x03ff, 0x7c00];
        let Ok(Values::F32(values)) = typed(DataType::Float16, &halves) else { panic!() };
        assert_eq!(values, [2f32.powi(-24), 1023.0 * 2f32.powi(-24), f32::INFINITY]);
        assert!(typed(DataType::Float16, &[-1]).is_err());
        assert!(typed(DataType::Bfloat16, &[0x1_0000]).is_err());
    }

    #[test]
    fn integers_of_all_widths_are_read() {
        let bytes = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        for (kind, expected) in [
            (DataType::Int8, vec![-2, -1, -1, -1, -1, -1, -1, -1]),
            (DataType::Uint8, vec![254, 255, 255, 255, 255, 255, 255, 255]),
            (DataType::Bool, vec![1; 8]),
            (DataType::Int16, vec![-2, -1, -1, -1]),
            (DataType::Uint16, vec![65_534, 65_535, 65_535, 65_535]),
            (DataType::Int32, vec![-2, -1]),
            (DataType::Uint32, vec![4_294_967_294, 4_294_967_295]),
            (DataType::Int64, vec![-2]),
        ] {
            assert_eq!(raw(kind, &bytes), Ok(Values::I64(expected)), "{kind:?}");
        }
        assert!(raw(DataType::Uint64, &bytes).unwrap_err().contains("exceeds 63 bits"));
        assert_eq!(raw(DataType::Uint64, &[7, 0, 0, 0, 0, 0, 0, 0]), Ok(Values::I64(vec![7])));
        for (kind, least, most) in [
            (DataType::Bool, 0, 1),
            (DataType::Int8, -128, 127),
            (DataType::Int16, -32_768, 32_767),
            (DataType::Uint8, 0, 255),
            (DataType::Uint16, 0, 65_535),
        ] {
            let values = Values::I64(vec![least.into(), most.into()]);
            assert_eq!(typed(kind, &[least, most]), Ok(values), "{kind:?}");
            assert!(typed(kind, &[least - 1]).is_err() && typed(kind, &[most + 1]).is_err());
        }
    }
}
