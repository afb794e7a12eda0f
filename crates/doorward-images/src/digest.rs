//! The digest of sources as they are stored.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::error::{Error, Result};

/// SHA-256 over the names and bytes of the files that sources consist of, hexadecimal.
///
/// `None` where a source is not there: an artifact can travel without its images. Pictures that a
/// list names are not followed, their list is.
pub fn digest_sources<P: AsRef<Path>>(sources: &[P]) -> Result<Option<String>> {
    let mut hash = Sha256::new();
    for source in sources {
        if !source.as_ref().exists() {
            return Ok(None);
        }
        let path = source.as_ref();
        digest_path(path, &mut hash)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    }
    Ok(Some(hex::encode(hash.finalize())))
}

fn digest_path(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    if path.is_dir() {
        let mut entries = std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| digest_path(entry, hash));
    }
    hash.update(path.metadata()?.len().to_le_bytes());
    let mut file = File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(()),
            len => hash.update(&block[..len]),
        }
    }
}
