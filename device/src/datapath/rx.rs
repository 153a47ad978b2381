// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Receive: uplink to guest ring.
//!
//! # Design
//! Buffers are taken from the ring ahead of the packets, enough for the largest that can come, and
//! a packet is received straight into them. With mergeable buffers (VIRTIO 1.3, 5.1.6.4) it takes
//! as many as it needs and the rest serve the next. Behind the guest's room lies an overflow buffer
//! of ours: a packet that is larger than the room is not cut off but held until the driver has made
//! more available; only one that can never fit is dropped.
//!
//! Where hashes are reported (5.1.6.4.4), the end of the header is written when a packet has been
//! looked at. An uplink may leave there what was there before.
//!
//! # Limitations
//! A packet that is held when its ring is stopped or the cable is pulled is lost, and counted.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::nic::counters::{DropReason, QueueCounters};
use crate::nic::filter::Filter;
use crate::nic::flow_hash::HEADERS;
use crate::nic::hashing::Hashing;
use crate::nic::header::{HASHLESS_HEADER, VirtioNetHdr};
use crate::ring::memory::MemoryMap;
use crate::ring::piece_list::PieceList;
use crate::ring::pieces::{MAX_PIECES, PiecesMut};
use crate::ring::virtqueue::{Direction, One, Ring, RingError};
use crate::uplink::{Received, UplinkQueue};

use super::crossing::Crossing;
use super::inlet::Frame;
use super::notify::Interrupt;
use super::{BUDGET, ETHERNET_HEADER, LARGEST, Turn};

/// Offset of `num_buffers` in the virtio-net header (5.1.6).
const NUM_BUFFERS: usize = 10;
/// No more buffers are taken ahead when there are this many pieces: a chain may bring as many again
/// and the overflow one.
const PIECES_AHEAD: usize = MAX_PIECES / 2 - 1;

/// Chains that are taken ahead in one go, if there are so many. Not more than the kernel takes pieces
/// in one call without having to allot memory for them (eight), with one for the packet and the
/// overflow buffer.
const CHAINS_AHEAD: usize = 6;

/// What a receive queue must know of the negotiation.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveFormat {
    /// Octets of the virtio-net header.
    pub header_len: usize,
    /// `VIRTIO_NET_F_MRG_RXBUF`.
    pub mergeable: bool,
    /// Header and frame of the largest packet that normally comes.
    pub largest: usize,
}

/// Buffers of one chain, taken from the ring.
#[derive(Debug)]
struct Taken {
    head: u16,
    /// Octets; none of a chain that broke the rules.
    len: usize,
    pieces: usize,
}

/// What becomes of the packets that the uplink gives to a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sorter<'a> {
    pub filter: &'a Filter,
    /// How packets are hashed, and perhaps which pair's they are; without it, all are this one's.
    pub hashing: Option<&'a Hashing>,
    /// The way to the others.
    pub crossing: &'a Crossing,
    /// This pair's number.
    pub pair: usize,
}

/// What came of asking the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    /// A packet of so many octets lies in the room.
    Here(usize),
    /// One has gone to another pair.
    Elsewhere,
    Lost(DropReason),
    Nothing,
}

impl Sorter<'_> {
    /// Looks at a packet that has come in.
    fn sort(&self, room: &mut PiecesMut<'_>, header_len: usize, len: usize) -> Arrival {
        let frame_len = len.saturating_sub(header_len);
        let mut octets = [0; HEADERS];
        let octets = match octets.first_chunk_mut::<ETHERNET_HEADER>() {
            // A length that the compiler knows.
            Some(octets) if self.hashing.is_none() && frame_len >= ETHERNET_HEADER => {
                room.copy_to(header_len, octets);
                &mut octets[..]
            }
            _ => {
                let seen = frame_len.min(HEADERS);
                let octets = octets.get_mut(..seen).unwrap_or_default();
                room.copy_to(header_len, octets);
                octets
            }
        };
        if !self.filter.accepts(octets) {
            return Arrival::Lost(DropReason::Filtered);
        }
        let hash = self.hashing.and_then(|hashing| hashing.hash(octets));
        match self.hashing.and_then(|hashing| hashing.queue(hash)) {
            Some(pair) if pair != self.pair => {
                match self.crossing.send(pair, room, header_len, len, hash) {
                    true => Arrival::Elsewhere,
                    false => Arrival::Lost(DropReason::NoBuffers),
                }
            }
            _ => {
                if header_len > HASHLESS_HEADER {
                    let header = VirtioNetHdr::default().with_hash(hash).encode();
                    let report = header.get(HASHLESS_HEADER..).unwrap_or_default();
                    room.copy_from(HASHLESS_HEADER, report);
                }
                Arrival::Here(len)
            }
        }
    }
}

/// Whether a packet has room in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Now,
    /// When the driver makes more buffers available, of which it will notify.
    Later,
    /// Not with any buffers that could come.
    Never,
}

/// A packet that was received and not delivered, because it is larger than the room that was there.
#[derive(Clone, Copy, Debug)]
struct Held {
    len: usize,
    /// So much of it is in the guest's buffers, the rest in the overflow buffer.
    in_guest: usize,
}

/// A receive queue that is started.
#[derive(Debug)]
pub(super) struct Receiver {
    pub ring: Ring,
    pub interrupt: Interrupt,
    format: ReceiveFormat,
    taken: VecDeque<Taken>,
    /// The pieces of all that is in `taken`.
    pieces: PieceList,
    held: Option<Held>,
}

impl Receiver {
    pub fn new(
        ring: Ring,
        map: Arc<MemoryMap>,
        interrupt: Interrupt,
        format: ReceiveFormat,
    ) -> Self {
        Receiver {
            taken: VecDeque::with_capacity(usize::from(ring.size()).min(MAX_PIECES)),
            ring,
            interrupt,
            format,
            pieces: PieceList::new(map),
            held: None,
        }
    }

    /// Gives the buffers that were taken ahead back to the ring and tells where it stands.
    pub fn stop(mut self, counters: &QueueCounters) -> u16 {
        self.lose_held(DropReason::RingStopped, counters);
        self.interrupt.raise_if_wanted(&mut self.ring, counters);
        // At most the queue size, which is a u16.
        self.ring.rewind(self.taken.len() as u16);
        self.ring.next_avail()
    }

    /// Chains that were taken ahead.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.taken.len()
    }

    /// Gives up the packet that waits for more buffers, if there is one.
    pub fn lose_held(&mut self, reason: DropReason, counters: &QueueCounters) {
        if self.held.take().is_some() {
            counters.drops.add(reason);
        }
    }

    /// Moves packets until the uplink is empty (`readable` becomes false), the driver's buffers are
    /// used up or the budget is spent. To `arm` a ring whose buffers are used up is for who may sleep
    /// then.
    pub fn turn(
        &mut self,
        queue: &mut dyn UplinkQueue,
        readable: &mut bool,
        sorter: Sorter<'_>,
        overflow: &mut [u8; LARGEST],
        arm: bool,
        counters: &QueueCounters,
    ) -> Result<Turn, RingError> {
        if !*readable && self.held.is_none() {
            return Ok(Turn::Waits);
        }
        self.ring.disarm();
        let mut turn = Turn::More;
        for _ in 0..BUDGET {
            let packet = match self.held {
                Some(held) => held,
                None => {
                    self.take_ahead(self.format.largest)?;
                    if self.give_back_bad(counters) {
                        // There may be more in the ring, which nobody would tell us of.
                        continue;
                    }
                    if self.taken.is_empty() {
                        self.ring.publish();
                        if arm && self.ring.arm()? {
                            continue;
                        }
                        turn = Turn::Waits;
                        break;
                    }
                    match self.receive(queue, sorter, overflow) {
                        Arrival::Here(len) => Held {
                            len,
                            in_guest: self.pieces.len().min(len),
                        },
                        Arrival::Elsewhere => {
                            counters.steered.add(1);
                            continue;
                        }
                        Arrival::Lost(reason) => {
                            counters.drops.add(reason);
                            continue;
                        }
                        Arrival::Nothing => {
                            *readable = false;
                            turn = Turn::Waits;
                            break;
                        }
                    }
                }
            };
            self.held = Some(packet);
            match self.fit(packet.len, arm)? {
                Fit::Now => {
                    if let Some(rest) = overflow.get(..packet.len - packet.in_guest)
                        && !rest.is_empty()
                    {
                        self.pieces.room().copy_from(packet.in_guest, rest);
                    }
                    self.deliver(packet.len, counters);
                }
                Fit::Later => {
                    turn = Turn::Waits;
                    break;
                }
                Fit::Never => counters.drops.add(DropReason::TooLong),
            }
            self.held = None;
        }
        self.ring.publish();
        Ok(turn)
    }

    /// Puts in a frame that has not come from the uplink's queue, if there is room for it now.
    pub fn put(&mut self, frame: &Frame<'_>, counters: &QueueCounters) -> Result<Fit, RingError> {
        if self.held.is_some() {
            // It lies in the buffers that this one would get, and goes first.
            return Ok(Fit::Later);
        }
        let header_len = self.format.header_len;
        let len = header_len + frame.frame_len();
        // A driver that has more chains than this for us to give back unused loses the frame, and
        // does not keep its sender.
        for _ in 0..BUDGET {
            self.take_ahead(len)?;
            if self.give_back_bad(counters) {
                continue;
            }
            if self.taken.is_empty() {
                self.ring.publish();
                if self.ring.arm()? {
                    continue;
                }
                return Ok(Fit::Later);
            }
            let fit = self.fit(len, true)?;
            if fit == Fit::Now {
                let mut room = self.pieces.room();
                let header = frame.header.encode();
                match header.first_chunk::<HASHLESS_HEADER>() {
                    // Of nearly all drivers: a length that the compiler knows.
                    Some(usual) if header_len == HASHLESS_HEADER => room.copy_from(0, usual),
                    _ => room.copy_from(0, header.get(..header_len).unwrap_or(&header)),
                };
                room.copy_from(header_len, frame.head);
                room.copy_pieces(header_len + frame.head.len(), frame.body, frame.offset);
                self.deliver(len, counters);
            }
            return Ok(fit);
        }
        Ok(Fit::Never)
    }

    /// Takes chains until there is room for `want` octets or no more chains; if there was not, some
    /// more at once, so that this is not needed for every packet.
    #[inline]
    fn take_ahead(&mut self, want: usize) -> Result<(), RingError> {
        if self.pieces.len() >= want {
            return Ok(());
        }
        self.take_chains(want)
    }

    fn take_chains(&mut self, want: usize) -> Result<(), RingError> {
        // Without mergeable buffers a packet must fit the first chain. With them, only a driver that
        // breaks the rules has more chains than the ring has entries.
        let most = if self.format.mergeable {
            usize::from(self.ring.size())
        } else {
            1
        };
        while self.pieces.len() < want
            && self.taken.len() < most
            && self.pieces.count() <= PIECES_AHEAD
        {
            let before = self.taken.len();
            let taken = &mut self.taken;
            let run = (most - before).min(CHAINS_AHEAD);
            let took = |One { head, len }| {
                taken.push_back(Taken {
                    head,
                    len: len as usize,
                    pieces: 1,
                });
            };
            self.ring
                .pop_run(Direction::Writable, &mut self.pieces, run, took);
            if self.taken.len() > before {
                continue;
            }
            // Nothing, or a chain of another kind.
            let before = self.pieces.count();
            let Some(chain) = self.ring.pop(Direction::Writable, &mut self.pieces)? else {
                break;
            };
            let pieces = self.pieces.count() - before;
            self.taken.push_back(Taken {
                head: chain.head,
                len: chain.len.unwrap_or(0),
                pieces,
            });
        }
        Ok(())
    }

    /// Returns chains that broke the rules, unused; whether there were any. Only from the front: the
    /// ring counts on order.
    #[inline]
    fn give_back_bad(&mut self, counters: &QueueCounters) -> bool {
        let some = self.front_is_bad();
        if some {
            self.give_back_front(counters);
        }
        some
    }

    #[inline]
    fn front_is_bad(&self) -> bool {
        let header_len = self.format.header_len;
        self.taken
            .front()
            .is_some_and(|front| front.len < header_len)
    }

    #[cold]
    fn give_back_front(&mut self, counters: &QueueCounters) {
        while self.front_is_bad()
            && let Some(front) = self.taken.pop_front()
        {
            counters.drops.add(DropReason::BadDescriptor);
            self.pieces.remove_front(front.pieces);
            self.ring.push(front.head, 0);
        }
    }

    fn receive(
        &mut self,
        queue: &mut dyn UplinkQueue,
        sorter: Sorter<'_>,
        overflow: &mut [u8; LARGEST],
    ) -> Arrival {
        let header_len = self.format.header_len;
        self.pieces
            .room_and(overflow, |room| match queue.receive(room) {
                Received::Packet(len) => sorter.sort(room, header_len, len),
                Received::Dropped(reason) => Arrival::Lost(reason),
                Received::Empty => Arrival::Nothing,
            })
    }

    /// Makes room for a packet of `len` octets, if there was not enough; to `arm` is as in `turn`.
    #[inline]
    fn fit(&mut self, len: usize, arm: bool) -> Result<Fit, RingError> {
        if self.pieces.len() >= len {
            return Ok(Fit::Now);
        }
        self.make_room(len, arm)
    }

    fn make_room(&mut self, len: usize, arm: bool) -> Result<Fit, RingError> {
        loop {
            if !self.format.mergeable {
                return Ok(Fit::Never);
            }
            self.take_ahead(len)?;
            if self.pieces.len() >= len {
                return Ok(Fit::Now);
            }
            let all_taken = self.taken.len() >= usize::from(self.ring.size());
            if all_taken || self.pieces.count() > PIECES_AHEAD {
                return Ok(Fit::Never);
            }
            self.ring.publish();
            if !arm || !self.ring.arm()? {
                return Ok(Fit::Later);
            }
        }
    }

    /// Hands the packet of `len` octets that lies in the first buffers to the driver.
    #[inline(always)]
    fn deliver(&mut self, len: usize, counters: &QueueCounters) {
        match self.taken.front() {
            // Nearly always one buffer is enough for it.
            Some(&Taken {
                head,
                len: room,
                pieces: 1,
            }) if room >= len => {
                self.taken.pop_front();
                self.count_buffers(1);
                // `len` is at most LARGEST, so it fits.
                self.ring.push(head, len as u32);
                self.pieces.remove_first();
            }
            _ => self.deliver_merged(len),
        }
        counters.packets.add(1);
        counters
            .bytes
            .add(len.saturating_sub(self.format.header_len) as u64);
    }

    /// Writes into the first buffer how many there are.
    #[inline]
    fn count_buffers(&mut self, buffers: u16) {
        if self.format.header_len > NUM_BUFFERS {
            self.pieces
                .room()
                .copy_from(NUM_BUFFERS, &buffers.to_le_bytes());
        }
    }

    fn deliver_merged(&mut self, len: usize) {
        let mut left = len;
        let mut pieces = 0;
        let mut buffers: u16 = 0;
        while let Some(taken) = self.taken.pop_front() {
            let here = taken.len.min(left);
            // A chain is no longer than its descriptors' 32-bit lengths allow, and `len` is at most
            // LARGEST, so `here` fits.
            self.ring.push(taken.head, here as u32);
            pieces += taken.pieces;
            buffers += 1;
            left -= here;
            if left == 0 {
                break;
            }
        }
        self.count_buffers(buffers);
        self.pieces.remove_front(pieces);
    }
}
