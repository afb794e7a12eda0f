//! The settings by which pictures become bytes in the model's shape.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

/// From a picture to bytes in the model's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pictures {
    /// To the model's height and width.
    pub resize: Resize,
    /// The filter that computes a resized picture's pixels.
    pub interpolation: Interpolation,
    /// The model's first channel of three.
    pub channel_order: ChannelOrder,
    /// The treatment of an orientation in a request's image.
    pub exif_orientation: ExifOrientation,
}

/// From a picture's size to the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shortest side becomes this long, and the centre is cut out.
    Crop(NonZeroUsize),
    /// The picture is stretched.
    Exact,
    /// The picture has the model's size.
    None,
}

/// The filter that computes a resized picture's pixels, as Pillow does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Cubic, a = -0.5.
    Bicubic,
    /// Triangle.
    Bilinear,
    /// Windowed sinc over three lobes.
    Lanczos,
    /// The pixel below the centre.
    Nearest,
}

/// The channel of three that is the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelOrder {
    /// Blue, as OpenCV reads pictures.
    Bgr,
    /// Red.
    Rgb,
}

/// The treatment of an orientation in a request's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExifOrientation {
    /// The picture is turned.
    Apply,
    /// Nothing.
    Ignore,
    /// An image that would have to be turned is refused.
    Refuse,
}

// === impl Pictures ===

impl Default for Pictures {
    /// Nothing is done to a picture.
    fn default() -> Self {
        Self {
            resize: Resize::None,
            interpolation: Interpolation::Bilinear,
            channel_order: ChannelOrder::Rgb,
            exif_orientation: ExifOrientation::Refuse,
        }
    }
}
