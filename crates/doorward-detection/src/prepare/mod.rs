//! Preparation: from a model and images to an artifact, read where one is there and made where none
//! is.

mod accuracy;
mod activations;
mod calibrate;
mod digests;
mod error;
mod layers;
mod learn;
mod material;
mod preparation;
mod ranges;
mod stage;
mod store;
mod weights;

pub use accuracy::{Fit, Way};
pub use calibrate::calibrate;
pub use digests::expected;
pub use error::{Error, Which};
pub use learn::{Learned, learn};
pub use material::{Material, frame, material, training_images};
pub use preparation::{Preparation, Stored};
pub use stage::{Seconds, Stage};
pub use store::{Store, StoreError};
