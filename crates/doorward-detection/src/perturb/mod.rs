//! Perturbations of clean images, and what they do to a classifier's margins.
//!
//! A radius `epsilon` is a share of the full pixel range: 8/255 moves a pixel by at most eight grey
//! levels, whatever the model's normalisation.

pub(crate) mod adam;
mod deepfool;
#[cfg(feature = "prepare")]
mod effect;
#[cfg(feature = "prepare")]
mod separating;
mod settings;
#[cfg(feature = "prepare")]
mod uap;
#[cfg(feature = "prepare")]
mod uap_deepfool;

pub use deepfool::{DeepFool, Fooling, deepfool};
#[cfg(feature = "prepare")]
pub use effect::{fooling_rate, kept};
#[cfg(feature = "prepare")]
pub use separating::separating;
pub use settings::{Algorithm, Perturbation};
#[cfg(feature = "prepare")]
pub use uap::{Universal, class_conditional, several, universal};
#[cfg(feature = "prepare")]
pub use uap_deepfool::universal_by_deepfool;
