// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The socket that the frontend comes through: made at a path, or handed over as a descriptor.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::frontend::port::Source;
use crate::socket::{Access, ListenError, bind};

/// Where the frontend comes from, as the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrontendAddress {
    /// `--socket-path`: listen there.
    Path(PathBuf),
    /// `--fd`: a socket that whoever started us has opened.
    Descriptor(RawFd),
}

impl fmt::Display for FrontendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrontendAddress::Path(path) => path.display().fmt(f),
            FrontendAddress::Descriptor(fd) => write!(f, "file descriptor {fd}"),
        }
    }
}

/// Why there is no socket for the frontend.
#[derive(Debug)]
pub enum SocketError {
    /// At the path.
    Listen(ListenError),
    /// The descriptor.
    Descriptor(RawFd, String),
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketError::Listen(e) => write!(f, "--socket-path: {e}"),
            SocketError::Descriptor(fd, what) => write!(
                f,
                "--fd {fd}: {what}; it must be a Unix stream socket, open in this process, \
                 listening or connected"
            ),
        }
    }
}

impl std::error::Error for SocketError {}

impl FrontendAddress {
    /// Opens the socket. With a descriptor, call it before anything else is opened: a number that
    /// was not inherited could otherwise turn out to be a descriptor of our own.
    pub fn open(&self) -> Result<Source, SocketError> {
        match self {
            FrontendAddress::Path(path) => bind(path, Access::Umask)
                .map(Source::Bound)
                .map_err(SocketError::Listen),
            FrontendAddress::Descriptor(fd) => {
                let explain = |what: String| SocketError::Descriptor(*fd, what);
                let socket = adopt(*fd).map_err(|e| explain(e.to_string()))?;
                sort_out(socket).map_err(explain)
            }
        }
    }
}

/// Takes over an inherited descriptor.
fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::other("0, 1 and 2 are the standard streams"));
    }
    // SAFETY: the descriptor is only asked for its flags, which fails if it is not open. If it is,
    // it was inherited: this runs on the only thread, before the process opens anything itself, so
    // nothing else owns it.
    let socket = unsafe {
        fcntl_getfd(BorrowedFd::borrow_raw(fd))?;
        OwnedFd::from_raw_fd(fd)
    };
    // Our children have no business with it.
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    Ok(socket)
}

fn sort_out(socket: OwnedFd) -> Result<Source, String> {
    match (socket_domain(&socket), socket_type(&socket)) {
        (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) => {}
        (Err(e), _) | (_, Err(e)) => return Err(e.to_string()),
        _ => return Err("it is another kind of socket".into()),
    }
    match socket_acceptconn(&socket) {
        Ok(true) => Ok(Source::Listener(UnixListener::from(socket))),
        Ok(false) => {
            let stream = UnixStream::from(socket);
            // Neither listening nor connected: nobody could ever come.
            stream.peer_addr().map_err(|e| e.to_string())?;
            Ok(Source::Connected(stream))
        }
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixDatagram;

    fn open(fd: RawFd) -> Result<Source, SocketError> {
        FrontendAddress::Descriptor(fd).open()
    }

    #[test]
    fn both_kinds_of_stream_socket_are_told_apart() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        let socket = open(stream.into_raw_fd()).unwrap();
        assert!(matches!(socket, Source::Connected(_)));
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let socket = open(listener.into_raw_fd()).unwrap();
        assert!(matches!(socket, Source::Listener(_)));
    }

    #[test]
    fn other_descriptors_are_refused() {
        let file = File::open("/dev/null").unwrap().into_raw_fd();
        let (datagram, _peer) = UnixDatagram::pair().unwrap();
        for fd in [0, 2, -1, 1_000_000, file, datagram.into_raw_fd()] {
            let error = open(fd).unwrap_err();
            assert!(
                error.to_string().contains("must be a Unix stream"),
                "{error}"
            );
        }
    }
}
