//! Inference requests that were understood.

use std::borrow::Cow;

use bytes::Bytes;

/// An inference request that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The request that the upstream gets.
    pub encoded: Encoded,
    /// Number of rows.
    pub rows: usize,
    /// The rows, one after another, channels first.
    pub values: Vec<f32>,
    /// The keys of the request that the protocol does not have, as paths into its document. They do
    /// not reach the upstream.
    pub dropped: Vec<String>,
}

/// A request in the firewall's own spelling.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The body. Bytes of tensors are the client's.
    pub body: Bytes,
    /// The number of bytes of `body` are JSON, where bytes of a tensor follow.
    pub json_length: Option<usize>,
    /// The content type; `None`: none is named.
    pub media_type: Option<Cow<'static, str>>,
}
