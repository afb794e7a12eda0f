//! Bodies of calls: collected ones, and ones that are made piece by piece.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Response};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// The answer to a call.
pub type GrpcAnswer = Response<CallBody>;

/// The content type of a call in the firewall's own encoding.
pub(super) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The body of a call, either way.
pub(super) type CallBody = UnsyncBoxBody<Bytes, Error>;

/// Why a body breaks off.
pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The pieces of a stream.
#[derive(Debug)]
pub(super) enum Piece {
    /// Whole frames, or parts of one that the next pieces complete.
    Data(Bytes),
    /// The end, with trailers or without. A stream without it has broken off.
    End(Option<HeaderMap>),
}

/// A body made of pieces as they come.
#[derive(Debug)]
pub(super) struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    ended: bool,
    /// Ends with the body: nobody wants what it makes.
    _maker: Option<Task>,
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(super) struct Task(pub(super) AbortHandle);

/// Whoever made the body has gone.
#[derive(Debug, thiserror::Error)]
#[error("the stream broke off")]
struct BrokenOff;

/// A whole body.
pub(super) fn whole(bytes: Bytes, trailers: Option<HeaderMap>) -> CallBody {
    let body = Full::new(bytes).map_err(|never| match never {});
    match trailers {
        None => body.boxed_unsync(),
        Some(trailers) => body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync(),
    }
}

// === impl Pieces ===

impl Pieces {
    pub(super) fn new(receiver: mpsc::Receiver<Piece>, maker: Option<Task>) -> Self {
        Self { receiver, ended: false, _maker: maker }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.receiver.poll_recv(context));
        self.ended = !matches!(piece, Some(Piece::Data(_)));
        Poll::Ready(match piece {
            Some(Piece::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::End(trailers)) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            None => Some(Err(BrokenOff.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

// === impl Task ===

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
