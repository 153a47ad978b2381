// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Watches whether the tap is administratively up, with rtnetlink.
//!
//! A thread sleeps until the kernel tells of a change to any interface, so that an idle host costs
//! nothing. The carrier of the interface is no use here: we set it ourselves, to show the host
//! that the guest's cable is pulled. What the host's side can do to us is `ip link set … down`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use super::ioctl;
use super::name::InterfaceName;
use crate::uplink::OnCarrier;

/// Larger than what the kernel tells of one interface. Only the start of a message is looked at,
/// so that one cut short does no harm.
const BUFFER: usize = 16 * 1024;
/// Octets of a netlink message's header, `struct nlmsghdr`.
const HEADER: usize = 16;
/// Octets of `struct ifinfomsg`.
const IFINFO: usize = 16;

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
    /// Watches the interface `index`, one of whose queues is `queue`. Tells the state once before
    /// it returns.
    pub fn start(
        name: &InterfaceName,
        index: u32,
        queue: Arc<OwnedFd>,
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
        let mut watcher = Watcher {
            name: name.clone(),
            index,
            queue,
            socket,
            stop: Arc::clone(&stop),
            state: None,
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
    name: InterfaceName,
    index: i32,
    queue: Arc<OwnedFd>,
    socket: OwnedFd,
    stop: Arc<OwnedFd>,
    state: Option<State>,
    on_carrier: OnCarrier,
    buffer: Vec<u8>,
}

impl Watcher {
    fn run(mut self) {
        if let Err(e) = self.watch() {
            log::error!(
                "tap {}: its state is no longer watched (rtnetlink: {e}); restart ferronic to \
                 follow it again",
                self.name
            );
        }
    }

    fn watch(&mut self) -> io::Result<()> {
        while self.state != Some(State::Gone) {
            let mut fds = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(&self.stop, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if !fds[1].revents().is_empty() {
                return Ok(());
            }
            self.read_all()?;
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
        let name = &self.name;
        match state {
            State::Up if first => {}
            State::Up => log::info!("tap {name}: up"),
            State::Down => {
                log::warn!("tap {name}: down; no packets pass until 'ip link set {name} up'");
            }
            State::Gone if ioctl::has_interface(self.queue.as_fd()) => {
                log::warn!(
                    "tap {name}: moved to another network namespace; packets pass, but whether \
                     it is up cannot be seen any more"
                );
                return (self.on_carrier)(true);
            }
            State::Gone => log::error!(
                "tap {name}: the interface was deleted; no packets pass any more: make it again \
                 and restart ferronic"
            ),
        }
        (self.on_carrier)(state == State::Up);
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
