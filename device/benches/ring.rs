// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a packet costs the device: one chain through a ring, and one packet of 1514 octets through a
//! worker, each way, to and from an uplink that is memory; with split and with packed rings.
//!
//! The driver does its part between the measurements. A worker sleeps while the driver does, so a
//! round's share of one kick and one interrupt is in the numbers.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferronic::datapath::workers::Workers;
use ferronic::datapath::{Dataplane, RingSetup};
use ferronic::nic::features::{
    Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};
use ferronic::ring::piece_list::PieceList;
use ferronic::ring::virtqueue::{self, Direction, Format};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

mod support;

use support::{Memory, MemoryUplink, Ring, SIZE};

const PACKET: usize = 12 + 1514;

fn chains(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(u64::from(SIZE)));
    for (name, packed, batches, publish) in [
        ("pop, push, publish", false, false, 1),
        ("pop, push; publish 32", false, false, 32),
        ("pop, push; publish 32, in order", false, true, 32),
        ("packed: pop, push, publish", true, false, 1),
        ("packed: pop, push; publish 32", true, false, 32),
        ("packed: pop, push; publish 32, in order", true, true, 32),
    ] {
        group.bench_function(name, |b| {
            let mut driver = Ring::transmit(packed, SIZE, PACKET);
            let (map, layout, start) = (&driver.map, driver.layout, driver.start());
            let format = Format { packed, batches };
            let mut ring = virtqueue::Ring::new(format, map, layout, start).unwrap();
            let mut pieces = PieceList::new(driver.map.clone());
            let mut round = || {
                driver.offer_all();
                let start = Instant::now();
                for i in 1..=SIZE {
                    pieces.clear();
                    let chain = ring.pop(Direction::Readable, &mut pieces).unwrap().unwrap();
                    black_box(pieces.packet());
                    ring.push(chain.head, 0);
                    if i % publish == 0 {
                        ring.publish();
                    }
                }
                start.elapsed()
            };
            b.iter_custom(|rounds| (0..rounds).map(|_| round()).sum());
        });
    }
    group.finish();
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

fn wait(fd: &OwnedFd) {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
    rustix::io::read(fd, &mut [0; 8]).unwrap();
}

/// A worker that moves rounds of [`SIZE`] packets in one direction.
struct Worker {
    ring: Ring,
    coming: Arc<AtomicUsize>,
    ready: Arc<OwnedFd>,
    kick: OwnedFd,
    call: OwnedFd,
    receives: bool,
    _dataplane: Dataplane,
}

impl Worker {
    fn new(receives: bool, features: &[u32]) -> Self {
        let coming = Arc::<AtomicUsize>::default();
        let ready = Arc::new(event());
        let mut packet = vec![0; PACKET];
        packet[12..18].fill(0xff);
        let uplink = MemoryUplink(vec![Memory {
            coming: Arc::clone(&coming),
            ready: Some(Arc::clone(&ready)),
            packet,
        }]);
        let workers = Workers::default();
        let dataplane = Dataplane::start(support::nic(1), Box::new(uplink), &workers).unwrap();
        dataplane.negotiate(Features(features.iter().fold(0, |set, bit| set | 1 << bit)));
        let packed = features.contains(&VIRTIO_F_RING_PACKED);
        let ring = match receives {
            true => Ring::receive(packed, SIZE),
            false => Ring::transmit(packed, SIZE, PACKET),
        };
        let (kick, call) = (event(), event());
        let setup = RingSetup {
            map: ring.map.clone(),
            layout: ring.layout,
            start: ring.start(),
            kick: Some(kick.try_clone().unwrap()),
            call: Some(call.try_clone().unwrap()),
        };
        dataplane.start_ring(usize::from(!receives), setup).unwrap();
        wait(&call);
        Worker {
            ring,
            coming,
            ready,
            kick,
            call,
            receives,
            _dataplane: dataplane,
        }
    }

    fn round(&mut self) -> Duration {
        // The driver has filled its buffers, or looked at them.
        self.ring.fill(&[0; 12]);
        if self.receives {
            self.coming.store(SIZE.into(), Ordering::Relaxed);
        }
        self.ring.offer_all();
        let start = Instant::now();
        signal(if self.receives {
            &self.ready
        } else {
            &self.kick
        });
        wait(&self.call);
        start.elapsed()
    }
}

fn packets(c: &mut Criterion) {
    let plain = [
        VIRTIO_F_VERSION_1,
        VIRTIO_F_EVENT_IDX,
        VIRTIO_NET_F_MRG_RXBUF,
    ];
    let segmented = [
        &plain[..],
        &[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4],
    ]
    .concat();
    let packed = [&plain[..], &[VIRTIO_F_RING_PACKED]].concat();
    let [in_order, packed_in_order] =
        [&plain[..], &packed].map(|features| [features, &[VIRTIO_F_IN_ORDER]].concat());
    let packed_segmented = [&segmented[..], &[VIRTIO_F_RING_PACKED]].concat();
    let mut group = c.benchmark_group("worker");
    group.throughput(Throughput::Elements(u64::from(SIZE)));
    for (name, receives, features) in [
        ("transmit", false, &plain[..]),
        ("transmit, in order", false, &in_order),
        ("receive, mergeable", true, &plain),
        ("receive, mergeable, room for 64 KiB", true, &segmented),
        ("packed: transmit", false, &packed),
        ("packed: transmit, in order", false, &packed_in_order),
        ("packed: receive, mergeable", true, &packed),
        (
            "packed: receive, mergeable, room for 64 KiB",
            true,
            &packed_segmented,
        ),
    ] {
        group.bench_function(name, |b| {
            let mut worker = Worker::new(receives, features);
            b.iter_custom(|rounds| (0..rounds).map(|_| worker.round()).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, chains, packets);
criterion_main!(benches);
