// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Socket files: making one, replacing a stale one, leaving a live one alone, and taking it away
//! at the end.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted. More than any number of clients we take, so that one that
/// is turned away learns so at once.
const BACKLOG: i32 = 64;

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The owner alone (mode 0600), whatever the umask.
    Owner,
    /// What the umask allows, so that a frontend of another user can be let in.
    Umask,
}

/// A listening socket and the file that leads to it.
#[derive(Debug)]
pub struct Bound {
    /// Non-blocking, and closed on exec.
    pub listener: UnixListener,
    /// Keep it as long as the listener.
    pub file: SocketFile,
}

/// A socket's file. Dropping it removes the file, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|now| now.dev() == self.device && now.ino() == self.inode);
        if ours && let Err(e) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// Why there is no socket at a path.
#[derive(Debug)]
pub enum ListenError {
    /// Somebody listens there.
    Live(PathBuf),
    /// What is there is no socket; it is left alone.
    NotASocket(PathBuf),
    /// Longer than the address of a Unix socket can be.
    TooLong(PathBuf),
    /// The system refuses.
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenError::Live(path) => write!(
                f,
                "{} is in use: another process is listening there; stop it (`ferronic quit` for a \
                 control socket) or choose another path",
                path.display()
            ),
            ListenError::NotASocket(path) => write!(
                f,
                "{} exists and is not a stream socket, so it is left alone; choose another path or \
                 remove it",
                path.display()
            ),
            ListenError::TooLong(path) => write!(
                f,
                "{} cannot be a socket's address: that is a path of at most 107 octets without \
                 NUL; choose a shorter one",
                path.display()
            ),
            ListenError::Io { path, doing, error } => {
                write!(f, "cannot {doing} {}: {error}", path.display())?;
                match error.kind() {
                    io::ErrorKind::NotFound => write!(f, "; does its directory exist?"),
                    io::ErrorKind::PermissionDenied => {
                        write!(f, "; choose a directory that you may write to")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ListenError::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Listens at `path`. A socket that nobody listens on any more is replaced.
pub fn bind(path: &Path, access: Access) -> Result<Bound, ListenError> {
    let failed = |doing: &'static str| {
        move |error: Errno| ListenError::Io {
            path: path.into(),
            doing,
            error: error.into(),
        }
    };
    let address = SocketAddrUnix::new(path).map_err(|_| ListenError::TooLong(path.into()))?;
    remove_stale(path, &address)?;

    let socket = new_socket().map_err(failed("make a socket for"))?;
    if access == Access::Owner {
        // On Linux the file gets the mode that the socket has when it is bound. So the file is
        // never open to others, and no other thread sees a changed umask.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("make private"))?;
    }
    rustix::net::bind(&socket, &address).map_err(|error| match error {
        Errno::ADDRINUSE => ListenError::Live(path.into()),
        error => failed("make the socket")(error),
    })?;
    let file = {
        let made = fs::symlink_metadata(path).map_err(|error| ListenError::Io {
            path: path.into(),
            doing: "examine the socket",
            error,
        })?;
        SocketFile {
            path: path.into(),
            device: made.dev(),
            inode: made.ino(),
        }
    };
    rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
    Ok(Bound {
        listener: UnixListener::from(socket),
        file,
    })
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let failed = |doing: &'static str, error: io::Error| ListenError::Io {
        path: path.into(),
        doing,
        error,
    };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("examine", e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.into()));
        }
        Ok(_) => {}
    }
    // The only sure sign of life is that a connection is taken, or would be if the backlog had
    // room.
    let probe = new_socket().map_err(|e| failed("make a socket for", e.into()))?;
    match rustix::net::connect(&probe, address) {
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::Live(path.into())),
        Err(Errno::PROTOTYPE) => Err(ListenError::NotASocket(path.into())),
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove the stale socket", e))
            }
            _ => {
                log::debug!("replaced the stale socket {}", path.display());
                Ok(())
            }
        },
        Err(e) => Err(failed("find out who listens on", e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        (dir, path)
    }

    #[test]
    fn private_from_the_start_and_gone_at_the_end() {
        let (_dir, path) = place();
        let bound = bind(&path, Access::Owner).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn stale_is_replaced_and_live_is_not() {
        let (_dir, path) = place();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let bound = bind(&path, Access::Umask).unwrap();
        assert!(matches!(
            bind(&path, Access::Owner),
            Err(ListenError::Live(_))
        ));
        assert!(path.exists());
        drop(bound);
    }

    #[test]
    fn what_is_no_stream_socket_is_left_alone() {
        let (_dir, path) = place();
        fs::write(&path, "precious").unwrap();
        let error = bind(&path, Access::Owner).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
        let _datagram = UnixDatagram::bind(&path).unwrap();
        let error = bind(&path, Access::Owner).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
    }

    #[test]
    fn a_file_that_took_our_place_is_not_removed() {
        let (_dir, path) = place();
        let bound = bind(&path, Access::Owner).unwrap();
        // Not removed and made again: the inode number could be the same then.
        let other = path.with_extension("other");
        fs::write(&other, "").unwrap();
        fs::rename(&other, &path).unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn impossible_paths_are_explained() {
        let (dir, _) = place();
        let long = dir.path().join("x".repeat(120));
        let error = bind(&long, Access::Owner).unwrap_err();
        assert!(error.to_string().contains("107"), "{error}");
        let error = bind(&dir.path().join("no/s"), Access::Owner).unwrap_err();
        assert!(error.to_string().contains("directory"), "{error}");
    }
}
