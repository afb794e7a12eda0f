//! Requests that are an image: TorchServe, SageMaker containers, BentoML and LitServe.
//!
//! The body is a PNG or JPEG, or a form of one. The model server decodes the client's own bytes, so
//! the firewall takes only images that there is one way to read (`images::decode`), and has to be
//! told how the server goes on from there (`[preprocess]`).

use std::borrow::Cow;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;

use crate::bounds::Bounds;
use crate::error::DecodeError;
use crate::form;
use crate::request::{Checked, Encoded};
use crate::route::{Refusal, Route, infer, is_plain, read};
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

/// The route of a request. `model` is the only model name taken, if given.
pub(crate) fn route(
    protocol: ImageProtocol,
    method: &str,
    path: &str,
    query: Option<&str>,
    model: Option<&str>,
) -> Route {
    if matches!(path, "/health" | "/healthz" | "/livez" | "/ping" | "/readyz") {
        return read(method);
    }
    if protocol != ImageProtocol::TorchServe {
        return infer(method, query);
    }
    let segments: Vec<&str> = path.split('/').skip(2).collect();
    match *segments {
        _ if !segments.iter().all(|segment| is_plain(segment)) => Route::Refused(Refusal::Path),
        [name] | [name, _] if model.is_some_and(|model| model != name) => {
            Route::Refused(Refusal::Model)
        }
        // `curl -T`, which TorchServe's manual uses, sends PUT.
        [_] | [_, _] if method == "PUT" => infer("POST", query),
        [_] | [_, _] => infer(method, query),
        _ => Route::Refused(Refusal::Path),
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
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let media_type =
        types.next().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    if types.next().is_some() {
        return Err(unsupported("several"));
    }
    if let Some(media_type) = media_type.as_deref().filter(|media_type| form::is_form(media_type)) {
        let name = bounds.pictures.part;
        let part = form::read(media_type, body, name)?;
        let (values, kind) = one(&part.content, part.media_type.as_deref(), bounds)?;
        let (body, media_type) = form::write(name, kind, &part.content);
        let encoded = Encoded {
            body: body.into(),
            json_length: None,
            media_type: Some(Cow::Owned(media_type)),
        };
        return Ok(Checked { encoded, rows: 1, values });
    }
    let (values, _) = one(body, media_type.as_deref(), bounds)?;
    let encoded = Encoded { body: body.clone(), json_length: None, media_type: None };
    Ok(Checked { encoded, rows: 1, values })
}

/// The row of the one image of a request.
fn one(
    image: &[u8],
    media_type: Option<&str>,
    bounds: Bounds<'_>,
) -> Result<(Vec<f32>, Kind), DecodeError> {
    let declared = match media_type.map(str::to_ascii_lowercase).as_deref() {
        None | Some("application/octet-stream" | "application/x-image") => None,
        Some("image/jpeg" | "image/jpg") => Some(Kind::Jpeg),
        Some("image/png") => Some(Kind::Png),
        Some(other) => return Err(unsupported(other)),
    };
    let decoded = decode(image, bounds.pictures.frame, bounds.pictures.pixels)?;
    let kind = decoded.kind;
    match declared {
        Some(declared) if declared != kind => Err(DecodeError::ImageType { declared, kind }),
        _ => Ok(((bounds.pictures.normalise)(&decoded.bytes), kind)),
    }
}

fn unsupported(received: &str) -> DecodeError {
    let expected = "image/png, image/jpeg, application/octet-stream or multipart/form-data";
    DecodeError::MediaType { received: received.to_owned(), expected }
}
