//! The place of the artifact.

use std::fmt;
use std::path::PathBuf;

use url::Url;

/// A file, or an object in storage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// On this machine.
    File(PathBuf),
    /// In S3, or in what speaks its protocol.
    S3 {
        /// The bucket.
        bucket: String,
        /// The object's key, as URLs spell it.
        key: String,
    },
}

// === impl Location ===

impl Location {
    /// A path, `file:///PATH` or `s3://BUCKET/KEY`; `None`: none of them.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if !text.contains("://") {
            return (!text.is_empty()).then(|| Self::File(text.into()));
        }
        let url = Url::parse(text).ok()?;
        if url.query().is_some() || url.fragment().is_some() {
            return None;
        }
        match url.scheme() {
            "file" => url.to_file_path().ok().map(Self::File),
            "s3" => {
                let key = url.path().strip_prefix('/').filter(|key| !key.is_empty())?;
                let plain = url.username().is_empty() && url.password().is_none();
                let bucket = url.host_str().filter(|_| plain && url.port().is_none())?;
                Some(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
        }
    }
}
