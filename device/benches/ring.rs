// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a packet costs the device: one chain through a ring, and one packet of 1514 octets through a
//! worker, each way, to and from an uplink that is memory; with split and with packed rings.
//!
//! The driver does its part between the measurements. A worker sleeps while the driver does, so a
//! round's share of one kick and one interrupt is in the numbers.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferronic::datapath::workers::Workers;
use ferronic::datapath::{Dataplane, RingSetup};
use ferronic::nic::features::{
    Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};
use ferronic::nic::offload::Offloads;
use ferronic::nic::{Nic, NicConfig};
use ferronic::ring::memory::MemoryMap;
use ferronic::ring::packed::BEGINNING;
use ferronic::ring::piece_list::PieceList;
use ferronic::ring::pieces::{Pieces, PiecesMut};
use ferronic::ring::virtqueue::{self, Direction, Format, Layout, Start};
use ferronic::uplink::{Negotiated, Received, Sent, Uplink, UplinkQueue};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Entries of the ring, all of which a round uses.
const SIZE: u16 = 256;
const PACKET: u32 = 12 + 1514;
const BUFFERS: u64 = 0x10_0000;

/// A ring whose chains are one buffer each and always the same.
struct Ring {
    map: Arc<MemoryMap>,
    layout: Layout,
    packed: bool,
    /// Length and flags of a descriptor.
    buffer: (u32, u16),
    offered: u16,
}

impl Ring {
    fn new(writable: bool, packed: bool) -> Self {
        let guest = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap();
        let map = Arc::new(MemoryMap::new(Arc::new(guest)).unwrap());
        let layout = Layout {
            size: SIZE,
            desc: 0,
            avail: 0x1_0000,
            used: 0x2_0000,
            event_idx: true,
        };
        let memory = map.guest();
        let buffer = if writable { (1536, 2) } else { (PACKET, 0) };
        for i in 0..SIZE {
            let at = 16 * u64::from(i);
            let addr = BUFFERS + 2048 * u64::from(i);
            memory.write_obj(addr, GuestAddress(at)).unwrap();
            if !packed {
                memory.write_obj(buffer.0, GuestAddress(at + 8)).unwrap();
                memory.write_obj(buffer.1, GuestAddress(at + 12)).unwrap();
                let entry = GuestAddress(layout.avail + 4 + 2 * u64::from(i));
                memory.write_obj(i, entry).unwrap();
            }
        }
        Ring {
            map,
            layout,
            packed,
            buffer,
            offered: 0,
        }
    }

    fn start(&self) -> Start {
        Start::At(if self.packed { BEGINNING } else { 0 })
    }

    /// Makes all chains available again, and asks for an interrupt when the last is used.
    fn offer_all(&mut self) {
        self.offered = self.offered.wrapping_add(SIZE);
        let memory = self.map.guest();
        if self.packed {
            let wrap = u16::from((self.offered / SIZE) % 2 == 1);
            let flags = self.buffer.1 | wrap << 7 | (1 - wrap) << 15;
            for i in 0..SIZE {
                let at = 16 * u64::from(i);
                let rest = u64::from(self.buffer.0) | u64::from(i) << 32 | u64::from(flags) << 48;
                memory.write_obj(rest, GuestAddress(at + 8)).unwrap();
            }
            let event = [(SIZE - 1) | (wrap << 15), 2];
            let at = GuestAddress(self.layout.avail);
            memory.write_obj(event, at).unwrap();
            return;
        }
        let last = GuestAddress(self.layout.avail + 4 + 2 * u64::from(SIZE));
        memory
            .write_obj(self.offered.wrapping_sub(1), last)
            .unwrap();
        let idx = GuestAddress(self.layout.avail + 2);
        memory.write_obj(self.offered, idx).unwrap();
    }
}

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
            let mut driver = Ring::new(false, packed);
            let (map, layout, start) = (&driver.map, driver.layout, driver.start());
            let format = Format { packed, batches };
            let mut ring = virtqueue::Ring::new(format, map, layout, start).unwrap();
            let mut pieces = PieceList::new(driver.map.clone());
            let mut round = || {
                driver.offer_all();
                let start = Instant::now();
                for i in 1..=SIZE {
                    pieces.truncate(0);
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

/// An uplink that is memory: takes everything, and gives as many packets as it was told to.
#[derive(Debug)]
struct Memory {
    /// Packets to come.
    coming: Arc<Mutex<VecDeque<u32>>>,
    ready: Arc<OwnedFd>,
    packet: Vec<u8>,
}

impl UplinkQueue for Memory {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }

    fn send(&mut self, packet: Pieces<'_>) -> Sent {
        packet.copy_to(0, &mut self.packet);
        Sent::Done
    }

    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received {
        match self.coming.lock().pop_front() {
            Some(_) => Received::Packet(room.copy_from(0, &self.packet)),
            None => Received::Empty,
        }
    }
}

#[derive(Debug)]
struct MemoryUplink(Option<Memory>);

impl Uplink for MemoryUplink {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn take_queues(&mut self) -> Vec<Box<dyn UplinkQueue>> {
        self.0
            .take()
            .into_iter()
            .map(|queue| Box::new(queue) as Box<_>)
            .collect()
    }

    fn negotiate(&self, _: Negotiated) -> io::Result<()> {
        Ok(())
    }
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
    coming: Arc<Mutex<VecDeque<u32>>>,
    ready: Arc<OwnedFd>,
    kick: OwnedFd,
    call: OwnedFd,
    receives: bool,
    _dataplane: Dataplane,
}

impl Worker {
    fn new(receives: bool, features: &[u32]) -> Self {
        let config = NicConfig {
            mac: "52:54:00:12:34:56".parse().unwrap(),
            mtu: 1500,
            speed: 10_000,
            queue_pairs: 1,
            packed: true,
            rss: true,
            hash_report: true,
            offloads: Offloads::ALL,
            uplink: "memory".into(),
        };
        let coming = Arc::default();
        let ready = Arc::new(event());
        let mut packet = vec![0; PACKET as usize];
        packet[12..18].fill(0xff);
        let uplink = MemoryUplink(Some(Memory {
            coming: Arc::clone(&coming),
            ready: ready.clone(),
            packet,
        }));
        let dataplane = Dataplane::start(
            Arc::new(Nic::new(config)),
            Box::new(uplink),
            &Workers::default(),
        )
        .unwrap();
        dataplane.negotiate(Features(features.iter().fold(0, |set, bit| set | 1 << bit)));
        let packed = features.contains(&VIRTIO_F_RING_PACKED);
        let (ring, kick, call) = (Ring::new(receives, packed), event(), event());
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
        let memory = self.ring.map.guest();
        for i in 0..u64::from(SIZE) {
            // The driver has filled its buffers, or looked at them.
            memory
                .write_obj([0u8; 12], GuestAddress(BUFFERS + 2048 * i))
                .unwrap();
        }
        if self.receives {
            self.coming.lock().extend(0..u32::from(SIZE));
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
