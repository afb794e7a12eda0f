//! Requests that are an image: TorchServe, SageMaker containers, BentoML and LitServe.
//!
//! The body is a PNG or JPEG, or a form of one. The model server decodes the client's own bytes, so
//! the firewall takes only images that there is one way to read (`images::decode`), and has to be
//! told how the server goes on from there (`[preprocess]`).

use std::borrow::Cow;

use bytes::Bytes;
use hyper::HeaderMap;

use crate::bounds::Bounds;
use crate::error::DecodeError;
use crate::form;
use crate::media::{self, BYTES};
use crate::request::{Checked, Encoded};
use crate::route::{Allowed, Refusal, Route, Target, infer, is_plain, read, ready};
use crate::settings::{ImageProtocol, ImageRoutes};
use doorward_images::{Kind, decode};

/// Selects a model inside of a container; the firewall protects one.
const TARGET_MODEL: &str = "x-amzn-sagemaker-target-model";

/// The protocol whose path it is, of those that are configured.
pub(crate) fn of(path: &str, images: &ImageRoutes) -> Option<ImageProtocol> {
    let is_its_own = |protocol: &&ImageProtocol| match protocol {
        ImageProtocol::BentoMl => {
            path == images.path || matches!(path, "/healthz" | "/livez" | "/readyz")
        }
        ImageProtocol::KserveV1 => false,
        ImageProtocol::LitServe => path == images.path || path == "/health",
        ImageProtocol::SageMaker => matches!(path, "/invocations" | "/ping"),
        ImageProtocol::TorchServe => path.starts_with("/predictions/") || path == "/ping",
    };
    images.protocols.iter().find(is_its_own).copied()
}

/// The route of a request, whose path has no slash at its end.
pub(crate) fn route(
    protocol: ImageProtocol,
    method: &str,
    path: &str,
    query: Option<&str>,
    allowed: Allowed<'_>,
) -> Route {
    if path == "/livez" {
        return read(method);
    }
    if matches!(path, "/health" | "/healthz" | "/ping" | "/readyz") {
        return ready(method);
    }
    // Unlike those of V1 and V2, these servers may read it.
    let infer = |method: &str, named| match infer(method, named, allowed) {
        Route::Infer if query.is_some() => Route::Refused(Refusal::Query),
        route => route,
    };
    if protocol != ImageProtocol::TorchServe {
        return infer(method, Target::default());
    }
    let segments: Vec<&str> = path.split('/').skip(2).collect();
    if !segments.iter().all(|segment| is_plain(segment)) {
        return Route::Refused(Refusal::Path);
    }
    let named = match *segments {
        [name] => Target { model: Some(name), version: None },
        [name, version] => Target { model: Some(name), version: Some(version) },
        _ => return Route::Refused(Refusal::Path),
    };
    match method {
        _ if allowed.model.is_some() && allowed.model != named.model => {
            Route::Refused(Refusal::Model)
        }
        // `curl -T`, which TorchServe's manual uses, sends PUT.
        "PUT" => infer("POST", named),
        _ => infer(method, named),
    }
}

/// Reads an image or a form of one; a form is written again.
pub(crate) fn check(
    headers: &HeaderMap,
    body: &Bytes,
    bounds: Bounds<'_>,
) -> Result<Checked, DecodeError> {
    if headers.contains_key(TARGET_MODEL) {
        return Err(DecodeError::Header { name: TARGET_MODEL });
    }
    let media_type = media::declared(headers, EXPECTED)?;
    if let Some(media_type) = media_type.as_deref().filter(|media_type| form::is_form(media_type)) {
        let name = bounds.pictures.part;
        let part = form::read(media_type, body, name)?;
        let declared = part.media_type.as_deref().map(taken).transpose()?;
        let (values, kind) = one(&part.content, declared, bounds)?;
        let (body, media_type) = form::write(name, kind, &part.content);
        let encoded = Encoded {
            body: body.into(),
            json_length: None,
            media_type: Some(Cow::Owned(media_type)),
        };
        return Ok(Checked { encoded, rows: 1, values, dropped: Vec::new() });
    }
    let declared = media_type.as_deref().map(taken).transpose()?;
    let (values, _) = one(body, declared, bounds)?;
    let media_type = declared.map(Cow::Borrowed);
    let encoded = Encoded { body: body.clone(), json_length: None, media_type };
    Ok(Checked { encoded, rows: 1, values, dropped: Vec::new() })
}

/// The content types of images that are taken, as the upstream is told them.
const TAKEN: [&str; 5] = [BYTES, "application/x-image", "image/jpeg", "image/jpg", "image/png"];

const EXPECTED: &str = "image/png, image/jpeg, application/octet-stream or multipart/form-data";

/// The content type of an image, without its parameters.
fn taken(media_type: &str) -> Result<&'static str, DecodeError> {
    let essence = media::essence(media_type);
    let taken = TAKEN.into_iter().find(|taken| taken.eq_ignore_ascii_case(essence));
    let received = media_type.to_owned();
    taken.ok_or(DecodeError::MediaType { received, expected: EXPECTED })
}

/// The row of the one image of a request.
fn one(
    image: &[u8],
    media_type: Option<&'static str>,
    bounds: Bounds<'_>,
) -> Result<(Vec<f32>, Kind), DecodeError> {
    let declared = match media_type {
        Some("image/jpeg" | "image/jpg") => Some(Kind::Jpeg),
        Some("image/png") => Some(Kind::Png),
        _ => None,
    };
    let decoded = decode(image, bounds.pictures.frame, bounds.pictures.pixels)?;
    let kind = decoded.kind;
    match declared {
        Some(declared) if declared != kind => Err(DecodeError::ImageType { declared, kind }),
        _ => Ok(((bounds.pictures.normalise)(&decoded.bytes), kind)),
    }
}
