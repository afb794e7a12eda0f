//! The facts on the model and the limits that decoders need.

use std::fmt;

use doorward_images::Frame;

use crate::input::Input;

/// The facts on the model and the limits that a decoder needs.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// The tensor that the model takes.
    pub input: Input<'a>,
    /// Most rows in one request.
    pub rows: usize,
    /// The share of a channel's range by which a value may lie outside of it.
    pub slack: f32,
    /// The only signature that a V1 request may name.
    pub signature: &'a str,
    /// The way of images to rows.
    pub pictures: Pictures<'a>,
}

/// The way of images to rows.
#[derive(Clone, Copy)]
pub struct Pictures<'a> {
    /// From a picture to the model's shape.
    pub frame: &'a Frame,
    /// From an image's bytes, in that shape, to the values of a row.
    pub normalise: &'a dyn Fn(&[u8]) -> Vec<f32>,
    /// Most pixels of the images of one request.
    pub pixels: usize,
    /// The name of a form's part.
    pub part: &'a str,
    /// True if V1 instances may be images.
    pub in_instances: bool,
}

impl fmt::Debug for Pictures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pictures").field("frame", &self.frame).finish_non_exhaustive()
    }
}
