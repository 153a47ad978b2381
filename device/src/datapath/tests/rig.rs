// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A NIC with one or two queue pairs, a driver and a cable for each, and no threads.

use std::sync::Arc;
use std::time::Duration;

use crate::datapath::Dataplane;
use crate::datapath::worker::Pair;
use crate::datapath::workers::Workers;
use crate::nic::counters::{DROP_REASONS, DropReason, PairCounters, QueueCounters};
use crate::nic::features::{self as f, Features};
use crate::nic::offload::Offloads;
use crate::nic::{Nic, NicConfig};
use crate::ring::driver::memory;
use crate::ring::memory::MemoryMap;

use super::cable::{Cable, CableUplink, Told};
use super::guest::Guest;

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

#[derive(Debug)]
pub struct Rig {
    pub nic: Arc<Nic>,
    pub dataplane: Dataplane,
    pub cables: Vec<Cable>,
    pub told: Told,
    pub map: Arc<MemoryMap>,
    pub rx: Guest,
    pub tx: Guest,
}

/// What a rig is made as.
#[derive(Clone, Copy, Debug)]
pub struct Make {
    pub features: u64,
    pub pairs: u16,
    pub size: u16,
    /// The uplink has no descriptors.
    pub silent: bool,
    /// How long workers poll.
    pub poll: Duration,
}

pub fn bits(list: &[u32]) -> u64 {
    list.iter().fold(0, |set, bit| set | 1 << bit)
}

impl Default for Make {
    fn default() -> Self {
        Make {
            features: bits(&[f::VIRTIO_F_VERSION_1, f::VIRTIO_F_EVENT_IDX]),
            pairs: 1,
            size: 64,
            silent: false,
            poll: Duration::ZERO,
        }
    }
}

impl Make {
    pub fn with(mut self, list: &[u32]) -> Self {
        self.features |= bits(list);
        self
    }

    pub fn without(mut self, list: &[u32]) -> Self {
        self.features &= !bits(list);
        self
    }

    pub fn mergeable() -> Self {
        Make::default().with(&[f::VIRTIO_NET_F_MRG_RXBUF])
    }

    pub fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    pub fn size(mut self, size: u16) -> Self {
        self.size = size;
        self
    }

    pub fn nic(self) -> Arc<Nic> {
        Arc::new(Nic::new(NicConfig {
            mac: crate::nic::MacAddress(MAC),
            mtu: 1500,
            speed: 10_000,
            queue_pairs: self.pairs,
            packed: true,
            rss: true,
            hash_report: true,
            offloads: Offloads::ALL,
            uplink: "cable".into(),
        }))
    }

    /// The same with packed rings.
    pub fn packed(self) -> Self {
        self.with(&[f::VIRTIO_F_RING_PACKED])
    }

    /// The same with buffers that are used in order.
    pub fn in_order(self) -> Self {
        self.with(&[f::VIRTIO_F_IN_ORDER])
    }

    /// With every kind of ring.
    pub fn every_kind(self) -> [Self; 4] {
        let packed = self.packed();
        [self, self.in_order(), packed, packed.in_order()]
    }

    /// The driver's queue in virtqueue `index`.
    pub fn guest(self, map: &Arc<MemoryMap>, index: usize) -> Guest {
        let event_idx = Features(self.features).has(f::VIRTIO_F_EVENT_IDX);
        let mut guest = Guest::new(map.clone(), index as u64, self.size, event_idx);
        if Features(self.features).has(f::VIRTIO_F_RING_PACKED) {
            guest = guest.packed();
        }
        if Features(self.features).has(f::VIRTIO_F_IN_ORDER) {
            guest = guest.in_order();
        }
        guest
    }

    /// With the first pair started.
    pub fn rig(self) -> Rig {
        let rig = self.idle();
        rig.start(0, &rig.rx, 0);
        rig.start(1, &rig.tx, 0);
        rig.settle();
        // Both rings have told that they are there.
        assert_eq!((rig.rx.interrupts(), rig.tx.interrupts()), (1, 1));
        rig
    }

    /// With no ring started.
    pub fn idle(self) -> Rig {
        let nic = self.nic();
        let (uplink, cables, told) = CableUplink::new(usize::from(self.pairs), self.silent);
        let dataplane = Dataplane::new(
            nic.clone(),
            Box::new(uplink),
            &Workers::new(None, self.poll),
        )
        .unwrap();
        dataplane.negotiate(Features(self.features));
        let map = memory();
        Rig {
            rx: self.guest(&map, 0),
            tx: self.guest(&map, 1),
            nic,
            dataplane,
            cables,
            told,
            map,
        }
    }
}

impl Rig {
    /// Starts a ring after so many chains of one descriptor.
    pub fn start(&self, index: usize, guest: &Guest, chains: u16) {
        let setup = guest.setup(chains);
        self.dataplane.start_ring(index, setup).unwrap();
    }

    /// Lets all workers work until they would sleep.
    pub fn settle(&self) {
        for _ in 0..2 {
            self.dataplane.settle();
        }
    }

    pub(in crate::datapath) fn pair(&self) -> &Pair {
        &self.dataplane.agreement.pairs[0]
    }

    pub fn cable(&self) -> &Cable {
        &self.cables[0]
    }

    pub fn set_link(&self, up: bool) {
        self.nic.set_link(up);
        self.dataplane.link_changed();
    }

    pub fn counters(&self) -> &PairCounters {
        &self.nic.counters[0]
    }
}

/// Drops by reason, those that occurred.
pub fn drops(counters: &QueueCounters) -> Vec<(DropReason, u64)> {
    DROP_REASONS
        .into_iter()
        .map(|(reason, _)| (reason, counters.drops.get(reason)))
        .filter(|(_, count)| *count != 0)
        .collect()
}
