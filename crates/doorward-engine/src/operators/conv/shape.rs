//! The sizes of a convolution.

use crate::kernels::window::Window;

/// A window, and the images that it slides over and gives.
#[derive(Clone, Debug)]
pub(super) struct ConvShape {
    pub(super) window: Window,
    pub(super) groups: usize,
    /// Channels, height, width.
    pub(super) input: [usize; 3],
    /// Channels, height, width.
    pub(super) output: [usize; 3],
}

impl ConvShape {
    /// One channel in and one out for every group.
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups == self.input[0] && self.groups == self.output[0] && self.groups > 1
    }

    /// Images of one pixel before and after a 1x1 kernel.
    pub(super) fn is_matrix(&self) -> bool {
        let pixels = [self.input[1], self.input[2], self.output[1], self.output[2]];
        self.groups == 1 && self.window.kernel == [1, 1] && pixels == [1; 4]
    }

    /// A 1x1 kernel without padding.
    pub(super) fn is_pointwise(&self) -> bool {
        let w = &self.window;
        let padded = [w.pad_begin, w.pad_end] != [[0, 0], [0, 0]];
        self.groups == 1 && w.kernel == [1, 1] && !padded
    }
}
