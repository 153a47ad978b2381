// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Transmit: guest ring to uplink.

use std::sync::Arc;

use crate::nic::counters::{DropReason, QueueCounters};
use crate::nic::header::VirtioNetHdr;
use crate::nic::offload::Offloads;
use crate::ring::memory::MemoryMap;
use crate::ring::piece_list::PieceList;
use crate::ring::pieces::Pieces;
use crate::ring::virtqueue::{Direction, Ring, RingError};
use crate::uplink::{Sent, UplinkQueue};

use super::notify::Interrupt;
use super::{BUDGET, MAX_FRAME, MIN_FRAME, Turn};

/// What decides on a header: all but `num_buffers`, which only means something on receive.
const MIN_HEADER: usize = 10;
/// The used index is shown to the driver at least this often, so that it can refill while we work.
const PUBLISH_EVERY: usize = 32;

/// A transmit queue that is started.
#[derive(Debug)]
pub(super) struct Transmitter {
    pub ring: Ring,
    pub interrupt: Interrupt,
    pieces: PieceList,
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
        let mut done = 0;
        let turn = loop {
            if done == BUDGET {
                break Turn::More;
            }
            self.pieces.clear();
            let Some(chain) = self.ring.pop(Direction::Readable, &mut self.pieces)? else {
                if arm && self.ring.arm()? {
                    continue;
                }
                break Turn::Waits;
            };
            let packet = self.pieces.packet();
            let outcome = match chain.len {
                None => Sent::Dropped(DropReason::BadDescriptor),
                Some(_) if !link_up => Sent::Dropped(DropReason::LinkDown),
                Some(_) => match check(packet, self.header_len, self.offloads) {
                    Ok(()) => queue.send(packet),
                    Err(reason) => Sent::Dropped(reason),
                },
            };
            match outcome {
                Sent::Done => {
                    counters.packets.add(1);
                    counters
                        .bytes
                        .add(packet.len().saturating_sub(self.header_len) as u64);
                }
                Sent::Dropped(reason) => counters.drops.add(reason),
                Sent::Busy => {
                    self.ring.rewind(1);
                    self.blocked = true;
                    break Turn::Waits;
                }
            }
            // The device writes nothing into a transmit chain.
            self.ring.push(chain.head, 0);
            done += 1;
            if done % PUBLISH_EVERY == 0 {
                self.ring.publish();
            }
        };
        self.ring.publish();
        Ok(turn)
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
