//! The file that a scan writes, goes on from, and makes a cleaned list of.
//!
//! The first line says what was scanned with what, each further one is a [`Finding`]. A run that
//! finds such a file with the same first line goes on behind its last complete line.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Finding, Position, Tally};

/// The things that a scan's findings rest on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the program.
    pub doorward: String,
    /// SHA-256 of the ONNX file.
    pub model_digest: String,
    /// SHA-256 of the artifact's file.
    pub artifact_digest: String,
    /// The sources, as they were given.
    pub sources: Vec<String>,
    /// SHA-256 over the sources' files.
    pub sources_digest: String,
    /// The part of their images that is scanned, I/N.
    pub shard: String,
    /// The rule that says what is suspicious.
    pub rule: String,
    /// The share of clean inputs that the calibrated rule may turn away.
    pub max_false_rejection_rate: f64,
    /// The number of times the share of other labels an infected label gets of that.
    pub infected_budget: f64,
}

/// A scan's output, open behind what an earlier run found.
pub struct Output {
    path: PathBuf,
    file: BufWriter<File>,
    tally: Tally,
    next: Position,
}

// === impl Output ===

impl Output {
    /// Begins a file, or goes on with one that the same scan has begun.
    pub fn open(path: &Path, header: &Header) -> Result<Self, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let mut lines = Lines::new(path, BufReader::new(&file));
        let (mut tally, mut next) = (Tally::default(), Position::default());
        match lines.next()? {
            None => {}
            Some(first) => check_header(path, &first, header)?,
        }
        let begun = lines.number > 0;
        while let Some(finding) = lines.finding()? {
            tally.add(&finding);
            let source = header.sources.iter().position(|source| *source == finding.source);
            let source = source.ok_or_else(|| Error::NotOutput { path: path.to_owned() })?;
            next = Position { source, index: finding.index + 1 };
        }
        let complete = lines.complete;
        // An interrupted run may have left half a line.
        file.set_len(complete).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        let mut output = Self { path: path.to_owned(), file: BufWriter::new(file), tally, next };
        if !begun {
            output.line(header)?;
        }
        Ok(output)
    }

    /// The image to go on with.
    pub fn next(&self) -> Position {
        self.next
    }

    /// The totals of the findings in the file.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Appends findings.
    pub fn add(&mut self, findings: &[Finding]) -> Result<(), Error> {
        for finding in findings {
            self.line(finding)?;
            self.tally.add(finding);
        }
        self.file.flush().map_err(|source| Error::File { path: self.path.clone(), source })
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let failed = |source| Error::File { path: self.path.clone(), source };
        let text = serde_json::to_string(value).map_err(|error| failed(error.into()))?;
        writeln!(self.file, "{text}").map_err(failed)
    }
}

/// The path of an output's cleaned list: `OUTPUT.clean.txt`.
pub fn clean_list_path(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".clean.txt");
    name.into()
}

/// Writes the list of the images that are not suspicious, which is a source itself.
pub fn write_clean_list(output: &Path) -> Result<PathBuf, Error> {
    let list = clean_list_path(output);
    let failed = |source| Error::File { path: list.clone(), source };
    let folder = std::path::absolute(&list).map_err(failed)?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    // As other files of the user; a temporary file is its owner's alone otherwise.
    let readable = std::fs::Permissions::from_mode(0o666);
    let file = tempfile::Builder::new().permissions(readable).tempfile_in(folder);
    let mut file = BufWriter::new(file.map_err(failed)?);
    let read =
        File::open(output).map_err(|source| Error::File { path: output.to_owned(), source })?;
    let mut lines = Lines::new(output, BufReader::new(&read));
    // The header.
    lines.next()?;
    while let Some(finding) = lines.finding()? {
        if !finding.suspicious {
            writeln!(file, "{}", entry(&finding, folder)?).map_err(failed)?;
        }
    }
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&list).map_err(|error| failed(error.error))?;
    Ok(list)
}

/// The line that names a finding's image in a list in `folder`.
fn entry(finding: &Finding, folder: &Path) -> Result<String, Error> {
    let path = std::path::absolute(&finding.file)
        .map_err(|source| Error::File { path: finding.file.clone().into(), source })?;
    // Relative where it can be, so that a set moves with its list.
    let shown = path.strip_prefix(folder).unwrap_or(&path);
    let name = shown.to_str().filter(|name| !name.contains(['\t', '\n', '\r']));
    let mut line = name.ok_or_else(|| Error::Name { path: path.clone() })?.to_owned();
    match finding.number {
        Some(number) => line.push_str(&format!("#{number}")),
        // Or what stands behind the `#` in a picture's name would be taken for an index.
        None if line.contains('#') => line.push_str("#0"),
        None => {}
    }
    if let Some(label) = finding.label {
        line.push_str(&format!("\t{label}"));
    }
    Ok(line)
}

fn check_header(path: &Path, line: &[u8], expected: &Header) -> Result<(), Error> {
    let Ok(got) = serde_json::from_slice::<Header>(line) else {
        return Err(Error::NotOutput { path: path.to_owned() });
    };
    let fields = |header: &Header| serde_json::to_value(header).unwrap_or_default();
    let (got, expected) = (fields(&got), fields(expected));
    let differs =
        expected.as_object().into_iter().flatten().find(|(key, value)| got[*key] != **value);
    match differs {
        None => Ok(()),
        Some((key, value)) => Err(Error::Other {
            path: path.to_owned(),
            key: key.clone(),
            got: got[key].to_string(),
            expected: value.to_string(),
        }),
    }
}

/// The complete lines of an output.
struct Lines<'a, R> {
    path: &'a Path,
    reader: R,
    /// Lines read.
    number: usize,
    /// Bytes up to the end of the last complete line.
    complete: u64,
}

impl<'a, R: BufRead> Lines<'a, R> {
    fn new(path: &'a Path, reader: R) -> Self {
        Self { path, reader, number: 0, complete: 0 }
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut line = Vec::new();
        let read = self.reader.read_until(b'\n', &mut line);
        read.map_err(|source| Error::File { path: self.path.to_owned(), source })?;
        if line.pop() != Some(b'\n') {
            return match (self.number, line.first()) {
                // Without a single whole line this may be anybody's file.
                (0, Some(first)) if *first != b'{' => {
                    Err(Error::NotOutput { path: self.path.to_owned() })
                }
                _ => Ok(None),
            };
        }
        self.number += 1;
        self.complete += line.len() as u64 + 1;
        Ok(Some(line))
    }

    fn finding(&mut self) -> Result<Option<Finding>, Error> {
        let Some(line) = self.next()? else { return Ok(None) };
        let finding = serde_json::from_slice(&line).map_err(|source| Error::Line {
            path: self.path.to_owned(),
            line: self.number,
            source,
        })?;
        Ok(Some(finding))
    }
}
