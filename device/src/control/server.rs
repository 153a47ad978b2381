// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control socket's server: accepts clients on the control thread and hands them the NIC's
//! events.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::SystemTime;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use serde_json::json;

use super::commands::{CommandError, Commands, event};
use super::connection::{Connection, Fate};
use crate::nic::Nic;
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
    bound: Bound,
    commands: Commands,
    events: Subscription,
    clients: [Option<Connection>; MAX_CLIENTS],
    /// Held back for the day the process has no descriptor left: a client that cannot be accepted
    /// would keep the listener readable, and the control thread spinning.
    spare: Option<File>,
}

impl Server {
    /// A server on a socket of [`crate::socket::bind`].
    pub fn new(bound: Bound, nic: &Arc<Nic>, commands: Commands) -> io::Result<Self> {
        Ok(Server {
            events: nic.events().subscribe()?,
            bound,
            commands,
            clients: [const { None }; MAX_CLIENTS],
            spare: spare(),
        })
    }

    fn accept(&mut self, ops: &mut EventOps) {
        // Not in a loop: others get their turn, and the listener stays readable if more wait.
        match self.bound.listener.accept() {
            Ok((stream, _)) => self.welcome(stream, ops),
            Err(e) if is_out_of_descriptors(&e) => {
                self.spare = None;
                // Dropped at once, which tells the client.
                let refused = self.bound.listener.accept().is_ok();
                self.spare = spare();
                log::warn!("control: no file descriptors left; turned a client away: {refused}");
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            // Any other error is the client's, which gave up before we came.
            Err(e) => log::debug!("control: accepting failed: {e}"),
        }
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
        let listener = self.bound.listener.as_raw_fd();
        let events = self.events.as_fd().as_raw_fd();
        for (fd, what) in [(listener, LISTENER), (events, NIC_EVENTS)] {
            if let Err(e) = ops.add(Events::with_data_raw(fd, what, EventSet::IN)) {
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

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    )
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
