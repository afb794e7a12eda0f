//! The inputs that an ONNX graph declares.

use candle_onnx::onnx::{
    self, tensor_proto::DataType, tensor_shape_proto::dimension::Value as Dimension,
    type_proto::Value as TypeValue,
};
use prost::Message;

use crate::error::Error;
use crate::layout::row_values;
use crate::onnx::constant::type_name;

/// An input, or an output, as the graph declares it.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) name: String,
    /// `None` for a tensor without a shape, or for what is no tensor.
    pub(crate) dims: Option<Vec<Dim>>,
    /// ONNX's number for the element type.
    element: i32,
}

/// One dimension of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dim {
    Fixed(i64),
    /// Its name; empty where it has none.
    Open(String),
}

// === impl Input ===

impl Input {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_DESCRIPTION {
            let got = bytes.len();
            return Err(Error::not_onnx(format!("an input's description has {got} bytes")));
        }
        let input = onnx::ValueInfoProto::decode(bytes)
            .map_err(|source| Error::not_onnx(format!("an input's description: {source}")))?;
        let (element, dims) = match input.r#type.as_ref().and_then(|t| t.value.as_ref()) {
            Some(TypeValue::TensorType(tensor)) => (tensor.elem_type, tensor.shape.as_ref()),
            _ => (0, None),
        };
        let dims = dims.map(|shape| {
            let read = |dim: &onnx::tensor_shape_proto::Dimension| match &dim.value {
                Some(Dimension::DimValue(value)) => Dim::Fixed(*value),
                Some(Dimension::DimParam(name)) => Dim::Open(name.clone()),
                None => Dim::Open(String::new()),
            };
            shape.dim.iter().map(read).collect()
        });
        Ok(Self { name: input.name, dims, element })
    }

    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    /// True if the input is declared as FLOAT.
    pub(crate) fn is_fp32(&self) -> bool {
        self.element == DataType::Float as i32
    }

    /// True if the values are of a float type.
    pub(super) fn is_float(&self) -> bool {
        FLOATS.iter().any(|&float| self.element == float as i32)
    }

    /// True if no type is declared.
    pub(super) fn is_untyped(&self) -> bool {
        self.element == 0
    }

    /// True if the values are bytes.
    pub(crate) fn is_bytes(&self) -> bool {
        self.element == DataType::Uint8 as i32
    }

    /// The sizes of an image behind the batch, those that are open as `chosen` gives all of them.
    ///
    /// Fails if the input holds neither floats nor bytes, is no image, or if `chosen` leaves sizes
    /// open or contradicts those that are fixed.
    pub(crate) fn image(&self, chosen: Option<&[usize]>) -> Result<[usize; 3], Error> {
        if !self.is_float() && !self.is_bytes() {
            return Err(self.wrong());
        }
        let row: Vec<Option<usize>> = match (&self.dims, chosen) {
            (Some(dims), _) => dims.iter().skip(1).map(Dim::size).collect(),
            (None, Some(chosen)) => vec![None; chosen.len()],
            (None, None) => return Err(self.wrong()),
        };
        if let Some(chosen) = chosen {
            let fits =
                |(own, chosen): (&Option<usize>, &usize)| own.is_none_or(|own| own == *chosen);
            if chosen.len() != row.len() || !row.iter().zip(chosen).all(fits) {
                return Err(Error::InputShape {
                    name: self.name.clone(),
                    got: self.described(),
                    chosen: chosen.to_vec(),
                });
            }
        }
        let sizes: Option<Vec<usize>> = match chosen {
            Some(chosen) => Some(chosen.to_vec()),
            None => row.into_iter().collect(),
        };
        match sizes {
            Some(sizes) if row_values(&sizes).is_some() => {
                <[usize; 3]>::try_from(sizes).map_err(|_| self.wrong())
            }
            Some(_) => Err(self.wrong()),
            None => Err(Error::OpenShape { name: self.name.clone(), got: self.described() }),
        }
    }

    /// The sizes behind the first dimension, or all of them.
    pub(crate) fn row(&self, batch_first: bool) -> Result<Vec<usize>, Error> {
        if !self.is_float() {
            return Err(self.wrong());
        }
        let dims = self.dims.as_deref().unwrap_or_default();
        let fixed: Option<Vec<usize>> =
            dims.iter().skip(usize::from(batch_first)).map(Dim::size).collect();
        match fixed {
            Some(row) if row_values(&row).is_some() && !(batch_first && row.is_empty()) => Ok(row),
            _ => Err(self.wrong()),
        }
    }

    /// The batch that the graph was written for, if it was fixed.
    pub(crate) fn fixed_batch(&self) -> Option<i64> {
        match self.dims.as_deref() {
            Some([Dim::Fixed(size), ..]) => Some(*size),
            _ => None,
        }
    }

    /// An error that says what it is.
    pub(crate) fn wrong(&self) -> Error {
        Error::InputType { name: self.name.clone(), got: self.described() }
    }

    /// Its type and shape.
    fn described(&self) -> String {
        let kind = type_name(self.element);
        match &self.dims {
            None => format!("{kind} without a shape"),
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
                format!("{kind} of shape [{}]", dims.join(", "))
            }
        }
    }
}

// === impl Dim ===

impl Dim {
    /// The size, if it is fixed to one that a tensor can have.
    fn size(&self) -> Option<usize> {
        match self {
            Self::Fixed(size) if *size > 0 => usize::try_from(*size).ok(),
            _ => None,
        }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Open(name) if name.is_empty() => f.write_str("?"),
            Self::Open(name) => f.write_str(name),
        }
    }
}

/// Types of values that an input may hold.
const FLOATS: [DataType; 4] =
    [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double];

/// A description of one value is short.
const MAX_DESCRIPTION: usize = 1 << 16;
