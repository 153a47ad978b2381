// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From guest to guest: what a packet costs on its way from one guest's transmit ring through the
//! switch into another's receive ring, beside copying as many octets from memory to memory.
//!
//! The drivers do their part between the measurements. A worker sleeps while they do, so a round's
//! share of one kick and one interrupt is in the numbers.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferronic::datapath::workers::Workers;
use ferronic::datapath::{Dataplane, RingSetup};
use ferronic::nic::features::{
    Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};
use ferronic::nic::offload::Offloads;
use ferronic::nic::{Nic, NicConfig};
use ferronic::ring::memory::MemoryMap;
use ferronic::ring::virtqueue::{Layout, Start};
use ferronic::switch::Switch;
use ferronic::switch::vlan::VlanMode;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const BUFFERS: u64 = 0x10_0000;
const MEMORY: usize = 0x80_0000;

/// What goes through the rings in a round.
#[derive(Clone, Copy)]
struct Load {
    packets: u16,
    /// Octets of a frame.
    frame: u32,
    /// Entries of the receive ring, and octets of its buffers.
    buffers: (u16, u32),
}

impl Load {
    fn packet(self) -> u32 {
        12 + self.frame
    }

    /// Receive buffers that a round fills.
    fn used(self) -> u16 {
        self.packets * self.packet().div_ceil(self.buffers.1) as u16
    }

    fn octets(self) -> usize {
        usize::from(self.packets) * self.packet() as usize
    }
}

/// A split ring whose chains are one buffer each and always the same.
struct Ring {
    map: Arc<MemoryMap>,
    layout: Layout,
    offered: u16,
    kick: OwnedFd,
    call: OwnedFd,
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

impl Ring {
    fn new(size: u16, len: u32, flags: u16) -> Self {
        let guest = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let map = Arc::new(MemoryMap::new(Arc::new(guest)).unwrap());
        let layout = Layout {
            size,
            desc: 0,
            avail: 0x1_0000,
            used: 0x2_0000,
            event_idx: true,
        };
        let memory = map.guest();
        for i in 0..size {
            let at = 16 * u64::from(i);
            let addr = BUFFERS + u64::from(len.next_multiple_of(64)) * u64::from(i);
            memory.write_obj(addr, GuestAddress(at)).unwrap();
            memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            let entry = GuestAddress(layout.avail + 4 + 2 * u64::from(i));
            memory.write_obj(i, entry).unwrap();
        }
        Ring {
            map,
            layout,
            offered: 0,
            kick: event(),
            call: event(),
        }
    }

    fn setup(&self) -> RingSetup {
        RingSetup {
            map: self.map.clone(),
            layout: self.layout,
            start: Start::At(0),
            kick: Some(self.kick.try_clone().unwrap()),
            call: Some(self.call.try_clone().unwrap()),
        }
    }

    /// Makes so many more chains available, and asks for an interrupt when the `last`th of them is
    /// used.
    fn offer(&mut self, count: u16, last: u16) {
        let event = self.offered.wrapping_add(last).wrapping_sub(1);
        self.offered = self.offered.wrapping_add(count);
        let memory = self.map.guest();
        let at = self.layout.avail + 4 + 2 * u64::from(self.layout.size);
        memory.write_obj(event, GuestAddress(at)).unwrap();
        let idx = GuestAddress(self.layout.avail + 2);
        memory.write_obj(self.offered, idx).unwrap();
    }

    fn host(&self, offset: u64) -> *mut u8 {
        let memory = self.map.guest();
        memory.get_host_address(GuestAddress(offset)).unwrap()
    }
}

/// Two guests on a switch, one of which sends.
struct Pair {
    load: Load,
    transmit: Ring,
    receive: Ring,
    _dataplanes: [Dataplane; 2],
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

impl Pair {
    fn new(load: Load) -> Self {
        let switch = Switch::new();
        let features = [
            VIRTIO_F_VERSION_1,
            VIRTIO_F_EVENT_IDX,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
        ];
        let features = features.iter().fold(0, |set, bit| set | 1 << bit);
        let dataplanes = ["a", "b"].map(|name| {
            let nic = Arc::new(Nic::new(NicConfig {
                mac: "52:54:00:12:34:56".parse().unwrap(),
                mtu: 1500,
                speed: 10_000,
                queue_pairs: 1,
                packed: true,
                rss: true,
                hash_report: true,
                offloads: Offloads::ALL,
                uplink: "switch".into(),
            }));
            let uplink = switch.add(name, nic.clone(), VlanMode::default()).unwrap();
            let dataplane = Dataplane::start(nic, Box::new(uplink), &Workers::default()).unwrap();
            switch.connect(name, dataplane.inlets());
            dataplane.negotiate(Features(features));
            dataplane
        });
        let transmit = Ring::new(load.packets, load.packet(), 0);
        let receive = Ring::new(load.buffers.0, load.buffers.1, 2);
        for i in 0..u64::from(load.packets) {
            let at = BUFFERS + u64::from(load.packet().next_multiple_of(64)) * i;
            let start = [&[0; 12][..], &mac(2), &mac(1), &[0x88, 0xb5]].concat();
            let memory = transmit.map.guest();
            memory.write_slice(&start, GuestAddress(at)).unwrap();
        }
        for (dataplane, index, ring) in [(0, 1, &transmit), (1, 0, &receive)] {
            let dataplane: &Dataplane = &dataplanes[dataplane];
            dataplane.start_ring(index, ring.setup()).unwrap();
            wait(&ring.call);
        }
        Pair {
            load,
            transmit,
            receive,
            _dataplanes: dataplanes,
        }
    }

    fn round(&mut self) -> Duration {
        let used = self.load.used();
        self.receive.offer(used, used);
        // No interrupt for what is sent.
        self.transmit.offer(self.load.packets, 0);
        let start = Instant::now();
        signal(&self.transmit.kick);
        wait(&self.receive.call);
        start.elapsed()
    }

    /// The same octets from the one memory into the other, by the caller.
    fn copy(&self) -> Duration {
        let len = self.load.packet() as usize;
        let stride = u64::from(self.load.packet().next_multiple_of(64));
        let start = Instant::now();
        for i in 0..u64::from(self.load.packets) {
            let from = self.transmit.host(BUFFERS + stride * i);
            let to = self.receive.host(BUFFERS + stride * i);
            // SAFETY: both rings' buffers lie in mapped memory behind BUFFERS, and nobody else uses
            // it between rounds.
            unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
            black_box(to);
        }
        start.elapsed()
    }
}

fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
}

fn wait(fd: &OwnedFd) {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
    rustix::io::read(fd, &mut [0; 8]).unwrap();
}

fn loads(c: &mut Criterion) {
    for (name, packets, frame, buffers) in [
        // So much of the ring at once that no interrupt is held back.
        ("one alone", 1, 64, (128, 1536)),
        ("64 octets", 128, 64, (128, 1536)),
        ("1514 octets", 128, 1514, (128, 1536)),
        ("64 KiB", 32, 65226, (1024, 4096)),
    ] {
        let load = Load {
            packets,
            frame,
            buffers,
        };
        let mut pair = Pair::new(load);
        let mut group = c.benchmark_group(format!("guest to guest, {name}"));
        group.throughput(Throughput::Bytes(load.octets() as u64));
        group.bench_function("switch", |b| {
            b.iter_custom(|rounds| (0..rounds).map(|_| pair.round()).sum());
        });
        group.bench_function("memcpy", |b| {
            b.iter_custom(|rounds| (0..rounds).map(|_| pair.copy()).sum());
        });
        group.finish();
    }
}

criterion_group!(benches, loads);
criterion_main!(benches);
