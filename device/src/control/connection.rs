// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One client's socket: moves bytes between it and its [`Session`], as far as that goes without
//! waiting.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use event_manager::EventSet;
use serde_json::Value;

use super::commands::Commands;
use super::protocol::{Session, Step};

/// While more than this waits to be sent, no further request is taken: a client that sends many and
/// reads slowly is slowed down, not thrown out.
const HIGH_WATER: usize = 64 << 10;

/// Octets read at once, and in one turn. So the work for one client between two looks at the others
/// is bounded.
const CHUNK: usize = 4 << 10;
const TURN: usize = 4 * CHUNK;

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Wait for [`Connection::interest`].
    Keep,
    /// It is over, for this reason.
    Close(&'static str),
}

/// One client.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    session: Session,
    /// It no longer takes answers. What it said before it went away still counts.
    gone: bool,
    /// What the event loop watches for now.
    pub watched: EventSet,
}

impl Connection {
    /// Takes a client in; `stream` must be non-blocking.
    pub fn new(stream: UnixStream) -> Self {
        Connection {
            stream,
            session: Session::new(),
            gone: false,
            watched: EventSet::empty(),
        }
    }

    /// The socket's number, for the event loop.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// What must happen on the socket before [`Connection::pump`] can do more.
    pub fn interest(&self) -> EventSet {
        let mut interest = EventSet::empty();
        if !self.session.pending().is_empty() {
            interest |= EventSet::OUT;
        }
        if !self.session.ended() && self.session.pending().len() <= HIGH_WATER {
            interest |= EventSet::IN;
        }
        interest
    }

    /// Tells the client of an event.
    pub fn event(&mut self, event: &Value, commands: &Commands) -> Fate {
        self.session.event(event);
        self.pump(commands)
    }

    /// Sends what waits, answers what came, reads what is there; a turn's worth of it.
    pub fn pump(&mut self, commands: &Commands) -> Fate {
        let mut left = TURN;
        loop {
            // What an answer says to have happened has not yet, and the next request, also another
            // client's, must find that it has. There is an answer to be sent, so the event loop
            // comes back; and here, for others, while they have something to say.
            if commands.changing() {
                return Fate::Keep;
            }
            self.flush();
            if self.session.overflowed() {
                return Fate::Close("it does not read its answers");
            }
            if self.session.ended() && self.session.pending().is_empty() {
                return Fate::Close("done");
            }
            if self.session.ended() || self.session.pending().len() > HIGH_WATER {
                return Fate::Keep;
            }
            match self.session.step(commands) {
                Step::Handled | Step::Ended => continue,
                Step::NeedInput if left == 0 => return Fate::Keep,
                Step::NeedInput => {}
            }
            let mut chunk = [0u8; CHUNK];
            match self.stream.read(&mut chunk) {
                Ok(0) => self.session.input_ended(),
                Ok(count) => {
                    self.session.receive(chunk.get(..count).unwrap_or_default());
                    left = left.saturating_sub(count);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Fate::Keep,
                Err(_) => return Fate::Close("reading failed"),
            }
        }
    }

    fn flush(&mut self) {
        while !self.session.pending().is_empty() {
            if self.gone {
                self.session.sent(self.session.pending().len());
                return;
            }
            match self.stream.write(self.session.pending()) {
                Ok(0) => self.gone = true,
                Ok(count) => self.session.sent(count),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.gone = true,
            }
        }
    }
}
