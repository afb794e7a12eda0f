//! A file's bytes, one after the other, unpacked on the way.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::error::{Error, Result};

/// Reads a file once from its start, gunzipped when its name ends in `.gz`.
///
/// The name decides and not the first two bytes: a record file may well begin with a gzip magic.
pub(super) struct Bytes {
    path: PathBuf,
    reader: Reader,
    /// Bytes of the file itself, packed or not.
    size: u64,
    /// Bytes given so far, unpacked.
    given: u64,
}

enum Reader {
    Gzip(Box<BufReader<MultiGzDecoder<BufReader<File>>>>),
    Plain(BufReader<File>),
}

// === impl Bytes ===

impl Bytes {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let fail = |source| Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        let zipped = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
        let file = BufReader::new(file);
        let reader = if zipped {
            Reader::Gzip(Box::new(BufReader::new(MultiGzDecoder::new(file))))
        } else {
            Reader::Plain(file)
        };
        Ok(Self { path: path.to_owned(), reader, size, given: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes given so far, unpacked.
    pub(super) fn given(&self) -> u64 {
        self.given
    }

    /// Fills `buffer`, or as much of it as the file has bytes left, and says how much.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.buffered().read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
        self.given += filled as u64;
        Ok(filled)
    }

    /// Passes over all that is left.
    pub(super) fn drain(&mut self) -> Result<()> {
        let rest = io::copy(self.reader.buffered(), &mut io::sink());
        self.given += rest.map_err(|source| self.failed(source))?;
        Ok(())
    }

    /// Replaces `line` by the next line with its end, or as many of its bytes as `most`.
    pub(super) fn line(&mut self, line: &mut Vec<u8>, most: u64) -> Result<usize> {
        line.clear();
        let read = self.reader.buffered().take(most).read_until(b'\n', line);
        let count = read.map_err(|source| self.failed(source))?;
        self.given += count as u64;
        Ok(count)
    }

    /// The share of the file that is read, 0 to 1.
    pub(super) fn share(&mut self) -> f64 {
        // Only shown to people: a file that has no position has no share either.
        let position = match &mut self.reader {
            Reader::Gzip(reader) => reader.get_mut().get_mut().stream_position(),
            Reader::Plain(file) => file.stream_position(),
        };
        position.unwrap_or(0) as f64 / self.size.max(1) as f64
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Read { path: self.path.clone(), source }
    }
}

// === impl Reader ===

impl Reader {
    fn buffered(&mut self) -> &mut dyn BufRead {
        match self {
            Self::Gzip(reader) => reader.as_mut(),
            Self::Plain(reader) => reader,
        }
    }
}
