//! The REST formats side by side: whose path it is, and who reads the body.

use bytes::Bytes;
use hyper::HeaderMap;

use super::{Bounds, Checked, DecodeError, Route, kserve_v1, oip_http, raw_image};
use crate::Protocol;
use crate::settings::{ImageProtocol, Images};

/// A REST format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Images, as this server takes them.
    Image(ImageProtocol),
    /// KServe V1, which is TensorFlow Serving's.
    KserveV1,
    /// The Open Inference Protocol; also every path that is nobody's.
    Oip,
}

// === impl Rest ===

impl Rest {
    /// The format whose path it is.
    pub fn of(path: &str, images: &Images) -> Self {
        match raw_image::of(path, images) {
            _ if path.starts_with("/v1/") => Self::KserveV1,
            _ if path == "/v2" || path.starts_with("/v2/") => Self::Oip,
            Some(protocol) => Self::Image(protocol),
            None => Self::Oip,
        }
    }

    /// Which route a request takes. `model` is the only model name taken, if given.
    pub fn route(
        self,
        method: &str,
        path: &str,
        query: Option<&str>,
        model: Option<&str>,
    ) -> Route {
        match self {
            Self::Image(protocol) => raw_image::route(protocol, method, path, query, model),
            Self::KserveV1 => kserve_v1::route(method, path, query, model),
            Self::Oip => oip_http::route(method, path, query, model),
        }
    }

    /// Reads an inference request, whose content coding is undone, and writes it again.
    pub fn check(
        self,
        headers: &HeaderMap,
        body: &Bytes,
        bounds: Bounds<'_>,
    ) -> Result<Checked, DecodeError> {
        match self {
            Self::Image(_) => raw_image::check(headers, body, bounds),
            Self::KserveV1 => kserve_v1::check(headers, body, bounds),
            Self::Oip => oip_http::check(headers, body, bounds),
        }
    }

    /// As metrics name it.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Image(_) => Protocol::RawImage,
            Self::KserveV1 => Protocol::KserveV1,
            Self::Oip => Protocol::OipHttp,
        }
    }
}
