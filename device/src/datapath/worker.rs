// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A worker: the thread that serves one queue pair.
//!
//! # Design
//! The thread sleeps until a kick, the uplink or the control plane wakes it (`wait_set`), then moves
//! packets in turns. The pair's state is behind a lock that is taken once a turn, never per packet;
//! the control plane takes it to start, stop and change rings, and so never meets a packet half
//! way. `parking_lot` hands a contended lock over in good time, which a spinning worker would not.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use rustix::event::epoll::{Event, EventFlags};

use crate::nic::Nic;
use crate::nic::counters::{DropReason, PairCounters, QueueCounters};
use crate::nic::filter::Filter;
use crate::ring::pieces::PiecesMut;
use crate::ring::virtqueue::RingError;
use crate::uplink::{Received, UplinkQueue};

use super::moderation::Moderation;
use super::rx::Receiver;
use super::tx::Transmitter;
use super::wait_set::{Sleep, WAKE, WaitSet};
use super::{BUDGET, LARGEST, Turn};

const UPLINK: u64 = 1;
const RX_KICK: u64 = 2;
const TX_KICK: u64 = 3;

/// One queue pair, shared by its thread and the control plane.
#[derive(Debug)]
pub(super) struct Pair {
    nic: Arc<Nic>,
    index: usize,
    wait: WaitSet,
    state: Mutex<PairState>,
}

/// What the lock of a pair protects.
#[derive(Debug)]
pub(super) struct PairState {
    queue: Box<dyn UplinkQueue>,
    pub rx: Option<Receiver>,
    pub tx: Option<Transmitter>,
    pub filter: Filter,
    /// One of the pairs that the driver uses (5.1.6.5.6); others receive nothing.
    pub enabled: bool,
    /// Packets may wait in the uplink.
    readable: bool,
    overflow: Box<[u8; LARGEST]>,
    moderation: Moderation,
    stop: bool,
}

/// A queue's direction, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Rx,
    Tx,
}

impl Pair {
    pub fn new(
        nic: Arc<Nic>,
        index: usize,
        queue: Box<dyn UplinkQueue>,
        filter: Filter,
    ) -> io::Result<Self> {
        let wait = WaitSet::new()?;
        if let Some(fd) = queue.poll_fd() {
            wait.watch(fd, UPLINK, EventFlags::IN | EventFlags::OUT)?;
        }
        let overflow = vec![0; LARGEST]
            .try_into()
            .unwrap_or_else(|_| Box::new([0; LARGEST]));
        let state = Mutex::new(PairState {
            queue,
            rx: None,
            tx: None,
            filter,
            enabled: true,
            readable: true,
            overflow,
            moderation: Moderation::default(),
            stop: false,
        });
        Ok(Pair {
            nic,
            index,
            wait,
            state,
        })
    }

    /// The pair's state, for the control plane. Wake the worker after a change.
    pub fn lock(&self) -> MutexGuard<'_, PairState> {
        self.state.lock()
    }

    /// Makes the worker take a turn.
    pub fn wake(&self) {
        self.wait.wake();
    }

    /// Makes the worker's thread end.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.wake();
    }

    /// Watches a queue's kick.
    pub fn watch(&self, side: Side, kick: BorrowedFd<'_>) -> io::Result<()> {
        let token = match side {
            Side::Rx => RX_KICK,
            Side::Tx => TX_KICK,
        };
        self.wait.watch(kick, token, EventFlags::IN)
    }

    /// Watches it no more.
    pub fn unwatch(&self, kick: BorrowedFd<'_>) {
        self.wait.unwatch(kick);
    }

    fn counters(&self) -> Option<&PairCounters> {
        self.nic.counters.get(self.index)
    }

    /// The thread: serves the pair until told to stop.
    pub fn run(&self) {
        let mut events = Vec::with_capacity(8);
        let mut next = Some(Sleep::Forever);
        while let Some(sleep) = next {
            next = self.round(&mut events, sleep);
        }
    }

    /// Sleeps until something happens, or so long, and takes a turn. How long to sleep next; `None`
    /// when told to stop.
    fn round(&self, events: &mut Vec<Event>, sleep: Sleep) -> Option<Sleep> {
        let counters = self.counters()?;
        if let Err(e) = self.wait.wait(events, sleep) {
            log::error!("queue pair {}: {e}; the pair stops", self.index);
            return None;
        }
        let mut state = self.state.lock();
        if state.stop {
            return None;
        }
        for event in events {
            match event.data.u64() {
                // What the control plane changes may be what the uplink refused for, and while the
                // cable is out it is not even asked.
                UPLINK | WAKE => state.uplink_ready(),
                RX_KICK => counters.rx.kicks.add(1),
                TX_KICK => counters.tx.kicks.add(1),
                _ => {}
            }
        }
        let more = state.turn(self.nic.link_up(), counters, self.index);
        state.queue.flush();
        let held_until = state.interrupt(counters);
        Some(match held_until {
            _ if more => Sleep::No,
            Some(then) => Sleep::Until(then),
            None => Sleep::Forever,
        })
    }

    /// Takes turns on the caller's thread until the worker would sleep with nothing left to do.
    #[cfg(test)]
    pub fn settle(&self) {
        let mut sleep = self.work(Sleep::Forever);
        while sleep != Sleep::Forever {
            sleep = self.work(sleep);
        }
    }

    /// Sleeps so long, then takes turns on the caller's thread until the worker would sleep again,
    /// and tells how long.
    #[cfg(test)]
    pub fn work(&self, sleep: Sleep) -> Sleep {
        let mut events = Vec::with_capacity(8);
        let mut next = sleep;
        for round in 0..1000 {
            let sleeps = next == Sleep::Forever || round > 0 && next != Sleep::No;
            if sleeps && !self.wait.is_ready() {
                return next;
            }
            next = self.round(&mut events, next).unwrap();
        }
        panic!("the worker spins");
    }

    /// As after an interrupt that was raised just now.
    #[cfg(test)]
    pub fn just_interrupted(&self) {
        let octets = self.counters().unwrap().octets();
        self.lock().moderation.raised(Instant::now(), octets);
    }
}

impl PairState {
    fn uplink_ready(&mut self) {
        self.readable = true;
        if let Some(tx) = &mut self.tx {
            tx.blocked = false;
        }
    }

    /// Has the uplink steer packets to this pair, which is number `index`, only while it receives.
    pub fn update_steering(&mut self, index: usize) {
        let active = self.enabled && self.rx.is_some();
        if let Err(e) = self.queue.set_active(active) {
            let verb = if active { "joined to" } else { "taken from" };
            log::error!("queue pair {index} cannot be {verb} the uplink: {e}");
        }
    }

    /// One turn each way; whether there is more to do at once.
    fn turn(&mut self, link_up: bool, counters: &PairCounters, index: usize) -> bool {
        // An uplink without a descriptor cannot tell; it is asked every time.
        let silent = self.queue.poll_fd().is_none();
        self.readable |= silent;
        let taken = |rx: &QueueCounters| rx.packets.get().wrapping_add(rx.drops.total());
        let before = taken(&counters.rx);
        let mut more = false;
        if let Some(tx) = &mut self.tx {
            match tx.turn(self.queue.as_mut(), link_up, &counters.tx) {
                Ok(turn) => more |= turn == Turn::More,
                Err(e) => {
                    broken(index, Side::Tx, e, counters);
                    self.tx = None;
                }
            }
        }
        if !link_up {
            if let Some(rx) = &mut self.rx {
                rx.lose_held(DropReason::LinkDown, &counters.rx);
            }
            return more | self.discard(counters);
        }
        if self.enabled
            && let Some(rx) = &mut self.rx
        {
            let queue = self.queue.as_mut();
            let overflow = &mut self.overflow;
            match rx.turn(
                queue,
                &mut self.readable,
                &self.filter,
                overflow,
                &counters.rx,
            ) {
                Ok(turn) => more |= turn == Turn::More,
                Err(e) => {
                    broken(index, Side::Rx, e, counters);
                    rx.lose_held(DropReason::RingStopped, &counters.rx);
                    self.rx = None;
                    self.update_steering(index);
                }
            }
        }
        // Where the uplink's two directions share room (loopback), receiving has made some, also
        // with packets that the driver did not want.
        if silent
            && let Some(tx) = &mut self.tx
            && std::mem::take(&mut tx.blocked)
        {
            more |= taken(&counters.rx) != before;
        }
        more
    }

    /// Raises the interrupts that the driver wants, both together, or holds them back for a while;
    /// then until when.
    fn interrupt(&mut self, counters: &PairCounters) -> Option<Instant> {
        let rings = [
            self.rx.as_ref().map(|rx| &rx.ring),
            self.tx.as_ref().map(|tx| &tx.ring),
        ];
        let mut rings = rings.iter().flatten();
        if rings.clone().all(|ring| ring.undecided() == 0) {
            return None;
        }
        let now = Instant::now();
        let octets = counters.octets();
        // A driver must get buffers back before it runs out of them.
        let scarce = rings.any(|ring| ring.undecided() > ring.size() / 4);
        if !scarce && let Some(then) = self.moderation.hold(now, octets) {
            return Some(then);
        }
        let mut raised = false;
        if let Some(rx) = &mut self.rx {
            raised |= rx.interrupt.raise_if_wanted(&mut rx.ring, &counters.rx);
        }
        if let Some(tx) = &mut self.tx {
            raised |= tx.interrupt.raise_if_wanted(&mut tx.ring, &counters.tx);
        }
        if raised {
            self.moderation.raised(now, octets);
        }
        None
    }

    /// Throws away what comes in while the cable is out; whether there is more.
    fn discard(&mut self, counters: &PairCounters) -> bool {
        for _ in 0..BUDGET {
            if !self.readable {
                return false;
            }
            let queue = self.queue.as_mut();
            let received = PiecesMut::with_bytes(self.overflow.as_mut_slice(), |mut room| {
                queue.receive(&mut room)
            });
            match received {
                Received::Packet(_) => counters.rx.drops.add(DropReason::LinkDown),
                Received::Dropped(reason) => counters.rx.drops.add(reason),
                Received::Empty => self.readable = false,
            }
        }
        true
    }
}

/// A ring whose memory makes no sense is not used again until the driver sets it up anew.
fn broken(pair: usize, side: Side, error: RingError, counters: &PairCounters) {
    let (name, counters) = match side {
        Side::Rx => ("receive", &counters.rx),
        Side::Tx => ("transmit", &counters.tx),
    };
    counters.ring_errors.add(1);
    log::error!("{name} queue of pair {pair} stops until the driver resets it: {error}");
}
