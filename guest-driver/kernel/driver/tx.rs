// SPDX-License-Identifier: GPL-2.0

//! Transmitting.
//!
//! # Theory of operation
//!
//! A packet goes to the device as it is: its linear part, with our header written before it, then
//! its fragments. It is freed when the device has used it.
//!
//! All happens with the lock of the transmit queue held, by the networking core when it sends and
//! by us when completions are looked after. So whether there is room is never a race: a queue that
//! is stopped has a callback asked for, and whoever makes room wakes it.
//!
//! While buffers are outstanding a callback is asked for, for when most of them are used. It is
//! asked for with the first of them, and again whenever completions were looked after, or there are
//! an eighth more of them (`rearm`). So while packets are sent the callback stays ahead of a device
//! that keeps up, and whoever sends finds out that most are used, and looks after them, before an
//! interrupt has to tell: that would take another processor, which then waits for the lock, or has the
//! sender wait.

use super::{
    header,
    nic::Nic,
    stats::TxStats,
    Work, //
};
use crate::{
    dma::Mapper,
    net::{
        Busy,
        Napi,
        Poll,
        PollContext,
        Progress,
        SkBuff,
        TxBuffer,
        TxControl,
        TxMaps,
        TxQueue,
        WeakDevice,
        XmitQueue,
        MAX_SEGMENTS, //
    },
    virtio::{
        Broken,
        Doorbell,
        Segment,
        Virtqueue, //
    }, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// No queue has as many packets.
const NEVER: u16 = u16::MAX;

/// A transmit queue.
pub(super) struct Tx<'a> {
    pub(super) queue: Virtqueue<TxBuffer<'a>>,
    doorbell: Doorbell<'a>,
    mapper: Mapper<'a>,
    /// Where mappings of packets are kept, if the mapper makes any: as many as there can be
    /// packets, less those that are in use.
    spare: KVec<KBox<TxMaps<'a>>>,
    maps: bool,
    /// A packet takes up to so many descriptors.
    needed: u16,
    /// The callback is asked for when so many packets are outstanding.
    rearm: u16,
    /// The callback can be asked for ahead, so that to ask for it anew puts it off.
    ahead: bool,
    /// What the device did wrong was said.
    reported: bool,
    /// The pieces of the packet being sent.
    segments: [Segment; MAX_SEGMENTS],
}

impl<'a> Tx<'a> {
    /// A queue without packets. `indirect`: a packet takes one descriptor, however many pieces it
    /// has.
    pub(super) fn new(
        queue: Virtqueue<TxBuffer<'a>>,
        doorbell: Doorbell<'a>,
        mapper: Mapper<'a>,
        maps: bool,
        indirect: bool,
    ) -> Result<Self> {
        let mut spare = KVec::new();
        if maps {
            let count = usize::from(queue.size());
            spare.reserve(count, GFP_KERNEL)?;
            for _ in 0..count {
                spare.push(KBox::new(TxMaps::new(), GFP_KERNEL)?, GFP_KERNEL)?;
            }
        }
        // CAST: Some twenty.
        let needed = if indirect { 1 } else { MAX_SEGMENTS as u16 };
        if queue.size() < needed {
            return Err(EINVAL);
        }
        Ok(Self {
            rearm: 0,
            ahead: queue.has_event_idx(),
            queue,
            doorbell,
            mapper,
            spare,
            maps,
            needed,
            reported: false,
            segments: [Segment::default(); MAX_SEGMENTS],
        })
    }

    #[inline]
    fn has_room(&self) -> bool {
        self.queue.free() >= self.needed
    }

    /// Shows the device what was added, and notifies it if it wants to be.
    #[inline]
    fn publish(&mut self, stats: &TxStats) {
        if self.queue.publish() {
            self.doorbell.ring();
            stats.kicks.add(1);
        }
    }

    /// Gives a packet to the device. False if it was dropped.
    #[inline]
    fn give(&mut self, skb: SkBuff, stats: &TxStats) -> bool {
        let Some(offload) = skb.offload() else {
            return false;
        };
        let header = header::encode(offload, skb.head_len());
        let maps = if self.maps { self.spare.pop() } else { None };
        if self.maps && maps.is_none() {
            return false;
        }
        let len = skb.len();
        let (buffer, count) = match skb.prepare(&header, self.mapper, maps, &mut self.segments) {
            Ok(prepared) => prepared,
            Err((_skb, maps)) => {
                self.keep(maps);
                return false;
            }
        };
        let Some(pieces) = self.segments.get(..count) else {
            return false;
        };
        if let Err(full) = self.queue.add(pieces, &[], buffer) {
            let (_skb, maps) = full.token.finish();
            self.keep(maps);
            return false;
        }
        if offload.flags | offload.gso_type != 0 {
            stats.needs_csum.add(1);
            if offload.gso_type != 0 {
                stats.large_packets.add(1);
                stats.large_bytes.add(len.into());
            }
        }
        true
    }

    #[inline]
    fn keep(&mut self, maps: Option<KBox<TxMaps<'a>>>) {
        if let Some(maps) = maps {
            // There is room, as it was reserved for all.
            let _ = self.spare.push_within_capacity(maps);
        }
    }

    /// Frees what the device has sent. Returns how many packets; fails if the device misbehaves.
    #[inline]
    fn complete(
        &mut self,
        control: TxControl<'_>,
        stats: &TxStats,
        consume: impl FnMut(SkBuff),
    ) -> Result<u32, Broken> {
        let (packets, octets, result) = self.take_back(consume);
        if packets > 0 {
            stats.packets.add(packets.into());
            stats.bytes.add(octets.into());
            control.completed(packets, octets);
            if control.is_stopped() && self.has_room() && result.is_ok() {
                control.wake();
                stats.wakes.add(1);
            }
        }
        result.map(|()| packets)
    }

    /// Takes back what the device has sent. Returns how many packets, and their octets.
    #[inline]
    fn take_back(&mut self, mut consume: impl FnMut(SkBuff)) -> (u32, u32, Result<(), Broken>) {
        let (mut packets, mut octets) = (0u32, 0u32);
        loop {
            match self.queue.pop() {
                Ok(Some(used)) => {
                    let (skb, maps) = used.token.finish();
                    packets = packets.wrapping_add(1);
                    octets = octets.wrapping_add(skb.len());
                    consume(skb);
                    self.keep(maps);
                }
                Ok(None) => return (packets, octets, Ok(())),
                Err(broken) => return (packets, octets, Err(broken)),
            }
        }
    }

    /// Asks for a callback. True if there are completions already.
    #[inline]
    fn arm(&mut self) -> bool {
        let outstanding = self.queue.outstanding();
        self.rearm = if self.ahead {
            outstanding.saturating_add(outstanding / 8 + 1)
        } else {
            NEVER
        };
        self.queue.enable_callback_delayed()
    }
}

/// Looks after the completions of a transmit queue.
pub(super) struct TxPoll<'a> {
    pub(super) index: u32,
    pub(super) stats: TxStats,
    pub(super) cell: TxQueue<Tx<'a>>,
    pub(super) dev: WeakDevice<Nic<'a>>,
    pub(super) pdev: &'a pci::Device<Bound>,
    /// Packets are with the device. A hint for who does not have the lock.
    pub(super) busy: Atomic<bool>,
}

impl<'a> TxPoll<'a> {
    /// Sends a packet.
    #[inline]
    pub(super) fn xmit(
        &self,
        napi: &Napi<Self>,
        skb: SkBuff,
        queue: &mut XmitQueue<'_>,
    ) -> Result<(), Busy> {
        let Some((tx, control)) = self.cell.with(queue) else {
            // The device is being reset: sending is off, but for who looked just before.
            return Ok(());
        };
        if !tx.has_room() {
            // Cannot be, unless the core sends on a stopped queue.
            control.stop();
            return Err(Busy(skb));
        }
        let len = skb.len();
        let kick = if tx.give(skb, &self.stats) {
            if !tx.has_room() {
                self.full(napi, tx, control);
            }
            control.sent(len)
        } else {
            self.stats.drops.add(1);
            control.must_kick()
        };
        if kick {
            tx.publish(&self.stats);
            if tx.queue.outstanding() >= tx.rearm {
                self.busy.store(true, Relaxed);
                if tx.arm() {
                    // The lock is held already, so here is where it costs least.
                    self.clean(napi, tx, control, SkBuff::consume_any);
                }
            }
        }
        Ok(())
    }

    /// Stops the queue until there is room.
    #[cold]
    fn full(&self, napi: &Napi<Self>, tx: &mut Tx<'a>, control: TxControl<'_>) {
        control.stop();
        self.stats.stops.add(1);
        // What was added must be visible, or nothing would ever be completed.
        tx.publish(&self.stats);
        self.busy.store(true, Relaxed);
        if tx.arm() {
            napi.schedule();
        }
    }

    /// Asks for an interrupt when the next packet was sent. Otherwise none may come, if that is
    /// seen to have happened right after the packet was given to the device. In process context.
    pub(super) fn arm_ahead(&self, napi: &Napi<Self>) {
        let mut guard = self.cell.lock_bh();
        if let Some((tx, _control)) = guard.split() {
            tx.rearm = NEVER;
            self.busy.store(true, Relaxed);
            if tx.queue.enable_callback() {
                napi.schedule();
            }
        }
    }

    /// Looks after completions while sending and polling are off. Returns whether nothing is left
    /// to be looked after. In process context.
    pub(super) fn reclaim(&self) -> bool {
        let mut guard = self.cell.lock_bh();
        let Some((tx, control)) = guard.split() else {
            return true;
        };
        let (packets, octets, result) = tx.take_back(SkBuff::consume_any);
        if packets > 0 {
            self.stats.packets.add(packets.into());
            self.stats.bytes.add(octets.into());
            control.completed(packets, octets);
        }
        let empty = tx.queue.outstanding() == 0;
        if empty {
            tx.rearm = 0;
            self.busy.store(false, Relaxed);
        }
        // Nothing more comes of a queue that is broken.
        empty || result.is_err()
    }

    /// Sends a packet while sending and polling are off. False if it cannot be sent, or others
    /// are on their way. In process context.
    pub(super) fn send_alone(&self, skb: SkBuff) -> bool {
        let mut guard = self.cell.lock_bh();
        let Some((tx, control)) = guard.split() else {
            return false;
        };
        if tx.queue.outstanding() != 0 {
            return false;
        }
        let len = skb.len();
        if !tx.give(skb, &self.stats) {
            return false;
        }
        // Completions are told to the core, so this has to be, too.
        control.sent(len);
        tx.publish(&self.stats);
        true
    }

    /// Looks after completions where the receive queue of the pair is polled.
    #[inline]
    pub(super) fn clean_along(&self, napi: &Napi<Self>, context: PollContext<'_>) {
        if !self.busy.load(Relaxed) {
            return;
        }
        let Some(mut guard) = self.cell.try_lock() else {
            // Someone is sending right now.
            napi.schedule();
            return;
        };
        if let Some((tx, control)) = guard.split() {
            self.clean(napi, tx, control, |skb| skb.consume(context));
        }
    }

    #[inline]
    fn clean(
        &self,
        napi: &Napi<Self>,
        tx: &mut Tx<'a>,
        control: TxControl<'_>,
        consume: impl FnMut(SkBuff),
    ) {
        match tx.complete(control, &self.stats, consume) {
            Ok(0) => {}
            Ok(_) if tx.queue.outstanding() == 0 => {
                tx.rearm = 0;
                self.busy.store(false, Relaxed);
            }
            Ok(_) => {
                if tx.arm() {
                    napi.schedule();
                }
            }
            Err(broken) => self.report(tx, broken),
        }
    }

    #[cold]
    fn report(&self, tx: &mut Tx<'a>, broken: Broken) {
        if core::mem::replace(&mut tx.reported, true) {
            return;
        }
        self.stats.broken.add(1);
        super::report_broken(self.pdev, "transmit", self.index, Some(broken));
        self.dev.schedule_work(Work::RESET);
    }
}

impl<'a> Poll for TxPoll<'a> {
    type State = ();

    fn poll(&self, (): &mut (), context: PollContext<'_>) -> Progress {
        let mut guard = self.cell.lock();
        let Some((tx, control)) = guard.split() else {
            return Progress::Done(0);
        };
        tx.queue.disable_callback();
        tx.rearm = 0;
        if let Err(broken) = tx.complete(control, &self.stats, |skb| skb.consume(context)) {
            self.report(tx, broken);
            return Progress::Done(0);
        }
        if tx.queue.outstanding() == 0 {
            self.busy.store(false, Relaxed);
            return Progress::Done(0);
        }
        self.busy.store(true, Relaxed);
        if tx.arm() {
            Progress::More(0)
        } else {
            Progress::Done(0)
        }
    }

    fn resume(&self, (): &mut ()) {}
}
