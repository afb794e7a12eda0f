//! The pictures in a directory, and their labels.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// One picture to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) label: Option<usize>,
}

/// The pictures of a directory, sorted by name: flat, or in one directory per label, one picture of
/// each label in turn.
///
/// Labels are the names of the directories where all of them are numbers, and otherwise their
/// places in sorted order. Hidden files are left out.
pub(super) fn directory(path: &Path) -> Result<Vec<Entry>> {
    let children = children(path)?;
    if !children.iter().any(|child| child.is_dir()) {
        let mut entries = Vec::with_capacity(children.len());
        for child in children {
            entries.push(Entry { path: picture(child)?, label: None });
        }
        return Ok(entries);
    }
    if let Some(file) = children.iter().find(|child| !child.is_dir()) {
        let expected = "a directory, as others beside it are";
        return Err(Error::NotPicture { path: file.clone(), expected });
    }
    let numbers: Option<Vec<usize>> = children.iter().map(|child| number(child)).collect();
    // By number, so that 10 comes after 9.
    let mut labels = BTreeMap::new();
    for (index, child) in children.iter().enumerate() {
        let label = numbers.as_ref().map_or(index, |numbers| numbers[index]);
        labels.entry(label).or_insert_with(Vec::new).push(child);
    }
    let mut by_label = Vec::new();
    for (label, directories) in labels {
        let mut entries = Vec::new();
        for directory in directories {
            for file in self::children(directory)? {
                entries.push(Entry { path: picture(file)?, label: Some(label) });
            }
        }
        by_label.push(entries.into_iter());
    }
    // Dealt one of each label a round, so that a prefix is a fair sample.
    let mut entries = Vec::new();
    loop {
        let before = entries.len();
        entries.extend(by_label.iter_mut().filter_map(Iterator::next));
        if entries.len() == before {
            return Ok(entries);
        }
    }
}

/// The entries of a directory, without hidden files, sorted by name.
fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let fail = |source| Error::Read { path: path.to_owned(), source };
    let mut children = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            children.push(entry.path());
        }
    }
    children.sort();
    Ok(children)
}

fn number(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.parse().ok()
}

fn picture(path: PathBuf) -> Result<PathBuf> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if path.is_dir() || !PICTURES.contains(&extension.as_str()) {
        return Err(Error::NotPicture { path, expected: "a .png, .jpg or .jpeg file" });
    }
    Ok(path)
}

/// Extensions of pictures, lower case.
pub(super) const PICTURES: [&str; 3] = ["jpeg", "jpg", "png"];
