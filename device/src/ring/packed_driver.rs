// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The driver's side of a packed ring, for tests: as naive as it can be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::driver::{BUFFERS, INDIRECT, NEXT, memory};
use super::memory::MemoryMap;
use super::virtqueue::Layout;

pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;
pub const ENABLE: u16 = 0;
pub const DISABLE: u16 = 1;
pub const DESC: u16 = 2;

/// A descriptor and a wrap counter, counted on for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub number: u64,
    pub size: u16,
}

impl At {
    pub fn slot(self) -> u16 {
        (self.number % u64::from(self.size)) as u16
    }

    pub fn wrap(self) -> bool {
        (self.number / u64::from(self.size)).is_multiple_of(2)
    }

    pub fn bits(self) -> u16 {
        self.slot() | if self.wrap() { 1 << 15 } else { 0 }
    }

    pub fn on(self, count: u16) -> At {
        let number = self.number + u64::from(count);
        At { number, ..self }
    }

    /// `VIRTQ_DESC_F_AVAIL` and `_USED` of a descriptor that is available here.
    pub fn available(self) -> u16 {
        if self.wrap() { AVAIL } else { USED }
    }

    /// ... and that is used.
    pub fn used(self) -> u16 {
        if self.wrap() { AVAIL | USED } else { 0 }
    }
}

/// Address, length and flags.
pub type Buffer = (u64, u32, u16);

#[derive(Debug)]
pub struct PackedDriver {
    pub map: Arc<MemoryMap>,
    pub layout: Layout,
    pub avail: At,
    pub used: At,
    /// Descriptors of the chain that was offered last.
    pub last: u16,
    /// `VIRTIO_F_IN_ORDER` was negotiated.
    pub in_order: bool,
    /// The chains that the device has: id and number of descriptors.
    pub outstanding: VecDeque<(u16, u16)>,
}

impl PackedDriver {
    pub fn new(size: u16, event_idx: bool) -> Self {
        let layout = Layout {
            size,
            desc: 0,
            avail: 0x8_0000,
            used: 0xa_0000,
            event_idx,
        };
        PackedDriver::over(memory(), layout)
    }

    pub fn over(map: Arc<MemoryMap>, layout: Layout) -> Self {
        let size = layout.size;
        let start = At { number: 0, size };
        PackedDriver {
            map,
            layout,
            avail: start,
            used: start,
            last: 0,
            in_order: false,
            outstanding: VecDeque::new(),
        }
    }

    /// Where the descriptor with this number is.
    pub fn at(&self, number: u16) -> At {
        let (number, size) = (u64::from(number), self.layout.size);
        At { number, size }
    }

    pub fn memory(&self) -> &GuestMemoryMmap {
        self.map.guest()
    }

    fn desc(&self, slot: u16) -> u64 {
        self.layout.desc + 16 * u64::from(slot)
    }

    /// All of a descriptor but its flags.
    fn write(&self, desc: u64, addr: u64, len: u32, id: u16) {
        let memory = self.memory();
        memory.write_obj(addr, GuestAddress(desc)).unwrap();
        memory.write_obj(len, GuestAddress(desc + 8)).unwrap();
        memory.write_obj(id, GuestAddress(desc + 12)).unwrap();
    }

    pub fn set_flags(&self, slot: u16, flags: u16) {
        let at = GuestAddress(self.desc(slot) + 14);
        self.memory().store(flags, at, Ordering::Release).unwrap();
    }

    pub fn flags(&self, slot: u16) -> u16 {
        let at = GuestAddress(self.desc(slot) + 14);
        self.memory().load(at, Ordering::Acquire).unwrap()
    }

    /// Makes a chain of these buffers, with these flags, available; the last may say that it goes
    /// on. Only the last descriptor has the id.
    pub fn offer(&mut self, id: u16, buffers: &[Buffer]) {
        let first = self.avail;
        let mut first_flags = 0;
        for (i, &(addr, len, flags)) in buffers.iter().enumerate() {
            let more = i + 1 < buffers.len();
            let at = first.on(i as u16);
            let id = if more { 0xdead } else { id };
            self.write(self.desc(at.slot()), addr, len, id);
            let flags = flags | at.available() | if more { NEXT } else { 0 };
            if i == 0 {
                first_flags = flags;
            } else {
                self.set_flags(at.slot(), flags);
            }
        }
        self.set_flags(first.slot(), first_flags);
        self.last = buffers.len() as u16;
        self.outstanding.push_back((id, self.last));
        self.avail = first.on(self.last);
    }

    /// As `offer`, in an indirect table.
    pub fn offer_indirect(&mut self, id: u16, buffers: &[Buffer]) {
        let table = BUFFERS + 0x1_0000 + 0x400 * u64::from(id);
        for (i, &(addr, len, flags)) in buffers.iter().enumerate() {
            let desc = table + 16 * i as u64;
            self.write(desc, addr, len, 0xdead);
            let memory = self.memory();
            memory.write_obj(flags, GuestAddress(desc + 14)).unwrap();
        }
        self.offer(id, &[(table, 16 * buffers.len() as u32, INDIRECT)]);
    }

    /// Descriptors that are free.
    pub fn room(&self) -> u64 {
        u64::from(self.layout.size) - (self.avail.number - self.used.number)
    }

    fn is_used(&self, at: At) -> bool {
        self.flags(at.slot()) & (AVAIL | USED) == at.used()
    }

    /// Whether something was used that was not taken.
    pub fn has_used(&self) -> bool {
        self.is_used(self.used)
    }

    /// What was used since the last call: id and length. It stops where the device has used what it
    /// did not have. Chains of a batch before its last one count as ones into which nothing was
    /// written.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut taken = Vec::new();
        while self.used != self.avail && self.is_used(self.used) {
            let at = self.desc(self.used.slot());
            let len = self.memory().read_obj(GuestAddress(at + 8)).unwrap();
            let id: u16 = self.memory().read_obj(GuestAddress(at + 12)).unwrap();
            let chain = self.outstanding.iter().position(|chain| chain.0 == id);
            let last = chain.expect("the device had this chain");
            let used = if self.in_order {
                self.outstanding.drain(..=last).collect()
            } else {
                Vec::from_iter(self.outstanding.remove(last))
            };
            for (chain, count) in used {
                self.used = self.used.on(count);
                taken.push((u32::from(chain), if chain == id { len } else { 0 }));
            }
        }
        taken
    }

    /// Whether the device asked to be told of the last `n` descriptors that were offered.
    pub fn kick_wanted(&self, n: u16) -> bool {
        fence(Ordering::SeqCst);
        let (event, flags) = self.device_event();
        match flags {
            DISABLE => false,
            DESC => (1..=n).any(|ago| {
                let number = self.avail.number.checked_sub(u64::from(ago));
                number.is_some_and(|number| {
                    At {
                        number,
                        ..self.avail
                    }
                    .bits()
                        == event
                })
            }),
            _ => true,
        }
    }

    /// What the device has asked for: place and flags.
    pub fn device_event(&self) -> (u16, u16) {
        let at = self.layout.used;
        let read = |at| self.memory().read_obj(GuestAddress(at)).unwrap();
        (read(at), read(at + 2))
    }

    /// Asks for interrupts.
    pub fn set_event(&self, place: u16, flags: u16) {
        let at = self.layout.avail;
        self.memory().write_obj(place, GuestAddress(at)).unwrap();
        self.memory()
            .write_obj(flags, GuestAddress(at + 2))
            .unwrap();
    }

    /// Asks for an interrupt with the next used descriptor; whether there is one already.
    pub fn ask_interrupt(&self) -> bool {
        let flags = if self.layout.event_idx { DESC } else { ENABLE };
        self.set_event(self.used.bits(), flags);
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// As after so many descriptors that came and went.
    pub fn start_at(&mut self, number: u64) {
        let size = self.layout.size;
        self.avail = At { number, size };
        self.used = self.avail;
        for ago in 1..=u64::from(size) {
            let at = number.checked_sub(ago).map(|number| At { number, size });
            if let Some(at) = at {
                self.set_flags(at.slot(), at.used());
            }
        }
    }
}
