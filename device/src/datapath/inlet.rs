// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The receive side of a queue pair: the driver's ring, and what decides what goes in.
//!
//! # Design
//! It has a lock of its own, beside that of the pair, so that a packet can be put into the ring by
//! another than the pair's worker: by the worker of the guest that sends it, which copies it from
//! one guest's memory into the other's ([`crate::switch`]). Where an uplink is asked for packets,
//! only the pair's worker comes here, and the lock is one that is always free.
//!
//! **Order of locks**: the pair, then an inlet. Nobody has two inlets at a time, and nobody who has
//! one takes the lock of a pair. So two guests that send to each other cannot block each other, and
//! whoever waits for an inlet waits for a thread of ours that is copying, never for a guest.
//!
//! **A guest without buffers** gets [`MOST_PACKETS`] and [`MOST_OCTETS`] that wait for it, and
//! loses what comes after. Only then is it asked to notify us, and its own worker, which the
//! notification wakes, moves them into the ring; so does the next sender, which keeps the order.
//!
//! **From another pair** of the same NIC, by receive-side scaling, packets come through a box
//! ([`super::crossing`]), and only the pair's worker moves them into the ring.
//!
//! **Interrupts** are raised by who has put the packets in, once for all that it has put in in a
//! turn, and before that when the driver would run out of buffers. They are held back as everywhere ([`super::moderation`]); then
//! [`Delivery::close`] says until when, and who has put the packets in must come back at that time.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::lock_api::ArcMutexGuard;
use parking_lot::{Mutex, MutexGuard, RawMutex};

use crate::nic::Nic;
use crate::nic::counters::{DropReason, QueueCounters};
use crate::nic::filter::Filter;
use crate::nic::flow_hash::FlowHash;
use crate::nic::hashing::Hashing;
use crate::nic::header::{HASHLESS_HEADER, LONGEST_HEADER, VirtioNetHdr};
use crate::nic::offload::Offloads;
use crate::ring::pieces::Pieces;
use crate::uplink::packet_queue::PacketQueue;

use super::ETHERNET_HEADER;
use super::crossing::Crossing;
use super::moderation::{Asked, Moderation};
use super::rx::{Fit, Receiver};
use super::worker::{Side, broken};

/// The most packets that wait for one guest's buffers.
pub const MOST_PACKETS: usize = 1024;
/// The most octets that wait for one guest's buffers, headers included.
pub const MOST_OCTETS: usize = 4 << 20;
/// The receive side of a queue pair, shared by the pair's worker, the control plane, and whoever
/// puts packets in.
#[derive(Debug)]
pub struct Inlet(Arc<Mutex<InletState>>);

/// What the lock of an inlet protects.
#[derive(Debug)]
pub(super) struct InletState {
    nic: Arc<Nic>,
    /// The pair's number.
    index: usize,
    pub rx: Option<Receiver>,
    pub filter: Filter,
    /// How packets are hashed, and perhaps which pair gets them, if not the one to which the uplink
    /// gives them.
    pub hashing: Option<Arc<Hashing>>,
    /// The way to other pairs, and from them.
    pub crossing: Arc<Crossing>,
    /// One of the pairs that the driver uses (5.1.6.5.6); others receive nothing.
    pub enabled: bool,
    /// What the driver may be handed unfinished.
    offloads: Offloads,
    /// Packets that were put in and have no buffers yet.
    waiting: Option<PacketQueue>,
    /// Of the interrupts for what was put in.
    moderation: Moderation,
    /// What the driver wants of the queue's interrupts, whoever puts packets in.
    pub asked: Asked,
}

/// A frame that is put into a guest's ring: `head`, and behind it `body` from octet `offset` on.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The virtio-net header; `num_buffers` is filled in later.
    pub header: VirtioNetHdr,
    /// The first octets: at least addresses and EtherType, and the VLAN tag where there is one. A
    /// copy of ours, so that the sender cannot change what has been looked at.
    pub head: &'a [u8],
    /// What has the rest.
    pub body: Pieces<'a>,
    /// Octets of `body` that are not part of the frame.
    pub offset: usize,
}

impl Frame<'_> {
    /// Octets of the frame, without the virtio-net header.
    pub fn frame_len(&self) -> usize {
        self.head.len() + self.body.len().saturating_sub(self.offset)
    }

    /// The same with this hash of its flow.
    pub fn with_hash(self, hash: FlowHash) -> Self {
        Frame {
            header: self.header.with_hash(Some(hash)),
            ..self
        }
    }

    /// Runs `run` on the packet that this is: a header of [`HASHLESS_HEADER`] octets and the frame.
    pub fn with_packet<R>(&self, run: impl FnOnce(Pieces<'_>) -> R) -> R {
        let mut front = [0; HASHLESS_HEADER + ETHERNET_HEADER];
        let len = (HASHLESS_HEADER + self.head.len()).min(front.len());
        let octets = self.header.encode().into_iter().take(HASHLESS_HEADER);
        for (to, from) in front
            .iter_mut()
            .zip(octets.chain(self.head.iter().copied()))
        {
            *to = from;
        }
        let front = front.get(..len).unwrap_or_default();
        self.body.with_front(front, self.offset, run)
    }

    /// Appends the packet that this is, with a header of so many octets, to a queue; whether it has
    /// room.
    pub(crate) fn keep_in<const HEADER: usize>(&self, queue: &mut PacketQueue) -> bool {
        let kept = queue.push(HEADER + self.frame_len(), |room| {
            let (header, room) = room.split_first_chunk_mut::<HEADER>().ok_or(())?;
            *header = *self.header.encode().first_chunk().ok_or(())?;
            let (head, body) = room.split_at_mut_checked(self.head.len()).ok_or(())?;
            head.copy_from_slice(self.head);
            let whole = self.body.copy_to(self.offset, body) == body.len();
            whole.then_some(()).ok_or(())
        });
        kept == Some(Ok(()))
    }
}

impl Inlet {
    pub(super) fn new(
        nic: Arc<Nic>,
        index: usize,
        filter: Filter,
        crossing: Arc<Crossing>,
    ) -> Self {
        Inlet(Arc::new(Mutex::new(InletState {
            nic,
            index,
            rx: None,
            filter,
            hashing: None,
            crossing,
            enabled: true,
            offloads: Offloads::NONE,
            waiting: None,
            moderation: Moderation::default(),
            asked: Asked::default(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, InletState> {
        self.0.lock()
    }

    /// As after an interrupt that was raised just now.
    #[cfg(test)]
    pub(crate) fn just_interrupted(&self) {
        let mut state = self.0.lock();
        let octets = state.counters().unwrap().bytes.get();
        state.moderation.raised(Instant::now(), octets);
    }

    /// Opens the inlet to put packets in. Waits while another does so, or the ring is started or
    /// stopped; nothing that a guest does makes this long.
    pub fn open(&self) -> Delivery {
        let mut state = self.0.lock_arc();
        state.drain();
        if state.waits() == 0
            && let Some(rx) = &mut state.rx
        {
            // A notification of new buffers would be of no use.
            rx.ring.disarm();
        }
        Delivery(state)
    }
}

/// An inlet that is open: as long as it is, the caller alone puts packets in.
pub struct Delivery(ArcMutexGuard<RawMutex, InletState>);

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Delivery").field(&*self.0).finish()
    }
}

impl Delivery {
    /// What the driver takes unfinished; all else must be finished before it is put in.
    pub fn offloads(&self) -> Offloads {
        self.0.offloads
    }

    /// Puts a frame in, or has it wait for buffers. What becomes of it is counted.
    #[inline]
    pub fn put(&mut self, frame: &Frame<'_>) {
        self.0.put(frame);
    }

    /// Counts a frame that cannot be put in.
    pub fn lose(&mut self, reason: DropReason) {
        self.0.lose(reason, 1);
    }

    /// Shows the driver what was put in so far, so that it may have taken it and given buffers back
    /// before the turn is over, and lets others who wait for the inlet go first.
    pub fn yield_now(&mut self) {
        self.0.show();
        ArcMutexGuard::bump(&mut self.0);
    }

    /// Shows the driver what was put in, and raises the interrupt if it is wanted and due. `Some`
    /// is when the inlet must be opened and closed again at the latest, so that one that is held
    /// back is raised.
    pub fn close(mut self) -> Option<Instant> {
        self.0.finish(true)
    }

    /// As `close`, of one that comes back before its turn is over; whether there is an interrupt to
    /// be decided on then. One that the driver must have before is raised at once.
    pub fn leave(mut self) -> bool {
        self.0.show()
    }

    /// As `close`, of one that will not come back: an interrupt is not held back.
    pub fn close_now(mut self) {
        self.0.finish(false);
    }
}

impl InletState {
    fn counters(&self) -> Option<&QueueCounters> {
        self.nic.counters.get(self.index).map(|pair| &pair.rx)
    }

    fn lose(&self, reason: DropReason, packets: usize) {
        if let Some(counters) = self.counters() {
            for _ in 0..packets {
                counters.drops.add(reason);
            }
        }
    }

    /// Packets that wait for buffers.
    pub fn waits(&self) -> usize {
        self.waiting.as_ref().map_or(0, PacketQueue::count)
    }

    /// Gives up the packets that wait for buffers.
    pub fn lose_waiting(&mut self, reason: DropReason) {
        self.lose(reason, self.waits());
        // The memory, too: it is the most of what a port that nobody uses has.
        self.waiting = None;
        // And that which is on its way from other pairs.
        self.crossing.take(self.index, &mut self.waiting);
        self.lose(reason, self.waits());
        self.waiting = None;
    }

    /// What the driver may be handed unfinished from now on.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        if !offloads.contains(self.offloads) {
            // What waits may be what the driver takes no longer.
            self.lose_waiting(DropReason::RingStopped);
        }
        self.offloads = offloads;
    }

    /// Stops the ring; tells where it stands.
    pub fn stop(&mut self) -> Option<u16> {
        self.lose_waiting(DropReason::RingStopped);
        let rx = self.rx.take()?;
        Some(rx.stop(self.counters()?))
    }

    fn put(&mut self, frame: &Frame<'_>) {
        if !self.nic.link_up() {
            return self.lose(DropReason::LinkDown, 1);
        }
        if !self.enabled || self.rx.is_none() {
            return self.lose(DropReason::NoDriver, 1);
        }
        if !self.filter.accepts(frame.head) {
            return self.lose(DropReason::Filtered, 1);
        }
        if self.waits() > 0 {
            return self.keep(frame);
        }
        match self.deliver(frame) {
            Some(Fit::Now) | None => {}
            Some(Fit::Later) => self.keep(frame),
            Some(Fit::Never) => self.lose(DropReason::TooLong, 1),
        }
    }

    /// Puts a frame into the ring, if that has room. `None` when there is no ring, or none that
    /// makes sense; then the frame is lost, and counted.
    fn deliver(&mut self, frame: &Frame<'_>) -> Option<Fit> {
        let counters = self.nic.counters.get(self.index)?;
        if let Some(rx) = &mut self.rx {
            match rx.put(frame, &counters.rx) {
                Ok(fit) => return Some(fit),
                Err(e) => {
                    broken(&self.nic, self.index, Side::Rx, e, counters);
                    self.rx = None;
                }
            }
        }
        self.lose(DropReason::RingStopped, 1);
        None
    }

    /// Has a frame wait for buffers.
    fn keep(&mut self, frame: &Frame<'_>) {
        let waiting = self
            .waiting
            .get_or_insert_with(|| PacketQueue::new(MOST_PACKETS, MOST_OCTETS));
        if !frame.keep_in::<LONGEST_HEADER>(waiting) {
            self.lose(DropReason::NoBuffers, 1);
        }
    }

    /// Moves what comes from other pairs into the ring, as far as that has room; what has waited
    /// for longer goes first.
    pub fn take_in(&mut self) {
        if self.waits() == 0 && !self.crossing.is_waited_for(self.index) {
            return;
        }
        self.drain();
        if self.waits() == 0 {
            self.crossing.take(self.index, &mut self.waiting);
            if !self.enabled || self.rx.is_none() {
                return self.lose_waiting(DropReason::NoDriver);
            }
            self.drain();
        }
        if let Some(rx) = &mut self.rx {
            rx.ring.publish();
        }
    }

    /// Moves packets that wait into the ring, as many as it has room for.
    fn drain(&mut self) {
        let Some(mut waiting) = self.waiting.take() else {
            return;
        };
        while let Some(packet) = waiting.front_mut() {
            let fit = match packet.split_first_chunk::<LONGEST_HEADER>() {
                Some((header, frame)) => Pieces::with_bytes(frame, |body| {
                    self.deliver(&Frame {
                        header: VirtioNetHdr::decode(header).unwrap_or_default(),
                        head: &[],
                        body,
                        offset: 0,
                    })
                }),
                None => Some(Fit::Never),
            };
            match fit {
                Some(Fit::Later) => break,
                Some(Fit::Now) | None => {}
                Some(Fit::Never) => self.lose(DropReason::TooLong, 1),
            }
            waiting.pop();
        }
        self.waiting = Some(waiting);
    }

    /// Looks after what others have put in: packets that wait, and interrupts that were held back;
    /// `Some` is until when such a one still is.
    pub fn serve(&mut self) -> Option<Instant> {
        if self.nic.link_up() {
            self.drain();
        } else {
            self.lose_waiting(DropReason::LinkDown);
        }
        self.finish(true)
    }

    /// Shows the driver what was put in; whether there is an interrupt to be decided on. It is
    /// decided on at once when a driver must get buffers back before it runs out of them.
    fn show(&mut self) -> bool {
        let Some(rx) = &mut self.rx else {
            return false;
        };
        rx.ring.publish();
        let scarce = rx.ring.undecided() > rx.ring.size() / 4;
        if scarce {
            self.finish(false);
        }
        !scarce && self.rx.as_ref().is_some_and(|rx| rx.ring.undecided() > 0)
    }

    /// Shows the driver what was put in and raises the interrupt, unless it `may_wait` and is held
    /// back; then until when.
    fn finish(&mut self, may_wait: bool) -> Option<Instant> {
        let counters = &self.nic.counters.get(self.index)?.rx;
        let rx = self.rx.as_mut()?;
        rx.ring.publish();
        if rx.ring.undecided() == 0 {
            return None;
        }
        let now = Instant::now();
        let octets = counters.bytes.get();
        // A driver must get buffers back before it runs out of them.
        let scarce = rx.ring.undecided() > rx.ring.size() / 4;
        let packets = counters.packets.get();
        let gap = self.moderation.hold(now, octets);
        if let Some(then) = self.asked.hold(now, packets, gap)
            && may_wait
            && !scarce
        {
            return Some(then);
        }
        self.asked.decided(packets);
        if rx.interrupt.raise_if_wanted(&mut rx.ring, counters) {
            self.moderation.raised(now, octets);
        }
        None
    }
}
