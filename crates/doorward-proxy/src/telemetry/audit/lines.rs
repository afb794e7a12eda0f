//! The end of audit lines: standard output, or a file that is bounded by renaming it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Error;
use crate::settings::{self, AuditTarget};

/// Takes whole lines.
#[derive(Debug)]
pub(super) enum Lines {
    File(Rotating),
    Stdout,
}

/// `audit.jsonl`, with older lines in `audit.jsonl.1`, still older ones in `audit.jsonl.2`, ...
#[derive(Debug)]
pub(super) struct Rotating {
    path: PathBuf,
    file: File,
    bytes: u64,
    rotate_bytes: u64,
    rotated_files: usize,
}

// === impl Lines ===

impl Lines {
    pub(super) fn open(target: &AuditTarget, settings: &settings::Audit) -> Result<Self, Error> {
        let AuditTarget::File(path) = target else { return Ok(Self::Stdout) };
        let opened = append(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes, file) = opened.map_err(|source| Error::Open {
            key: "audit.path",
            path: path.clone(),
            source,
        })?;
        Ok(Self::File(Rotating {
            path: path.clone(),
            file,
            bytes,
            rotate_bytes: settings.rotate_bytes.get() as u64,
            rotated_files: settings.rotated_files.get(),
        }))
    }

    /// Goes on where whoever wrote to the same file ended.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.open(),
            Self::Stdout => Ok(()),
        }
    }

    /// One line with its line break. After an error nothing of it is in the file.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write(line),
            Self::Stdout => io::stdout().lock().write_all(line),
        }
    }

    /// Sees to it that what was written outlives the machine.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.file.sync_data(),
            Self::Stdout => io::stdout().lock().flush(),
        }
    }
}

// === impl Rotating ===

impl Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.rotate_bytes {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(line) {
            // Half a line would spoil the next one. A disk that takes no line lets a file be cut.
            let _ = self.file.set_len(self.bytes);
            return Err(error);
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.rotated_files).rev() {
            rename(&self.numbered(number), &self.numbered(number + 1))?;
        }
        rename(&self.path, &self.numbered(1))?;
        self.open()
    }

    fn open(&mut self) -> io::Result<()> {
        self.file = append(&self.path)?;
        self.bytes = self.file.metadata()?.len();
        Ok(())
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

/// Only its owner may read what was asked of the model.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// A file that is not there needs no other name.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}
