// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the benches have at both ends of a data path: a driver's ring, and an uplink that is memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ferronic::nic::offload::Offloads;
use ferronic::nic::{Nic, NicConfig};
use ferronic::ring::memory::MemoryMap;
use ferronic::ring::packed::BEGINNING;
use ferronic::ring::pieces::{Pieces, PiecesMut};
use ferronic::ring::virtqueue::{Layout, Start};
use ferronic::uplink::{Negotiated, Received, Sent, Uplink, UplinkQueue};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Entries of a usual ring, all of which a round uses.
pub const SIZE: u16 = 256;
/// Octets of a receive buffer.
const RECEIVE_BUFFER: u32 = 1536;
const BUFFERS: u64 = 0x10_0000;
const STRIDE: u64 = 2048;

/// A ring whose chains are one buffer each and always the same.
pub struct Ring {
    pub map: Arc<MemoryMap>,
    pub layout: Layout,
    packed: bool,
    /// Length and flags of a descriptor.
    buffer: (u32, u16),
    offered: u16,
}

impl Ring {
    /// A receive ring of so many entries.
    pub fn receive(packed: bool, size: u16) -> Self {
        Ring::new(packed, size, (RECEIVE_BUFFER, 2))
    }

    /// A transmit ring of so many entries, for packets of so many octets with their header.
    pub fn transmit(packed: bool, size: u16, packet: usize) -> Self {
        Ring::new(packed, size, (packet as u32, 0))
    }

    fn new(packed: bool, size: u16, buffer: (u32, u16)) -> Self {
        let octets = BUFFERS + STRIDE * u64::from(size);
        let ranges = [(GuestAddress(0), octets as usize)];
        let guest = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let map = Arc::new(MemoryMap::new(Arc::new(guest)).unwrap());
        // Far enough from each other for 32768 entries.
        let layout = Layout {
            size,
            desc: 0,
            avail: 0x8_0000,
            used: 0xa_0000,
            event_idx: true,
        };
        let memory = map.guest();
        for i in 0..size {
            let at = 16 * u64::from(i);
            let addr = BUFFERS + STRIDE * u64::from(i);
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

    /// Where a device begins.
    pub fn start(&self) -> Start {
        Start::At(if self.packed { BEGINNING } else { 0 })
    }

    /// Writes the same octets to the beginning of all buffers.
    pub fn fill(&self, octets: &[u8]) {
        let memory = self.map.guest();
        for i in 0..u64::from(self.layout.size) {
            let at = GuestAddress(BUFFERS + STRIDE * i);
            memory.write_slice(octets, at).unwrap();
        }
    }

    /// Makes all chains available again, and asks for an interrupt when the last is used.
    pub fn offer_all(&mut self) {
        let size = self.layout.size;
        self.offered = self.offered.wrapping_add(size);
        let memory = self.map.guest();
        if self.packed {
            let wrap = u16::from((self.offered / size) % 2 == 1);
            let flags = self.buffer.1 | wrap << 7 | (1 - wrap) << 15;
            for i in 0..size {
                let at = 16 * u64::from(i);
                let rest = u64::from(self.buffer.0) | u64::from(i) << 32 | u64::from(flags) << 48;
                memory.write_obj(rest, GuestAddress(at + 8)).unwrap();
            }
            let event = [(size - 1) | (wrap << 15), 2];
            let at = GuestAddress(self.layout.avail);
            memory.write_obj(event, at).unwrap();
            return;
        }
        let last = GuestAddress(self.layout.avail + 4 + 2 * u64::from(size));
        memory
            .write_obj(self.offered.wrapping_sub(1), last)
            .unwrap();
        let idx = GuestAddress(self.layout.avail + 2);
        memory.write_obj(self.offered, idx).unwrap();
    }
}

/// An uplink that is memory: takes everything, and gives as many packets as it was told to.
#[derive(Debug)]
pub struct Memory {
    /// Packets to come.
    pub coming: Arc<AtomicUsize>,
    /// Becomes readable when some do; without it the uplink has to be asked.
    pub ready: Option<Arc<OwnedFd>>,
    /// Header and frame.
    pub packet: Vec<u8>,
}

impl UplinkQueue for Memory {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ready.as_ref().map(|ready| ready.as_fd())
    }

    fn send(&mut self, packet: Pieces<'_>) -> Sent {
        packet.copy_to(0, &mut self.packet);
        Sent::Done
    }

    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received {
        let coming = self.coming.load(Ordering::Relaxed);
        if coming == 0 {
            return Received::Empty;
        }
        self.coming.store(coming - 1, Ordering::Relaxed);
        Received::Packet(room.copy_from(0, &self.packet))
    }
}

/// The uplink that has these queues.
#[derive(Debug)]
pub struct MemoryUplink(pub Vec<Memory>);

impl Uplink for MemoryUplink {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn take_queues(&mut self) -> Vec<Box<dyn UplinkQueue>> {
        let queues = std::mem::take(&mut self.0).into_iter();
        queues.map(|queue| Box::new(queue) as Box<_>).collect()
    }

    fn negotiate(&self, _: Negotiated) -> io::Result<()> {
        Ok(())
    }
}

/// A NIC of so many queue pairs.
pub fn nic(queue_pairs: u16) -> Arc<Nic> {
    Arc::new(Nic::new(NicConfig {
        mac: "52:54:00:12:34:56".parse().unwrap(),
        mtu: 1500,
        speed: 10_000,
        queue_pairs,
        packed: true,
        rss: true,
        hash_report: true,
        offloads: Offloads::ALL,
        uplink: "memory".into(),
    }))
}
