// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Keeps a passt running: a thread that sleeps until passt ends, then starts another.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::child::{Ending, Passt, Program};
use super::error::UserError;
use super::slot::{Complaint, Slot};
use crate::uplink::OnCarrier;

/// The pause before passt is started again, at first; it doubles each time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The longest it gets. A passt that has run for longer has proved itself.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A passt that has said nothing to the guest and has not ended in this time runs. New ones
/// announce themselves at once; what is wrong with the arguments or the host shows as fast.
const PROBATION: Duration = Duration::from_millis(200);
/// The time that passt has to end by itself after it has closed its socket.
const GRACE: Duration = Duration::from_millis(500);

/// The keeper; passt ends with it when it is dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the first passt, and the thread that keeps one running.
    pub fn start(
        program: Program,
        slot: Arc<Slot>,
        on_carrier: OnCarrier,
    ) -> Result<Keeper, UserError> {
        let system = |what| move |source| UserError::System { what, source };
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|e| system("cannot make an eventfd")(e.into()))?;
        let stop = Arc::new(stop);
        let mut watch = Watch {
            program,
            slot,
            stop: Arc::clone(&stop),
        };
        let (passt, socket) = match watch.start_one()? {
            Start::Runs(passt, socket) => (passt, socket),
            Start::Stopped => return Ok(Keeper { stop, thread: None }),
            Start::Ended(ending) => {
                return Err(UserError::Ended {
                    command: watch.program.to_string(),
                    ending,
                });
            }
        };
        let slot = Arc::clone(&watch.slot);
        slot.put(Some(socket))
            .map_err(system("cannot watch passt's socket (epoll)"))?;
        on_carrier(true);
        let thread = thread::Builder::new()
            .name("passt keeper".into())
            .spawn(move || watch.run(passt, &on_carrier))
            .map_err(system("cannot start a thread"))?;
        Ok(Keeper {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Cannot fail: the counter of a fresh eventfd has room for 1.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How an attempt to start passt came out.
enum Start {
    Runs(Passt, OwnedFd),
    Ended(Ending),
    /// We are to end.
    Stopped,
}

/// What woke the keeper.
#[derive(Default)]
struct Woken {
    stop: bool,
    ended: bool,
    extra: bool,
}

struct Watch {
    program: Program,
    slot: Arc<Slot>,
    stop: Arc<OwnedFd>,
}

impl Watch {
    /// Sleeps until passt ends, `extra` is readable, we are to end, or the time is up. What passt
    /// says meanwhile goes to the log.
    fn sleep(
        &self,
        passt: &mut Passt,
        extra: PollFd<'_>,
        until: Option<Instant>,
    ) -> io::Result<Woken> {
        loop {
            let mut fds = vec![
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::from_borrowed_fd(passt.pidfd(), PollFlags::IN),
                extra.clone(),
            ];
            fds.extend(
                passt
                    .stderr()
                    .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
            );
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            wait(&mut fds, left)?;
            let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
            let mut next = || ready.next().unwrap_or(false);
            let woken = Woken {
                stop: next(),
                ended: next(),
                extra: next(),
            };
            if next() {
                passt.listen();
            }
            if woken.stop || woken.ended || woken.extra || left.is_some_and(|l| l.is_zero()) {
                return Ok(woken);
            }
        }
    }

    /// Starts passt and waits until it is known to run.
    fn start_one(&mut self) -> Result<Start, UserError> {
        let (mut passt, socket) = Passt::start(&self.program)?;
        let says = PollFd::new(&socket, PollFlags::IN);
        let woken = self
            .sleep(&mut passt, says, Some(Instant::now() + PROBATION))
            .map_err(|source| UserError::System {
                what: "cannot wait for passt (poll)",
                source,
            })?;
        if woken.stop {
            return Ok(Start::Stopped);
        }
        // The socket becomes readable both when passt speaks and when it closes it; in the second
        // case its end follows.
        let closed = woken.extra && at_end(&socket);
        if woken.ended || closed {
            if closed {
                self.wait_for_end(&mut passt);
            }
            return Ok(Start::Ended(passt.ending()));
        }
        Ok(Start::Runs(passt, socket))
    }

    /// Gives passt the time to end, and helps it after that.
    fn wait_for_end(&self, passt: &mut Passt) {
        let nothing = PollFd::new(&self.stop, PollFlags::empty());
        let ended = self
            .sleep(passt, nothing, Some(Instant::now() + GRACE))
            .is_ok_and(|woken| woken.ended);
        if !ended {
            passt.kill();
        }
    }

    /// The thread.
    fn run(mut self, mut passt: Passt, on_carrier: &OnCarrier) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let since = Instant::now();
            let outcome = self.keep(&mut passt);
            if let Err(e) = self.slot.put(None) {
                log::error!("uplink user: cannot take the socket out: {e}");
            }
            let ending = match outcome {
                Ok(Some(ending)) => ending,
                Ok(None) => return,
                Err(e) => {
                    log::error!(
                        "uplink user: passt can no longer be watched (poll: {e}); no packets pass: \
                         restart ferronic"
                    );
                    return on_carrier(false);
                }
            };
            log::warn!("uplink user: passt ended: {ending}; starting it again");
            on_carrier(false);
            if since.elapsed() > LONGEST_PAUSE {
                pause = SHORTEST_PAUSE;
            }
            match self.start_again(&mut pause) {
                Some(again) => passt = again,
                None => return,
            }
            on_carrier(true);
        }
    }

    /// Sleeps until passt has ended, or is made to; `None` when we are to end ourselves.
    fn keep(&self, passt: &mut Passt) -> io::Result<Option<Ending>> {
        loop {
            let alarm = PollFd::from_borrowed_fd(self.slot.alarm(), PollFlags::IN);
            let woken = self.sleep(passt, alarm, None)?;
            if woken.stop {
                return Ok(None);
            }
            if woken.ended {
                return Ok(Some(passt.ending()));
            }
            match self.slot.take_complaint() {
                None => {}
                Some(Complaint::Closed) => self.wait_for_end(passt),
                Some(Complaint::OutOfStep(length)) => {
                    log::warn!(
                        "uplink user: passt sent a frame of {} octets, which cannot be; ending it",
                        length.0
                    );
                    passt.kill();
                }
            }
        }
    }

    /// Starts passt until it runs; `None` when we are to end.
    fn start_again(&mut self, pause: &mut Duration) -> Option<Passt> {
        loop {
            let mut fds = [PollFd::new(&self.stop, PollFlags::IN)];
            let stopped = wait(&mut fds, Some(*pause)).is_err();
            if stopped || !fds[0].revents().is_empty() {
                return None;
            }
            *pause = (*pause * 2).min(LONGEST_PAUSE);
            match self.start_one() {
                Ok(Start::Runs(passt, socket)) => match self.slot.put(Some(socket)) {
                    Ok(()) => {
                        log::info!("uplink user: passt runs again");
                        return Some(passt);
                    }
                    Err(e) => log::error!("uplink user: cannot watch passt's socket: {e}"),
                },
                Ok(Start::Stopped) => return None,
                Ok(Start::Ended(ending)) => log::warn!(
                    "uplink user: passt ended at once: {ending}; trying again in {pause:?}"
                ),
                Err(e) => log::warn!("uplink user: {e}; trying again in {pause:?}"),
            }
        }
    }
}

/// Whether the other side has closed the socket and nothing is left to read.
fn at_end(socket: &OwnedFd) -> bool {
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut [0u8; 1], flags) {
        Ok((len, _)) => len == 0,
        Err(e) => e != Errno::AGAIN && e != Errno::INTR,
    }
}

/// `poll`, up to `limit`; a signal counts as nothing happening.
fn wait(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let limit = match limit {
        None => None,
        Some(limit) => Some(Timespec::try_from(limit).map_err(io::Error::other)?),
    };
    match poll(fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
