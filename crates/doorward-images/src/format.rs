//! What a name tells of a source.

use std::path::Path;

use super::listing;

/// The kind of source that a name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Directory,
    File(FileFormat),
    List,
}

/// The kind of a file that holds images itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileFormat {
    /// Not known by its name: its first bytes decide.
    Binary,
    Npy,
    Picture,
    Records,
}

// === impl Format ===

impl Format {
    pub(super) fn of(path: &Path) -> Self {
        if path.is_dir() {
            return Self::Directory;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let stem = name.strip_suffix(".gz").unwrap_or(&name);
        match stem.rsplit_once('.').map(|(_, extension)| extension) {
            Some("bin") => Self::File(FileFormat::Records),
            Some("npy") => Self::File(FileFormat::Npy),
            Some("lst" | "txt") => Self::List,
            Some(extension) if listing::PICTURES.contains(&extension) => {
                Self::File(FileFormat::Picture)
            }
            _ => Self::File(FileFormat::Binary),
        }
    }
}
