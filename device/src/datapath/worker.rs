// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A worker: the thread that serves one queue pair.
//!
//! # Design
//! The thread sleeps until a kick, the uplink or the control plane wakes it (`wait_set`), then moves
//! packets in turns. The pair's state is behind two locks that are taken once a turn, never per
//! packet: one for all that only the worker uses, and one for the receive side ([`super::inlet`]).
//! The control plane takes them to start, stop and change rings, and so never meets a packet half
//! way. `parking_lot` hands a contended lock over in good time, which a spinning worker would not.
//!
//! A worker that is to poll goes on taking turns for a while after the last packet of either
//! direction, and does not ask to be notified meanwhile: to look is quicker than to be woken, and
//! spares the driver the notification. When the time has run out, one more turn is taken that does
//! ask, and then looks again. **No wake-up is lost**: only after such a turn, and only if it has found
//! nothing, does the worker sleep. One that does not poll asks in every turn.
//!
//! Where others put packets into the driver's ring, the worker has nothing to receive. It looks into
//! the inlet only when there is something to look after: the driver has notified of buffers, or an
//! interrupt that was held back is due.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::event::epoll::{Event, EventFlags};

use crate::nic::Nic;
use crate::nic::counters::{DropReason, PairCounters};
use crate::nic::filter::Filter;
use crate::ring::pieces::PiecesMut;
use crate::ring::virtqueue::RingError;
use crate::uplink::{Received, UplinkQueue};

use super::crossing::Crossing;
use super::inlet::{Inlet, InletState};
use super::moderation::{Asked, Moderation};
use super::rx::Sorter;
use super::tx::Transmitter;
use super::wait_set::{Sleep, WAKE, WaitSet};
use super::{BUDGET, LARGEST, Turn};

const UPLINK: u64 = 1;
const RX_KICK: u64 = 2;
const TX_KICK: u64 = 3;
/// In how many turns in a row a busy worker looks once at what has happened.
const LOOK_EVERY: u32 = 16;

/// One queue pair, shared by its thread and the control plane.
#[derive(Debug)]
pub(super) struct Pair {
    nic: Arc<Nic>,
    index: usize,
    wait: Arc<WaitSet>,
    /// How long to go on looking after the last packet.
    poll: Duration,
    /// The uplink has no descriptor that tells of packets.
    silent: bool,
    state: Mutex<PairState>,
    /// Taken after `state`, never before.
    pub inlet: Arc<Inlet>,
}

/// What the lock of a pair protects: the transmit side, and the uplink's queue.
#[derive(Debug)]
pub(super) struct PairState {
    queue: Box<dyn UplinkQueue>,
    pub tx: Option<Transmitter>,
    /// An interrupt for what others have put in is held back until then.
    due: Option<Instant>,
    /// Packets may wait in the uplink.
    readable: bool,
    overflow: Box<[u8; LARGEST]>,
    moderation: Moderation,
    /// What the driver wants of the transmit queue's interrupts.
    pub asked: Asked,
    /// Until when the worker polls, if it does.
    poll_until: Option<Instant>,
    /// It has polled for long enough; the next turn asks to be notified.
    polled: bool,
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
        poll: Duration,
        wait: Arc<WaitSet>,
        crossing: Arc<Crossing>,
    ) -> io::Result<Self> {
        let silent = queue.poll_fd().is_none();
        if let Some(fd) = queue.poll_fd() {
            wait.watch(fd, UPLINK, EventFlags::IN | EventFlags::OUT)?;
        }
        let overflow = vec![0; LARGEST]
            .try_into()
            .unwrap_or_else(|_| Box::new([0; LARGEST]));
        let state = Mutex::new(PairState {
            queue,
            tx: None,
            due: None,
            readable: true,
            overflow,
            moderation: Moderation::default(),
            asked: Asked::default(),
            poll_until: None,
            polled: false,
            stop: false,
        });
        Ok(Pair {
            inlet: Arc::new(Inlet::new(nic.clone(), index, filter, crossing)),
            nic,
            index,
            wait,
            poll,
            silent,
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
        let mut turns = 0;
        while let Some(sleep) = next {
            // While there is more to do, what happens can wait a little, and a look at it is a system
            // call. Not where the uplink tells by it that packets have come.
            turns = (turns + 1) % LOOK_EVERY;
            if sleep == Sleep::No && self.silent && turns != 0 {
                events.clear();
                next = self.serve(&events);
            } else {
                next = self.round(&mut events, sleep);
            }
        }
    }

    /// Sleeps until something happens, or so long, and takes a turn. How long to sleep next; `None`
    /// when told to stop.
    fn round(&self, events: &mut Vec<Event>, sleep: Sleep) -> Option<Sleep> {
        if let Err(e) = self.wait.wait(events, sleep) {
            log::error!("queue pair {}: {e}; the pair stops", self.index);
            return None;
        }
        self.serve(events)
    }

    /// Takes a turn after these events. How long to sleep next; `None` when told to stop.
    fn serve(&self, events: &[Event]) -> Option<Sleep> {
        let counters = self.counters()?;
        let mut state = self.state.lock();
        if state.stop {
            return None;
        }
        let mut look = state.due.is_some();
        for event in events {
            match event.data.u64() {
                // What the control plane changes may be what the uplink refused for, and while the
                // cable is out it is not even asked.
                UPLINK | WAKE => {
                    state.uplink_ready();
                    look = true;
                }
                RX_KICK => {
                    counters.rx.kicks.add(1);
                    look = true;
                }
                TX_KICK => counters.tx.kicks.add(1),
                _ => {}
            }
        }
        let polls = !self.poll.is_zero();
        let arm = !polls || std::mem::take(&mut state.polled);
        let before = counters.taken();
        let mut more = state.transmit(&self.nic, counters, self.index, arm);
        let again = state.queue.flush();
        // Not before this: the queue may have had another pair's inlet until now.
        let held_until = if state.queue.pushes() {
            if look {
                state.due = self.inlet.lock().serve();
            }
            [state.due, state.interrupt(None, counters)]
        } else {
            let mut inlet = self.inlet.lock();
            more |= state.receive(&mut inlet, &self.nic, counters, self.index, arm);
            [state.interrupt(Some(&mut inlet), counters), None]
        };
        if polls {
            more |= state.look_on(self.poll, arm, counters.taken() != before);
        }
        let then = held_until.into_iter().chain([again]).flatten().min();
        Some(match then {
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

    /// Takes one turn on the caller's thread without sleeping; how long the worker would sleep next.
    /// `None` when told to stop.
    pub fn turn(&self) -> Option<Sleep> {
        self.round(&mut Vec::with_capacity(8), Sleep::No)
    }

    /// As after an interrupt that was raised just now.
    #[cfg(test)]
    pub fn just_interrupted(&self) {
        let octets = self.counters().unwrap().octets();
        self.lock().moderation.raised(Instant::now(), octets);
    }
}

impl PairState {
    /// Whether a worker that polls for so long takes another turn, after one that has `asked` to be
    /// notified or has not, and has `found` packets or none.
    fn look_on(&mut self, poll: Duration, asked: bool, found: bool) -> bool {
        if found {
            self.poll_until = Some(Instant::now() + poll);
        } else if !asked {
            self.polled = self.poll_until.is_none_or(|until| Instant::now() >= until);
        }
        found || !asked
    }

    fn uplink_ready(&mut self) {
        self.readable = true;
        if let Some(tx) = &mut self.tx {
            tx.blocked = false;
        }
    }

    /// Has the uplink steer packets to this pair, which is number `index`, only while it receives.
    pub fn update_steering(&mut self, inlet: &InletState, index: usize) {
        let active = inlet.enabled && inlet.rx.is_some();
        if let Err(e) = self.queue.set_active(active) {
            let verb = if active { "joined to" } else { "taken from" };
            log::error!("queue pair {index} cannot be {verb} the uplink: {e}");
        }
    }

    /// One turn of sending; whether there is more to do at once.
    fn transmit(&mut self, nic: &Nic, counters: &PairCounters, index: usize, arm: bool) -> bool {
        let Some(tx) = &mut self.tx else {
            return false;
        };
        match tx.turn(self.queue.as_mut(), nic.link_up(), arm, &counters.tx) {
            Ok(turn) => turn == Turn::More,
            Err(e) => {
                broken(nic, index, Side::Tx, e, counters);
                self.tx = None;
                false
            }
        }
    }

    /// One turn of receiving; whether there is more to do at once.
    fn receive(
        &mut self,
        inlet: &mut InletState,
        nic: &Nic,
        counters: &PairCounters,
        index: usize,
        arm: bool,
    ) -> bool {
        // An uplink without a descriptor cannot tell; it is asked every time.
        let silent = self.queue.poll_fd().is_none();
        self.readable |= silent;
        let before = counters.rx.taken();
        let mut more = false;
        if !nic.link_up() {
            if let Some(rx) = &mut inlet.rx {
                rx.lose_held(DropReason::LinkDown, &counters.rx);
            }
            inlet.lose_waiting(DropReason::LinkDown);
            return self.discard(counters);
        }
        if inlet.enabled
            && let Some(rx) = &mut inlet.rx
        {
            let queue = self.queue.as_mut();
            let overflow = &mut self.overflow;
            let sorter = Sorter {
                filter: &inlet.filter,
                hashing: inlet.hashing.as_deref(),
                crossing: &inlet.crossing,
                pair: index,
            };
            match rx.turn(
                queue,
                &mut self.readable,
                sorter,
                overflow,
                arm,
                &counters.rx,
            ) {
                Ok(turn) => more |= turn == Turn::More,
                Err(e) => {
                    broken(nic, index, Side::Rx, e, counters);
                    rx.lose_held(DropReason::RingStopped, &counters.rx);
                    inlet.rx = None;
                    self.update_steering(inlet, index);
                }
            }
        }
        // Not before this: a packet that has waited for buffers has them first.
        let received = inlet.rx.is_some();
        inlet.take_in();
        if received && inlet.rx.is_none() {
            self.update_steering(inlet, index);
        }
        // Where the uplink's two directions share room (loopback), receiving has made some, also
        // with packets that the driver did not want.
        if silent
            && let Some(tx) = &mut self.tx
            && std::mem::take(&mut tx.blocked)
        {
            more |= counters.rx.taken() != before;
        }
        more
    }

    /// Raises the interrupts that the driver wants, or holds them back for a while; then until when.
    /// Without an inlet, that of the transmit queue alone.
    fn interrupt(
        &mut self,
        inlet: Option<&mut InletState>,
        counters: &PairCounters,
    ) -> Option<Instant> {
        let rx = inlet.and_then(|inlet| {
            let rx = inlet.rx.as_mut()?;
            Some((&mut rx.ring, &rx.interrupt, &mut inlet.asked, &counters.rx))
        });
        let tx = self
            .tx
            .as_mut()
            .map(|tx| (&mut tx.ring, &tx.interrupt, &mut self.asked, &counters.tx));
        let mut queues = [rx, tx];
        let mut rings = queues.iter().flatten().map(|(ring, ..)| ring);
        if rings.clone().all(|ring| ring.undecided() == 0) {
            return None;
        }
        let now = Instant::now();
        let octets = counters.octets();
        // A driver must get buffers back before it runs out of them.
        let scarce = rings.any(|ring| ring.undecided() > ring.size() / 4);
        let gap = self.moderation.hold(now, octets);
        let mut until: Option<Instant> = None;
        let mut raised = false;
        for (ring, interrupt, asked, counters) in queues.iter_mut().flatten() {
            if ring.undecided() == 0 {
                continue;
            }
            let packets = counters.packets.get();
            if let Some(then) = asked.hold(now, packets, gap).filter(|_| !scarce) {
                until = Some(until.map_or(then, |until| until.min(then)));
                continue;
            }
            asked.decided(packets);
            raised |= interrupt.raise_if_wanted(ring, counters);
        }
        if raised {
            self.moderation.raised(now, octets);
        }
        until
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
pub(super) fn broken(
    nic: &Nic,
    pair: usize,
    side: Side,
    error: RingError,
    counters: &PairCounters,
) {
    let (name, counters) = match side {
        Side::Rx => ("receive", &counters.rx),
        Side::Tx => ("transmit", &counters.tx),
    };
    counters.ring_errors.add(1);
    log::error!(
        "{}{name} queue of pair {pair} stops until the driver resets it: {error}",
        nic.label()
    );
}
