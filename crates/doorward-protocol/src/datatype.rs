//! The datatype of a tensor's numbers on the wire.
//!
//! A value is the model's input value, whatever its datatype: a UINT8 of 7 is judged as 7.0, and
//! nothing is scaled. It is judged as the `f32` nearest to it, which is what the model computes
//! with.

use half::{bf16, f16};

/// A datatype of the Open Inference Protocol whose values are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datatype {
    /// The upper half of an `f32`.
    Bf16,
    /// IEEE half precision.
    Fp16,
    /// IEEE single precision.
    Fp32,
    /// IEEE double precision.
    Fp64,
    /// Signed byte.
    Int8,
    /// Unsigned byte.
    Uint8,
}

// === impl Datatype ===

impl Datatype {
    /// Every datatype that is understood.
    pub const ALL: [Self; 6] =
        [Self::Bf16, Self::Fp16, Self::Fp32, Self::Fp64, Self::Int8, Self::Uint8];

    /// By the protocol's name; `None` for any other.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name)
    }

    /// The protocol's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Int8 => "INT8",
            Self::Uint8 => "UINT8",
        }
    }

    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::Int8 | Self::Uint8 => 1,
            Self::Bf16 | Self::Fp16 => 2,
            Self::Fp32 => 4,
            Self::Fp64 => 8,
        }
    }

    /// True if it holds integers only.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Uint8)
    }

    /// Little-endian values side by side; a rest shorter than a value is left out.
    pub fn read(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::Bf16 => read(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::Fp16 => read(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Fp32 => read(bytes, f32::from_le_bytes),
            Self::Fp64 => read(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::Int8 => read(bytes, |bytes| f32::from(i8::from_le_bytes(bytes))),
            Self::Uint8 => read(bytes, |[byte]| f32::from(byte)),
        }
    }

    /// Appends little-endian values; of integers it makes none, for a value in between is none of
    /// theirs.
    pub fn write(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::Bf16 => {
                bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()));
            }
            Self::Fp16 => {
                bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()));
            }
            Self::Fp32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Fp64 => {
                bytes.extend(values.iter().flat_map(|&value| f64::from(value).to_le_bytes()));
            }
            Self::Int8 | Self::Uint8 => {}
        }
    }

    /// A number of a JSON text as this datatype holds it; `None` if it does not fit.
    pub fn narrow(self, number: f64) -> Option<f32> {
        let integer = |lowest: f64, highest: f64| {
            let fits = number.fract() == 0.0 && (lowest..=highest).contains(&number);
            // The sum makes a negative zero, which integers do not have, zero.
            fits.then_some(number as f32 + 0.0)
        };
        let value = match self {
            Self::Bf16 => bf16::from_f64(number).to_f32(),
            Self::Fp16 => f16::from_f64(number).to_f32(),
            Self::Fp32 | Self::Fp64 => number as f32,
            Self::Int8 => integer(-128.0, 127.0)?,
            Self::Uint8 => integer(0.0, 255.0)?,
        };
        value.is_finite().then_some(value)
    }
}

fn read<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<N>();
    values.iter().map(|&bytes| value(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bytes_are_the_numbers_they_stand_for() {
        let cases: [(Datatype, &[u8], f32); 8] = [
            (Datatype::Bf16, &[0xc0, 0x3f], 1.5),
            (Datatype::Fp16, &[0x00, 0x3e], 1.5),
            (Datatype::Fp16, &[0x01, 0x00], 5.960_464_5e-8),
            (Datatype::Fp32, &[0x00, 0x00, 0xc0, 0x3f], 1.5),
            (Datatype::Fp64, &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f], 1.5),
            (Datatype::Int8, &[0x80], -128.0),
            (Datatype::Uint8, &[0x80], 128.0),
            (Datatype::Uint8, &[0xff], 255.0),
        ];
        for (datatype, bytes, value) in cases {
            assert_eq!(datatype.read(bytes), [value], "{datatype:?}");
            assert_eq!(bytes.len(), datatype.size());
            if !datatype.is_integer() {
                let mut written = Vec::new();
                datatype.write(&[value], &mut written);
                assert_eq!(written, bytes, "{datatype:?}");
            }
            assert_eq!(datatype.narrow(f64::from(value)), Some(value), "{datatype:?}");
        }
    }

    #[test]
    fn every_half_survives_the_way_through_text() {
        for bits in 0..=u16::MAX {
            for (datatype, value) in [
                (Datatype::Fp16, f16::from_bits(bits).to_f32()),
                (Datatype::Bf16, bf16::from_bits(bits).to_f32()),
            ] {
                if value.is_finite() {
                    let text: f64 = value.to_string().parse().expect("a number");
                    let again = datatype.narrow(text).expect("finite");
                    assert_eq!(again.to_bits(), value.to_bits(), "{datatype:?} {value}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_none() {
        let cases = [
            (Datatype::Uint8, [-1.0, 256.0, 0.5, 1e300]),
            (Datatype::Int8, [-129.0, 128.0, -0.5, -1e300]),
            (Datatype::Fp16, [65_520.0, -65_520.0, 1e300, 1e39]),
            (Datatype::Fp32, [1e39, -1e39, 1e300, 3.5e38]),
            (Datatype::Fp64, [1e39, -1e39, 1e300, 3.5e38]),
        ];
        for (datatype, numbers) in cases {
            for number in numbers {
                assert_eq!(datatype.narrow(number), None, "{datatype:?} {number}");
            }
        }
        let zero = Datatype::Uint8.narrow(-0.0).expect("zero");
        assert!(zero.is_sign_positive());
    }
}
