// SPDX-License-Identifier: GPL-2.0

//! Making all queues, and giving them to the device.

use super::{
    config::Fixed,
    control::{
        self,
        ControlQueue, //
    },
    features,
    interrupts::{
        Configuration,
        Line,
        Pairs,
        Polled,
        Shared, //
    },
    lifecycle::Driven,
    nic::{
        Nic,
        Wishes, //
    },
    rx::{
        self,
        Rx, //
    },
    tx::Tx,
    Work, //
};
use crate::{
    dma::{
        self,
        Mapper, //
    },
    irq::Vectors,
    net::{
        self,
        ethtool::Rings,
        Device,
        PagePool,
        MAX_SEGMENTS, //
    },
    virtio::{
        best_size,
        Features,
        Virtqueue, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    }, //
};

/// The largest queue that is good for something.
const MAX_QUEUE: u16 = 4096;
/// Descriptors of the control queue: one command at a time.
const CONTROL_SIZE: u16 = 16;

/// The smallest order of pages that hold `octets`.
fn order_of(octets: u32) -> u32 {
    let mut order = 0;
    while order < 10 && (kernel::page::PAGE_SIZE << order) < octets as usize {
        order += 1;
    }
    order
}

/// The numbers of the queues of pair `index` (5.1.2).
pub(super) fn rx_queue(index: u16) -> u16 {
    index * 2
}

pub(super) fn tx_queue(index: u16) -> u16 {
    index * 2 + 1
}

/// That of the control queue, after those of all pairs.
fn control_queue(max_pairs: u16) -> Result<u16> {
    max_pairs.checked_mul(2).ok_or(EINVAL)
}

/// Asks which statistics the device has. None if it does not say.
fn kinds_of_statistics(queue: &mut ControlQueue<'_>) -> u64 {
    let mut kinds = [0; 8];
    match queue.ask(control::STATS_QUERY, &[], &mut kinds) {
        Ok(8) => u64::from_le_bytes(kinds),
        _ => 0,
    }
}

impl<'a> Nic<'a> {
    /// Makes all queues and gives them to the device.
    pub(super) fn give_queues(
        &self,
        dev: &Device<Self>,
        wishes: &Wishes,
        driven: &mut Driven<'a>,
    ) -> Result {
        let transport = &self.transport;
        let pairs = u16::try_from(self.pairs.len())?;
        if driven.fixed.max_pairs < pairs {
            // It was another number when the net device was made.
            return Err(EINVAL);
        }
        let vectors = driven
            .vectors
            .insert(Vectors::new(&self.interrupts, u32::from(pairs) + 1)?);
        let msix = vectors.is_msix();
        transport.set_config_vector(msix.then_some(0))?;
        let others = u16::try_from(vectors.count()).map_or(u16::MAX, |count| count.max(1) - 1);
        let vector_of = |pair: u16| match (msix, others) {
            (false, _) => None,
            (true, 0) => Some(0),
            (true, others) => Some(1 + pair % others),
        };
        let rings = self.ring_sizes(wishes)?;
        let (rx_size, tx_size) = (rings.rx.try_into()?, rings.tx.try_into()?);
        driven.rings = rings;
        for index in 0..pairs {
            let mut rx = self.make_rx(dev, index, driven.features, driven.frame, rx_size)?;
            if self.can_adapt(driven.features) {
                let (sampler, decisions) = net::dim(dev, Work::MODERATE)?;
                rx.sampler = Some(sampler);
                driven.decisions.push(decisions, GFP_KERNEL)?;
            }
            let addresses = rx.queue.addresses();
            driven.rx.push(Some(rx), GFP_KERNEL)?;
            transport.enable_queue(rx_queue(index), &addresses, vector_of(index))?;
            self.make_tx(index, driven.features, tx_size, vector_of(index))?;
        }
        if driven.features.contains(features::CTRL_VQ) {
            driven.control = Some(self.make_control(driven.features, &driven.fixed)?);
        }
        self.request_interrupts(dev, vectors)?;
        transport.driver_ok()?;
        if driven.features.contains(features::DEVICE_STATS) {
            driven.statistics = driven.control.as_mut().map_or(0, kinds_of_statistics);
        }
        Ok(())
    }

    /// The size for queue `index`: what is wished, as far as the device can.
    fn queue_size(&self, index: u16, wished: u16) -> Result<u16> {
        let max = self.transport.queue_max_size(index)?;
        let wished = if wished == 0 { MAX_QUEUE } else { wished };
        best_size(max, wished).ok_or(EINVAL)
    }

    /// Sizes for the queues of all pairs: as wished, as far as the device can. No queue must be
    /// enabled yet.
    fn ring_sizes(&self, wishes: &Wishes) -> Result<Rings> {
        let mut most = (MAX_QUEUE, MAX_QUEUE);
        for index in 0..u16::try_from(self.pairs.len())? {
            most.0 = most.0.min(self.queue_size(rx_queue(index), 0)?);
            most.1 = most.1.min(self.queue_size(tx_queue(index), 0)?);
        }
        let size = |max: u16, wished: u16| match wished {
            0 => max,
            wished => wished.min(max),
        };
        Ok(Rings {
            rx: size(most.0, wishes.rx_size).into(),
            rx_max: most.0.into(),
            tx: size(most.1, wishes.tx_size).into(),
            tx_max: most.1.into(),
        })
    }

    fn make_rx(
        &self,
        net: &Device<Self>,
        index: u16,
        features: Features,
        frame: u32,
        size: u16,
    ) -> Result<Rx<'a>> {
        let dev = self.pdev.as_ref();
        let number = rx_queue(index);
        let mergeable = features.contains(features::MRG_RXBUF);
        let order = if mergeable {
            0
        } else {
            order_of(frame + rx::OVERHEAD)
        };
        let pool = PagePool::new(dev, net, index.into(), order, size.into())?;
        let queue = Virtqueue::new(dev, number, size, features)?;
        let doorbell = self.transport.doorbell(number)?;
        Ok(Rx::new(queue, pool, doorbell, features))
    }

    fn make_tx(&self, index: u16, features: Features, size: u16, vector: Option<u16>) -> Result {
        let dev = self.pdev.as_ref();
        let number = tx_queue(index);
        // CAST: Some twenty.
        let segments = MAX_SEGMENTS as u16;
        let queue = Virtqueue::with_tables(dev, number, size, features, segments)?;
        // A device that shares the processor's view of memory needs no mappings (6.1).
        let maps = features.contains(Features::ACCESS_PLATFORM) || dma::is_translated(dev);
        let mapper = if maps {
            Mapper::new(dev)
        } else {
            Mapper::physical()
        };
        let doorbell = self.transport.doorbell(number)?;
        let indirect = features.contains(Features::INDIRECT_DESC);
        let tx = Tx::new(queue, doorbell, mapper, maps, indirect)?;
        let addresses = tx.queue.addresses();
        let pair = self.pairs.get(usize::from(index)).ok_or(EINVAL)?;
        let handler = pair.tx.handler();
        *handler.cell.lock_bh() = Some(tx);
        handler.busy.store(false, Relaxed);
        self.transport.enable_queue(number, &addresses, vector)
    }

    fn make_control(&self, features: Features, fixed: &Fixed) -> Result<ControlQueue<'a>> {
        let dev = self.pdev.as_ref();
        let number = control_queue(if features.intersects(features::MQ | features::RSS) {
            fixed.max_pairs
        } else {
            1
        })?;
        let size = self.queue_size(number, CONTROL_SIZE)?;
        let queue = Virtqueue::new(dev, number, size, features)?;
        let addresses = queue.addresses();
        let control = ControlQueue::new(dev, queue, self.transport.doorbell(number)?)?;
        // Answers are looked for: no vector.
        self.transport.enable_queue(number, &addresses, None)?;
        Ok(control)
    }

    /// Registers the handlers of all vectors.
    fn request_interrupts(&self, dev: &Device<Self>, vectors: &mut Vectors<'a>) -> Result {
        let polled = |vector: u32, of: u32| -> Result<Polled<'a>> {
            let mut list = KVec::new();
            for (i, pair) in self.pairs.iter().enumerate() {
                if of == 0 || i as u32 % of == vector {
                    list.push(pair.rx.clone(), GFP_KERNEL)?;
                }
            }
            Ok(list)
        };
        let others = vectors.count().saturating_sub(1);
        if !vectors.is_msix() {
            let handler = Line {
                dev: dev.weak(),
                transport: self.transport.clone(),
                pairs: Pairs {
                    polled: polled(0, 0)?,
                },
            };
            return vectors.handle(0, fmt!("all"), Arc::new(handler, GFP_KERNEL)?);
        }
        if others == 0 {
            let handler = Shared {
                dev: dev.weak(),
                pairs: Pairs {
                    polled: polled(0, 0)?,
                },
            };
            vectors.handle(0, fmt!("all"), Arc::new(handler, GFP_KERNEL)?)?;
        } else {
            let handler = Configuration { dev: dev.weak() };
            vectors.handle(0, fmt!("config"), Arc::new(handler, GFP_KERNEL)?)?;
        }
        for i in 0..others {
            let pairs = Pairs {
                polled: polled(i, others)?,
            };
            vectors.handle(1 + i, fmt!("pair{}", i), Arc::new(pairs, GFP_KERNEL)?)?;
            vectors.spread(1 + i, i);
        }
        for (i, pair) in (0u32..).zip(&self.pairs) {
            let irq = vectors.number(if others == 0 { 0 } else { 1 + i % others })?;
            pair.rx.set_irq(irq);
            pair.tx.set_irq(irq);
        }
        Ok(())
    }
}

#[kunit_tests(ferronic_queues)]
mod tests {
    use super::*;

    #[test]
    fn orders_hold_what_they_are_for() {
        assert_eq!(order_of(1), 0);
        assert_eq!(order_of(4096), 0);
        assert_eq!(order_of(4097), 1);
        assert_eq!(order_of(9018 + rx::OVERHEAD), 2);
        assert_eq!(order_of(65553 + rx::OVERHEAD), 5);
    }
}
