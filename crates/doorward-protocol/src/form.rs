//! Forms (multipart/form-data, RFC 7578) of one part, which is an image.
//!
//! The upstream gets a form of the firewall's own with the client's bytes in it, so that a parser
//! that reads the client's form otherwise cannot find another image.

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use multer::{Constraints, Multipart, SizeLimit};
use sha2::{Digest, Sha256};

use doorward_images::Kind;

use crate::error::FormError;

/// The part.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) content: Bytes,
    /// As the client says.
    pub(super) media_type: Option<String>,
}

/// True if a content type is that of a form.
pub(super) fn is_form(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("multipart/form-data")
}

/// The one part of a form, which has to have this name.
pub(super) fn read(media_type: &str, body: &Bytes, name: &str) -> Result<Part, FormError> {
    let boundary = multer::parse_boundary(media_type)?;
    // The whole form is here: nothing waits.
    let parsed = only_part(boundary, body.clone(), name).now_or_never();
    parsed.unwrap_or(Err(FormError::Unfinished))
}

async fn only_part(boundary: String, body: Bytes, name: &str) -> Result<Part, FormError> {
    let limit = SizeLimit::new().whole_stream(body.len() as u64);
    let source = stream::iter([Ok::<_, std::convert::Infallible>(body)]);
    let constraints = Constraints::new().size_limit(limit);
    let mut form = Multipart::with_constraints(source, boundary, constraints);
    let Some(field) = form.next_field().await? else {
        return Err(FormError::Parts { received: "no" });
    };
    let received = field.name().unwrap_or_default();
    if received != name {
        let received = received.to_owned();
        return Err(FormError::Name { received, expected: name.to_owned() });
    }
    let media_type = field.content_type().map(|media_type| media_type.as_ref().to_owned());
    let content = field.bytes().await?;
    if form.next_field().await?.is_some() {
        return Err(FormError::Parts { received: "several" });
    }
    Ok(Part { content, media_type })
}

/// A form of one part, and its content type.
pub(super) fn write(name: &str, kind: Kind, image: &[u8]) -> (Vec<u8>, String) {
    // Nobody can make an image that holds its own digest.
    let boundary = format!("doorward-{}", &hex::encode(Sha256::digest(image))[..32]);
    let (file, media_type) = match kind {
        Kind::Jpeg => ("image.jpg", kind.media_type()),
        Kind::Png => ("image.png", kind.media_type()),
    };
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\
         Content-Type: {media_type}\r\n\r\n"
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let form = [head.as_bytes(), image, tail.as_bytes()].concat();
    (form, format!("multipart/form-data; boundary={boundary}"))
}
