//! Notices that the settings may have changed: SIGHUP, or another content of their file.
//!
//! Folders are watched, not files: an editor renames a new file over the old one, and Kubernetes
//! swaps a symbolic link beside it. Either would leave a watch of the file on what nobody reads any
//! more. Whatever happens in the folder, only another content counts as a change.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doorward_proxy::server::{Handle, reload_all};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::config::{self, Config, Settings};

/// Puts settings into effect when they change.
pub struct Reloader {
    /// `None`: the settings come from the environment alone.
    file: Option<PathBuf>,
    read: Arc<Read>,
    /// The settings that the process started with: keys that need a restart are named as long as
    /// they differ.
    started: Settings,
    hangup: Signal,
    /// The settings and the certificates that they name.
    files: Vec<PathBuf>,
    /// The digests of the files before `started` was read from them.
    seen: Vec<Option<[u8; 32]>>,
}

/// Tells of changes in the folders of files.
struct Folders {
    touched: Arc<Notify>,
    /// `None` where the system offers no watching; SIGHUP is left.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

/// Why changes of the settings cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings that the process starts with cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// Signals cannot be received.
    #[error("cannot wait for signals")]
    Signal(#[source] std::io::Error),
}

type Read = dyn Fn() -> config::Result<Settings> + Send + Sync;

/// Writers take more than one step.
const SETTLE: Duration = Duration::from_millis(100);

/// The sections that take effect without a restart.
const RELOADED: [&str; 5] = ["audit.", "limits.", "policy.", "tls.", "upstream.tls."];

// === impl Reloader ===

impl Reloader {
    /// Reads the settings by `read`, as every reload does. From now on SIGHUP does not end the
    /// process.
    pub fn new(
        file: Option<&Path>,
        read: impl Fn() -> config::Result<Settings> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let hangup = signal(SignalKind::hangup()).map_err(Error::Signal)?;
        let mut seen = contents(&Vec::from_iter(file.map(Path::to_owned)));
        let started = read()?;
        let files = files(file, &started.configs()?);
        seen.extend(contents(&files[seen.len()..]));
        Ok(Self {
            file: file.map(Path::to_owned),
            read: Arc::new(read),
            started,
            hangup,
            files,
            seen,
        })
    }

    /// The settings that the process starts with.
    pub fn settings(&self) -> &Settings {
        &self.started
    }

    /// Never returns; what it says is in the log and in `doorward_config_reloads_total`.
    pub async fn run(mut self, handles: Vec<Handle>) {
        let mut folders = Folders::new();
        folders.watch(&self.files);
        // The files may have changed since they were read.
        folders.touched.notify_one();
        loop {
            tokio::select! {
                received = self.hangup.recv() => {
                    if received.is_none() {
                        return;
                    }
                    tracing::info!("SIGHUP: reading the settings");
                }
                () = folders.touched.notified() => {
                    tokio::time::sleep(SETTLE).await;
                    if contents(&self.files) == self.seen {
                        continue;
                    }
                    tracing::info!("changed files: reading the settings");
                }
            }
            // Before they are read: what changes after that is another change.
            self.seen = contents(&self.files);
            let (read, apply) = (Arc::clone(&self.read), handles.clone());
            let applied = tokio::task::spawn_blocking(move || reload(&*read, &apply)).await;
            let applied = applied.unwrap_or_else(|panicked| Err(panicked.into()));
            // What is of the process the first one counts.
            if let Some(handle) = handles.first() {
                handle.metrics().reloaded(applied.is_ok());
            }
            match applied {
                Ok((settings, configs)) => {
                    self.follow(&configs, &mut folders);
                    tracing::info!("the settings are in effect");
                    self.name_ignored(&settings);
                }
                Err(error) => {
                    let error = &*error as &dyn std::error::Error;
                    tracing::error!(error, "the settings stay as they were");
                }
            }
        }
    }

    /// Other settings may name other files.
    fn follow(&mut self, configs: &[Config], folders: &mut Folders) {
        let files = files(self.file.as_deref(), configs);
        if files != self.files {
            folders.watch(&files);
            self.files = files;
            // They may have changed before they were watched, so they are read once more.
            self.seen.clear();
            folders.touched.notify_one();
        }
    }

    fn name_ignored(&self, settings: &Settings) {
        let mut changed = self.started.differences(settings);
        changed.retain(|key| !RELOADED.iter().any(|section| key.starts_with(section)));
        if !changed.is_empty() {
            let keys = changed.join(", ");
            tracing::warn!(keys, "these settings take effect after a restart only");
        }
    }
}

// === impl Folders ===

impl Folders {
    fn new() -> Self {
        let touched = Arc::new(Notify::new());
        let notify = Arc::clone(&touched);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| writes(event.kind)) {
                notify.notify_one();
            }
        });
        let watcher = watcher.inspect_err(unnoticed).ok();
        Self { touched, watcher, watched: BTreeSet::new() }
    }

    fn watch(&mut self, files: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else { return };
        for file in files {
            let folder = match file.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            if self.watched.contains(folder) {
                continue;
            }
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(folder.to_owned());
                }
                Err(error) => unnoticed(&error),
            }
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn reload(read: &Read, handles: &[Handle]) -> Result<(Settings, Vec<Config>), Failure> {
    let settings = read()?;
    let configs = settings.configs()?;
    let servers: Vec<_> = configs.iter().map(|config| config.server.clone()).collect();
    reload_all(handles, &servers)?;
    Ok((settings, configs))
}

/// Reading is an event too, and would follow itself for ever.
fn writes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

fn unnoticed(error: &notify::Error) {
    tracing::warn!(%error, "changes of files go unnoticed: send SIGHUP after one");
}

/// The file of the settings, if any, then the certificates and keys, which all models share.
fn files(file: Option<&Path>, configs: &[Config]) -> Vec<PathBuf> {
    let config = configs.first();
    let tls = config.and_then(|config| config.server.tls.as_ref());
    let upstream = config.and_then(|config| config.server.upstream.tls.as_ref());
    let identities = [tls.map(|tls| &tls.identity), upstream.and_then(|tls| tls.identity.as_ref())];
    let authorities = [tls.and_then(|tls| tls.client_ca.as_ref()), upstream.map(|tls| &tls.ca)];
    let identities = identities.into_iter().flatten();
    let named = identities.flat_map(|identity| [&identity.certificate, &identity.key]);
    let named = named.chain(authorities.into_iter().flatten());
    file.map(Path::to_owned).into_iter().chain(named.cloned()).collect()
}

/// A digest for each file: among them are keys, which are not kept. `None` where it cannot be read.
fn contents(files: &[PathBuf]) -> Vec<Option<[u8; 32]>> {
    files.iter().map(|file| Some(Sha256::digest(std::fs::read(file).ok()?).into())).collect()
}
