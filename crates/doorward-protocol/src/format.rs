//! The REST formats side by side: whose path it is, and who reads the body.

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::CONTENT_ENCODING;

use crate::append::{Appended, append_v1, append_v2};
use crate::cut::{Asked, Cut, CutError, cut_v1, cut_v2};
use crate::datatype::Datatype;
use crate::request::Encoded;

use crate::Protocol;
use crate::bounds::Bounds;
use crate::error::DecodeError;
use crate::kserve_v1;
use crate::oip_http;
use crate::raw_image;
use crate::request::Checked;
use crate::route::{Allowed, Route, read, without_end};
use crate::settings::{ImageProtocol, ImageRoutes};

/// A REST format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Images, as this server takes them.
    Image(ImageProtocol),
    /// KServe V1, which is TensorFlow Serving's.
    KserveV1,
    /// The Open Inference Protocol; also every path that is nobody's.
    Oip,
}

// === impl Format ===

impl Format {
    /// The format whose path it is.
    pub fn of(path: &str, images: &ImageRoutes) -> Self {
        let path = without_end(path);
        match raw_image::of(path, images) {
            _ if path.starts_with("/v1/") => Self::KserveV1,
            _ if path == "/v2" || path.starts_with("/v2/") => Self::Oip,
            Some(protocol) => Self::Image(protocol),
            None => Self::Oip,
        }
    }

    /// The route of a request. A slash at the end of its path changes nothing.
    pub fn route(
        self,
        method: &str,
        path: &str,
        query: Option<&str>,
        allowed: Allowed<'_>,
    ) -> Route {
        let path = without_end(path);
        if allowed.reads.iter().any(|read| read == path) && matches!(read(method), Route::Read) {
            return Route::Read;
        }
        match self {
            Self::Image(protocol) => raw_image::route(protocol, method, path, query, allowed),
            Self::KserveV1 => kserve_v1::route(method, path, allowed),
            Self::Oip => oip_http::route(method, path, allowed),
        }
    }

    /// Reads an inference request, whose content coding is undone, and writes it again. A model that
    /// the body names has to be that of `path`.
    pub fn check(
        self,
        path: &str,
        headers: &HeaderMap,
        body: &Bytes,
        bounds: Bounds<'_>,
    ) -> Result<Checked, DecodeError> {
        let path = without_end(path);
        match self {
            Self::Image(_) => raw_image::check(headers, body, bounds),
            Self::KserveV1 => kserve_v1::check(kserve_v1::named(path), headers, body, bounds),
            Self::Oip => oip_http::check(oip_http::named(path), headers, body, bounds),
        }
    }

    /// Reads the body of a [`Route::Index`] and writes it again.
    pub fn check_index(self, body: &Bytes) -> Result<Encoded, DecodeError> {
        oip_http::check_index(body)
    }

    /// As metrics name it.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Image(_) => Protocol::RawImage,
            Self::KserveV1 => Protocol::KserveV1,
            Self::Oip => Protocol::OipHttp,
        }
    }

    /// Appends whole rows, as they are sent, of this shape.
    ///
    /// `None` where they do not fit in: images are not rows of numbers, integers are not what a
    /// perturbed value is, and a V1 request that names a signature may be another model's.
    pub fn append(self, encoded: &Encoded, rows: &[f32], shape: [usize; 3]) -> Option<Appended> {
        match (self, encoded.json_length) {
            (Self::KserveV1, None) => append_v1(encoded, rows, shape),
            (Self::KserveV1, Some(_)) | (Self::Image(_), _) => None,
            (Self::Oip, Some(0)) => {
                let mut body = encoded.body.to_vec();
                Datatype::Fp32.write(rows, &mut body);
                let encoded = Encoded { body: body.into(), ..encoded.clone() };
                Some(Appended { encoded, selective: false })
            }
            (Self::Oip, _) => append_v2(encoded, rows, shape),
        }
    }

    /// The answer without the appended rows, and what it says of all of them. Fails for an answer
    /// that is not of the protocol's form.
    pub fn cut(self, headers: &HeaderMap, body: &Bytes, asked: Asked<'_>) -> Result<Cut, CutError> {
        if headers.contains_key(CONTENT_ENCODING) {
            return Err(CutError::Coded);
        }
        match self {
            Self::Image(_) => Err(CutError::Form("it answers to images")),
            Self::KserveV1 => cut_v1(body, asked),
            Self::Oip => cut_v2(headers, body, asked),
        }
    }
}
