// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Watches whether the tap is administratively up, and whether it is there, with rtnetlink.
//!
//! A thread sleeps until the kernel tells of a change to any interface, so that an idle host costs
//! nothing. The carrier of the interface is no use here: we set it ourselves, to show the host
//! that the guest's cable is pulled. What the host's side can do to us is `ip link set … down`, and
//! to delete the interface. Then any news of an interface may be that it was made again, and it is
//! taken. While another process has it, as the one has that makes it, we look again now and then.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use super::error::TapErrorKind;
use super::interface::{Again, Interface};
use super::open;
use crate::uplink::OnCarrier;

/// Larger than what the kernel tells of one interface. Only the start of a message is looked at,
/// so that one cut short does no harm.
const BUFFER: usize = 16 * 1024;
/// Octets of a netlink message's header, `struct nlmsghdr`.
const HEADER: usize = 16;
/// Octets of `struct ifinfomsg`.
const IFINFO: usize = 16;

/// How soon to look again at an interface that another process has; each time twice as long.
const SOON: Duration = Duration::from_millis(10);
/// No longer than this.
const LATER: Duration = Duration::from_secs(1);

/// How an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Down,
    /// Not in this network namespace (any more).
    Gone,
}

/// The watch; ends when dropped.
#[derive(Debug)]
pub(super) struct CarrierWatch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl CarrierWatch {
    /// Watches the interface, which has number `index`. Tells the state once before it returns.
    pub fn start(
        index: u32,
        interface: Arc<Interface>,
        on_carrier: OnCarrier,
    ) -> io::Result<CarrierWatch> {
        let index = i32::try_from(index).map_err(io::Error::other)?;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None, // NETLINK_ROUTE is protocol 0.
        )?;
        // Never changes sign: RTMGRP_LINK is 1.
        bind(
            &socket,
            &SocketAddrNetlink::new(0, libc::RTMGRP_LINK as u32),
        )?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let name = interface.name().clone();
        let mut watcher = Watcher {
            interface,
            index,
            socket,
            stop: Arc::clone(&stop),
            state: None,
            told: None,
            again: None,
            problem: None,
            on_carrier,
            buffer: vec![0; BUFFER],
        };
        watcher.ask()?;
        // The kernel answers before `send` returns.
        watcher.read_all()?;
        let thread = thread::Builder::new()
            .name(format!("link {name}"))
            .spawn(move || watcher.run())?;
        Ok(CarrierWatch {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for CarrierWatch {
    fn drop(&mut self) {
        // Cannot fail: the counter of a fresh eventfd has room for 1.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watcher {
    interface: Arc<Interface>,
    index: i32,
    socket: OwnedFd,
    stop: Arc<OwnedFd>,
    state: Option<State>,
    /// What was told last.
    told: Option<bool>,
    /// When to look again at an interface that another process has.
    again: Option<Duration>,
    /// What was said last of one that cannot be taken.
    problem: Option<String>,
    on_carrier: OnCarrier,
    buffer: Vec<u8>,
}

impl Watcher {
    fn run(mut self) {
        if let Err(e) = self.watch() {
            log::error!(
                "tap {}: its state is no longer watched (rtnetlink: {e}); restart ferronic to \
                 follow it again",
                self.interface.name()
            );
        }
    }

    /// Until told to stop, or until there is nothing to be seen any more.
    fn watch(&mut self) -> io::Result<()> {
        // It may be gone from the beginning.
        self.recover()?;
        while !self.is_out_of_sight() {
            let mut fds = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(&self.stop, PollFlags::IN),
            ];
            let timeout = self.again.map(|wait| Timespec {
                tv_sec: wait.as_secs().cast_signed(),
                tv_nsec: wait.subsec_nanos().into(),
            });
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if !fds[1].revents().is_empty() {
                return Ok(());
            }
            self.read_all()?;
            self.recover()?;
        }
        Ok(())
    }

    /// Whether it is in another network namespace.
    fn is_out_of_sight(&self) -> bool {
        self.state == Some(State::Gone) && self.interface.is_attached()
    }

    /// Takes the interface again if it was deleted and is there.
    fn recover(&mut self) -> io::Result<()> {
        if self.interface.is_attached() {
            return Ok(());
        }
        let name = self.interface.name();
        let problem = match self.interface.attach_again() {
            Ok(Again::Attached(index)) => {
                log::info!("tap {name}: made again, and taken");
                self.index = i32::try_from(index).map_err(io::Error::other)?;
                (self.state, self.again, self.problem) = (None, None, None);
                self.ask()?;
                return self.read_all();
            }
            Ok(Again::Missing) => {
                (self.again, self.problem) = (None, None);
                return Ok(());
            }
            Ok(Again::Busy) => {
                let wait = self.again.map_or(SOON, |wait| (2 * wait).min(LATER));
                let told = self.again.replace(wait) == Some(LATER);
                // Who makes it does not have it for so long.
                if told || wait < LATER {
                    return Ok(());
                }
                TapErrorKind::Busy {
                    holder: open::holder_of(name),
                }
            }
            Err(problem) => {
                self.again = None;
                problem
            }
        };
        let problem = self.interface.error(problem).to_string();
        if self.problem.as_ref() != Some(&problem) {
            log::error!("{problem}");
            self.problem = Some(problem);
        }
        Ok(())
    }

    /// Asks the kernel for the interface's state.
    fn ask(&self) -> io::Result<()> {
        send(&self.socket, &request(self.index), SendFlags::empty())?;
        Ok(())
    }

    fn read_all(&mut self) -> io::Result<()> {
        loop {
            match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => {
                    let seen = self
                        .buffer
                        .get(..len)
                        .and_then(|m| last_state(m, self.index));
                    if let Some(state) = seen {
                        self.note(state);
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                // Messages were lost: ask for the state as it is now.
                Err(Errno::NOBUFS) => self.ask()?,
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn note(&mut self, state: State) {
        let first = self.state.is_none();
        if self.state.replace(state) == Some(state) {
            return;
        }
        let name = self.interface.name();
        match state {
            State::Up if first => {}
            State::Up => log::info!("tap {name}: up"),
            State::Down => {
                log::warn!("tap {name}: down; no packets pass until 'ip link set {name} up'");
            }
            State::Gone if self.interface.is_there() => {
                log::warn!(
                    "tap {name}: moved to another network namespace; packets pass, but whether \
                     it is up, or deleted, cannot be seen any more"
                );
            }
            State::Gone => {
                self.interface.lose();
                log::error!(
                    "tap {name}: the interface was deleted; packets are dropped until it is made \
                     again: {}",
                    self.interface.error(TapErrorKind::Missing).create()
                );
            }
        }
        let up = state == State::Up || self.is_out_of_sight();
        if self.told.replace(up) != Some(up) {
            (self.on_carrier)(up);
        }
    }
}

/// RTM_GETLINK for one interface.
fn request(index: i32) -> [u8; HEADER + IFINFO] {
    let mut message = [0; HEADER + IFINFO];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in message.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &((HEADER + IFINFO) as u32).to_ne_bytes());
    put(4, &libc::RTM_GETLINK.to_ne_bytes());
    put(6, &(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    put(HEADER + 4, &index.to_ne_bytes());
    message
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let octets = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(octets.try_into().ok()?))
}

/// The last thing that a datagram of netlink messages says of interface `index`.
fn last_state(mut datagram: &[u8], index: i32) -> Option<State> {
    let mut last = None;
    while let Some(len) = u32_at(datagram, 0) {
        let len = len as usize;
        if len < HEADER {
            break;
        }
        let message = datagram.get(..len).unwrap_or(datagram);
        last = state_in(message, index).or(last);
        match datagram.get(len.next_multiple_of(4)..) {
            Some(rest) => datagram = rest,
            None => break,
        }
    }
    last
}

/// What one netlink message says of interface `index`, if anything.
fn state_in(message: &[u8], index: i32) -> Option<State> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let body = message.get(HEADER..)?;
    if i32::from(kind) == libc::NLMSG_ERROR {
        // The answer to our request, the only one there can be: a negative errno.
        let error = u32_at(body, 0)?.cast_signed();
        return (error == -libc::ENODEV).then_some(State::Gone);
    }
    if u32_at(body, 4)?.cast_signed() != index {
        return None;
    }
    let flags = u32_at(body, 8)?;
    match kind {
        libc::RTM_DELLINK => Some(State::Gone),
        libc::RTM_NEWLINK if flags & libc::IFF_UP.cast_unsigned() != 0 => Some(State::Up),
        libc::RTM_NEWLINK => Some(State::Down),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, index: i32, flags: u32) -> Vec<u8> {
        let mut m = request(index).to_vec();
        m[4..6].copy_from_slice(&kind.to_ne_bytes());
        m[24..28].copy_from_slice(&flags.to_ne_bytes());
        m
    }

    const UP: u32 = libc::IFF_UP as u32;

    #[test]
    fn the_last_word_on_our_interface_counts() {
        let all = [
            message(libc::RTM_NEWLINK, 7, UP),
            message(libc::RTM_NEWLINK, 7, 0),
            message(libc::RTM_DELLINK, 8, 0),
            message(libc::RTM_NEWADDR, 7, UP),
        ]
        .concat();
        assert_eq!(last_state(&all, 7), Some(State::Down));
        assert_eq!(last_state(&all, 8), Some(State::Gone));
        assert_eq!(last_state(&all, 9), None);
        assert_eq!(last_state(&all[..32], 7), Some(State::Up));
    }

    #[test]
    fn a_message_cut_short_still_tells() {
        let mut long = message(libc::RTM_NEWLINK, 7, UP);
        long[..4].copy_from_slice(&100_000u32.to_ne_bytes());
        assert_eq!(last_state(&long, 7), Some(State::Up));
        assert_eq!(last_state(&long[..20], 7), None);
    }

    proptest! {
        #[test]
        fn nonsense_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            last_state(&bytes, 1);
        }
    }
}
