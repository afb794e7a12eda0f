//! Perturbations of clean images, and what they do to a classifier's margins.
//!
//! A radius `epsilon` is a share of the full pixel range: 8/255 moves a pixel by at most eight grey
//! levels, whatever the model's normalisation.

pub(crate) mod adam;
mod deepfool;
mod effect;
mod separating;
mod uap;
mod uap_deepfool;

pub use deepfool::{DeepFool, Fooling, deepfool};
pub use effect::{fooling_rate, kept};
pub use separating::separating;
pub use uap::{Universal, class_conditional, several, universal};
pub use uap_deepfool::universal_by_deepfool;
