// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Transmit: guest ring to uplink.

use std::sync::Arc;

use crate::nic::counters::{DropReason, QueueCounters};
use crate::nic::header::VirtioNetHdr;
use crate::nic::offload::Offloads;
use crate::ring::memory::MemoryMap;
use crate::ring::piece_list::PieceList;
use crate::ring::pieces::Pieces;
use crate::ring::virtqueue::{Direction, One, Ring, RingError};
use crate::uplink::{Sent, UplinkQueue};

use super::notify::Interrupt;
use super::{BUDGET, MAX_FRAME, MIN_FRAME, Turn};

/// What decides on a header: all but `num_buffers`, which only means something on receive.
const MIN_HEADER: usize = 10;
/// The used index is shown to the driver at least this often, so that it can refill while we work.
const PUBLISH_EVERY: usize = 32;
/// Packets that are taken from the ring in one go.
const RUN: usize = 16;

/// A transmit queue that is started.
#[derive(Debug)]
pub(super) struct Transmitter {
    pub ring: Ring,
    pub interrupt: Interrupt,
    /// What was taken from the ring: packets of one piece each, or one of several.
    pieces: PieceList,
    /// Their chains.
    run: Vec<u16>,
    header_len: usize,
    offloads: Offloads,
    /// The uplink had no room; nothing is tried until it says that it has.
    pub blocked: bool,
}

impl Transmitter {
    pub fn new(
        ring: Ring,
        map: Arc<MemoryMap>,
        interrupt: Interrupt,
        header_len: usize,
        offloads: Offloads,
    ) -> Self {
        let pieces = PieceList::new(map);
        Transmitter {
            ring,
            interrupt,
            pieces,
            run: Vec::with_capacity(RUN),
            header_len,
            offloads,
            blocked: false,
        }
    }

    /// Tells where the ring stands.
    pub fn stop(mut self, counters: &QueueCounters) -> u16 {
        self.interrupt.raise_if_wanted(&mut self.ring, counters);
        self.ring.next_avail()
    }

    /// Moves packets until the ring is empty, the uplink full or the budget spent. To `arm` an empty
    /// ring is for who may sleep then: who looks again by himself needs no notification.
    pub fn turn(
        &mut self,
        queue: &mut dyn UplinkQueue,
        link_up: bool,
        arm: bool,
        counters: &QueueCounters,
    ) -> Result<Turn, RingError> {
        if self.blocked {
            return Ok(Turn::Waits);
        }
        self.ring.disarm();
        let mut way = Way {
            queue,
            link_up,
            header_len: self.header_len,
            offloads: self.offloads,
            counters,
        };
        let (mut done, mut unseen) = (0, 0);
        let turn = 'turn: loop {
            if done == BUDGET {
                break Turn::More;
            }
            if unseen >= PUBLISH_EVERY {
                self.ring.publish();
                unseen = 0;
            }
            self.pieces.clear();
            self.run.clear();
            let most = RUN.min(BUDGET - done).min(PUBLISH_EVERY - unseen);
            let run = &mut self.run;
            let took = |One { head, .. }| run.push(head);
            self.ring
                .pop_run(Direction::Readable, &mut self.pieces, most, took);
            let alone = !self.run.is_empty();
            let mut whole = true;
            if !alone {
                // Nothing, or a packet in several pieces.
                let Some(chain) = self.ring.pop(Direction::Readable, &mut self.pieces)? else {
                    if arm && self.ring.arm()? {
                        continue;
                    }
                    break Turn::Waits;
                };
                self.run.push(chain.head);
                whole = chain.len.is_some();
            }
            for (number, head) in self.run.iter().enumerate() {
                let packet = if alone {
                    self.pieces.packet_in(number)
                } else {
                    self.pieces.packet()
                };
                if !way.send(whole.then_some(packet)) {
                    // No more than RUN.
                    self.ring.rewind((self.run.len() - number) as u16);
                    self.blocked = true;
                    break 'turn Turn::Waits;
                }
                // The device writes nothing into a transmit chain.
                self.ring.push(*head, 0);
                done += 1;
                unseen += 1;
            }
        };
        self.ring.publish();
        Ok(turn)
    }
}

/// The way of packets out of the guest.
struct Way<'a> {
    queue: &'a mut dyn UplinkQueue,
    link_up: bool,
    header_len: usize,
    offloads: Offloads,
    counters: &'a QueueCounters,
}

impl Way<'_> {
    /// Sends a packet, or nothing where its chain breaks the rules; what becomes of it is counted. False
    /// when the uplink is full, and the packet must come again.
    #[inline]
    fn send(&mut self, packet: Option<Pieces<'_>>) -> bool {
        let Way {
            header_len,
            offloads,
            counters,
            ..
        } = *self;
        let outcome = match packet {
            None => Sent::Dropped(DropReason::BadDescriptor),
            Some(_) if !self.link_up => Sent::Dropped(DropReason::LinkDown),
            Some(packet) => match check(packet, header_len, offloads) {
                Ok(()) => self.queue.send(packet),
                Err(reason) => Sent::Dropped(reason),
            },
        };
        match outcome {
            Sent::Done => {
                let len = packet.map_or(0, |packet| packet.len());
                counters.packets.add(1);
                counters.bytes.add(len.saturating_sub(header_len) as u64);
            }
            Sent::Dropped(reason) => counters.drops.add(reason),
            Sent::Busy => return false,
        }
        true
    }
}

/// Whether a packet is one that the uplink may be given.
fn check(packet: Pieces<'_>, header_len: usize, offloads: Offloads) -> Result<(), DropReason> {
    let frame_len = packet.len().saturating_sub(header_len);
    if frame_len < MIN_FRAME {
        return Err(DropReason::TooShort);
    }
    if frame_len > MAX_FRAME {
        return Err(DropReason::TooLong);
    }
    let mut bytes = [0; MIN_HEADER];
    packet.copy_to(0, &mut bytes);
    VirtioNetHdr::decode(&bytes)
        .and_then(|header| header.validate(frame_len, offloads).ok())
        .ok_or(DropReason::BadHeader)
}
