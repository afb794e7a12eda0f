//! Undoes the content coding of a request body, within the limit on bodies.
//!
//! The upstream gets the firewall's own encoding of what was read, without a coding, so a decoder
//! that differs from the upstream's cannot make the two see different requests. What is left after
//! the coded data, several codings and several headers are refused all the same: they are never an
//! honest client's.

use std::io::Read;

use bytes::Bytes;
use flate2::bufread::{GzDecoder, ZlibDecoder};
use hyper::HeaderMap;
use hyper::header::{CONTENT_ENCODING, HeaderName};

use doorward_protocol::DecodeError;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    /// zlib's format; what some servers call deflate without zlib's header is refused.
    Deflate,
    Gzip,
    Zstd,
}

/// Most that a zstd frame may look back, as RFC 9659 allows in HTTP: 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

/// True if a body is anything but itself.
pub(super) fn is_coded(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_ENCODING)
}

/// The body without its coding, of at most `limit` bytes.
pub(super) fn decode(
    headers: &HeaderMap,
    body: &Bytes,
    limit: usize,
) -> Result<Bytes, DecodeError> {
    match named(headers, &CONTENT_ENCODING)? {
        Some(coding) => undo(coding, body, limit),
        None => Ok(body.clone()),
    }
}

/// A gRPC message, which is compressed, without its compression, of at most `limit` bytes.
pub(super) fn decompress(
    headers: &HeaderMap,
    message: &[u8],
    limit: usize,
) -> Result<Bytes, DecodeError> {
    match named(headers, &GRPC_ENCODING)? {
        Some(coding) => undo(coding, message, limit),
        None => Err(DecodeError::Encoding { received: "identity".to_owned() }),
    }
}

/// The header that names the coding of compressed gRPC messages.
pub(super) const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

fn undo(coding: Coding, body: &[u8], limit: usize) -> Result<Bytes, DecodeError> {
    let broken = |reason| DecodeError::Coded { coding: coding.name(), reason };
    let (decoded, rest) = coding.undo(body, limit).map_err(|error| broken(error.to_string()))?;
    if decoded.len() > limit {
        return Err(DecodeError::CodedTooLarge { coding: coding.name(), limit });
    }
    if rest > 0 {
        return Err(broken(format!("{rest} bytes follow its end")));
    }
    Ok(decoded.into())
}

/// The one coding that the headers name; `None` for none, or `identity`.
fn named(headers: &HeaderMap, header: &HeaderName) -> Result<Option<Coding>, DecodeError> {
    let values: Vec<_> = headers.get_all(header).iter().map(|value| value.as_bytes()).collect();
    let lower = values.join(&b", "[..]).to_ascii_lowercase();
    match lower.as_slice() {
        b"identity" => Ok(None),
        b"deflate" => Ok(Some(Coding::Deflate)),
        b"gzip" => Ok(Some(Coding::Gzip)),
        b"zstd" => Ok(Some(Coding::Zstd)),
        _ if values.is_empty() => Ok(None),
        other => {
            Err(DecodeError::Encoding { received: String::from_utf8_lossy(other).into_owned() })
        }
    }
}

// === impl Coding ===

impl Coding {
    fn name(self) -> &'static str {
        match self {
            Self::Deflate => "deflate",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The decoded bytes, cut one past `limit`, and how many bytes of the input were not read.
    fn undo(self, body: &[u8], limit: usize) -> std::io::Result<(Vec<u8>, usize)> {
        // One more byte than allowed tells a body that is too large; where there is none, reading
        // goes on to the end of the coded data, where the checksums are.
        let most = limit as u64 + 1;
        let mut decoded = Vec::new();
        let rest = match self {
            Self::Deflate => {
                let mut reader = ZlibDecoder::new(body);
                reader.by_ref().take(most).read_to_end(&mut decoded)?;
                reader.into_inner().len()
            }
            Self::Gzip => {
                let mut reader = GzDecoder::new(body);
                reader.by_ref().take(most).read_to_end(&mut decoded)?;
                reader.into_inner().len()
            }
            Self::Zstd => {
                let mut reader = zstd::Decoder::with_buffer(body)?.single_frame();
                reader.window_log_max(ZSTD_WINDOW_LOG)?;
                reader.by_ref().take(most).read_to_end(&mut decoded)?;
                reader.finish().len()
            }
        };
        Ok((decoded, rest))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, value.parse().expect("a header value"));
        }
        headers
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut writer = GzEncoder::new(Vec::new(), Compression::best());
        writer.write_all(bytes).expect("memory");
        writer.finish().expect("memory")
    }

    fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut writer = ZlibEncoder::new(Vec::new(), Compression::best());
        writer.write_all(bytes).expect("memory");
        writer.finish().expect("memory")
    }

    fn coded(bytes: &[u8]) -> [(&'static str, Vec<u8>); 3] {
        let zstd = zstd::encode_all(bytes, 3).expect("memory");
        [("gzip", gzip(bytes)), ("deflate", deflate(bytes)), ("zstd", zstd)]
    }

    fn error(values: &[&str], body: Vec<u8>, limit: usize) -> String {
        decode(&headers(values), &body.into(), limit).expect_err("refused").to_string()
    }

    #[test]
    fn every_coding_is_undone_up_to_the_limit() {
        let text = b"one body, one body, one body".repeat(100);
        for (name, body) in coded(&text) {
            let body = Bytes::from(body);
            let decoded = decode(&headers(&[name]), &body, text.len()).expect(name);
            assert_eq!(decoded, text, "{name}");
            let error = decode(&headers(&[name]), &body, text.len() - 1).expect_err(name);
            assert!(matches!(error, DecodeError::CodedTooLarge { .. }), "{name}: {error}");
        }
        for values in [&[][..], &["identity"]] {
            let decoded = decode(&headers(values), &Bytes::from_static(b"x"), 1).expect("itself");
            assert_eq!(decoded, "x");
        }
    }

    #[test]
    fn bombs_cost_no_more_than_the_limit() {
        for (name, body) in coded(&vec![0; 64 << 20]) {
            assert!(body.len() < 1 << 20);
            let text = error(&[name], body, 1 << 16);
            assert!(text.contains("larger than 65536 bytes"), "{text}");
        }
    }

    #[test]
    fn zstd_frames_of_large_windows_are_refused() {
        let mut writer = zstd::Encoder::new(Vec::new(), 1).expect("memory");
        writer.window_log(27).expect("a window");
        writer.long_distance_matching(true).expect("a switch");
        writer.write_all(&[7; 1000]).expect("memory");
        let text = error(&["zstd"], writer.finish().expect("memory"), 1 << 16);
        assert!(text.contains("zstd"), "{text}");
    }

    #[test]
    fn damaged_or_joined_data_is_refused() {
        for (name, body) in coded(b"some text") {
            for length in 0..body.len() {
                error(&[name], body[..length].to_vec(), 1 << 16);
            }
            let twice = error(&[name], body.repeat(2), 1 << 16);
            assert!(twice.contains("follow its end"), "{name}: {twice}");
            let tail = error(&[name], [&body[..], b"\0"].concat(), 1 << 16);
            assert!(tail.contains("follow its end"), "{name}: {tail}");
        }
        let mut damaged = gzip(b"some text");
        let last = damaged.len() - 5;
        damaged[last] ^= 1;
        error(&["gzip"], damaged, 1 << 16);
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::best());
        raw.write_all(b"some text").expect("memory");
        error(&["deflate"], raw.finish().expect("memory"), 1 << 16);
    }

    #[test]
    fn several_and_unknown_codings_are_refused() {
        let cases: [&[&str]; 9] = [
            &["br"],
            &["x-gzip"],
            &["gzip, gzip"],
            &["gzip, identity"],
            &["gzip", "gzip"],
            &["identity", "gzip"],
            &["gzip;q=1"],
            &[""],
            &["*"],
        ];
        for values in cases {
            let text = error(values, gzip(b"x"), 1 << 16);
            assert!(text.contains("expected one of gzip"), "{values:?}: {text}");
        }
    }
}
