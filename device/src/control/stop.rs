// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How the process is asked to end: by the command `quit`, by SIGTERM or SIGINT, or by a part of
//! the NIC that cannot go on.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

/// A request to stop, which any thread can make and the control thread waits for. Clones are the
/// same request.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requested: AtomicBool,
    /// A byte here wakes whoever waits. A socket and not an eventfd, because a signal handler
    /// writes single bytes.
    sender: UnixStream,
    receiver: UnixStream,
}

impl Stop {
    /// Nobody has asked yet.
    pub fn new() -> io::Result<Self> {
        let (sender, receiver) = UnixStream::pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        Ok(Stop(Arc::new(Inner {
            requested: AtomicBool::new(false),
            sender,
            receiver,
        })))
    }

    /// Makes SIGTERM and SIGINT a request to stop.
    ///
    /// A handler and not a signalfd: a signalfd needs the signals blocked, and a child such as
    /// passt would inherit that and could not be ended.
    pub fn on_signals(&self) -> io::Result<()> {
        for signal in [SIGTERM, SIGINT] {
            signal_hook::low_level::pipe::register(signal, self.0.sender.try_clone()?)?;
        }
        Ok(())
    }

    /// Asks for the stop.
    pub fn request(&self) {
        self.0.requested.store(true, Ordering::Release);
        // A full socket wakes as well.
        let _ = (&self.0.sender).write(&[0]);
    }

    /// Whether anybody has asked. Signals count once the control thread or [`Stop::wait`] saw them.
    pub fn requested(&self) -> bool {
        self.0.requested.load(Ordering::Acquire)
    }

    /// Waits for a request until `timeout` has passed; says whether there is one.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        while !self.requested() {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.0.receiver, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => self.receive(),
                Err(_) => break,
            }
        }
        self.requested()
    }

    fn receive(&self) {
        let mut bytes = [0u8; 16];
        if matches!((&self.0.receiver).read(&mut bytes), Ok(n) if n > 0) {
            self.0.requested.store(true, Ordering::Release);
        }
    }

    /// What wakes the control thread when somebody asks; to be added to its event manager.
    pub fn subscriber(&self) -> StopSubscriber {
        StopSubscriber(self.clone())
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.receiver.as_fd()
    }
}

/// Wakes the control thread for a [`Stop`].
#[derive(Debug)]
pub struct StopSubscriber(Stop);

impl MutEventSubscriber for StopSubscriber {
    fn init(&mut self, ops: &mut EventOps) {
        let fd = self.0.as_fd().as_raw_fd();
        if let Err(e) = ops.add(Events::new_raw(fd, EventSet::IN)) {
            log::error!("cannot watch for signals: {e}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.0.receive();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_by_every_clone_and_ends_the_wait() {
        let stop = Stop::new().unwrap();
        assert!(!stop.wait(Duration::from_millis(1)));
        let other = stop.clone();
        let thread = std::thread::spawn(move || other.request());
        assert!(stop.wait(Duration::from_secs(10)));
        thread.join().unwrap();
        assert!(stop.clone().requested());
    }
}
