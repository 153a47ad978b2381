// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The driver's side of a ring, for tests: as naive as it can be.
//!
//! It is written for a split ring. A packed one is given the same: descriptors are kept aside until
//! the chain that they make is offered, and the index of its head is the buffer id.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::memory::MemoryMap;
use super::packed_driver::{DESC, DISABLE, ENABLE, PackedDriver};
use super::virtqueue::Layout;

/// Guest memory with one ring at its start.
#[derive(Debug)]
pub struct Driver {
    pub map: Arc<MemoryMap>,
    pub layout: Layout,
    avail_idx: u16,
    used_seen: u16,
    /// Heads that the device has, if it uses them in order.
    in_order: Option<VecDeque<u16>>,
    packed: Option<Packed>,
}

#[derive(Debug)]
struct Packed {
    driver: PackedDriver,
    table: Vec<Option<Desc>>,
}

/// One descriptor as the driver writes it.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// Octets of guest memory.
pub const MEMORY: u64 = 0x40_0000;
/// Where buffers may lie: behind the ring.
pub const BUFFERS: u64 = 0x10_0000;

/// All of guest memory.
pub fn memory() -> Arc<MemoryMap> {
    let guest = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    Arc::new(MemoryMap::new(Arc::new(guest)).unwrap())
}

impl Driver {
    pub fn new(size: u16, event_idx: bool) -> Self {
        let layout = Layout {
            size,
            desc: 0,
            avail: 0x8_0000,
            used: 0xa_0000,
            event_idx,
        };
        Driver::over(memory(), layout)
    }

    /// A ring of up to 1024 entries that shares its memory with others: this is number `slot`.
    pub fn in_slot(map: Arc<MemoryMap>, slot: u64, size: u16, event_idx: bool) -> Self {
        let desc = 0x1_0000 * slot;
        let layout = Layout {
            size,
            desc,
            avail: desc + 0x8000,
            used: desc + 0xa000,
            event_idx,
        };
        Driver::over(map, layout)
    }

    fn over(map: Arc<MemoryMap>, layout: Layout) -> Self {
        Driver {
            map,
            layout,
            avail_idx: 0,
            used_seen: 0,
            in_order: None,
            packed: None,
        }
    }

    /// The same, but packed.
    pub fn packed(mut self) -> Self {
        self.packed = Some(Packed {
            driver: PackedDriver {
                in_order: self.in_order.is_some(),
                ..PackedDriver::over(self.map.clone(), self.layout)
            },
            table: vec![None; usize::from(self.layout.size)],
        });
        self
    }

    /// The same with `VIRTIO_F_IN_ORDER`.
    pub fn in_order(mut self) -> Self {
        self.in_order = Some(VecDeque::new());
        if let Some(packed) = &mut self.packed {
            packed.driver.in_order = true;
        }
        self
    }

    /// How a device is told that so many chains of one descriptor came and went.
    pub fn index(&self, chains: u16) -> u16 {
        match &self.packed {
            None => chains,
            Some(packed) => packed.driver.at(chains).bits(),
        }
    }

    /// Where the ring is now.
    pub fn set_map(&mut self, map: Arc<MemoryMap>) {
        if let Some(packed) = &mut self.packed {
            packed.driver.map = map.clone();
        }
        self.map = map;
    }

    /// Whether the device asked to be told of the last `n` chains that were offered.
    pub fn kick_wanted(&self, n: u16) -> bool {
        if let Some(packed) = &self.packed {
            assert_eq!(n, 1);
            return packed.driver.kick_wanted(packed.driver.last);
        }
        fence(Ordering::SeqCst);
        if self.layout.event_idx {
            let behind = self.avail_idx.wrapping_sub(self.avail_event());
            behind.wrapping_sub(1) < n
        } else {
            let flags: u16 = self
                .memory()
                .read_obj(GuestAddress(self.layout.used))
                .unwrap();
            flags & 1 == 0
        }
    }

    /// Asks for an interrupt with the next used entry; whether there is one already.
    pub fn ask_interrupt(&self) -> bool {
        if let Some(packed) = &self.packed {
            return packed.driver.ask_interrupt();
        }
        self.set_avail_flags(0);
        self.set_used_event(self.used_seen);
        fence(Ordering::SeqCst);
        self.used_idx() != self.used_seen
    }

    /// As after so many chains that came and went.
    pub fn at(size: u16, event_idx: bool, idx: u16) -> Self {
        let mut driver = Driver::new(size, event_idx);
        driver.start_at(idx);
        driver
    }

    /// Sets both indices.
    pub fn start_at(&mut self, idx: u16) {
        if let Some(packed) = &mut self.packed {
            return packed.driver.start_at(idx.into());
        }
        self.set_avail_idx(idx);
        self.memory()
            .write_obj(idx, GuestAddress(self.layout.used + 2))
            .unwrap();
        self.avail_idx = idx;
        self.used_seen = idx;
    }

    /// Offers readable buffers of these lengths as the chain `head`, direct or indirect.
    pub fn offer_buffers(&mut self, head: u16, lens: &[u32], indirect: bool) {
        let buffers: Vec<(u64, u32)> = lens.iter().map(|&len| (BUFFERS, len)).collect();
        if indirect {
            let table = BUFFERS + 0x1_0000 + 0x100 * u64::from(head);
            for (i, &(addr, len)) in buffers.iter().enumerate() {
                let flags = if i + 1 < buffers.len() { NEXT } else { 0 };
                self.write_desc(
                    table,
                    i as u16,
                    Desc {
                        addr,
                        len,
                        flags,
                        next: i as u16 + 1,
                    },
                );
            }
            let len = 16 * lens.len() as u32;
            self.write_desc(
                self.layout.desc,
                head,
                Desc {
                    addr: table,
                    len,
                    flags: INDIRECT,
                    next: 0,
                },
            );
        } else {
            self.write_chain(head, 0, &buffers);
        }
        self.offer(head);
    }

    pub fn memory(&self) -> &GuestMemoryMmap {
        self.map.guest()
    }

    pub fn write_desc(&mut self, table: u64, index: u16, desc: Desc) {
        if let Some(packed) = &mut self.packed
            && table == self.layout.desc
        {
            packed.table[usize::from(index)] = Some(desc);
            return;
        }
        let at = table + 16 * u64::from(index);
        let memory = self.memory();
        memory.write_obj(desc.addr, GuestAddress(at)).unwrap();
        memory.write_obj(desc.len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(desc.flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(desc.next, GuestAddress(at + 14)).unwrap();
    }

    /// A chain in the descriptor table from `head` on, one buffer after the other.
    pub fn write_chain(&mut self, head: u16, flags: u16, buffers: &[(u64, u32)]) {
        for (i, &(addr, len)) in buffers.iter().enumerate() {
            let index = head + i as u16;
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            self.write_desc(
                self.layout.desc,
                index,
                Desc {
                    addr,
                    len,
                    flags: flags | more,
                    next: index + 1,
                },
            );
        }
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        if let Some(packed) = &mut self.packed {
            return packed.offer(head);
        }
        let slot = u64::from(self.avail_idx % self.layout.size);
        let memory = self.map.guest();
        memory
            .write_obj(head, GuestAddress(self.layout.avail + 4 + 2 * slot))
            .unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.set_avail_idx(self.avail_idx);
        if let Some(outstanding) = &mut self.in_order {
            outstanding.push_back(head);
        }
    }

    pub fn set_avail_idx(&self, idx: u16) {
        self.memory()
            .write_obj(idx, GuestAddress(self.layout.avail + 2))
            .unwrap();
    }

    /// `flags` of the available ring: 1 asks for no interrupts.
    pub fn set_avail_flags(&self, flags: u16) {
        if let Some(packed) = &self.packed {
            let flags = if flags == 0 { ENABLE } else { DISABLE };
            return packed.driver.set_event(0, flags);
        }
        self.memory()
            .write_obj(flags, GuestAddress(self.layout.avail))
            .unwrap();
    }

    /// `used_event`: interrupt when the used index passes it.
    pub fn set_used_event(&self, event: u16) {
        if let Some(packed) = &self.packed {
            return packed.driver.set_event(self.index(event), DESC);
        }
        let at = self.layout.avail + 4 + 2 * u64::from(self.layout.size);
        self.memory().write_obj(event, GuestAddress(at)).unwrap();
    }

    /// `avail_event`, which the device writes.
    pub fn avail_event(&self) -> u16 {
        let at = self.layout.used + 4 + 8 * u64::from(self.layout.size);
        self.memory().read_obj(GuestAddress(at)).unwrap()
    }

    pub fn used_idx(&self) -> u16 {
        self.memory()
            .read_obj(GuestAddress(self.layout.used + 2))
            .unwrap()
    }

    /// Used entries that were published since the last call: id and length. Those that need not be
    /// written with `VIRTIO_F_IN_ORDER` count as if they said that nothing was written.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        if let Some(packed) = &mut self.packed {
            return packed.driver.take_used();
        }
        let mut taken = Vec::new();
        while self.used_seen != self.used_idx() {
            let slot = u64::from(self.used_seen % self.layout.size);
            let at = self.layout.used + 4 + 8 * slot;
            let memory = self.map.guest();
            let id: u32 = memory.read_obj(GuestAddress(at)).unwrap();
            let len = memory.read_obj(GuestAddress(at + 4)).unwrap();
            // The chains of a batch that come before the one that the entry is of.
            while let Some(outstanding) = &mut self.in_order
                && let head = u32::from(outstanding.pop_front().expect("the device had this chain"))
                && head != id
            {
                taken.push((head, 0));
                self.used_seen = self.used_seen.wrapping_add(1);
                assert_ne!(self.used_seen, self.used_idx(), "a batch beyond the index");
            }
            taken.push((id, len));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        taken
    }

    /// Whether there is something that `take_used` would take.
    pub fn has_used(&self) -> bool {
        match &self.packed {
            None => self.used_idx() != self.used_seen,
            Some(packed) => packed.driver.has_used(),
        }
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory()
            .write_slice(bytes, GuestAddress(addr))
            .unwrap();
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory()
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }
}

impl Packed {
    fn offer(&mut self, head: u16) {
        let mut buffers = Vec::new();
        let mut index = head;
        loop {
            let desc = self.table[usize::from(index)].expect("a descriptor that was written");
            buffers.push((desc.addr, desc.len, desc.flags & !NEXT));
            if desc.flags & NEXT == 0 {
                break;
            }
            index = desc.next;
        }
        self.driver.offer(head, &buffers);
    }
}
