//! A file, readable for its owner alone.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::Cause;

#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
}

// === impl File ===

impl File {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, Cause> {
        match std::fs::read(&self.path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn check_writable(&self) -> Result<(), Cause> {
        if self.path.is_dir() {
            return Err(std::io::Error::from(ErrorKind::IsADirectory).into());
        }
        self.beside()?;
        Ok(())
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Cause> {
        let mut file = self.beside()?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }

    /// A file in the same folder, readable for its owner alone and gone unless it is persisted.
    fn beside(&self) -> std::io::Result<NamedTempFile> {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => NamedTempFile::new_in(parent),
            _ => NamedTempFile::new_in("."),
        }
    }
}
