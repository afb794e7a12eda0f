//! Loops over contiguous `f32` slices: how the CPU runs what is worth writing out.

pub(crate) mod activation;
pub(crate) mod affine;
pub(crate) mod convolution;
pub(crate) mod correlate;
pub(crate) mod depthwise;
pub(crate) mod load;
pub(crate) mod loops;
pub(crate) mod math;
pub(crate) mod matrix;
pub(crate) mod pointwise;
pub(crate) mod registers;
pub(crate) mod shifted;
pub(crate) mod strided;
pub(crate) mod sweep;
pub(crate) mod window;
pub(crate) mod winograd;
