//! Tensors as PNG pictures in data URIs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use candle_core::Tensor;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::model::{Error, InputDomain};

/// Paints what has the shape of a model's input.
pub(super) struct Painter<'a> {
    domain: &'a InputDomain,
}

// === impl Painter ===

impl<'a> Painter<'a> {
    pub(super) fn new(domain: &'a InputDomain) -> Self {
        Self { domain }
    }

    /// Model input `[1, C, H, W]` as the picture it stands for.
    pub(super) fn row(&self, row: &Tensor) -> Result<String, Error> {
        let values = flat(row)?;
        let plane = self.plane();
        self.paint(&|channel, pixel| {
            let (lower, upper) = (self.domain.lower[channel], self.domain.upper[channel]);
            (values[channel * plane + pixel] - lower) / (upper - lower)
        })
    }

    /// A pattern as far as its mask lets it through, on black.
    pub(super) fn product(&self, mask: &Tensor, pattern: &Tensor) -> Result<String, Error> {
        let (mask, values) = (flat(mask)?, flat(pattern)?);
        let plane = self.plane();
        self.paint(&|channel, pixel| {
            let (lower, upper) = (self.domain.lower[channel], self.domain.upper[channel]);
            mask[pixel] * (values[channel * plane + pixel] - lower) / (upper - lower)
        })
    }

    /// Shares `[1, 1, H, W]`, black for 0 and white for 1.
    pub(super) fn share(&self, shares: &Tensor) -> Result<String, Error> {
        let shares = flat(shares)?;
        self.paint(&|_, pixel| shares[pixel])
    }

    /// A perturbation `[1, C, H, W]` of radius `epsilon` over the whole range, grey where it is zero.
    pub(super) fn perturbation(&self, eta: &Tensor, epsilon: f32) -> Result<String, Error> {
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
        let (bytes, colour): (Vec<u8>, _) = if channels == 3 {
            let pixels = 0..self.plane();
            let bytes = pixels.flat_map(|pixel| (0..3).map(move |c| byte(share(c, pixel))));
            (bytes.collect(), ExtendedColorType::Rgb8)
        } else {
            let mean = |pixel| {
                (0..channels).map(|channel| share(channel, pixel)).sum::<f32>() / channels as f32
            };
            ((0..self.plane()).map(|pixel| byte(mean(pixel))).collect(), ExtendedColorType::L8)
        };
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
