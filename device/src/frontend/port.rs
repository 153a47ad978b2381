// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The NIC's port: listens on the vhost-user socket and has at most one frontend.
//!
//! # The link
//! In the device attachment the link is a bit of config space: the frontend is told that it has
//! changed. In the netdev attachment the frontend owns config space and takes the link to be down
//! while it has no backend: so the port drops it and stops listening, and listens again when the
//! link comes up. A frontend that plugs in while the link is down is let through the handshake,
//! which QEMU waits for at start, and dropped when its driver starts.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::datapath::Dataplane;
use crate::nic::events::{Event, Subscription};
use crate::nic::{Attachment, Nic};
use crate::socket::{Access, Bound, bind};

use super::connection::{Connection, Status};

/// Where frontends come from.
#[derive(Debug)]
pub enum Source {
    /// We listen, and own the file.
    Bound(Bound),
    /// We listen on what we were given.
    Listener(UnixListener),
    /// The frontend is connected already. When it goes, nobody can come after it.
    Connected(UnixStream),
}

#[derive(Debug)]
enum Listening {
    /// At a path of ours: listening is given up while the link is down.
    Path { path: PathBuf, bound: Option<Bound> },
    /// On a socket that we cannot make again: frontends are turned away while the link is down.
    Inherited(UnixListener),
    /// Nobody can come.
    Over,
}

impl Listening {
    fn listener(&self) -> Option<&UnixListener> {
        match self {
            Listening::Path { bound, .. } => bound.as_ref().map(|bound| &bound.listener),
            Listening::Inherited(listener) => Some(listener),
            Listening::Over => None,
        }
    }
}

/// The port, as a subscriber of the control thread.
#[derive(Debug)]
pub struct Port {
    nic: Arc<Nic>,
    dataplane: Arc<Dataplane>,
    events: Subscription,
    listening: Listening,
    connection: Option<Connection>,
    /// The last frontend was dropped because the link is down: the next would be, too.
    unplugged: bool,
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
        let mut port = Port {
            events: nic.events().subscribe()?,
            nic,
            dataplane,
            listening: Listening::Over,
            connection: None,
            unplugged: false,
            watched: HashMap::new(),
            on_end,
        };
        match source {
            Source::Bound(bound) => {
                let path = bound.file.path().to_owned();
                port.listening = Listening::Path {
                    path,
                    bound: Some(bound),
                };
            }
            Source::Listener(listener) => {
                listener.set_nonblocking(true)?;
                port.listening = Listening::Inherited(listener);
            }
            Source::Connected(stream) => port.connect(stream)?,
        }
        // The link may have been set before anybody listened to its events.
        port.dataplane.link_changed();
        Ok(port)
    }

    fn connect(&mut self, stream: UnixStream) -> io::Result<()> {
        let connection = Connection::new(stream, self.nic.clone(), self.dataplane.clone())?;
        log::info!("frontend connected");
        self.connection = Some(connection);
        Ok(())
    }

    fn accept(&mut self) {
        let Some(Ok((stream, _))) = self.listening.listener().map(UnixListener::accept) else {
            return;
        };
        if self.connection.is_some() {
            log::warn!("a second frontend was turned away: the NIC is plugged in already");
        } else if !self.unplugged
            && let Err(e) = self.connect(stream)
        {
            log::error!("a frontend cannot be served: {e}");
        }
    }

    fn pump(&mut self, ops: &mut EventOps<'_>) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        match connection.pump() {
            Ok(Status::Open) => {
                let starts = connection.has_memory();
                if starts && !self.nic.link_up() && self.shows_link_by_socket() {
                    self.unplug(ops);
                }
            }
            Ok(Status::Closed) => self.close(ops),
            Err(e) => {
                log::warn!("the frontend is dropped: {e}");
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
            self.plug();
        } else if self.shows_link_by_socket() {
            self.unplug(ops);
        }
        if let Some(connection) = &self.connection
            && connection.attachment() == Some(Attachment::Device)
            && let Err(e) = connection.config_changed()
        {
            log::error!("the frontend cannot be told of the link: {e}");
        }
    }

    /// Drops the frontend and takes no other.
    fn unplug(&mut self, ops: &mut EventOps<'_>) {
        self.close(ops);
        self.unplugged = true;
        if let Some(fd) = self.listening.listener().map(AsRawFd::as_raw_fd) {
            self.unwatch(fd, ops);
        }
        if let Listening::Path { bound, .. } = &mut self.listening {
            *bound = None;
        }
    }

    /// Takes frontends again.
    fn plug(&mut self) {
        self.unplugged = false;
        if let Listening::Path { path, bound } = &mut self.listening
            && bound.is_none()
        {
            match bind(path, Access::Umask) {
                Ok(again) => *bound = Some(again),
                Err(e) => log::error!(
                    "cannot listen again: {e}; no frontend can come until `ferronic link down` \
                     and `up` succeed"
                ),
            }
        }
    }

    fn close(&mut self, ops: &mut EventOps<'_>) {
        if let Some(connection) = self.connection.take() {
            // Before the descriptors are closed: their numbers will mean others.
            for (fd, _, _) in connection.interests().into_iter().flatten() {
                self.unwatch(fd, ops);
            }
            drop(connection);
            log::info!("frontend disconnected");
            if matches!(self.listening, Listening::Over) {
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
        let input = |fd: RawFd| (fd, true, false);
        let connection = self
            .connection
            .as_ref()
            .map(Connection::interests)
            .unwrap_or_default();
        let wanted = connection
            .into_iter()
            .flatten()
            .chain(
                self.listening
                    .listener()
                    .map(|listener| input(listener.as_raw_fd())),
            )
            .chain([input(self.events.as_fd().as_raw_fd())]);
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
                if let Event::LinkChanged { up } = event {
                    self.link_changed(up, ops);
                }
            }
        } else if self
            .listening
            .listener()
            .is_some_and(|listener| listener.as_raw_fd() == fd)
        {
            self.accept();
        } else {
            self.pump(ops);
        }
        self.watch(ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.watch(ops);
    }
}
