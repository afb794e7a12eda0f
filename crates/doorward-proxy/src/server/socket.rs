//! Sockets that listen: TCP, or Unix.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::security::Stream;
use crate::address::Address;

/// A bound socket.
#[derive(Debug)]
pub enum Socket {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket and its file.
    Unix(UnixListener, PathBuf),
}

/// A connection.
pub(super) struct Accepted {
    pub(super) stream: Box<dyn Stream>,
    /// The peer, over TCP.
    pub(super) peer: Option<SocketAddr>,
}

/// The folder of the socket says who may connect, as anybody on the machine may connect to a TCP
/// port of it: containers of one pod have users of their own.
const MODE: u32 = 0o666;

// === impl Socket ===

impl Socket {
    /// Binds; port 0 takes a free one, and the socket of a process that was killed is replaced.
    pub(super) async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Address::Unix(path) => {
                if is_stale(path).await? {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, Permissions::from_mode(MODE))?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    pub(super) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(_, path) => Ok(Address::Unix(path.clone())),
        }
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Accepted::tcp(stream, peer)
            }
            Self::Unix(listener, _) => Accepted::unix(listener.accept().await?.0),
        })
    }

    /// A connection that waits in the system's backlog, of which the runtime may not know yet.
    /// Closing the socket resets those that are there.
    pub(super) fn accept_waiting(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                // The copy shares the socket, and that it never blocks.
                let listener = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?);
                let (stream, peer) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Accepted::tcp(TcpStream::from_std(stream)?, peer))
            }
            Self::Unix(listener, _) => {
                let listener =
                    std::os::unix::net::UnixListener::from(listener.as_fd().try_clone_to_owned()?);
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Accepted::unix(UnixStream::from_std(stream)?))
            }
        }
    }
}

// === impl Accepted ===

impl Accepted {
    fn tcp(stream: TcpStream, peer: SocketAddr) -> Self {
        // Without it an answer in two segments waits 40 ms for a delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        Self { stream: Box::new(stream), peer: Some(peer) }
    }

    fn unix(stream: UnixStream) -> Self {
        Self { stream: Box::new(stream), peer: None }
    }
}

impl From<TcpListener> for Socket {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self
            && let Err(error) = std::fs::remove_file(&*path)
        {
            tracing::debug!(%error, path = %path.display(), "a socket's file cannot be removed");
        }
    }
}

/// True if the file is a socket that nobody listens on. Any other file stays, and is in the way.
async fn is_stale(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {
            let refused = UnixStream::connect(path).await.err().map(|error| error.kind());
            Ok(refused == Some(io::ErrorKind::ConnectionRefused))
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_in_the_backlog_are_taken_before_it_is_closed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let tcp = Address::Tcp("127.0.0.1:0".parse().expect("an address"));
        for address in [tcp, Address::Unix(path.clone())] {
            let socket = Socket::bind(&address).await.expect("bound");
            // This thread is the runtime's only one: nothing is accepted meanwhile.
            for _ in 0..3 {
                match socket.address().expect("an address") {
                    Address::Tcp(address) => {
                        drop(std::net::TcpStream::connect(address).expect("there"))
                    }
                    Address::Unix(path) => {
                        drop(std::os::unix::net::UnixStream::connect(path).expect("there"));
                    }
                }
            }
            for number in 0..3 {
                let accepted = socket.accept_waiting().expect("one that waits");
                assert_eq!(accepted.peer.is_some(), matches!(address, Address::Tcp(_)), "{number}");
            }
            let error = socket.accept_waiting().err().expect("no more");
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }
}
