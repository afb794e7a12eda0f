//! gRPC's framing: each message behind a flag, whether it is compressed, and its length.

use bytes::{Bytes, BytesMut};
use prost::Message;

/// Flag and length.
pub const PREFIX: usize = 5;

/// One message in its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    /// True if `message` is in the coding that `grpc-encoding` names.
    pub compressed: bool,
    /// Behind the prefix.
    pub message: Bytes,
}

/// Why bytes are not framed messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A length that is not that of the message.
    #[error("the frame announces a message of {announced} bytes, but {received} follow")]
    Cut {
        /// By the prefix.
        announced: usize,
        /// Behind the prefix.
        received: usize,
    },
    /// A flag that gRPC does not have.
    #[error("the frame's flag is {received}, expected 0 or 1")]
    Flag {
        /// The value that was sent.
        received: u8,
    },
    /// Not even a prefix.
    #[error("the call ends without a message")]
    Missing,
    /// Bytes behind the one message.
    #[error("the call holds more than one message")]
    Several,
    /// More than one message may have.
    #[error("the message has {announced} bytes, at most {limit} are taken")]
    TooLarge {
        /// By the prefix.
        announced: usize,
        /// Most bytes of a message.
        limit: usize,
    },
}

/// The one message of a body.
pub fn single(body: &Bytes) -> Result<Framed, FrameError> {
    let Some((compressed, announced)) = prefix(body)? else {
        return Err(FrameError::Missing);
    };
    let received = body.len() - PREFIX;
    if received < announced {
        return Err(FrameError::Cut { announced, received });
    }
    if received > announced {
        return Err(FrameError::Several);
    }
    Ok(Framed { compressed, message: body.slice(PREFIX..) })
}

/// Cuts one whole frame, prefix included, off the front; `None` if it is not whole yet.
pub fn cut(buffer: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, FrameError> {
    let Some((_, announced)) = prefix(buffer)? else { return Ok(None) };
    if announced > limit {
        return Err(FrameError::TooLarge { announced, limit });
    }
    let length = PREFIX + announced;
    if buffer.len() < length {
        buffer.reserve(length - buffer.len());
        return Ok(None);
    }
    Ok(Some(buffer.split_to(length).freeze()))
}

/// A message in its frame, as it is.
pub fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.extend_from_slice(&[0]);
    // A message is made of one that had a length of 32 bits, and is never longer than that.
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

fn prefix(bytes: &[u8]) -> Result<Option<(bool, usize)>, FrameError> {
    let Some(&[flag, a, b, c, d]) = bytes.first_chunk::<PREFIX>() else { return Ok(None) };
    let compressed = match flag {
        0 => false,
        1 => true,
        received => return Err(FrameError::Flag { received }),
    };
    Ok(Some((compressed, u32::from_be_bytes([a, b, c, d]) as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_one_whole_frame_or_an_error() {
        let framed = |body: &'static [u8]| single(&Bytes::from_static(body));
        let message = Bytes::from_static(b"ab");
        assert_eq!(framed(b"\0\0\0\0\x02ab"), Ok(Framed { compressed: false, message }));
        let empty = Framed { compressed: true, message: Bytes::new() };
        assert_eq!(framed(b"\x01\0\0\0\0"), Ok(empty));
        assert_eq!(framed(b""), Err(FrameError::Missing));
        assert_eq!(framed(b"\0\0\0\0"), Err(FrameError::Missing));
        assert_eq!(framed(b"\x02\0\0\0\0"), Err(FrameError::Flag { received: 2 }));
        let cut = FrameError::Cut { announced: 3, received: 2 };
        assert_eq!(framed(b"\0\0\0\0\x03ab"), Err(cut));
        assert_eq!(framed(b"\0\0\0\0\x01ab"), Err(FrameError::Several));
    }

    #[test]
    fn frames_are_cut_wherever_the_bytes_are_split() {
        let bytes = b"\0\0\0\0\x02ab\x01\0\0\0\0\0\0\0\0\x01c";
        for split in 0..bytes.len() {
            let mut buffer = BytesMut::new();
            let mut frames = Vec::new();
            for part in [&bytes[..split], &bytes[split..]] {
                buffer.extend_from_slice(part);
                while let Some(frame) = cut(&mut buffer, 2).expect("frames") {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, [&bytes[..7], &bytes[7..12], &bytes[12..]], "{split}");
            assert!(buffer.is_empty());
        }
        let mut long = BytesMut::from(&b"\0\0\0\0\x03"[..]);
        assert_eq!(cut(&mut long, 2), Err(FrameError::TooLarge { announced: 3, limit: 2 }));
    }
}
