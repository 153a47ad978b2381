// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtqueue as its driver sees it (VIRTIO 1.3, 2.6), split or packed.

use anyhow::{Result, ensure};

use super::memory::Memory;
use super::packed::Packed;
use super::split::Split;

/// Which form rings have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// VIRTIO 1.3, 2.7.
    Split,
    /// VIRTIO 1.3, 2.8.
    Packed,
}

impl Form {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Form::Split => "split",
            Form::Packed => "packed",
        }
    }
}

/// Entries of the largest ring.
pub const MOST: u16 = 1024;
/// Octets of shared memory that a ring has for itself.
pub const AREA: usize = 0x1_0000;
const DRIVER: usize = 0x4000;
const DEVICE: usize = 0x8000;

/// Where a ring lies.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Entries.
    pub size: u16,
    /// Its [`AREA`]'s offset in the shared memory.
    pub at: usize,
}

impl Place {
    /// Offset of the descriptors.
    pub fn desc(self) -> usize {
        self.at
    }

    /// Offset of what the driver writes beside: the available ring, the driver's event suppression.
    pub fn driver(self) -> usize {
        self.at + DRIVER
    }

    /// Offset of what the device writes: the used ring, the device's event suppression.
    pub fn device(self) -> usize {
        self.at + DEVICE
    }
}

/// A buffer that is made available, in one descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Its number, below the ring's size.
    pub id: u16,
    /// The guest's address.
    pub addr: u64,
    /// Octets.
    pub len: u32,
    /// Whether it is for the device to write into.
    pub writable: bool,
}

/// A buffer that the device has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Its number.
    pub id: u16,
    /// Octets that were written into it.
    pub len: u32,
}

/// The driver's side of a ring.
#[derive(Debug)]
pub enum Ring<'m> {
    /// Split.
    Split(Split<'m>),
    /// Packed.
    Packed(Packed<'m>),
}

impl<'m> Ring<'m> {
    /// A ring that nobody has used yet, in memory that is all zeros.
    pub fn new(memory: &'m Memory, form: Form, place: Place) -> Result<Self> {
        let fits = place.size.is_power_of_two() && place.size <= MOST;
        ensure!(fits, "no ring can have {} entries here", place.size);
        Ok(match form {
            Form::Split => Ring::Split(Split::new(memory, place)?),
            Form::Packed => Ring::Packed(Packed::new(memory, place)?),
        })
    }

    /// Where the device is to begin, as vhost-user says it.
    pub fn base(&self) -> u16 {
        match self {
            Ring::Split(_) => 0,
            // Descriptor 0, with a wrap counter of 1.
            Ring::Packed(_) => 1 << 15,
        }
    }

    /// Puts a buffer into the ring. The caller does not put in more than the ring has entries.
    #[inline]
    pub fn offer(&mut self, buffer: Buffer) {
        match self {
            Ring::Split(ring) => ring.offer(buffer),
            Ring::Packed(ring) => ring.offer(buffer),
        }
    }

    /// Makes what was put in available; whether the device wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        match self {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// The next buffer that the device has used.
    #[inline]
    pub fn reap(&mut self) -> Option<Used> {
        match self {
            Ring::Split(ring) => ring.reap(),
            Ring::Packed(ring) => ring.reap(),
        }
    }

    /// Whether the device is to interrupt with every used buffer, or with none.
    pub fn set_interrupts(&self, wanted: bool) {
        match self {
            Ring::Split(ring) => ring.set_interrupts(wanted),
            Ring::Packed(ring) => ring.set_interrupts(wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device does, as naive as can be.
    struct Device<'m> {
        memory: &'m Memory,
        form: Form,
        place: Place,
        /// Descriptors that were used.
        done: u64,
    }

    impl Device<'_> {
        fn get<T: vm_memory::ByteValued>(&self, at: usize) -> T {
            self.memory.array(at, 1).unwrap().load(0)
        }

        fn put<T: vm_memory::ByteValued>(&self, at: usize, value: T) {
            self.memory.array(at, 1).unwrap().store(0, value);
        }

        fn size(&self) -> u64 {
            self.place.size.into()
        }

        /// Uses the next buffer, if there is one, with so many octets written: address, length, flags.
        fn take(&mut self, written: u32) -> Option<(u64, u32, u16)> {
            let slot = (self.done % self.size()) as usize;
            let taken = match self.form {
                Form::Split => self.take_split(slot, written)?,
                Form::Packed => self.take_packed(slot, written)?,
            };
            self.done += 1;
            Some(taken)
        }

        fn take_split(&self, slot: usize, written: u32) -> Option<(u64, u32, u16)> {
            let Place { size, .. } = self.place;
            let offered: u16 = self.get(self.place.driver() + 2);
            if offered == self.done as u16 {
                return None;
            }
            assert!(offered.wrapping_sub(self.done as u16) <= size);
            let head: u16 = self.get(self.place.driver() + 4 + 2 * slot);
            let desc = self.place.desc() + 16 * usize::from(head);
            let element = self.place.device() + 4 + 8 * slot;
            self.put(element, u32::from(head));
            self.put(element + 4, written);
            self.put(self.place.device() + 2, (self.done + 1) as u16);
            Some((self.get(desc), self.get(desc + 8), self.get(desc + 12)))
        }

        fn take_packed(&self, slot: usize, written: u32) -> Option<(u64, u32, u16)> {
            let (avail, used) = (1u16 << 7, 1u16 << 15);
            let odd = (self.done / self.size()) % 2 == 1;
            let desc = self.place.desc() + 16 * slot;
            let flags: u16 = self.get(desc + 14);
            if flags & (avail | used) != if odd { used } else { avail } {
                return None;
            }
            let taken = (self.get(desc), self.get(desc + 8), flags & !(avail | used));
            self.put(desc + 8, written);
            self.put(desc + 14, if odd { 0 } else { avail | used });
            Some(taken)
        }
    }

    fn buffer(n: u64, size: u16) -> Buffer {
        Buffer {
            id: (n % u64::from(size)) as u16,
            addr: 0x1234_5678_0000 + n,
            len: n as u32 + 1,
            writable: n.is_multiple_of(3),
        }
    }

    #[test]
    fn buffers_reach_the_device_and_come_back_in_order_over_many_laps() {
        for form in [Form::Split, Form::Packed] {
            let memory = Memory::new(2 * AREA).unwrap();
            let place = Place { size: 8, at: AREA };
            let mut ring = Ring::new(&memory, form, place).unwrap();
            let mut device = Device {
                memory: &memory,
                form,
                place,
                done: 0,
            };
            let (mut offered, mut reaped) = (0u64, 0u64);
            // More than a 16-bit index counts.
            while reaped < 70_000 {
                for _ in 0..(offered % 8) + 1 - (offered - reaped) {
                    ring.offer(buffer(offered, 8));
                    offered += 1;
                }
                if form == Form::Split {
                    assert_eq!(device.take(0), None, "not before it is published");
                }
                assert!(ring.publish());
                assert_eq!(ring.reap(), None);
                while device.done < offered {
                    let sent = buffer(device.done, 8);
                    let written = device.done as u32 ^ 0x55;
                    let flags = if sent.writable { 2 } else { 0 };
                    assert_eq!(device.take(written), Some((sent.addr, sent.len, flags)));
                }
                assert_eq!(device.take(0), None);
                while let Some(used) = ring.reap() {
                    let len = reaped as u32 ^ 0x55;
                    let id = buffer(reaped, 8).id;
                    assert_eq!(used, Used { id, len });
                    reaped += 1;
                }
                assert_eq!(reaped, offered);
            }
        }
    }

    #[test]
    fn either_side_can_ask_not_to_be_told() {
        for (form, flags) in [(Form::Split, 0), (Form::Packed, 2)] {
            let memory = Memory::new(AREA).unwrap();
            let place = Place { size: 8, at: 0 };
            let mut ring = Ring::new(&memory, form, place).unwrap();
            let wish = |at: usize| memory.array::<u16>(at + flags, 1).unwrap();
            ring.set_interrupts(false);
            assert_eq!(wish(place.driver()).load(0), 1);
            ring.set_interrupts(true);
            assert_eq!(wish(place.driver()).load(0), 0);
            assert!(ring.publish());
            wish(place.device()).store(0, 1);
            assert!(!ring.publish());
        }
    }
}
