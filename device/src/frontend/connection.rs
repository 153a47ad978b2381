// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One frontend: its socket, the relay, and the crate's daemon on the other side of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::datapath::Dataplane;
use crate::nic::{Attachment, FrontendInfo, Nic};

use super::backend::Backend;
use super::endpoint::{Endpoint, Incoming, send};
use super::relay::{Frame, Relay};
use super::vring::RingHost;

/// Messages passed on in one go, so that a chatty frontend leaves the control thread some time.
const BURST: usize = 64;

/// Whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Open,
    /// One of the sides has closed.
    Closed,
}

/// A connected frontend.
pub struct Connection {
    nic: Arc<Nic>,
    host: Arc<RingHost>,
    frontend: Endpoint,
    daemon_end: Option<Endpoint>,
    relay: Relay,
    daemon: VhostUserDaemon<Backend>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Plugs the NIC into the frontend at the other end of `stream`.
    pub fn new(stream: UnixStream, nic: Arc<Nic>, dataplane: Arc<Dataplane>) -> io::Result<Self> {
        let pid = rustix::net::sockopt::socket_peercred(&stream)
            .ok()
            .map(|peer| peer.pid.as_raw_nonzero().get());
        let host = RingHost::new(dataplane, nic.clone());
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Backend::new(host.clone());
        let mut daemon = host
            .make_rings(|| VhostUserDaemon::new("vhost-user".into(), backend, memory))
            .map_err(|e| io::Error::other(e.to_string()))?;
        let daemon_end = Endpoint::new(start(&mut daemon)?)?;
        let frontend = Endpoint::new(stream)?;
        nic.set_frontend(Some(FrontendInfo {
            attachment: None,
            pid,
            features: 0,
            rings_active: 0,
        }));
        let relay = Relay::default();
        Ok(Connection {
            nic,
            host,
            frontend,
            daemon_end: Some(daemon_end),
            relay,
            daemon,
        })
    }

    /// The attachment, once the frontend's messages have told.
    pub fn attachment(&self) -> Option<Attachment> {
        self.relay.attachment()
    }

    /// Whether the frontend has handed over guest memory: a driver is about to start.
    pub fn has_memory(&self) -> bool {
        self.relay.has_memory()
    }

    /// Both sockets, each with whether to watch it for input and for output.
    pub fn interests(&self) -> [Option<(RawFd, bool, bool)>; 2] {
        let Some(daemon_end) = &self.daemon_end else {
            return [None, None];
        };
        let one = |end: &Endpoint, other: &Endpoint| {
            Some((end.as_fd().as_raw_fd(), other.has_room(), end.is_waiting()))
        };
        [
            one(&self.frontend, daemon_end),
            one(daemon_end, &self.frontend),
        ]
    }

    /// Passes on what has come, both ways.
    pub fn pump(&mut self) -> io::Result<Status> {
        let Some(daemon_end) = &mut self.daemon_end else {
            return Ok(Status::Closed);
        };
        let known = self.relay.attachment();
        for _ in 0..BURST {
            if !daemon_end.has_room() {
                break;
            }
            match self.frontend.read()? {
                Incoming::Frame(frame) => {
                    for frame in self.relay.from_frontend(frame) {
                        daemon_end.push(frame);
                    }
                }
                Incoming::Nothing => break,
                Incoming::Closed => return Ok(Status::Closed),
            }
            daemon_end.flush()?;
        }
        daemon_end.flush()?;
        while self.frontend.has_room() {
            match daemon_end.read()? {
                Incoming::Frame(frame) => self.frontend.push(frame),
                Incoming::Nothing => break,
                Incoming::Closed => {
                    // The last words may explain it to the frontend.
                    self.frontend.flush()?;
                    return Ok(Status::Closed);
                }
            }
        }
        self.frontend.flush()?;
        if known != self.relay.attachment() {
            let attachment = self.relay.attachment();
            self.nic
                .update_frontend(|info| info.attachment = attachment);
        }
        Ok(Status::Open)
    }

    /// Tells the driver that config space has changed, if a driver runs: QEMU does not survive the
    /// message otherwise.
    pub fn config_changed(&self) -> io::Result<()> {
        let running = self
            .nic
            .frontend()
            .is_some_and(|info| info.rings_active > 0);
        match self.relay.backend_channel() {
            Some(channel) if running => {
                send(channel, &Frame::config_change().bytes, &[])?;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The daemon's thread ends when its socket does.
        self.daemon_end = None;
        match self.daemon.wait() {
            Ok(())
            | Err(DaemonError::HandleRequest(
                VhostError::Disconnected | VhostError::PartialMessage,
            )) => {}
            Err(e) => log::warn!("the frontend was dropped: {e}"),
        }
        self.host.close();
        self.nic.set_frontend(None);
    }
}

/// Starts the daemon on a socket and gives the other end. The crate takes connections only from a
/// listener, so one is made, in a directory that nobody else can look into, and is gone again when
/// this returns.
fn start(daemon: &mut VhostUserDaemon<Backend>) -> io::Result<UnixStream> {
    let directory = tempfile::Builder::new().prefix("ferronic-").tempdir()?;
    let path = directory.path().join("vhost-user");
    let mut listener = Listener::new(&path, false).map_err(|e| io::Error::other(e.to_string()))?;
    let ours = UnixStream::connect(&path)?;
    daemon
        .start(&mut listener)
        .map_err(|e| io::Error::other(e.to_string()))?;
    Ok(ours)
}
