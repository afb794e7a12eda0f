//! The window that slides over images in convolutions and poolings, and their sizes.

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

/// A window, and the images that it slides over and gives.
#[derive(Clone, Debug)]
pub(crate) struct ConvShape {
    pub(crate) window: Window,
    pub(crate) groups: usize,
    /// Channels, height, width.
    pub(crate) input: [usize; 3],
    /// Channels, height, width.
    pub(crate) output: [usize; 3],
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

// === impl ConvShape ===

impl ConvShape {
    /// One channel in and one out for every group.
    pub(crate) fn is_depthwise(&self) -> bool {
        self.groups == self.input[0] && self.groups == self.output[0] && self.groups > 1
    }

    /// Images of one pixel before and after a 1x1 kernel.
    pub(crate) fn is_matrix(&self) -> bool {
        let pixels = [self.input[1], self.input[2], self.output[1], self.output[2]];
        self.groups == 1 && self.window.kernel == [1, 1] && pixels == [1; 4]
    }

    /// A 1x1 kernel without padding.
    pub(crate) fn is_pointwise(&self) -> bool {
        let w = &self.window;
        let padded = [w.pad_begin, w.pad_end] != [[0, 0], [0, 0]];
        self.groups == 1 && w.kernel == [1, 1] && !padded
    }
}
