// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Listening Unix sockets, bound to a path.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket, non-blocking, mode 0600, whose path is removed with it.
#[derive(Debug)]
pub struct BoundListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the path as bound: another process may have put its own there since.
    identity: (u64, u64),
}

impl BoundListener {
    /// Binds `path`. A socket that nobody listens on any more is replaced; a live one, and anything
    /// that is no socket, is not.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let fail = |what: &str, e: io::Error| {
            io::Error::new(e.kind(), format!("{what} {}: {e}", path.display()))
        };
        if let Ok(found) = fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                let e = io::Error::from(io::ErrorKind::AlreadyExists);
                return Err(fail("something that is no socket is at", e));
            }
            match UnixStream::connect(path) {
                Ok(_) => {
                    let e = io::Error::from(io::ErrorKind::AddrInUse);
                    return Err(fail("another process serves", e));
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)
                        .map_err(|e| fail("cannot replace the stale socket", e))?;
                }
                Err(e) => return Err(fail("cannot tell whether somebody serves", e)),
            }
        }
        // Bound beside its place and moved there when its mode is right, so that there is no moment
        // at which others can connect.
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}", std::process::id()));
        let aside = path.with_file_name(name);
        let bind = || {
            let listener = UnixListener::bind(&aside)?;
            fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))?;
            let meta = fs::symlink_metadata(&aside)?;
            fs::rename(&aside, path)?;
            listener.set_nonblocking(true)?;
            Ok((listener, (meta.dev(), meta.ino())))
        };
        let (listener, identity) = bind().map_err(|e| fail("cannot listen on", e))?;
        Ok(BoundListener {
            listener,
            path: path.to_owned(),
            identity,
        })
    }

    /// The socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for BoundListener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours && let Err(e) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_is_replaced_live_is_not_and_drop_removes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let bound = BoundListener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            BoundListener::bind(&path).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(bound);
        assert!(!path.exists());
        fs::write(&path, "no socket").unwrap();
        assert_eq!(
            BoundListener::bind(&path).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "no socket");
    }
}
