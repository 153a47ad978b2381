// SPDX-License-Identifier: GPL-2.0

//! From a device that was reset to one that is driven, and back.
//!
//! # Theory of operation
//!
//! | state | queues | polling |
//! |---|---|---|
//! | not driven | none | off |
//! | driven, interface down | the device has them, without buffers | off |
//! | driven, interface up | filled | on |
//!
//! The state of a receive queue moves from [`Driven`] into polling and back; that of a transmit
//! queue is with its lock as long as the device is driven. Nothing that the device may touch is
//! freed before it was reset. Should it refuse to be reset, all of that is leaked, on purpose.

use super::{
    config::{
        Fixed,
        Link, //
    },
    control::ControlQueue,
    features,
    nic::{
        Control,
        Nic,
        Wishes, //
    },
    rx::Rx,
    Work, //
};
use crate::{
    irq::Vectors,
    net::{
        ethtool::Rings,
        Decisions,
        Device, //
    },
    virtio::{
        Features,
        Transport, //
    }, //
};
use kernel::{
    prelude::*,
    sync::atomic::Relaxed,
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// Largest frame beyond its MTU: Ethernet's header and a VLAN's tag.
const FRAME_OVERHEAD: u32 = 18;
/// So many resets within [`RECOVERY_SPAN`] and the device is given up.
const MAX_RECOVERIES: u32 = 10;
/// See [`MAX_RECOVERIES`].
const RECOVERY_SPAN: Delta = Delta::from_secs(30);

/// How long to wait for packets that are on their way out when sending stops.
const SETTLE: Delta = Delta::from_millis(50);
/// See [`SETTLE`].
const SETTLE_STEP: Delta = Delta::from_micros(100);

/// A device that is driven.
pub(super) struct Driven<'a> {
    /// Dropped first: no handler runs when the rest goes.
    pub(super) vectors: Option<Vectors<'a>>,
    /// What was agreed on.
    pub(super) features: Features,
    /// What the device is.
    pub(super) fixed: Fixed,
    /// Its link, when it was last looked at.
    pub(super) link: Link,
    /// The control queue, if there is one.
    pub(super) control: Option<ControlQueue<'a>>,
    /// Sizes of its queues.
    pub(super) rings: Rings,
    /// Kinds of statistics that the device has.
    pub(super) statistics: u64,
    /// What is decided about interrupts of receive queues, where the device can hold them back.
    pub(super) decisions: KVec<Decisions>,
    /// Receive queues while they are not polled.
    pub(super) rx: KVec<Option<Rx<'a>>>,
    /// Polling is on for so many pairs.
    pub(super) running: u16,
    /// The largest frame that fits in a buffer.
    pub(super) frame: u32,
}

impl<'a> Driven<'a> {
    /// The largest MTU.
    pub(super) fn max_mtu(&self) -> u32 {
        self.fixed.max_mtu
    }

    /// The number of the control queue, if there is one.
    pub(super) fn control_index(&self) -> Option<u16> {
        self.control.as_ref().map(|queue| queue.index())
    }

    /// Receive queue `index` if it is not polled.
    pub(super) fn idle_rx(&mut self, index: usize) -> Option<&mut Rx<'a>> {
        self.rx.get_mut(index)?.as_mut()
    }

    /// Whether frames of that MTU can be received as things are.
    pub(super) fn buffers_fit(&self, mtu: u32) -> bool {
        self.features.contains(features::MRG_RXBUF) || mtu + FRAME_OVERHEAD <= self.frame
    }
}

/// How often the device was reset of late.
#[derive(Default)]
pub(super) struct Recovery {
    count: u32,
    since: Option<Instant<Monotonic>>,
    total: u64,
}

impl Recovery {
    /// Notes another reset. False if there have been too many.
    fn allow(&mut self) -> bool {
        let recent = self
            .since
            .is_some_and(|since| since.elapsed() < RECOVERY_SPAN);
        if !recent {
            self.since = Some(Instant::now());
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.total = self.total.wrapping_add(1);
        self.count <= MAX_RECOVERIES
    }

    /// How many there have been in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

/// Agrees with the device on features, and reads what goes with them.
fn agree(transport: &Transport<'_>) -> Result<(Features, Fixed, Link)> {
    let features = transport.negotiate(features::WANTED, features::REQUIREMENTS)?;
    let read = || {
        let fixed = Fixed::read(transport, features)?;
        Ok((features, fixed, Link::read(transport, features)?))
    };
    read().inspect_err(|_| transport.fail())
}

impl<'a> Nic<'a> {
    /// Looks how many pairs there can be: as many as the device has, and there are CPUs.
    pub(super) fn probe_pairs(transport: &Transport<'_>) -> Result<u16> {
        let (_, fixed, _) = agree(transport)?;
        transport.reset()?;
        let cpus = u16::try_from(kernel::cpu::nr_cpu_ids()).unwrap_or(u16::MAX);
        // Two queues each and one more must have numbers.
        Ok(fixed.max_pairs.min(cpus.max(1)).min(0x3fff))
    }

    /// How many pairs to use at first.
    pub(super) fn default_pairs(&self, driven: &Driven<'_>) -> u16 {
        // CAST: There are as many as `probe_pairs` said.
        (self.pairs.len() as u16).min(driven.fixed.max_pairs)
    }

    /// Agrees with the device on features and gives it its queues.
    pub(super) fn drive(&self, dev: &Device<Self>, wishes: &Wishes) -> Result<Driven<'a>> {
        let (features, fixed, link) = agree(&self.transport)?;
        let mut driven = Driven {
            vectors: None,
            features,
            fixed,
            link,
            control: None,
            rings: Rings::default(),
            decisions: KVec::new(),
            statistics: 0,
            rx: KVec::new(),
            running: 0,
            frame: dev.mtu().max(super::config::ETHERNET_MTU) + FRAME_OVERHEAD,
        };
        match self.give_queues(dev, wishes, &mut driven) {
            Ok(()) => Ok(driven),
            Err(error) => {
                self.take_back(driven);
                Err(error)
            }
        }
    }

    /// Has the queues in use polled. The interface goes up.
    pub(super) fn start_queues(&self, dev: &Device<Self>, control: &mut Control<'a>) -> Result {
        let pairs = control.wishes.pairs;
        let driven = control.driven.as_mut().ok_or(ENODEV)?;
        for index in 0..pairs {
            let (Some(pair), Some(slot)) = (
                self.pairs.get(usize::from(index)),
                driven.rx.get_mut(usize::from(index)),
            ) else {
                return Err(EINVAL);
            };
            let Some(mut rx) = slot.take() else {
                return Err(EINVAL);
            };
            // Too few buffers are better than none: polling adds more.
            rx.refill(None, &pair.rx.handler().stats);
            if let Err(rx) = pair.rx.enable(rx) {
                *slot = Some(rx);
                return Err(EBUSY);
            }
            driven.running = index + 1;
            let _ = pair.tx.enable(());
            pair.rx.link_queue(index.into(), false);
            pair.tx.link_queue(index.into(), true);
            // What came before polling was on had nobody to ask for an interrupt.
            pair.rx.schedule_process();
            // And so had what was still on its way out.
            pair.tx.schedule_process();
        }
        dev.set_xps(pairs.into());
        // Those that are not used, too: the watchdog minds queues that are stopped.
        for pair in &self.pairs {
            let guard = pair.tx.handler().cell.lock_bh();
            guard.control().wake();
        }
        Ok(())
    }

    /// Undoes [`Self::start_queues`].
    pub(super) fn stop_queues(&self, dev: &Device<Self>, control: &mut Control<'a>) {
        let Some(driven) = control.driven.as_mut() else {
            return dev.tx_disable();
        };
        for index in 0..driven.running {
            let Some(pair) = self.pairs.get(usize::from(index)) else {
                continue;
            };
            pair.rx.unlink_queue(index.into(), false);
            pair.tx.unlink_queue(index.into(), true);
            let rx = pair.rx.disable();
            if let Some(slot) = driven.rx.get_mut(usize::from(index)) {
                *slot = rx;
            }
            let _ = pair.tx.disable();
        }
        // Not before: polling wakes queues.
        dev.tx_disable();
        let start = Instant::<Monotonic>::now();
        for pair in self.pairs.iter().take(driven.running.into()) {
            // What is sent a little later is freed when it is looked after again.
            while !pair.tx.handler().reclaim() && start.elapsed() < SETTLE {
                fsleep(SETTLE_STEP);
            }
        }
        driven.running = 0;
    }

    /// Takes everything back from the device. Polling must be off.
    pub(super) fn give_up_device(&self, control: &mut Control<'a>) {
        if let Some(driven) = control.driven.take() {
            self.take_back(driven);
        }
    }

    /// Takes back all that the device has. Polling must be off.
    pub(super) fn take_back(&self, mut driven: Driven<'a>) {
        let reset = self.transport.reset();
        // Not before: a function without vectors interrupts on a line that others may share.
        driven.vectors = None;
        if let Err(error) = reset {
            if error != ENODEV {
                // It may go on using what it has.
                dev_err!(self.pdev, "device does not let itself be reset\n");
                core::mem::forget(driven);
                for pair in &self.pairs {
                    core::mem::forget(pair.tx.handler().cell.lock_bh().take());
                }
                return;
            }
        }
        self.drop_tx();
        drop(driven);
    }

    /// Frees all transmit queues, which no device uses any more.
    fn drop_tx(&self) {
        for pair in &self.pairs {
            let handler = pair.tx.handler();
            let tx = {
                let mut guard = handler.cell.lock_bh();
                guard.control().reset_counts();
                let tx = guard.take();
                let lost = tx.as_ref().map_or(0, |tx| tx.queue.outstanding());
                handler.stats.drops.add(lost.into());
                tx
            };
            handler.busy.store(false, Relaxed);
            // Not with the lock held.
            drop(tx);
        }
    }

    /// Resets the device and drives it anew with the same wishes, because of `why`. Gives the
    /// device up if that does not help.
    pub(super) fn recover(&self, dev: &Device<Self>, why: &str) {
        let mut control = self.control.lock();
        if control.driven.is_none() {
            return;
        }
        if control.recovery.allow() {
            dev_warn!(self.pdev, "{}: resetting\n", why);
            if self.try_rebuild(dev, &mut control).is_ok() {
                return;
            }
        }
        self.abandon(dev, &mut control);
    }

    /// Makes all queues anew because the wishes have changed. If that fails, `undo` changes them back
    /// and all is made once more.
    pub(super) fn rebuild(
        &self,
        dev: &Device<Self>,
        control: &mut Control<'a>,
        undo: impl FnOnce(&mut Wishes),
    ) -> Result {
        if control.driven.is_none() {
            return Err(ENODEV);
        }
        self.try_rebuild(dev, control).inspect_err(|_| {
            undo(&mut control.wishes);
            if self.try_rebuild(dev, control).is_err() {
                self.abandon(dev, control);
            }
        })
    }

    /// Uses another number of pairs from now on. Traffic pauses for a moment. RTNL must be held.
    ///
    /// `EINVAL` if there are not so many.
    pub(super) fn set_pairs(&self, dev: &Device<Self>, pairs: u16) -> Result {
        let mut control = self.control.lock();
        let driven = control.driven.as_ref().ok_or(ENODEV)?;
        if pairs == 0 || pairs > self.default_pairs(driven) {
            return Err(EINVAL);
        }
        let before = control.wishes.pairs;
        if pairs == before {
            return Ok(());
        }
        let open = control.wishes.open;
        if open {
            self.stop_queues(dev, &mut control);
        }
        let mut change = |pairs: u16| -> Result {
            control.wishes.pairs = pairs;
            if let Some(rss) = &mut control.wishes.rss {
                rss.set_pairs(pairs);
            }
            self.tell_pairs(&mut control)?;
            dev.set_queue_pairs(pairs.into())
        };
        let result = change(pairs).inspect_err(|_| {
            let _ = change(before);
        });
        let started = match open {
            true => self.start_queues(dev, &mut control),
            false => Ok(()),
        };
        self.check_control(dev, &control);
        result.and(started)
    }

    /// Makes the queues anew with so many descriptors, as far as the device can. RTNL must be held.
    pub(super) fn set_queue_sizes(&self, dev: &Device<Self>, rx: u16, tx: u16) -> Result {
        let mut control = self.control.lock();
        let before = (control.wishes.rx_size, control.wishes.tx_size);
        (control.wishes.rx_size, control.wishes.tx_size) = (rx, tx);
        self.rebuild(dev, &mut control, |wishes| {
            (wishes.rx_size, wishes.tx_size) = before;
        })
    }

    fn try_rebuild(&self, dev: &Device<Self>, control: &mut Control<'a>) -> Result {
        self.stop_queues(dev, control);
        self.give_up_device(control);
        control.driven = Some(self.drive(dev, &control.wishes)?);
        // What asked for that was about the queues that are gone.
        dev.cancel_work(Work::RESET);
        self.tell_all(control, &dev.address())?;
        if control.wishes.open {
            self.start_queues(dev, control)?;
        }
        dev.schedule_work(Work::CONFIG);
        Ok(())
    }

    /// Gives the device up, with one message.
    fn abandon(&self, dev: &Device<Self>, control: &mut Control<'a>) {
        self.stop_queues(dev, control);
        dev.set_carrier(false);
        self.give_up_device(control);
        self.transport.fail();
        dev.detach();
        dev_err!(self.pdev, "device does not work and is given up\n");
    }
}

#[kunit_tests(ferronic_lifecycle)]
mod tests {
    use super::*;

    #[test]
    fn too_many_resets_are_refused() {
        let mut recovery = Recovery::default();
        for _ in 0..MAX_RECOVERIES {
            assert!(recovery.allow());
        }
        assert!(!recovery.allow());
    }
}
