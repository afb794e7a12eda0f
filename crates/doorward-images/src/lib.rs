//! Labelled images from the formats that data sets come in.
//!
//! [`Images::read`] takes one source and the shape the model wants. A source is
//!
//! - CIFAR-style records, `*.bin` or `*.bin.gz`: one label byte, then the pixels, no header;
//! - IDX, `*-idx3-ubyte` and the like, gzipped or not, told by its magic number; the labels come
//!   from the sibling file (`images-idx3` -> `labels-idx1`) where there is one;
//! - `.npy` with unsigned bytes, without labels;
//! - one PNG or JPEG file, without a label;
//! - a directory of pictures: flat and without labels, or one directory per label;
//! - a list, `*.txt` or `*.lst`: one picture per line, then optionally a tab and its label. An image
//!   of a file that holds many is named by its index, `records.bin.gz#17`.
//!
//! [`Stream`] gives the images of a source one after the other, for sets that are larger than
//! memory.
//!
//! Reading is strict and deterministic: the same source gives the same images in the same order,
//! pictures sorted by name, and nothing is skipped or guessed. Pictures are brought into the
//! model's shape by a [`Frame`]. A directory with one directory per label is dealt one picture of
//! each label in turn, so that a prefix is a fair sample.
//!
//! Sources may come from people who wish the reader harm: sizes are bounded before memory is
//! taken for them, and a picture's dimensions are checked before it is decoded. [`decode`] is for
//! pictures of strangers, which it takes only where every decoder reads them alike.

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod array;
mod bytes;
mod cursor;
mod digest;
mod encoded;
mod error;
mod file;
mod format;
mod frame;
mod idx;
mod images;
mod list;
mod listing;
mod npy;
mod open;
mod picture;
mod place;
mod resample;
mod settings;
mod stream;
#[cfg(test)]
mod tests;

pub use cursor::Image;
pub use digest::digest_sources;
pub use encoded::{Decoded, EncodedError, Kind, decode};
pub use error::Error;
pub use frame::{Frame, Misfit};
pub use images::Images;
pub use place::Place;
pub use settings::{ChannelOrder, ExifOrientation, Interpolation, Pictures, Resize};
pub use stream::Stream;
