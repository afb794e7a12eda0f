//! W3C Trace Context: read for the log lines. The headers themselves pass on as they are.

use hyper::header::{HeaderMap, HeaderName};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The trace id of a request's one valid `traceparent`: 32 lower-case hexadecimal digits.
pub(super) fn id(headers: &HeaderMap) -> Option<String> {
    let mut given = headers.get_all(TRACEPARENT).iter();
    let (Some(header), None) = (given.next(), given.next()) else { return None };
    let mut parts = header.to_str().ok()?.split('-');
    let version = parts.next().filter(|version| is_hex(version, 2) && *version != "ff")?;
    let trace = parts.next().filter(|trace| is_id(trace, 32))?;
    parts.next().filter(|parent| is_id(parent, 16))?;
    parts.next().filter(|flags| is_hex(flags, 2))?;
    // Later versions may add parts.
    (version != "00" || parts.next().is_none()).then(|| trace.to_owned())
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_id(text: &str, length: usize) -> bool {
    is_hex(text, length) && text.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn read(headers: &[&'static str]) -> Option<String> {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(TRACEPARENT, HeaderValue::from_static(value));
        }
        id(&map)
    }

    #[test]
    fn valid_ids_are_read_and_others_are_none() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(read(&[valid]).as_deref(), Some(ID));
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-holds";
        assert_eq!(read(&[later]).as_deref(), Some(ID));
        for invalid in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(read(&[invalid]), None, "{invalid}");
        }
        assert_eq!(read(&[valid, valid]), None, "no telling which one holds");
        assert_eq!(read(&[]), None);
    }
}
