//! Tensors that are kept beside the ONNX file, in files of their own.
//!
//! A model names these files itself, so a name must not lead out of the model's folder: neither as
//! an absolute path, nor through `..`, nor through a link. Each file is read once from front to
//! back, which gives its digest and the tensors from the very same bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use candle_onnx::onnx::tensor_proto::DataType;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::onnx::constant::{Constant, Values, count, dims, element, size};
use crate::onnx::wire::TensorProto;

/// Tensors to be read from other files, by these files' names.
#[derive(Debug, Default)]
pub(super) struct External<'a> {
    files: BTreeMap<&'a str, Vec<Piece<'a>>>,
}

/// A tensor's data in another file.
#[derive(Debug)]
struct Piece<'a> {
    name: &'a str,
    dims: Vec<usize>,
    kind: DataType,
    start: u64,
    len: usize,
}

/// SHA-256 of each file, in the order of their names.
pub(super) type Digests = Vec<[u8; 32]>;

// === impl External ===

impl<'a> External<'a> {
    /// Notes a tensor to be read.
    pub(super) fn add(&mut self, tensor: &TensorProto<'a>) -> Result<(), String> {
        let typed = [tensor.float_data.len(), tensor.double_data.len(), tensor.int32_data.len()];
        let wide = [tensor.int64_data.len(), tensor.uint64_data.len(), tensor.raw_data.len()];
        if typed.iter().chain(&wide).any(|&len| len > 0) {
            return Err("its data are both in this file and in another".into());
        }
        let key = |wanted: &str| {
            let mut values = tensor.external_data.iter().filter(|(key, _)| *key == wanted);
            match (values.next(), values.next()) {
                (_, Some(_)) => Err(format!("it gives {wanted:?} twice")),
                (first, None) => Ok(first.map(|(_, value)| *value)),
            }
        };
        let known = ["checksum", "length", "location", "offset"];
        if let Some((other, _)) = tensor.external_data.iter().find(|(key, _)| !known.contains(key))
        {
            return Err(format!("external data have a key {other:?}, expected one of {known:?}"));
        }
        let number = |wanted: &str| {
            let wrong = |text| format!("external {wanted} is {text:?}, expected a number of bytes");
            key(wanted)?.map(|text| text.parse::<u64>().map_err(|_| wrong(text))).transpose()
        };
        let location = key("location")?.ok_or("its external data have no location")?;
        let (dims, kind) = (dims(tensor)?, element(tensor.data_type)?);
        // The number of values is limited.
        let needed = count(&dims)? * size(kind).unwrap_or_default();
        let len = number("length")?.unwrap_or(needed as u64);
        if len != needed as u64 {
            return Err(format!(
                "external length is {len}, but shape {dims:?} of {} needs {needed} bytes",
                kind.as_str_name()
            ));
        }
        let start = number("offset")?.unwrap_or(0);
        if start.checked_add(len).is_none_or(|end| end > MAX_BYTES) {
            return Err(format!("external offset {start} is beyond {MAX_BYTES} bytes"));
        }
        let piece = Piece { name: tensor.name, dims, kind, start, len: needed };
        self.files.entry(location).or_default().push(piece);
        Ok(())
    }

    /// Reads the tensors from files in `folder`.
    pub(super) fn read(
        self,
        folder: &Path,
        constants: &mut HashMap<String, Constant>,
    ) -> Result<Digests, Error> {
        let mut remaining = MAX_BYTES;
        let mut digests = Vec::with_capacity(self.files.len());
        for (location, mut pieces) in self.files {
            // By position; of two at one, the empty one first.
            pieces.sort_by_key(|piece| (piece.start, piece.len));
            let first = pieces.first().map_or("", |piece| piece.name);
            let refuse = |name: &str, reason: String| Error::Constant {
                name: name.into(),
                reason: format!("external data {location:?}: {reason}"),
            };
            let mut stream =
                Stream::open(folder, location).map_err(|reason| refuse(first, reason))?;
            remaining = remaining.checked_sub(stream.size).ok_or_else(|| {
                refuse(first, format!("external data have more than {MAX_BYTES} bytes"))
            })?;
            for piece in pieces {
                let constant = stream.piece(&piece).map_err(|reason| refuse(piece.name, reason))?;
                constants.insert(piece.name.to_owned(), constant);
            }
            digests.push(stream.finish().map_err(|reason| refuse(first, reason))?);
        }
        Ok(digests)
    }
}

/// A file read from front to back.
struct Stream {
    file: File,
    size: u64,
    position: u64,
    digest: Sha256,
    buffer: Vec<u8>,
}

// === impl Stream ===

impl Stream {
    fn open(folder: &Path, location: &str) -> Result<Self, String> {
        let path = inside(folder, location)?;
        // Before it is opened: opening a pipe waits for its other end.
        let described = std::fs::metadata(&path).map_err(|error| error.to_string())?;
        if !described.is_file() {
            return Err("is not a file".into());
        }
        let file = File::open(&path).map_err(|error| error.to_string())?;
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        Ok(Self { file, size, position: 0, digest: Sha256::new(), buffer: Vec::new() })
    }

    fn piece(&mut self, piece: &Piece<'_>) -> Result<Constant, String> {
        let end = piece.start + piece.len as u64;
        if end > self.size {
            let (start, size) = (piece.start, self.size);
            return Err(format!("bytes {start} to {end} are not in a file of {size} bytes"));
        }
        if piece.len > 0 {
            if piece.start < self.position {
                let start = piece.start;
                return Err(format!("the tensor at byte {start} overlaps the one before it"));
            }
            self.skip(piece.start)?;
        }
        self.take(piece.len)?;
        Constant::filled(piece.dims.clone(), Values::from_raw(piece.kind, &self.buffer)?)
    }

    /// Reads on to `position`, for the digest.
    fn skip(&mut self, position: u64) -> Result<(), String> {
        while self.position < position {
            self.take((position - self.position).min(CHUNK) as usize)?;
        }
        Ok(())
    }

    /// Fills the buffer with as many bytes.
    fn take(&mut self, len: usize) -> Result<(), String> {
        self.buffer.clear();
        self.buffer.resize(len, 0);
        self.file.read_exact(&mut self.buffer).map_err(|error| error.to_string())?;
        self.digest.update(&self.buffer);
        self.position += len as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<[u8; 32], String> {
        self.skip(self.size)?;
        Ok(self.digest.finalize().into())
    }
}

/// The path of a file that lies in `folder`, also after its links are followed.
fn inside(folder: &Path, location: &str) -> Result<PathBuf, String> {
    let named = |component| matches!(component, Component::Normal(_) | Component::CurDir);
    if location.is_empty() || !Path::new(location).components().all(named) {
        return Err("expected the path of a file in the model's folder".into());
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder = folder.canonicalize().map_err(|error| error.to_string())?;
    let path = folder.join(location).canonicalize().map_err(|error| error.to_string())?;
    match path.starts_with(&folder) {
        true => Ok(path),
        false => Err("leads out of the model's folder".into()),
    }
}

/// Size of all external files together, four gigabytes: more than any classifier's weights.
const MAX_BYTES: u64 = 1 << 32;

/// Read at once where nothing is kept.
const CHUNK: u64 = 1 << 20;
