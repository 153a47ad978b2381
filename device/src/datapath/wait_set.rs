// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a thread of the data path sleeps on.
//!
//! # Design
//! Everything is watched edge-triggered and no kick is ever read. So a descriptor that is always
//! readable, or has hung up, wakes its thread once and not for ever, and a descriptor that blocks
//! its readers cannot block us: what is behind it is the frontend's choice.
//!
//! A sleep that ends by itself ends in time: `epoll_pwait2` (Linux 5.11) counts nanoseconds, where
//! `epoll_wait` counts whole milliseconds, five times as long as an interrupt is held back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// The token of events that are from [`WaitSet::wake`].
pub(super) const WAKE: u64 = 0;

/// How long a thread sleeps if nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sleep {
    /// Not at all: there is more to do.
    No,
    /// Until then.
    Until(Instant),
    /// Until something happens.
    Forever,
}

/// Descriptors that one thread waits for, and a bell that others ring to wake it.
#[derive(Debug)]
pub(crate) struct WaitSet {
    epoll: OwnedFd,
    bell: OwnedFd,
}

impl WaitSet {
    /// Only the bell.
    pub fn new() -> io::Result<Self> {
        let set = WaitSet {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        set.watch(set.bell.as_fd(), WAKE, EventFlags::IN)?;
        Ok(set)
    }

    /// Ends the thread's sleep, or the next one if it is awake.
    pub fn wake(&self) {
        // An eventfd refuses only when its counter is full: after 2^64 - 2 wakes.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Watches `fd`; its events carry `token`.
    pub fn watch(&self, fd: BorrowedFd<'_>, token: u64, flags: EventFlags) -> io::Result<()> {
        let flags = flags | EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token),
            flags,
        )?)
    }

    /// Watches it no more. Closing it is not enough: the frontend has it open, too.
    pub fn unwatch(&self, fd: BorrowedFd<'_>) {
        if let Err(e) = epoll::delete(&self.epoll, fd) {
            log::warn!("a kick cannot be taken off: {e}");
        }
    }

    /// Sleeps; then `events` are what has happened.
    pub fn wait(&self, events: &mut Vec<Event>, sleep: Sleep) -> io::Result<()> {
        events.clear();
        let longest = match sleep {
            Sleep::No => Some(Duration::ZERO),
            Sleep::Until(then) => Some(then.saturating_duration_since(Instant::now())),
            Sleep::Forever => None,
        };
        // None, which is for ever, for what is as good as that.
        let timeout = longest.and_then(|longest| Timespec::try_from(longest).ok());
        let buffer = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether waiting would not sleep.
    #[cfg(test)]
    pub fn is_ready(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&now)).unwrap() == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_sleep_is_short() {
        let set = WaitSet::new().unwrap();
        let mut events = Vec::with_capacity(1);
        // On a busy host some are not.
        let shortest = (0..50).map(|_| {
            let start = Instant::now();
            let sleep = Sleep::Until(start + Duration::from_micros(100));
            set.wait(&mut events, sleep).unwrap();
            start.elapsed()
        });
        let shortest = shortest.min().unwrap();
        assert!(shortest >= Duration::from_micros(100));
        assert!(shortest < Duration::from_micros(900), "{shortest:?}");
    }
}
