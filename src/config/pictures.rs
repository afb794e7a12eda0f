//! The sections on pictures, and on requests of images.

use doorward_detection::Preprocess;
use doorward_images::{ChannelOrder, ExifOrientation, Interpolation, Pictures, Resize};
use doorward_protocol::{ImageProtocol, ImageRoutes};
use serde::Deserialize;

use super::Result;
use super::value::{OneOrMany, channels, count, invalid, required, scales};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPreprocess {
    mean: Option<OneOrMany<f64>>,
    std: Option<OneOrMany<f64>>,
    resize: Option<RawResize>,
    shortest_side: Option<i64>,
    interpolation: Option<Interpolation>,
    channel_order: Option<ChannelOrder>,
    exif_orientation: Option<ExifOrientation>,
    range_slack: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawImages {
    protocols: Option<Vec<ImageProtocol>>,
    path: Option<String>,
    part: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawResize {
    Crop,
    Exact,
    None,
}

// === impl RawPreprocess ===

impl RawPreprocess {
    pub(super) fn range_slack(&self) -> Result<f32> {
        let slack = required("preprocess.range_slack", self.range_slack)?;
        match (0.0..=1.0).contains(&slack) {
            true => Ok(slack as f32),
            false => invalid("preprocess.range_slack", slack, "a share from 0 to 1"),
        }
    }

    pub(super) fn convert(self) -> Result<Preprocess> {
        let side_key = "preprocess.shortest_side";
        let resize = match (required("preprocess.resize", self.resize)?, self.shortest_side) {
            (RawResize::Crop, side) => Resize::Crop(count(side_key, side)?),
            (_, Some(side)) => {
                return invalid(side_key, side, "no such key unless preprocess.resize = \"crop\"");
            }
            (RawResize::Exact, None) => Resize::Exact,
            (RawResize::None, None) => Resize::None,
        };
        Ok(Preprocess {
            mean: channels("preprocess.mean", self.mean)?,
            std: scales("preprocess.std", self.std)?,
            pictures: Pictures {
                resize,
                interpolation: required("preprocess.interpolation", self.interpolation)?,
                channel_order: required("preprocess.channel_order", self.channel_order)?,
                exif_orientation: required("preprocess.exif_orientation", self.exif_orientation)?,
            },
        })
    }
}

// === impl RawImages ===

impl RawImages {
    pub(super) fn convert(self) -> Result<ImageRoutes> {
        let protocols = required("images.protocols", self.protocols)?;
        let takes = |protocol| protocols.contains(&protocol);
        if takes(ImageProtocol::BentoMl) && takes(ImageProtocol::LitServe) {
            let expected = "one of bentoml and litserve, which share images.path";
            return invalid("images.protocols", format!("{protocols:?}"), expected);
        }
        let path = required("images.path", self.path)?;
        if !is_path(&path) {
            let expected = "a path such as /predict, of letters, digits and -._~";
            return invalid("images.path", format!("{path:?}"), expected);
        }
        let part = required("images.part", self.part)?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            let expected = "a name of letters, digits and _";
            return invalid("images.part", format!("{part:?}"), expected);
        }
        Ok(ImageRoutes { protocols, path, part })
    }
}

/// Paths that are spelled plainly.
pub(super) fn paths(key: &'static str, paths: Vec<String>) -> Result<Vec<String>> {
    match paths.iter().find(|path| !is_path(path)) {
        None => Ok(paths),
        Some(path) => {
            invalid(key, format!("{path:?}"), "paths such as /docs, of letters, digits and -._~")
        }
    }
}

/// Every server reads it in the same way: nothing to decode, nothing to resolve.
fn is_path(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let segment = |segment: &str| {
        !segment.is_empty()
            && segment.bytes().all(plain)
            && segment.bytes().any(|byte| byte != b'.')
    };
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment))
}
