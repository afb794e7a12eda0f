//! The protected model, compiled once from ONNX into a program over candle tensors.

/// What a model takes: the shape of one row and the range of its values.
#[derive(Clone, Debug, PartialEq)]
pub struct InputDomain {
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Smallest value a channel can take.
    pub lower: Vec<f32>,
    /// Largest value a channel can take.
    pub upper: Vec<f32>,
}

impl InputDomain {
    /// Values in one row.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether a row has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a model cannot be loaded or evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
