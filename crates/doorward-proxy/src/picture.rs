//! Tensors as PNG pictures in data URIs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use candle_core::Tensor;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use doorward_engine::{Error, InputDomain};

/// Paints what has the shape of a model's input.
#[derive(Debug)]
pub struct Painter<'a> {
    domain: &'a InputDomain,
    /// The step: one pixel of this many in a row, and one row of as many, is painted.
    step: usize,
}

// === impl Painter ===

impl<'a> Painter<'a> {
    /// In full size.
    pub fn new(domain: &'a InputDomain) -> Self {
        Self { domain, step: 1 }
    }

    /// Leaves pixels out, so that no side is longer than `side`.
    pub fn at_most(self, side: usize) -> Self {
        let [_, height, width] = self.domain.shape;
        Self { step: height.max(width).div_ceil(side.max(1)), ..self }
    }

    /// Model input `[1, C, H, W]` as the picture it stands for.
    pub fn row(&self, row: &Tensor) -> Result<String, Error> {
        let values = flat(row)?;
        let plane = self.plane();
        self.paint(&|channel, pixel| {
            let (lower, upper) = (self.domain.lower[channel], self.domain.upper[channel]);
            (values[channel * plane + pixel] - lower) / (upper - lower)
        })
    }

    /// A pattern as far as its mask lets it through, on black.
    pub fn product(&self, mask: &Tensor, pattern: &Tensor) -> Result<String, Error> {
        let (mask, values) = (flat(mask)?, flat(pattern)?);
        let plane = self.plane();
        self.paint(&|channel, pixel| {
            let (lower, upper) = (self.domain.lower[channel], self.domain.upper[channel]);
            mask[pixel] * (values[channel * plane + pixel] - lower) / (upper - lower)
        })
    }

    /// Shares `[1, 1, H, W]`, black for 0 and white for 1.
    pub fn share(&self, shares: &Tensor) -> Result<String, Error> {
        let shares = flat(shares)?;
        self.paint(&|_, pixel| shares[pixel])
    }

    /// A perturbation `[1, C, H, W]` of radius `epsilon` over the whole range, grey where it is
    /// zero.
    pub fn perturbation(&self, eta: &Tensor, epsilon: f32) -> Result<String, Error> {
        let values = flat(eta)?;
        let plane = self.plane();
        self.paint(&|channel, pixel| {
            let range = self.domain.upper[channel] - self.domain.lower[channel];
            0.5 + values[channel * plane + pixel] / (2.0 * epsilon * range)
        })
    }

    fn plane(&self) -> usize {
        self.domain.shape[1] * self.domain.shape[2]
    }

    /// In colour where there are three channels, otherwise the channels' mean in grey.
    fn paint(&self, share: &dyn Fn(usize, usize) -> f32) -> Result<String, Error> {
        let [channels, height, width] = self.domain.shape;
        let byte = |share: f32| (share.clamp(0.0, 1.0) * 255.0).round() as u8;
        let kept = |side: usize| (0..side).step_by(self.step);
        let pixels = kept(height).flat_map(|y| kept(width).map(move |x| y * width + x));
        let (bytes, colour): (Vec<u8>, _) = if channels == 3 {
            let bytes = pixels.flat_map(|pixel| (0..3).map(move |c| byte(share(c, pixel))));
            (bytes.collect(), ExtendedColorType::Rgb8)
        } else {
            let mean = |pixel| {
                (0..channels).map(|channel| share(channel, pixel)).sum::<f32>() / channels as f32
            };
            (pixels.map(|pixel| byte(mean(pixel))).collect(), ExtendedColorType::L8)
        };
        let (width, height) = (width.div_ceil(self.step), height.div_ceil(self.step));
        let mut png = Vec::new();
        PngEncoder::new_with_quality(&mut png, CompressionType::Best, FilterType::Adaptive)
            .write_image(&bytes, width as u32, height as u32, colour)
            .map_err(candle_core::Error::wrap)?;
        Ok(format!("data:image/png;base64,{}", STANDARD.encode(png)))
    }
}

fn flat(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
