//! The window that slides over images in convolutions and poolings.

/// Attributes of a two-dimensional sliding window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) dilation: [usize; 2],
    /// Zeros above and to the left.
    pub(crate) pad_begin: [usize; 2],
    /// Zeros below and to the right.
    pub(crate) pad_end: [usize; 2],
}

// === impl Window ===

impl Window {
    /// Positions along an axis, rounding down.
    pub(crate) fn positions(&self, axis: usize, size: usize) -> Option<usize> {
        let padded = size + self.pad_begin[axis] + self.pad_end[axis];
        let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        Some(padded.checked_sub(reach)? / self.stride[axis] + 1)
    }
}
