//! W3C Trace Context: read for log lines and spans. Where no span is recorded the headers pass on
//! as they are.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::telemetry::spans::Parent;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The bit of the flags that says that the caller's span is recorded.
const SAMPLED: u8 = 1;

/// The content of a request's one valid `traceparent`.
pub(super) fn parent(headers: &HeaderMap) -> Option<Parent> {
    let mut given = headers.get_all(TRACEPARENT).iter();
    let (Some(header), None) = (given.next(), given.next()) else { return None };
    let mut parts = header.to_str().ok()?.split('-');
    let version = parts.next().filter(|version| is_hex(version, 2) && *version != "ff")?;
    let trace = parts.next().filter(|trace| is_hex(trace, 32))?;
    let span = parts.next().filter(|span| is_hex(span, 16))?;
    let flags = parts.next().filter(|flags| is_hex(flags, 2))?;
    // Later versions may add parts.
    if version == "00" && parts.next().is_some() {
        return None;
    }
    let parent = Parent {
        trace: u128::from_str_radix(trace, 16).ok()?,
        span: u64::from_str_radix(span, 16).ok()?,
        sampled: u8::from_str_radix(flags, 16).ok()? & SAMPLED != 0,
    };
    (parent.trace != 0 && parent.span != 0).then_some(parent)
}

/// Names another span as the caller's. What vendors say of the trace goes on only with the trace
/// itself.
pub(super) fn replace(headers: &mut HeaderMap, traceparent: &str) {
    let Ok(value) = HeaderValue::from_str(traceparent) else { return };
    if parent(headers).is_none() {
        headers.remove(TRACESTATE);
    }
    headers.insert(TRACEPARENT, value);
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const PARENT: Parent = Parent {
        trace: 0x4bf92f3577b34da6a3ce929d0e0e4736,
        span: 0x00f067aa0ba902b7,
        sampled: true,
    };

    fn read(headers: &[&'static str]) -> Option<Parent> {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(TRACEPARENT, HeaderValue::from_static(value));
        }
        parent(&map)
    }

    #[test]
    fn valid_ids_are_read_and_others_are_none() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(read(&[valid]), Some(PARENT));
        assert_eq!(PARENT.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02";
        assert_eq!(read(&[unsampled]), Some(Parent { sampled: false, ..PARENT }));
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-holds";
        assert_eq!(read(&[later]), Some(PARENT));
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
