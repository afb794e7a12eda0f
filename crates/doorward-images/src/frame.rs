//! From a picture to the bytes of a row: channels, orientation, size, as the configuration says.

use image::DynamicImage;
use image::metadata::Orientation;

use super::resample::Raster;
use crate::settings::{ChannelOrder, ExifOrientation, Pictures, Resize};

/// The model's shape and how pictures are brought into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub(super) shape: [usize; 3],
    pub(super) pictures: Pictures,
}

/// Why a picture cannot be brought into the model's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misfit {
    /// Pictures have one channel or three; the model takes another number.
    #[error("a picture has 1 or 3 channels, the model takes {channels}")]
    Channels {
        /// Channels of the model.
        channels: usize,
    },
    /// The shortest side leaves too little to cut the model's size out of.
    #[error(
        "preprocess.shortest_side = {side}: expected at least the model's {height} x {width} pixels"
    )]
    Crop {
        /// The setting.
        side: usize,
        /// The model's height.
        height: usize,
        /// The model's width.
        width: usize,
    },
    /// A picture that is so long that its crop cannot be computed.
    #[error("the picture is {width} x {height} pixels (width x height), too long to resize")]
    Long {
        /// Its width.
        width: usize,
        /// Its height.
        height: usize,
    },
    /// A picture of another size, where none is resized.
    #[error(
        "the picture is {width} x {height} pixels (width x height), expected {} x {}",
        expected[1], expected[0]
    )]
    Size {
        /// Its width.
        width: usize,
        /// Its height.
        height: usize,
        /// Height, width.
        expected: [usize; 2],
    },
}

/// Most pixels that a picture is resized to before it is cut.
const MOST_RESIZED: usize = 1 << 24;

// === impl Frame ===

impl Frame {
    /// An error if no picture could ever be brought into this shape by these settings.
    pub fn new(shape: [usize; 3], pictures: Pictures) -> Result<Self, Misfit> {
        let [_, height, width] = shape;
        match pictures.resize {
            Resize::Crop(side) if side.get() < height.max(width) => {
                Err(Misfit::Crop { side: side.get(), height, width })
            }
            _ => Ok(Self { shape, pictures }),
        }
    }

    /// The model's shape: channels, height, width.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// An error if a picture of this size, which may yet have to be turned, cannot fit.
    pub(super) fn accepts(&self, width: usize, height: usize) -> Result<(), Misfit> {
        let expected = [self.shape[1], self.shape[2]];
        let fits = [height, width] == expected || [width, height] == expected;
        if self.pictures.resize == Resize::None && !fits {
            return Err(Misfit::Size { width, height, expected });
        }
        Ok(())
    }

    /// Row-major CHW bytes of the model's shape.
    pub(super) fn fit(
        &self,
        mut picture: DynamicImage,
        turn: Orientation,
    ) -> Result<Vec<u8>, Misfit> {
        let [channels, height, width] = self.shape;
        if self.pictures.exif_orientation == ExifOrientation::Apply {
            picture.apply_orientation(turn);
        }
        let found = [picture.height() as usize, picture.width() as usize];
        let raster = match channels {
            1 => grey(picture),
            3 => raster(channels, found, picture.into_rgb8().into_raw()),
            _ => return Err(Misfit::Channels { channels }),
        };
        let raster = self.resize(raster)?;
        debug_assert_eq!([raster.height, raster.width], [height, width]);
        let mut pixels = Vec::with_capacity(raster.bytes.len());
        planes(&raster.bytes, channels, &mut pixels);
        if channels == 3 && self.pictures.channel_order == ChannelOrder::Bgr {
            let (red, rest) = pixels.split_at_mut(height * width);
            red.swap_with_slice(&mut rest[height * width..]);
        }
        Ok(pixels)
    }

    fn resize(&self, raster: Raster) -> Result<Raster, Misfit> {
        let [_, height, width] = self.shape;
        let by = self.pictures.interpolation;
        let (found_width, found_height) = (raster.width, raster.height);
        match self.pictures.resize {
            Resize::Exact => Ok(raster.resize(width, height, by)),
            Resize::None if [found_height, found_width] == [height, width] => Ok(raster),
            Resize::None => {
                let expected = [height, width];
                Err(Misfit::Size { width: found_width, height: found_height, expected })
            }
            Resize::Crop(side) => {
                let side = side.get();
                let shortest = found_width.min(found_height);
                // As torchvision does: the longer side is rounded down.
                let scaled = |length: usize| side * length / shortest;
                let (full_width, full_height) = (scaled(found_width), scaled(found_height));
                if full_width.saturating_mul(full_height) > MOST_RESIZED.max(side * side) {
                    return Err(Misfit::Long { width: found_width, height: found_height });
                }
                let raster = raster.resize(full_width, full_height, by);
                Ok(raster.cut(
                    margin(full_width - width),
                    margin(full_height - height),
                    width,
                    height,
                ))
            }
        }
    }
}

impl From<[usize; 3]> for Frame {
    /// Pictures are of this shape already.
    fn from(shape: [usize; 3]) -> Self {
        Self { shape, pictures: Pictures::default() }
    }
}

/// The part left out before a centre: half of what is too much, as Python rounds it (to even).
fn margin(excess: usize) -> usize {
    let half = excess / 2;
    half + (excess % 2) * (half % 2)
}

/// Pillow's `convert("L")`, by ITU-R 601.
fn grey(picture: DynamicImage) -> Raster {
    let found = [picture.height() as usize, picture.width() as usize];
    match picture {
        DynamicImage::ImageLuma8(picture) => raster(1, found, picture.into_raw()),
        picture => {
            let bytes = picture.into_rgb8().into_raw();
            let (pixels, _) = bytes.as_chunks::<3>();
            let luma = |&[red, green, blue]: &[u8; 3]| {
                let (red, green, blue) = (u32::from(red), u32::from(green), u32::from(blue));
                ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
            };
            raster(1, found, pixels.iter().map(luma).collect())
        }
    }
}

fn raster(channels: usize, [height, width]: [usize; 2], bytes: Vec<u8>) -> Raster {
    Raster { width, height, channels, bytes }
}

/// Appends one image of interleaved channels plane by plane.
pub(super) fn planes(interleaved: &[u8], channels: usize, pixels: &mut Vec<u8>) {
    for channel in 0..channels {
        pixels.extend(interleaved.iter().skip(channel).step_by(channels));
    }
}

/// The bytes of an image of shape C, H, W.
pub(super) fn row_length(shape: [usize; 3]) -> usize {
    shape.iter().product()
}
