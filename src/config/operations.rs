//! The settings of those who run the firewall: its audit log and its certificates.
//!
//! A certificate is only a path here; the code that uses it reads the file.

use std::path::PathBuf;

use serde::Deserialize;

use super::value::{count, file, invalid, required};
use super::{
    Audit, AuditEvents, AuditTarget, Identity, Origin, Quarantine, Result, Tls, UpstreamTls,
};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTls {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawUpstreamTls {
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawAudit {
    path: Option<PathBuf>,
    events: Option<AuditEvents>,
    scores: Option<bool>,
    rotate_bytes: Option<i64>,
    rotated_files: Option<i64>,
    salt_file: Option<PathBuf>,
    quarantine: RawQuarantine,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawQuarantine {
    directory: Option<PathBuf>,
    files: Option<i64>,
    bytes: Option<i64>,
}

// === impl RawTls ===

impl RawTls {
    pub(super) fn convert(self) -> Result<Option<Tls>> {
        let keys = ["tls.certificate", "tls.key"];
        let client_ca = optional("tls.client_ca", self.client_ca)?;
        match (identity(keys, self.certificate, self.key)?, client_ca) {
            (Some(identity), client_ca) => Ok(Some(Tls { identity, client_ca })),
            (None, None) => Ok(None),
            // Whoever asks for it believes that clients are checked.
            (None, Some(_)) => required("tls.certificate", None),
        }
    }
}

impl RawUpstreamTls {
    /// For the upstream at `url`, and for gRPC at `grpc_url`.
    pub(super) fn convert(
        self,
        url: &Origin,
        grpc_url: Option<&Origin>,
    ) -> Result<Option<UpstreamTls>> {
        let ca = optional("upstream.tls.ca", self.ca)?;
        let keys = ["upstream.tls.certificate", "upstream.tls.key"];
        let identity = identity(keys, self.certificate, self.key)?;
        let (key, url) = match grpc_url {
            Some(grpc_url) if grpc_url.is_secured() && !url.is_secured() => {
                ("upstream.grpc_url", grpc_url)
            }
            _ => ("upstream.url", url),
        };
        let written = format!("{:?}", url.to_string());
        match (url.is_secured(), ca) {
            (true, Some(ca)) => Ok(Some(UpstreamTls { ca, identity })),
            (true, None) => invalid(
                key,
                format!("{written} without upstream.tls.ca"),
                "upstream.tls.ca as well, a file with the authority's certificate",
            ),
            (false, None) if identity.is_none() => Ok(None),
            (false, _) => invalid(
                "upstream.url",
                format!("{written} with upstream.tls"),
                "an https:// URL where upstream.tls is set",
            ),
        }
    }
}

fn optional(key: &'static str, path: Option<PathBuf>) -> Result<Option<PathBuf>> {
    path.map(|path| file(key, Some(path))).transpose()
}

/// Both files or neither.
fn identity(
    keys: [&'static str; 2],
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<Identity>> {
    if certificate.is_none() && key.is_none() {
        return Ok(None);
    }
    Ok(Some(Identity { certificate: file(keys[0], certificate)?, key: file(keys[1], key)? }))
}

// === impl RawAudit ===

impl RawAudit {
    pub(super) fn convert(self) -> Result<Audit> {
        let target = match self.path {
            None => None,
            Some(path) if path.as_os_str() == "-" => Some(AuditTarget::Stdout),
            Some(path) => Some(AuditTarget::File(file("audit.path", Some(path))?)),
        };
        let quarantine = self.quarantine.convert()?;
        if quarantine.is_some() && target.is_none() {
            return invalid(
                "audit.quarantine.directory",
                "a path without audit.path",
                "audit.path as well: its lines tell what the files are",
            );
        }
        Ok(Audit {
            target,
            events: required("audit.events", self.events)?,
            scores: required("audit.scores", self.scores)?,
            rotate_bytes: count("audit.rotate_bytes", self.rotate_bytes)?,
            rotated_files: count("audit.rotated_files", self.rotated_files)?,
            salt_file: optional("audit.salt_file", self.salt_file)?,
            quarantine,
        })
    }
}

impl RawQuarantine {
    fn convert(self) -> Result<Option<Quarantine>> {
        let files = count("audit.quarantine.files", self.files)?;
        let bytes = count("audit.quarantine.bytes", self.bytes)?;
        let directory = self
            .directory
            .map(|path| file("audit.quarantine.directory", Some(path)))
            .transpose()?;
        Ok(directory.map(|directory| Quarantine { directory, files, bytes }))
    }
}
