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
use super::endpoint::{Endpoint, Incoming, hung_up, send};
use super::host::RingHost;
use super::relay::{Frame, Relay};

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
    rings: Rings,
    frontend: Endpoint,
    daemon_end: Endpoint,
    relay: Relay,
    daemon: VhostUserDaemon<Backend>,
    /// The driver has not been told yet that config space is not what it was.
    config_changed: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}

/// The rings of a connection, which they do not outlive. Rings and host know each other, so that
/// they would also keep each other in memory.
#[derive(Debug)]
struct Rings(Arc<RingHost>);

impl Drop for Rings {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Connection {
    /// Plugs the NIC into the frontend at the other end of `stream`.
    pub fn new(stream: UnixStream, nic: Arc<Nic>, dataplane: Arc<Dataplane>) -> io::Result<Self> {
        let pid = peer_pid(&stream);
        let queue_count = dataplane.queue_count();
        let rings = Rings(RingHost::new(dataplane, nic.clone())?);
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Backend::new(rings.0.clone());
        let mut daemon = rings
            .0
            .make_rings(|| VhostUserDaemon::new("vhost-user".into(), backend, memory))
            .map_err(|e| io::Error::other(e.to_string()))?;
        let frontend = Endpoint::new(stream)?;
        let ours = start(&mut daemon)?;
        rings.0.lifeline.tie(ours.try_clone()?);
        let daemon_end = Endpoint::new(ours)?;
        nic.set_frontend(Some(FrontendInfo {
            attachment: None,
            pid,
            features: 0,
            rings_active: 0,
        }));
        Ok(Connection {
            nic,
            rings,
            frontend,
            daemon_end,
            relay: Relay::new(queue_count),
            daemon,
            config_changed: false,
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

    /// Whether the frontend has closed, be it that some of what it said is not read yet.
    pub fn is_gone(&self) -> bool {
        hung_up(&self.frontend)
    }

    /// What to watch, each with whether for input and for output: both sockets, and what tells that
    /// rings have started.
    pub fn interests(&self) -> Vec<(RawFd, bool, bool)> {
        let one = |end: &Endpoint, other: &Endpoint| {
            (end.as_fd().as_raw_fd(), other.has_room(), end.is_waiting())
        };
        vec![
            one(&self.frontend, &self.daemon_end),
            one(&self.daemon_end, &self.frontend),
            (self.rings.0.started.as_raw_fd(), true, false),
        ]
    }

    /// Passes on what has come, both ways. `closed` says that a side has closed.
    pub fn pump(&mut self, closed: bool) -> io::Result<Status> {
        let known = self.relay.attachment();
        let status = self.pass_on()?;
        if known != self.relay.attachment() {
            let attachment = self.relay.attachment();
            self.nic
                .update_frontend(|info| info.attachment = attachment);
        }
        // A side that has closed and is not read because the other takes no more would be reported
        // over and over, and what it has said last is of no use.
        let stuck = !self.daemon_end.has_room() || !self.frontend.has_room();
        if closed && stuck {
            return Ok(Status::Closed);
        }
        self.tell_config_change();
        Ok(status)
    }

    fn pass_on(&mut self) -> io::Result<Status> {
        for _ in 0..BURST {
            if !self.daemon_end.has_room() {
                break;
            }
            match self.frontend.read()? {
                Incoming::Frame(frame) => {
                    let frames = self.relay.from_frontend(frame);
                    for frame in frames.map_err(io::Error::other)? {
                        self.daemon_end.push(frame);
                    }
                }
                Incoming::Nothing => break,
                Incoming::Closed => return Ok(Status::Closed),
            }
            self.daemon_end.flush()?;
        }
        self.daemon_end.flush()?;
        while self.frontend.has_room() {
            match self.daemon_end.read()? {
                Incoming::Frame(frame) => self.frontend.push(self.relay.from_crate(frame)),
                Incoming::Nothing => break,
                Incoming::Closed => {
                    // The last words may explain it to the frontend.
                    self.frontend.flush()?;
                    return Ok(Status::Closed);
                }
            }
        }
        self.frontend.flush()?;
        Ok(Status::Open)
    }

    /// Tells the driver that config space has changed, as soon as a driver runs: QEMU does not
    /// survive the message otherwise.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
        self.tell_config_change();
    }

    fn tell_config_change(&mut self) {
        self.rings.0.clear_started();
        if !self.config_changed || self.relay.attachment() != Some(Attachment::Device) {
            return;
        }
        let running = self
            .nic
            .frontend()
            .is_some_and(|info| info.rings_active > 0);
        if !running || self.relay.is_stopping() {
            return;
        }
        self.config_changed = false;
        let Some(channel) = self.relay.backend_channel() else {
            return;
        };
        if let Err(e) = send(channel, &Frame::config_change().bytes, &[]) {
            log::error!("the frontend cannot be told of the link: {e}");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The daemon's thread ends when its socket does. Closing would not do: the lifeline has
        // the socket, too. That it is shut down already is no harm.
        let _ = rustix::net::shutdown(self.daemon_end.as_fd(), rustix::net::Shutdown::Both);
        match self.daemon.wait() {
            Ok(())
            | Err(DaemonError::HandleRequest(
                VhostError::Disconnected | VhostError::PartialMessage,
            )) => {}
            Err(e) => log::warn!("the frontend was dropped: {e}"),
        }
        self.rings.0.close();
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

/// The process at the other end; `None` if it has no number here, as from another container.
fn peer_pid(stream: &UnixStream) -> Option<i32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers are to locals of the sizes that are given; rustix's call cannot be used,
    // since it makes a pid of 0 a value that its type does not have.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    (result == 0 && peer.pid > 0).then_some(peer.pid)
}
