//! The request path: from a client's request to the upstream's answer, or to a refusal.

mod batch;
mod breaker;
mod choice;
mod coding;
mod connect;
mod cors;
mod error;
mod failed;
mod forwarding;
mod gate;
mod grpc;
mod grpc_body;
mod grpc_upstream;
mod http;
mod layer;
mod live;
mod models;
#[expect(clippy::module_inception, reason = "the folder is named for the thing it is about")]
mod proxy;
mod record;
mod remote;
mod request_id;
mod respond;
mod screen;
mod trace;
mod upstream;

pub use error::Error;
pub use forwarding::{Forwarding, Peer};
pub use gate::Answer;
pub use grpc_body::GrpcAnswer;
pub use layer::{ScreenLayer, Screened};
pub use live::{Change, Live};
pub use models::Models;
pub use proxy::Proxy;
