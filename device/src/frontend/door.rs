// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where frontends come in.
//!
//! Whoever connects is a visitor until the first octet comes from it; only then it is a frontend
//! and may have the NIC, if nobody has it. So what connects and says nothing (a probe whether
//! somebody listens, a forgotten `socat`) is in nobody's way and no event tells of it, while a QEMU
//! whose chardev connects long before the device is added is not sent away either. The NIC goes to
//! the one who speaks first; the others are turned away at once, so that they do not wait for an
//! answer that would not come.
//!
//! A frontend that has spoken keeps the NIC until it closes, even if it stops in the middle of a
//! message: a QEMU that is held by a debugger looks the same.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::socket::{Access, Bound, bind};

use super::endpoint::hung_up;

/// Most visitors; the one that came first makes room for another.
const MAX_VISITORS: usize = 8;

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
    /// At a path of ours: listening is given up while the door is shut.
    Path { path: PathBuf, bound: Option<Bound> },
    /// On a socket that we cannot make again: visitors are turned away while the door is shut.
    Inherited(UnixListener),
    /// Nobody can come.
    Over,
}

/// The listening socket and those who have connected to it and not spoken yet.
#[derive(Debug)]
pub struct Door {
    listening: Listening,
    shut: bool,
    visitors: Vec<UnixStream>,
    leaving: Vec<OwnedFd>,
    /// Given up to take and turn away a visitor when descriptors run out: one that stays in the
    /// queue would keep the listening socket readable.
    spare: Option<OwnedFd>,
    /// It was said that one was turned away, for the frontend that is here now.
    told: bool,
}

impl Door {
    /// A door for those who come from `source`; one that has come already is given back.
    pub fn new(source: Source) -> io::Result<(Self, Option<UnixStream>)> {
        let mut connected = None;
        let listening = match source {
            Source::Bound(bound) => Listening::Path {
                path: bound.file.path().to_owned(),
                bound: Some(bound),
            },
            Source::Listener(listener) => {
                listener.set_nonblocking(true)?;
                Listening::Inherited(listener)
            }
            Source::Connected(stream) => {
                connected = Some(stream);
                Listening::Over
            }
        };
        let mut door = Door {
            listening,
            shut: false,
            visitors: Vec::new(),
            leaving: Vec::new(),
            spare: None,
            told: false,
        };
        door.take_spare();
        Ok((door, connected))
    }

    fn listener(&self) -> Option<&UnixListener> {
        match &self.listening {
            Listening::Path { bound, .. } => bound.as_ref().map(|bound| &bound.listener),
            Listening::Inherited(listener) => Some(listener),
            Listening::Over => None,
        }
    }

    /// Whether nobody can come any more.
    pub fn is_over(&self) -> bool {
        matches!(self.listening, Listening::Over)
    }

    /// What to watch for input.
    pub fn watched(&self) -> impl Iterator<Item = RawFd> {
        let listener = self.listener().map(AsRawFd::as_raw_fd);
        listener
            .into_iter()
            .chain(self.visitors.iter().map(AsRawFd::as_raw_fd))
    }

    /// Sockets that are done with. Their numbers may mean others once they are dropped, so they are
    /// not to be watched any more by then.
    pub fn leaving(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.leaving)
    }

    /// Takes visitors no longer, and sends away those that are here.
    pub fn shut(&mut self) {
        self.shut = true;
        self.leaving.extend(self.visitors.drain(..).map(Into::into));
        if let Listening::Path { bound, .. } = &mut self.listening
            && let Some(Bound { listener, file }) = bound.take()
        {
            self.leaving.push(listener.into());
            drop(file);
        }
    }

    /// Takes visitors again.
    pub fn open(&mut self) {
        self.shut = false;
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

    /// Looks after `fd`, which is readable. Gives the visitor that has spoken, if the NIC is free.
    pub fn ready(&mut self, fd: RawFd, free: bool) -> Option<UnixStream> {
        if self.listener().is_some_and(|l| l.as_raw_fd() == fd) {
            self.accept(free);
            return None;
        }
        let at = self.visitors.iter().position(|v| v.as_raw_fd() == fd)?;
        if hung_up(self.visitors.get(at)?) {
            // Even if it has spoken: there is nobody to answer, and others may wait.
            self.leaving.push(self.visitors.remove(at).into());
            return None;
        }
        match recv(
            self.visitors.get(at)?,
            &mut [0; 1],
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        ) {
            Ok((_, 1)) => {
                let stream = self.visitors.remove(at);
                // There is one NIC, so the others are late.
                self.told = false;
                for late in std::mem::take(&mut self.visitors) {
                    self.turned_away();
                    self.leaving.push(late.into());
                }
                Some(stream)
            }
            // Closed between the two calls, or nothing there: looked at again when it is reported.
            Ok(_) | Err(_) => None,
        }
    }

    fn accept(&mut self, free: bool) {
        let Some(accepted) = self.listener().map(UnixListener::accept) else {
            return;
        };
        match accepted {
            Ok(_) if self.shut => {}
            Ok(_) if !free => self.turned_away(),
            Ok((stream, _)) => {
                if self.visitors.len() == MAX_VISITORS {
                    log::warn!("a frontend that said nothing is sent away: too many connect");
                    self.leaving.push(self.visitors.remove(0).into());
                }
                self.visitors.push(stream);
            }
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::MFILE | Errno::NFILE) => {
                    self.spare = None;
                    let turned = self.listener().map(UnixListener::accept);
                    log::error!("a frontend was turned away: no descriptors left ({e})");
                    drop(turned);
                    self.take_spare();
                }
                Some(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                _ => log::error!("cannot take a frontend: {e}"),
            },
        }
    }

    fn take_spare(&mut self) {
        self.spare = eventfd(0, EventfdFlags::CLOEXEC).ok();
    }

    /// Says so, and once only: QEMU tries again ten times a second.
    fn turned_away(&mut self) {
        let level = match std::mem::replace(&mut self.told, true) {
            false => log::Level::Warn,
            true => log::Level::Debug,
        };
        log::log!(
            level,
            "a second frontend was turned away: the NIC is plugged in already"
        );
    }
}
