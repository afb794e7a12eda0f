//! Sources that are open at one of their images.

use super::error::Result;
use super::place::Place;

/// One image of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its place.
    pub place: Place,
    /// Its label, where the source has one.
    pub label: Option<usize>,
    /// Row-major CHW.
    pub pixels: Vec<u8>,
}

/// A source that is open at one of its images.
pub(super) trait Cursor {
    /// Moves to the next image; `false` behind the last one.
    fn advance(&mut self) -> Result<bool>;

    /// The image it is at.
    fn image(&mut self) -> Result<Image>;

    /// The share of the source that is read, 0 to 1.
    fn share(&mut self) -> f64;
}
