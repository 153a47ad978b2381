// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The NIC's port: has at most one frontend, and shows it the link.
//!
//! # The link
//! In the device attachment the link is a bit of config space: the frontend is told that it has
//! changed. In the netdev attachment the frontend owns config space and takes the link to be down
//! while it has no backend: so the port drops it and stops listening, and listens again when the
//! link comes up. A frontend that plugs in while the link is down is let through the handshake,
//! which QEMU waits for at start, and dropped when its driver starts. It would come back ten times a
//! second, and show its guest a carrier for a moment each time; so the port listens again only when
//! that process has ended, and the next frontend is one that starts.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::datapath::Dataplane;
use crate::nic::events::{Event, Subscription};
use crate::nic::{Attachment, Nic};

use super::connection::{Connection, Status};
use super::door::Door;

pub use super::door::Source;

/// The port, as a subscriber of the control thread.
#[derive(Debug)]
pub struct Port {
    nic: Arc<Nic>,
    dataplane: Arc<Dataplane>,
    events: Subscription,
    /// Shut when a frontend was dropped because the link is down: the next would be, too.
    door: Door,
    /// The process of that frontend, until it ends.
    dropped: Option<OwnedFd>,
    connection: Option<Connection>,
    watched: HashMap<RawFd, EventSet>,
    on_end: OnEnd,
}

/// Called when the last frontend that could come has gone.
pub struct OnEnd(pub Box<dyn Fn() + Send>);

impl std::fmt::Debug for OnEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnEnd")
    }
}

impl Port {
    /// A port that takes frontends from `source`.
    pub fn new(
        source: Source,
        nic: Arc<Nic>,
        dataplane: Arc<Dataplane>,
        on_end: OnEnd,
    ) -> io::Result<Self> {
        let (door, connected) = Door::new(source)?;
        let mut port = Port {
            events: nic.events().subscribe()?,
            nic,
            dataplane,
            door,
            dropped: None,
            connection: None,
            watched: HashMap::new(),
            on_end,
        };
        if let Some(stream) = connected {
            port.connect(stream)?;
        }
        // The link may have been set before anybody listened to its events.
        port.dataplane.link_changed();
        Ok(port)
    }

    fn connect(&mut self, stream: UnixStream) -> io::Result<()> {
        let connection = Connection::new(stream, self.nic.clone(), self.dataplane.clone())?;
        log::info!("{}frontend connected", self.nic.label());
        self.connection = Some(connection);
        Ok(())
    }

    /// Gives the NIC to a visitor that has spoken.
    fn take(&mut self, stream: UnixStream, ops: &mut EventOps<'_>) -> io::Result<()> {
        // If it cannot be served it is dropped there.
        self.unwatch(stream.as_raw_fd(), ops);
        self.connect(stream)
    }

    fn pump(&mut self, hung_up: bool, ops: &mut EventOps<'_>) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        match connection.pump(hung_up) {
            Ok(Status::Open) => {
                let starts = connection.has_memory();
                if starts && !self.nic.link_up() && self.shows_link_by_socket() {
                    self.unplug(ops);
                }
            }
            Ok(Status::Closed) => self.close(ops),
            Err(e) => {
                log::warn!("{}the frontend is dropped: {e}", self.nic.label());
                self.close(ops);
            }
        }
    }

    fn shows_link_by_socket(&self) -> bool {
        let attachment = self.connection.as_ref().and_then(Connection::attachment);
        attachment == Some(Attachment::Netdev)
    }

    fn link_changed(&mut self, up: bool, ops: &mut EventOps<'_>) {
        self.dataplane.link_changed();
        if up {
            self.let_in(ops);
        } else if self.shows_link_by_socket() {
            self.unplug(ops);
        }
        if let Some(connection) = &mut self.connection
            && connection.attachment() != Some(Attachment::Netdev)
        {
            connection.config_changed();
        }
    }

    /// Drops the frontend, and takes no other as long as its process is there, if that can be seen.
    fn unplug(&mut self, ops: &mut EventOps<'_>) {
        let pid = self.nic.frontend().and_then(|info| info.pid);
        self.close(ops);
        let process = pid
            .and_then(Pid::from_raw)
            .map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        if let Some(Err(Errno::SRCH)) = process {
            return;
        }
        self.dropped = process.and_then(Result::ok);
        self.door.shut();
    }

    /// Takes frontends again.
    fn let_in(&mut self, ops: &mut EventOps<'_>) {
        if let Some(process) = self.dropped.take() {
            self.unwatch(process.as_raw_fd(), ops);
        }
        self.door.open();
    }

    fn close(&mut self, ops: &mut EventOps<'_>) {
        if let Some(connection) = self.connection.take() {
            // Before the descriptors are closed: their numbers will mean others.
            for (fd, _, _) in connection.interests() {
                self.unwatch(fd, ops);
            }
            drop(connection);
            log::info!("{}frontend disconnected", self.nic.label());
            if self.door.is_over() {
                (self.on_end.0)();
            }
        }
    }

    fn unwatch(&mut self, fd: RawFd, ops: &mut EventOps<'_>) {
        if self.watched.remove(&fd).is_some()
            && let Err(e) = ops.remove(Events::empty_raw(fd))
        {
            log::error!("cannot stop watching a socket: {e}");
        }
    }

    /// Watches what there is to watch now.
    fn watch(&mut self, ops: &mut EventOps<'_>) {
        for gone in self.door.leaving() {
            self.unwatch(gone.as_raw_fd(), ops);
        }
        let connection = self.connection.as_ref().map(Connection::interests);
        let wanted: Vec<_> = connection
            .unwrap_or_default()
            .into_iter()
            .chain(self.door.watched().map(|fd| (fd, true, false)))
            .chain([(self.events.as_fd().as_raw_fd(), true, false)])
            .chain((self.dropped.iter()).map(|process| (process.as_raw_fd(), true, false)))
            .collect();
        for (fd, read, write) in wanted {
            let mut set = EventSet::empty();
            set.set(EventSet::IN, read);
            set.set(EventSet::OUT, write);
            let result = match self.watched.insert(fd, set) {
                None => ops.add(Events::new_raw(fd, set)),
                Some(was) if was != set => ops.modify(Events::new_raw(fd, set)),
                Some(_) => Ok(()),
            };
            if let Err(e) = result {
                log::error!("cannot watch a socket: {e}");
            }
        }
    }
}

impl MutEventSubscriber for Port {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd = events.fd();
        if fd == self.events.as_fd().as_raw_fd() {
            for event in self.events.take() {
                match event {
                    Event::LinkChanged { up } => self.link_changed(up, ops),
                    Event::UplinkChanged { up: true } => self.dataplane.uplink_changed(),
                    _ => {}
                }
            }
        } else if (self.dropped.iter()).any(|process| process.as_raw_fd() == fd) {
            self.let_in(ops);
        } else if self.door.watched().any(|watched| watched == fd) {
            // A frontend that is started anew may be quicker than the news that the old one ended.
            if self.connection.as_ref().is_some_and(Connection::is_gone) {
                self.close(ops);
            }
            let free = self.connection.is_none();
            if let Some(stream) = self.door.ready(fd, free)
                && let Err(e) = self.take(stream, ops)
            {
                log::error!("a frontend cannot be served: {e}");
            }
        } else {
            let hung_up = events
                .event_set()
                .intersects(EventSet::HANG_UP | EventSet::ERROR);
            self.pump(hung_up, ops);
        }
        self.watch(ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.watch(ops);
    }
}
