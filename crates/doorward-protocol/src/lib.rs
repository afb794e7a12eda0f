//! Wire formats of inference requests, parsed strictly and written again.
//!
//! The request that was checked is the request that is served: it is parsed once, strictly, and the
//! upstream gets the firewall's own encoding of what was parsed. Anything that two parsers could
//! read in two ways is refused, for an attacker would let the firewall see one input and the model
//! another.

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod append;
pub mod binary;
mod bounds;
mod checks;
mod cut;
pub mod datatype;
mod document;
mod error;
pub mod form;
mod format;
mod grpc_fields;
pub mod grpc_frame;
mod input;
mod json;
mod kserve_v1;
mod kserve_v1_document;
mod kserve_v1_images;
mod media;
pub mod oip_grpc;
mod oip_http;
mod protocol;
mod raw_image;
mod request;
mod route;
mod settings;
mod spelling;
#[cfg(test)]
mod tests;
mod text;

pub use append::Appended;
pub use bounds::{Bounds, Pictures};
pub use cut::{Asked, Cut, CutError, Told};
pub use error::{BinaryError, DecodeError, FormError, GrpcError};
pub use format::Format;
pub use input::Input;
pub use protocol::Protocol;
pub use request::{Checked, Encoded};
pub use route::{Allowed, Refusal, Route};
pub use settings::{ImageProtocol, ImageRoutes};
