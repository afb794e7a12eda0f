//! Rejected inputs, kept for those who look into them: the newest ones, within bounds.

use std::collections::VecDeque;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Error;
use crate::settings;

/// A folder of `.npy` files, `[C, H, W]`, little-endian `f32`: the model's input as it was judged.
#[derive(Debug)]
pub(super) struct Quarantine {
    settings: settings::Quarantine,
    /// Name and bytes of each file, the oldest first.
    files: VecDeque<(String, u64)>,
    bytes: u64,
}

/// A row in quarantine.
#[derive(Debug)]
pub struct Kept {
    /// The request that it came with.
    pub request_id: String,
    /// Its place in there.
    pub row: usize,
    /// As it was judged, row-major CHW.
    pub values: Vec<f32>,
}

/// The newest rows of `len` values in quarantine, the newest first; what cannot be read is left
/// out.
pub fn newest(settings: &settings::Quarantine, count: usize, len: usize) -> Vec<Kept> {
    let Ok(folder) = std::fs::read_dir(&settings.directory) else { return Vec::new() };
    let names = folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(SUFFIX)).collect();
    // Names begin with their time.
    names.sort_unstable_by(|a, b| b.cmp(a));
    names.iter().take(count).filter_map(|name| read(settings, name, len)).collect()
}

fn read(settings: &settings::Quarantine, name: &str, len: usize) -> Option<Kept> {
    let (start, row) = name.strip_suffix(SUFFIX)?.rsplit_once('-')?;
    let (_, request_id) = start.split_once('-')?;
    let path = settings.directory.join(name);
    // Not a large file that somebody else put here.
    if path.metadata().ok()?.len() > (size_of::<f32>() * len) as u64 + 1024 {
        return None;
    }
    let npy = std::fs::read(path).ok()?;
    let (start, header) = npy.split_at_checked(MAGIC.len())?;
    let (length, rest) = header.split_first_chunk::<2>()?;
    let data = rest.get(usize::from(u16::from_le_bytes(*length))..)?;
    let (values, rest) = data.as_chunks::<4>();
    let whole = start == MAGIC && values.len() == len && rest.is_empty();
    let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let row = row.parse().ok()?;
    whole.then(|| Kept { request_id: request_id.to_owned(), row, values })
}

// === impl Quarantine ===

impl Quarantine {
    /// Makes the folder if it is not there; the files in it count.
    pub(super) fn open(settings: &settings::Quarantine) -> Result<Self, Error> {
        let listed = || -> io::Result<Vec<(String, u64)>> {
            DirBuilder::new().recursive(true).mode(0o700).create(&settings.directory)?;
            let mut files = Vec::new();
            for entry in std::fs::read_dir(&settings.directory)? {
                let entry = entry?;
                if let Ok(name) = entry.file_name().into_string()
                    && name.ends_with(SUFFIX)
                {
                    files.push((name, entry.metadata()?.len()));
                }
            }
            Ok(files)
        };
        let mut files = listed().map_err(|source| Error::Open {
            key: "audit.quarantine.directory",
            path: settings.directory.clone(),
            source,
        })?;
        // Names begin with their time.
        files.sort();
        let bytes = files.iter().map(|(_, bytes)| bytes).sum();
        Ok(Self { settings: settings.clone(), files: files.into(), bytes })
    }

    /// Counts the files again, which whoever used the folder before may have added to.
    pub(super) fn resume(&mut self) -> Result<(), Error> {
        *self = Self::open(&self.settings)?;
        Ok(())
    }

    /// Writes one row, and removes the oldest ones that it leaves no room for. The file's name.
    pub(super) fn store(
        &mut self,
        time: SystemTime,
        request_id: &str,
        row: usize,
        shape: [usize; 3],
        values: &[f32],
    ) -> io::Result<String> {
        let millis = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        // An id is a token of at most 128 letters, digits and -._: which a file's name may hold.
        let name = format!("{millis:013}-{request_id}-{row}{SUFFIX}");
        let npy = npy(shape, values);
        let bytes = npy.len() as u64;
        if bytes > self.settings.bytes.get() as u64 {
            let limit = self.settings.bytes;
            return Err(io::Error::other(format!(
                "an input takes {bytes} bytes, audit.quarantine.bytes allows {limit}"
            )));
        }
        while self.files.len() >= self.settings.files.get()
            || self.bytes + bytes > self.settings.bytes.get() as u64
        {
            self.remove_oldest()?;
        }
        let path = self.settings.directory.join(&name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        if let Err(error) = file.write_all(&npy) {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        self.files.push_back((name.clone(), bytes));
        self.bytes += bytes;
        Ok(name)
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        let Some((name, bytes)) = self.files.pop_front() else { return Ok(()) };
        self.bytes -= bytes;
        match std::fs::remove_file(self.settings.directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

const SUFFIX: &str = ".npy";

/// NumPy's format, version 1: a header padded to 64 bytes, then the values.
fn npy([channels, height, width]: [usize; 3], values: &[f32]) -> Vec<u8> {
    let mut header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({channels}, {height}, {width}), }}"
    );
    while !(MAGIC.len() + 2 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut npy = MAGIC.to_vec();
    npy.extend((header.len() as u16).to_le_bytes());
    npy.extend(header.as_bytes());
    npy.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    npy
}

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
