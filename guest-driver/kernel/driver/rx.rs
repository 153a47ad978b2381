// SPDX-License-Identifier: GPL-2.0

//! Receiving.
//!
//! # Theory of operation
//!
//! Buffers come from a page pool. In each, room is left before and behind what the device may
//! write, so that the kernel can make a packet of the buffer as it is:
//!
//! ```text
//! | HEADROOM | header, frame ...             | SKB_TAIL |
//!            ^ the device writes from here to ^
//! ```
//!
//! A small frame is copied instead, and its buffer given to the device again at once: a packet in
//! a queue of some socket then does not hold a buffer many times its size. A packet in several
//! buffers is made of the first, to which the others are added as fragments.
//!
//! With mergeable buffers their size follows what arrives: small ones for single frames, whole
//! pages while large packets come. Without, each is as large as the largest frame.

use super::{
    features,
    header,
    nic::Nic,
    stats::RxStats,
    tx::TxPoll,
    Work, //
};
use crate::{
    net::{
        Growing,
        Napi,
        PagePool,
        Poll,
        PollContext,
        PoolBuffer,
        PoolUser,
        Progress,
        Sampler,
        SkBuff,
        WeakDevice,
        SKB_TAIL, //
    },
    virtio::{
        Broken,
        Doorbell,
        Features,
        Segment,
        Virtqueue, //
    }, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// Room before the header: for headers of tunnels and links that a packet is forwarded to.
pub(super) const HEADROOM: u32 = 64;
/// Frames up to this length are copied.
const COPY: u32 = 128;
/// Longer than any frame: the largest packet of IP (5.1.6.4), and headers before it.
const MAX_FRAME: u32 = 65535 + 64;
/// Octets of an Ethernet header; a frame has more.
const ETHERNET_HEADER: u32 = 14;
/// The buffers for single frames of an ordinary MTU: two in a page.
const SMALL: u32 = 2048;
/// The smallest queue that the largest packet fits into in small buffers: one of fewer gets pages,
/// or a device that waits for room would wait for ever.
const SMALL_QUEUE: u16 = 64;
/// How long to wait for memory, in milliseconds.
const REFILL_MS: u32 = 10;
/// The header's length, as a number of octets in a buffer.
const HEADER: u32 = header::LENGTH as u32;

/// What a buffer holds beside the frame.
pub(super) const OVERHEAD: u32 = HEADROOM + HEADER + SKB_TAIL;

/// A receive queue.
pub(super) struct Rx<'a> {
    // Dropped in this order: buffers go back to a pool that is still there.
    pub(super) queue: Virtqueue<PoolBuffer>,
    pool: PagePool,
    doorbell: Doorbell<'a>,
    /// Chooses how interrupts are held back, if the device can do that.
    pub(super) sampler: Option<Sampler>,
    /// Packets may be in several buffers.
    mergeable: bool,
    /// Headers may say something of checksums and sizes of segments.
    offloads: bool,
    /// The size of buffers that are added now.
    size: u32,
    /// Average length of a packet, of late.
    average: u32,
    /// So many free descriptors are worth being filled.
    refill_at: u16,
    /// What the device did wrong was said.
    reported: bool,
}

/// What became of a look at the queue.
enum Outcome {
    /// A packet of so many octets was received.
    Packet(u32),
    /// A packet was dropped.
    Dropped,
    /// There is none.
    Empty,
    /// The device is not to be dealt with any longer.
    Broken,
}

impl<'a> Rx<'a> {
    /// A queue without buffers, with what was agreed on.
    pub(super) fn new(
        queue: Virtqueue<PoolBuffer>,
        pool: PagePool,
        doorbell: Doorbell<'a>,
        features: Features,
    ) -> Self {
        let mergeable = features.contains(features::MRG_RXBUF);
        let size = if mergeable && queue.size() >= SMALL_QUEUE {
            SMALL
        } else {
            pool.page_size()
        };
        let refill_at = (queue.size() / 8).clamp(1, 32);
        Self {
            queue,
            pool,
            doorbell,
            sampler: None,
            mergeable,
            offloads: features.contains(features::GUEST_CSUM),
            size,
            average: 0,
            refill_at,
            reported: false,
        }
    }

    /// Fills the queue. Returns whether there was memory for all.
    pub(super) fn refill(&mut self, user: PoolUser<'_>, stats: &RxStats) -> bool {
        let mut complete = true;
        while self.queue.free() > 0 {
            let Some(buffer) = self.pool.alloc(user, self.size) else {
                stats.alloc_fail.add(1);
                complete = false;
                break;
            };
            if !self.give(user, buffer) {
                break;
            }
        }
        self.publish(stats);
        complete
    }

    /// Adds a buffer. Returns whether the queue took it.
    #[inline]
    fn give(&mut self, user: PoolUser<'_>, buffer: PoolBuffer) -> bool {
        let segment = Segment {
            addr: buffer.addr().wrapping_add(HEADROOM.into()),
            len: buffer.size().saturating_sub(HEADROOM + SKB_TAIL),
        };
        match self.queue.add(&[], &[segment], buffer) {
            Ok(()) => true,
            Err(full) => {
                self.pool.recycle(user, full.token);
                false
            }
        }
    }

    /// Whether a packet may need more buffers than the device has: it waits for more then, and no
    /// interrupt leads to their being added.
    #[cold]
    fn starves(&self) -> bool {
        let enough = if self.mergeable {
            SMALL_QUEUE.min(self.queue.size())
        } else {
            1
        };
        self.queue.outstanding() < enough
    }

    #[inline]
    fn publish(&mut self, stats: &RxStats) {
        if self.queue.publish() {
            self.doorbell.ring();
            stats.kicks.add(1);
        }
    }

    /// Receives up to the budget. Returns how many packets, and whether the device misbehaved.
    fn receive(&mut self, stats: &RxStats, index: u32, context: PollContext<'_>) -> (u32, bool) {
        let budget = context.budget();
        let (mut packets, mut octets) = (0u32, 0u32);
        let mut dropped = 0u32;
        let mut broken = false;
        while packets + dropped < budget {
            match self.receive_one(stats, index, context) {
                Outcome::Packet(len) => {
                    packets += 1;
                    octets = octets.saturating_add(len);
                }
                Outcome::Dropped => dropped += 1,
                Outcome::Empty => break,
                Outcome::Broken => {
                    broken = true;
                    break;
                }
            }
        }
        if packets > 0 {
            stats.packets.add(packets.into());
            stats.bytes.add(octets.into());
            if self.mergeable {
                self.adapt(octets / packets);
            }
        }
        (packets + dropped, broken)
    }

    /// Chooses the size of buffers by the length of packets.
    #[inline]
    fn adapt(&mut self, len: u32) {
        // Moves by a quarter of the difference each time.
        self.average = self.average.saturating_sub(self.average / 4) + len / 4;
        let fits = self.average <= SMALL - OVERHEAD && self.queue.size() >= SMALL_QUEUE;
        self.size = if fits { SMALL } else { self.pool.page_size() };
    }

    /// Receives a packet.
    #[inline]
    fn receive_one(&mut self, stats: &RxStats, index: u32, context: PollContext<'_>) -> Outcome {
        let used = match self.queue.pop() {
            Ok(Some(used)) => used,
            Ok(None) => return Outcome::Empty,
            Err(_) => return Outcome::Broken,
        };
        let (buffer, len) = (used.token, used.len);
        self.pool.sync_for_cpu(&buffer, HEADROOM, len);
        let received = header::decode(buffer.read(HEADROOM));
        let more = match received.num_buffers {
            count if self.mergeable => count.checked_sub(1),
            _ => Some(0),
        };
        let (Some(frame), Some(more)) = (len.checked_sub(HEADER), more) else {
            // There is no telling where the next packet begins.
            self.pool.recycle(Some(context), buffer);
            stats.length_errors.add(1);
            return Outcome::Broken;
        };
        if frame < ETHERNET_HEADER {
            return self.nonsense(buffer, more, stats, context);
        }
        let skb = if frame <= COPY && more == 0 {
            let copy = SkBuff::copy_from(&buffer, HEADROOM + HEADER, frame, context);
            self.pool.sync_for_device(&buffer, HEADROOM, len);
            self.give(Some(context), buffer);
            copy
        } else {
            match SkBuff::build(buffer, HEADROOM + HEADER, frame, context) {
                Ok(skb) => Some(skb),
                Err(buffer) => {
                    self.pool.recycle(Some(context), buffer);
                    None
                }
            }
        };
        let skb = match more {
            0 => skb,
            more => match self.merge(skb, more, stats, context) {
                Ok(skb) => skb,
                Err(outcome) => return outcome,
            },
        };
        let Some(mut skb) = skb else {
            stats.drops.add(1);
            return Outcome::Dropped;
        };
        let len = skb.len();
        let offload = received.offload;
        // What was not agreed on is not looked at (5.1.6.4.2).
        let says_something = self.offloads && offload.flags | offload.gso_type != 0;
        if says_something && !Self::apply(&mut skb, offload, stats) {
            return Outcome::Dropped;
        }
        skb.receive(index, context);
        Outcome::Packet(len)
    }

    /// Takes over what the header says. False if that makes no sense.
    #[inline]
    fn apply(skb: &mut SkBuff, offload: crate::net::Offload, stats: &RxStats) -> bool {
        if offload.flags & header::DATA_VALID != 0 {
            skb.set_checked();
            stats.csum_unnecessary.add(1);
        }
        let unfinished = offload.flags & header::NEEDS_CSUM != 0 || offload.gso_type != 0;
        if unfinished && skb.set_offload(offload).is_err() {
            stats.header_errors.add(1);
            return false;
        }
        if offload.gso_type != 0 {
            stats.large_packets.add(1);
            stats.large_bytes.add(skb.len().into());
        }
        true
    }

    /// Adds the other buffers of a packet. Without a packet they are only taken back.
    #[inline(never)]
    fn merge(
        &mut self,
        skb: Option<SkBuff>,
        more: u16,
        stats: &RxStats,
        context: PollContext<'_>,
    ) -> Result<Option<SkBuff>, Outcome> {
        let mut frame = skb.as_ref().map_or(0, SkBuff::len);
        let mut packet = skb.map(Growing::from);
        let mut nonsense = false;
        for _ in 0..more {
            let used = match self.queue.pop() {
                Ok(Some(used)) => used,
                // The device has to make all buffers of a packet visible together (5.1.6.4.1).
                Ok(None) => {
                    stats.length_errors.add(1);
                    return Err(Outcome::Broken);
                }
                Err(_) => return Err(Outcome::Broken),
            };
            self.pool.sync_for_cpu(&used.token, HEADROOM, used.len);
            frame = frame.saturating_add(used.len);
            // A fragment of no length is nothing that the rest of the kernel expects.
            let sane = used.len > 0 && frame <= MAX_FRAME;
            let rest = match &mut packet {
                Some(packet) if sane => packet.add(used.token, HEADROOM, used.len),
                _ => Err(used.token),
            };
            if let Err(buffer) = rest {
                // It is dropped, but not before all of it is here.
                packet = None;
                self.pool.recycle(Some(context), buffer);
            }
            nonsense |= !sane;
        }
        if nonsense {
            stats.length_errors.add(1);
        }
        Ok(packet.map(Growing::finish))
    }

    /// Drops what no device may send, all of it.
    #[cold]
    fn nonsense(
        &mut self,
        buffer: PoolBuffer,
        more: u16,
        stats: &RxStats,
        context: PollContext<'_>,
    ) -> Outcome {
        self.pool.recycle(Some(context), buffer);
        stats.length_errors.add(1);
        match self.merge(None, more, stats, context) {
            Ok(_) => Outcome::Dropped,
            Err(outcome) => outcome,
        }
    }

    /// Takes the next frame while polling is off, and drops it. `None` if none has come, or one of
    /// another type; else whether it is `frame`.
    pub(super) fn look_for<const N: usize>(&mut self, frame: &[u8; N]) -> Option<bool> {
        let used = self.queue.pop().ok()??;
        let (buffer, len) = (used.token, used.len);
        self.pool.sync_for_cpu(&buffer, HEADROOM, len);
        let received = header::decode(buffer.read(HEADROOM));
        let octets: [u8; N] = buffer.read(HEADROOM + HEADER);
        drop(buffer);
        if self.mergeable {
            for _ in 1..received.num_buffers {
                let _ = self.queue.pop().ok()??;
            }
        }
        // Both addresses and the type.
        let head = ..ETHERNET_HEADER as usize;
        if octets.get(head) != frame.get(head) {
            return None;
        }
        Some(octets == *frame && len as usize == N + header::LENGTH)
    }

    /// What the device did wrong, if it did.
    pub(super) fn broken(&self) -> Option<Broken> {
        self.queue.broken()
    }
}

/// Polls a receive queue, and looks after the transmit queue of its pair on the way.
pub(super) struct RxPoll<'a> {
    pub(super) index: u32,
    pub(super) stats: RxStats,
    /// Interrupts are held back by what arrives.
    pub(super) adaptive: Atomic<bool>,
    pub(super) tx: Arc<Napi<TxPoll<'a>>>,
    pub(super) dev: WeakDevice<Nic<'a>>,
    pub(super) pdev: &'a pci::Device<Bound>,
}

impl<'a> Poll for RxPoll<'a> {
    type State = Rx<'a>;

    fn pool<'s>(rx: &'s Rx<'a>) -> Option<&'s PagePool> {
        Some(&rx.pool)
    }

    fn poll(&self, rx: &mut Rx<'a>, context: PollContext<'_>) -> Progress {
        let budget = context.budget();
        // One interrupt serves both directions.
        self.tx.handler().clean_along(&self.tx, context);
        if budget == 0 {
            return Progress::More(0);
        }
        rx.queue.disable_callback();
        let (packets, broken) = rx.receive(&self.stats, self.index, context);
        if broken {
            self.report(rx);
            return Progress::Done(packets);
        }
        let filled = if rx.queue.free() >= rx.refill_at {
            rx.refill(Some(context), &self.stats)
        } else {
            // Buffers whose frames were copied.
            rx.publish(&self.stats);
            true
        };
        if !filled && rx.starves() {
            self.dev.schedule_work_in(Work::REFILL, REFILL_MS);
        }
        if packets < budget && !rx.queue.enable_callback() {
            if self.adaptive.load(Relaxed) {
                self.sample(rx);
            }
            return Progress::Done(packets);
        }
        Progress::More(packets)
    }

    fn resume(&self, rx: &mut Rx<'a>) {
        rx.queue.disable_callback();
    }
}

impl RxPoll<'_> {
    fn sample(&self, rx: &mut Rx<'_>) {
        let stats = &self.stats;
        if let Some(sampler) = &mut rx.sampler {
            sampler.sample(
                stats.interrupts.get(),
                stats.packets.get(),
                stats.bytes.get(),
            );
        }
    }

    #[cold]
    fn report(&self, rx: &mut Rx<'_>) {
        if core::mem::replace(&mut rx.reported, true) {
            return;
        }
        self.stats.broken.add(1);
        super::report_broken(self.pdev, "receive", self.index, rx.broken());
        self.dev.schedule_work(Work::RESET);
    }
}
