// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control socket's server: accepts clients on the control thread and hands them the NIC's
//! events.

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::SystemTime;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde_json::json;

use super::commands::{CommandError, Commands, event};
use super::connection::{Connection, Fate};
use crate::nic::events::Subscription;
use crate::socket::Bound;

/// Most clients at a time.
pub const MAX_CLIENTS: usize = 32;

/// What an event of the loop is about: these, or from [`FIRST_CLIENT`] a client's place.
const LISTENER: u32 = 0;
const NIC_EVENTS: u32 = 1;
const FIRST_CLIENT: u32 = 2;

/// The server, to be added to the control thread's event manager. Dropping it closes the socket and
/// removes its file.
#[derive(Debug)]
pub struct Server {
    /// First, so that the file is gone before the clients learn that we are: `ferronic quit` waits
    /// for that.
    bound: Bound,
    commands: Commands,
    events: Subscription,
    clients: [Option<Connection>; MAX_CLIENTS],
}

impl Server {
    /// A server on a socket of [`crate::socket::bind`].
    pub fn new(bound: Bound, commands: Commands) -> io::Result<Self> {
        Ok(Server {
            events: commands.events().subscribe()?,
            bound,
            commands,
            clients: [const { None }; MAX_CLIENTS],
        })
    }

    /// Takes in who waits.
    ///
    /// The listener is watched edge-triggered. A client that cannot be accepted, because the
    /// process has no file descriptor left, would otherwise keep it ready and the control thread
    /// spinning; so it waits until the next one comes or another goes.
    fn accept(&mut self, ops: &mut EventOps) {
        for _ in 0..MAX_CLIENTS {
            match self.bound.listener.accept() {
                Ok((stream, _)) => self.welcome(stream, ops),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    log::warn!("control: cannot accept a client now: {e}");
                    return;
                }
            }
        }
        // Others get their turn.
        self.look_again(ops);
    }

    /// Has the event loop tell us once more if clients wait: a changed watch is looked at anew.
    fn look_again(&self, ops: &mut EventOps) {
        if let Err(e) = ops.modify(self.watch_listener()) {
            log::error!("control: cannot watch the control socket: {e}");
        }
    }

    fn watch_listener(&self) -> Events {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        Events::with_data(&self.bound.listener, LISTENER, edges)
    }

    fn welcome(&mut self, stream: UnixStream, ops: &mut EventOps) {
        if let Err(e) = stream.set_nonblocking(true) {
            log::warn!("control: cannot take a client: {e}");
            return;
        }
        let Some(place) = self.clients.iter().position(Option::is_none) else {
            log::warn!("control: turned a client away: there are {MAX_CLIENTS} already");
            refuse(stream);
            return;
        };
        let connection = Connection::new(stream);
        let watch = events_of(connection.fd(), place, EventSet::empty());
        if let Err(e) = ops.add(watch) {
            log::warn!("control: cannot watch a client: {e}");
            return;
        }
        if let Some(slot) = self.clients.get_mut(place) {
            *slot = Some(connection);
        }
        self.with_client(place, ops, |client, commands| client.pump(commands));
    }

    /// Does something with a client, then watches for what it waits for, or lets it go.
    fn with_client(
        &mut self,
        place: usize,
        ops: &mut EventOps,
        work: impl FnOnce(&mut Connection, &Commands) -> Fate,
    ) {
        let Some(slot) = self.clients.get_mut(place) else {
            return;
        };
        let Some(client) = slot else {
            return;
        };
        let fd = client.fd();
        let mut fate = work(client, &self.commands);
        let interest = client.interest();
        if fate == Fate::Keep && interest != client.watched {
            client.watched = interest;
            if ops.modify(events_of(fd, place, interest)).is_err() {
                fate = Fate::Close("it cannot be watched");
            }
        }
        if let Fate::Close(why) = fate {
            log::debug!("control: closed a client: {why}");
            // Before the descriptor is closed and its number can come back for something else.
            if let Err(e) = ops.remove(Events::empty_raw(fd)) {
                log::warn!("control: cannot stop watching a client: {e}");
            }
            *slot = None;
            self.look_again(ops);
        }
    }

    fn publish(&mut self, ops: &mut EventOps) {
        for happened in self.events.take() {
            let message = event(&happened, SystemTime::now());
            for place in 0..MAX_CLIENTS {
                self.with_client(place, ops, |client, commands| {
                    client.event(&message, commands)
                });
            }
        }
    }
}

impl MutEventSubscriber for Server {
    fn init(&mut self, ops: &mut EventOps) {
        let events = self.events.as_fd().as_raw_fd();
        let events = Events::with_data_raw(events, NIC_EVENTS, EventSet::IN);
        for watch in [self.watch_listener(), events] {
            if let Err(e) = ops.add(watch) {
                log::error!("control: cannot watch the control socket: {e}");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            LISTENER => self.accept(ops),
            NIC_EVENTS => self.publish(ops),
            client => {
                let place = client.saturating_sub(FIRST_CLIENT) as usize;
                self.with_client(place, ops, |client, commands| client.pump(commands));
            }
        }
    }
}

fn events_of(fd: RawFd, place: usize, interest: EventSet) -> Events {
    // At most MAX_CLIENTS places: no truncation.
    Events::with_data_raw(fd, FIRST_CLIENT + place as u32, interest)
}

/// Tells a client that there is no place for it.
fn refuse(mut stream: UnixStream) {
    let error = CommandError::Generic(format!(
        "there are {MAX_CLIENTS} clients already; close one of them"
    ));
    let line = format!("{}\n", json!({"error": error.to_json()}));
    // A new socket has room for this; a client that has gone already does not matter.
    let _ = stream.write(line.as_bytes());
}
