// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whatever happens in whatever order: every packet arrives once, whole and in order, or is counted
//! as dropped, and nobody waits for ever.

use std::sync::Arc;

use proptest::prelude::*;

use crate::nic::control::VIRTIO_NET_OK;
use crate::nic::features::{
    Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_HASH_REPORT,
};
use crate::nic::flow_hash::SUPPORTED_HASH_TYPES;
use crate::ring::memory::MemoryMap;
use crate::ring::packed::BEGINNING;
use crate::ring::virtqueue::Start;

use super::guest::{Guest, packet, packets};
use super::hash_report::{KEY, lengthened, of_udp};
use super::rig::{Make, Rig};
use super::scaling::{hashes, of_flow};

#[derive(Clone, Debug)]
enum Step {
    /// The driver offers so many receive chains of these buffers.
    Offer(Vec<usize>, usize),
    /// ... and one that breaks the rules.
    OfferBad,
    /// So many packets of this length come from the uplink.
    Arrive(usize, usize),
    /// The driver sends a packet of this length, cut up.
    Send(usize, Vec<usize>),
    /// The uplink takes so many packets from now on.
    Space(usize),
    /// Workers work until they would sleep.
    Settle,
    /// The driver looks whether there were interrupts.
    Interrupt,
    Link(bool),
    /// Both rings stop; they go on, perhaps in another memory map, perhaps with work in between, and
    /// perhaps with a frontend that does not know where they have stopped.
    Restart {
        remap: bool,
        settle: bool,
        forgotten: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let lens = proptest::collection::vec(12usize..2000, 1..4);
    prop_oneof![
        4 => (lens, 1usize..8).prop_map(|(lens, count)| Step::Offer(lens, count)),
        1 => Just(Step::OfferBad),
        4 => (prop_oneof![26usize..1527, 26usize..9000], 1usize..8)
            .prop_map(|(len, count)| Step::Arrive(len, count)),
        4 => (26usize..9000, proptest::collection::vec(0usize..2000, 0..3))
            .prop_map(|(len, cuts)| Step::Send(len, cuts)),
        1 => prop_oneof![Just(usize::MAX), 0usize..5].prop_map(Step::Space),
        6 => Just(Step::Settle),
        4 => Just(Step::Interrupt),
        1 => any::<bool>().prop_map(Step::Link),
        1 => (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(remap, settle, forgotten)| Step::Restart { remap, settle, forgotten }
        ),
    ]
}

/// A program under way.
struct Run {
    rig: Rig,
    packed: bool,
    in_order: bool,
    /// Headers are longer, and hashes in them.
    reports: bool,
    arrived: Vec<Vec<u8>>,
    received: Vec<Vec<u8>>,
    offered: Vec<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    bad: u64,
}

/// Whether `some` are among `all`, in the same order.
fn in_order(some: &[Vec<u8>], all: &[Vec<u8>]) -> bool {
    let mut all = all.iter();
    some.iter().all(|one| all.any(|other| one == other))
}

impl Run {
    fn new(make: Make) -> Self {
        let rig = make.rig();
        let reports = Features(make.features).has(VIRTIO_NET_F_HASH_REPORT);
        if reports {
            let command = hashes(SUPPORTED_HASH_TYPES, &KEY);
            let outcome = rig.dataplane.agreement.command(&command);
            assert_eq!(outcome.ack, VIRTIO_NET_OK);
        }
        Run {
            rig,
            reports,
            packed: Features(make.features).has(VIRTIO_F_RING_PACKED),
            in_order: Features(make.features).has(VIRTIO_F_IN_ORDER),
            arrived: Vec::new(),
            received: Vec::new(),
            offered: Vec::new(),
            sent: Vec::new(),
            bad: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Offer(lens, count) => {
                for _ in 0..count {
                    if self.rig.rx.free() >= lens.len() {
                        self.rig.rx.offer_room(&lens);
                        let too_small = self.reports && lens.iter().sum::<usize>() < 20;
                        self.bad += u64::from(too_small);
                    }
                }
            }
            Step::OfferBad => {
                if self.rig.rx.free() > 0 {
                    self.rig.rx.offer_bad(true);
                    self.bad += 1;
                }
            }
            Step::Arrive(len, count) => {
                for _ in 0..count {
                    let number = self.arrived.len() as u32;
                    let (arriving, expected) = if self.reports {
                        let packet = of_flow(number as u16 % 7, number, len);
                        let hash = of_udp(&KEY, &packet);
                        (lengthened(&packet, [0xee; 8]), lengthened(&packet, hash))
                    } else {
                        let packet = packet(number, len);
                        (packet.clone(), packet)
                    };
                    self.rig.cable().arrive(arriving);
                    self.arrived.push(expected);
                }
            }
            Step::Send(len, cuts) => {
                // Room for the cuts, and the rest in buffers that hold it.
                let cuts = [cuts, vec![4000; 3]].concat();
                if self.rig.tx.free() > cuts.len() {
                    let mut packet = packet(self.offered.len() as u32, len);
                    if self.reports {
                        packet = lengthened(&packet, [0xee; 8]);
                    }
                    self.rig.tx.send(&packet, &cuts);
                    self.offered.push(packet);
                }
            }
            Step::Space(packets) => self.rig.cable().set_space(packets),
            Step::Settle => self.rig.settle(),
            Step::Interrupt => self.interrupt(),
            Step::Link(up) => self.rig.set_link(up),
            Step::Restart {
                remap,
                settle,
                forgotten,
            } => self.restart(remap, settle, forgotten),
        }
    }

    fn interrupt(&mut self) {
        self.rig.tx.on_interrupt();
        let used = self.rig.rx.on_interrupt();
        self.received.extend(packets(used));
        self.sent.extend(self.rig.cable().take_sent());
    }

    fn restart(&mut self, remap: bool, settle: bool, forgotten: bool) {
        let positions = [0, 1].map(|index| self.rig.dataplane.stop_ring(index).unwrap());
        if remap {
            let guest = Arc::new(self.rig.map.guest().clone());
            self.rig.map = Arc::new(MemoryMap::new(guest).unwrap());
        }
        if settle {
            self.rig.settle();
        }
        let map = self.rig.map.clone();
        let start = |guest: &mut Guest| {
            guest.set_map(map.clone());
            guest.setup(0)
        };
        let setups = [start(&mut self.rig.rx), start(&mut self.rig.tx)];
        for (index, (mut setup, position)) in setups.into_iter().zip(positions).enumerate() {
            setup.start = match (forgotten, self.packed) {
                // As they were started first.
                (true, true) => Start::Perhaps(BEGINNING),
                // Some that were given back as well.
                (true, false) if self.in_order && index == 1 => {
                    Start::Perhaps(position.wrapping_add(3))
                }
                _ => Start::At(position),
            };
            self.rig.dataplane.start_ring(index, setup).unwrap();
        }
    }

    /// Removes every obstacle; a driver that does only what interrupts tell it to must then see
    /// everything to its end.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        self.rig.set_link(true);
        self.rig.cable().set_space(usize::MAX);
        let mut last = None;
        loop {
            self.rig.settle();
            self.interrupt();
            while self.rig.rx.free() > 0 {
                self.rig.rx.offer_room(&[1526]);
            }
            let now = (
                self.received.len(),
                self.rig.cable().waiting(),
                self.sent.len(),
            );
            if last.replace(now) == Some(now) {
                break;
            }
        }
        let counters = self.rig.counters();
        let bad = counters
            .rx
            .drops
            .get(crate::nic::counters::DropReason::BadDescriptor);
        prop_assert!(bad <= self.bad);
        let lost = counters.rx.drops.total() - bad;
        prop_assert_eq!(self.rig.cable().waiting(), 0);
        prop_assert_eq!(self.received.len() as u64 + lost, self.arrived.len() as u64);
        prop_assert!(in_order(&self.received, &self.arrived));
        prop_assert_eq!(self.received.len() as u64, counters.rx.packets.get());

        prop_assert_eq!(self.rig.tx.outstanding(), 0);
        let lost = counters.tx.drops.total();
        prop_assert_eq!(self.sent.len() as u64 + lost, self.offered.len() as u64);
        prop_assert!(in_order(&self.sent, &self.offered));
        prop_assert_eq!(self.sent.len() as u64, counters.tx.packets.get());
        prop_assert_eq!(
            counters.rx.ring_errors.get() + counters.tx.ring_errors.get(),
            0
        );
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_packet_arrives_once_or_is_counted(
        steps in proptest::collection::vec(step(), 1..60),
        mergeable in any::<bool>(),
        event_idx in any::<bool>(),
        silent in any::<bool>(),
        packed in any::<bool>(),
        in_order in any::<bool>(),
        reports in any::<bool>(),
    ) {
        let mut make = if mergeable { Make::mergeable() } else { Make::default() };
        if packed {
            make = make.packed();
        }
        if in_order {
            make = make.in_order();
        }
        if reports {
            make = make.with(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HASH_REPORT]);
        }
        if !event_idx {
            make = make.without(&[VIRTIO_F_EVENT_IDX]);
        }
        // A silent uplink gets packets only when something is sent, which is not so here.
        make.silent = silent && !steps.iter().any(|s| matches!(s, Step::Arrive(..) | Step::Space(_)));
        let mut run = Run::new(make);
        for step in steps {
            run.step(step);
        }
        run.finish()?;
    }
}
