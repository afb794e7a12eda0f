//! Why a source cannot be read.

use std::io;
use std::path::PathBuf;

use super::frame::Misfit;
use super::place::Place;

/// Why a source of images cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An array's rows have another shape than the model's input.
    #[error(
        "{} is an array of {dims:?}, expected [count, {}, {}, {}] or the same with channels last",
        path.display(), shape[0], shape[1], shape[2]
    )]
    ArrayShape {
        /// The file.
        path: PathBuf,
        /// Its dimensions.
        dims: Vec<usize>,
        /// Channels, height, width expected.
        shape: [usize; 3],
    },
    /// An array's data is shorter or longer than its header says.
    #[error(
        "{} says it is an array of {dims:?} but holds {size} bytes of data",
        path.display()
    )]
    ArraySize {
        /// The file.
        path: PathBuf,
        /// The dimensions its header gives.
        dims: Vec<usize>,
        /// Bytes after the header.
        size: usize,
    },
    /// Pictures have one channel or three; the model takes another number.
    #[error(
        "{} is a picture, which has 1 or 3 channels, expected {channels}",
        path.display()
    )]
    Channels {
        /// The file.
        path: PathBuf,
        /// Channels expected.
        channels: usize,
    },
    /// A picture cannot be decoded.
    #[error("{} cannot be decoded as a png or jpeg picture", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The decoder's reason.
        source: image::ImageError,
    },
    /// The source holds no images.
    #[error("{} holds no images", path.display())]
    Empty {
        /// The source.
        path: PathBuf,
    },
    /// The source's name and first bytes belong to no known format.
    #[error(
        "{} begins with bytes {found:02x?}; expected a *.bin record file, an idx file \
         (00 00 08 03), a .npy file, a png or jpeg picture, a *.txt list or a directory \
         of pictures",
        path.display()
    )]
    Format {
        /// The source.
        path: PathBuf,
        /// At most its first four bytes.
        found: Vec<u8>,
    },
    /// A header says something else than expected.
    #[error("the header of {} says {found}, expected {expected}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The value that it says.
        found: String,
        /// The value that it should say.
        expected: &'static str,
    },
    /// A line's label is not a number.
    #[error("line {line} of {} gives label `{found}`, expected a number", path.display())]
    Label {
        /// The list.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The text in place of the label.
        found: String,
    },
    /// There are more or fewer labels than images.
    #[error(
        "{} has {labels} labels, expected {images} as there are images in {}",
        path.display(), images_path.display()
    )]
    LabelCount {
        /// The file with the labels.
        path: PathBuf,
        /// The number that it has.
        labels: usize,
        /// The file with the images.
        images_path: PathBuf,
        /// The number that it has.
        images: usize,
    },
    /// A picture cannot be brought into the model's shape.
    #[error("{} cannot be used: {reason}", path.display())]
    Misfit {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: Misfit,
    },
    /// A line asks for more images than its file has.
    #[error(
        "line {line} of {} names {place}, but the file holds fewer images", path.display()
    )]
    NoSuchImage {
        /// The list.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The thing that it names.
        place: Place,
    },
    /// A directory of pictures holds something that is neither a picture nor, at its top and
    /// without pictures beside it, a directory.
    #[error("{} is not {expected}", path.display())]
    NotPicture {
        /// The odd one out.
        path: PathBuf,
        /// The value that its place asks for.
        expected: &'static str,
    },
    /// A picture has another size than the model's input.
    #[error(
        "{} is {width} x {height} pixels (width x height), expected {} x {}",
        path.display(), expected[1], expected[0]
    )]
    PictureSize {
        /// The file.
        path: PathBuf,
        /// Its width in pixels.
        width: usize,
        /// Its height in pixels.
        height: usize,
        /// Height and width expected.
        expected: [usize; 2],
    },
    /// A file cannot be read or unpacked.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's or the decompressor's reason.
        source: io::Error,
    },
    /// A file does not consist of whole records.
    #[error(
        "{} unpacks to {size} bytes, expected a multiple of {record} (1 label byte and {} pixel \
         bytes)",
        path.display(), record - 1
    )]
    RecordSize {
        /// The file.
        path: PathBuf,
        /// Its size, unpacked.
        size: usize,
        /// The size of one record.
        record: usize,
    },
    /// The source takes more memory than is granted.
    #[error("{} takes more than {limit} bytes unpacked", path.display())]
    TooLarge {
        /// The source.
        path: PathBuf,
        /// Bytes granted.
        limit: u64,
    },
}

/// The result of reading.
pub(crate) type Result<T> = std::result::Result<T, Error>;
