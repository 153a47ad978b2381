// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest: memory in a memfd, and the driver's side of split rings in it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::PATIENCE;

/// Octets of memory.
pub const MEMORY: u64 = 0x80_0000;
/// Where the frontend has it in its own address space.
pub const USER: u64 = 0x7000_0000_0000;
pub const RING_SIZE: u16 = 64;
/// Octets of the usual virtio-net header.
pub const HEADER: usize = 12;
const BUFFER: u64 = 2048;

#[derive(Debug)]
pub struct Guest {
    pub memfd: OwnedFd,
    pub memory: GuestMemoryMmap,
}

impl Guest {
    pub fn new() -> Arc<Self> {
        Guest::named("guest")
    }

    /// One whose memory can be found by name in `/proc/self/maps`.
    pub fn named(name: &str) -> Arc<Self> {
        let memfd = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, MEMORY).unwrap();
        let file = File::from(memfd.try_clone().unwrap());
        let range = (
            GuestAddress(0),
            MEMORY as usize,
            Some(FileOffset::new(file, 0)),
        );
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        Arc::new(Guest { memfd, memory })
    }
}

/// The driver's side of one ring, which lies at a place that follows from its index.
#[derive(Debug)]
pub struct Ring {
    guest: Arc<Guest>,
    pub index: u32,
    avail: u16,
    seen: u16,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    /// Where the backend is to go on.
    pub base: u16,
}

/// A file that may be guest memory.
pub fn memfd(size: u64) -> OwnedFd {
    let memfd = memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memfd, size).unwrap();
    memfd
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Waits for an eventfd, and clears it.
pub fn signalled(fd: impl AsFd, patience: std::time::Duration) -> bool {
    let timeout = Timespec::try_from(patience).unwrap();
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    let ready = poll(&mut fds, Some(&timeout)).unwrap() == 1;
    if ready {
        let _ = rustix::io::read(fd, &mut [0; 8]);
    }
    ready
}

impl Ring {
    pub fn new(guest: &Arc<Guest>, index: u32) -> Self {
        Ring {
            guest: guest.clone(),
            index,
            avail: 0,
            seen: 0,
            kick: event(),
            call: event(),
            base: 0,
        }
    }

    pub fn desc(&self) -> u64 {
        0x1_0000 * (u64::from(self.index) + 1)
    }

    pub fn avail(&self) -> u64 {
        self.desc() + 0x4000
    }

    pub fn used(&self) -> u64 {
        self.desc() + 0x8000
    }

    fn buffer(&self, slot: u16) -> u64 {
        0x10_0000 * (u64::from(self.index) + 1) + BUFFER * u64::from(slot % RING_SIZE)
    }

    fn get(&self, at: u64) -> u16 {
        self.guest.memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn put(&self, at: u64, value: u16) {
        self.guest
            .memory
            .write_obj(value, GuestAddress(at))
            .unwrap();
    }

    /// Makes a buffer available and tells the device. `bytes` is what it reads; none is for it to
    /// write into.
    pub fn offer(&mut self, bytes: Option<&[u8]>) {
        let slot = self.avail % RING_SIZE;
        let buffer = self.buffer(slot);
        let (len, flags) = match bytes {
            Some(bytes) => {
                let memory = &self.guest.memory;
                memory.write_slice(bytes, GuestAddress(buffer)).unwrap();
                (bytes.len() as u32, 0u16)
            }
            None => (BUFFER as u32, 2),
        };
        let at = self.desc() + 16 * u64::from(slot);
        let memory = &self.guest.memory;
        memory.write_obj(buffer, GuestAddress(at)).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.put(at + 12, flags);
        self.push(slot);
    }

    /// Has a command of the control queue carried out; its acknowledgement.
    pub fn command(&mut self, command: &[u8]) -> u8 {
        let slot = self.avail % (RING_SIZE / 2) * 2;
        let memory = &self.guest.memory;
        let at = self.desc() + 16 * u64::from(slot);
        let parts = [(command.len() as u32, 1u16), (1, 2)];
        for (i, (len, flags)) in parts.into_iter().enumerate() {
            let at = at + 16 * i as u64;
            let buffer = self.buffer(slot + i as u16);
            memory.write_obj(buffer, GuestAddress(at)).unwrap();
            memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            self.put(at + 12, flags);
            self.put(at + 14, slot + i as u16 + 1);
        }
        let buffer = GuestAddress(self.buffer(slot));
        memory.write_slice(command, buffer).unwrap();
        self.push(slot);
        self.wait();
        let ack = GuestAddress(self.buffer(slot + 1));
        self.guest.memory.read_obj(ack).unwrap()
    }

    fn push(&mut self, head: u16) {
        let entry = self.avail() + 4 + 2 * u64::from(self.avail % RING_SIZE);
        self.put(entry, head);
        self.avail = self.avail.wrapping_add(1);
        self.put(self.avail() + 2, self.avail);
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// The used index, which is where a backend goes on after one that was killed.
    pub fn used_idx(&self) -> u16 {
        self.get(self.used() + 2)
    }

    /// The next used buffer, as a driver learns of it: by interrupt. What the device wrote into it.
    pub fn wait(&mut self) -> Vec<u8> {
        loop {
            // Interrupt me for the next one; then look whether it is there already.
            self.put(self.avail() + 4 + 2 * u64::from(RING_SIZE), self.seen);
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            if self.used_idx() != self.seen {
                return self.take();
            }
            assert!(
                signalled(&self.call, PATIENCE),
                "no interrupt for virtqueue {} within {PATIENCE:?}; used {}, seen {}",
                self.index,
                self.used_idx(),
                self.seen,
            );
        }
    }

    fn take(&mut self) -> Vec<u8> {
        let at = self.used() + 4 + 8 * u64::from(self.seen % RING_SIZE);
        let memory = &self.guest.memory;
        let head: u32 = memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        let buffer = GuestAddress(self.buffer(head as u16));
        memory.read_slice(&mut bytes, buffer).unwrap();
        self.seen = self.seen.wrapping_add(1);
        bytes
    }

    /// Buffers that the device has and has not used.
    pub fn pending(&self) -> u16 {
        self.avail.wrapping_sub(self.used_idx())
    }

    /// As after a reset of the driver.
    pub fn reset(&mut self) {
        let zeros = [0; 0xc000];
        let desc = GuestAddress(self.desc());
        self.guest.memory.write_slice(&zeros, desc).unwrap();
        (self.avail, self.seen, self.base) = (0, 0, 0);
    }
}

/// A driver's queue pairs.
#[derive(Debug)]
pub struct Driver {
    pub guest: Arc<Guest>,
    pub rings: Vec<Ring>,
    /// Octets of the virtio-net header.
    pub header_len: usize,
}

impl Driver {
    /// So many rings, with half of each receive ring filled.
    pub fn new(rings: u32, pairs: u32) -> Self {
        let guest = Guest::new();
        let rings = (0..rings).map(|i| Ring::new(&guest, i)).collect();
        let mut driver = Driver {
            guest,
            rings,
            header_len: HEADER,
        };
        driver.fill(pairs);
        driver
    }

    /// Gives every receive queue buffers.
    pub fn fill(&mut self, pairs: u32) {
        for pair in 0..pairs as usize {
            for _ in 0..RING_SIZE / 2 {
                self.rings[2 * pair].offer(None);
            }
        }
    }

    pub fn send(&mut self, pair: usize, frame: &[u8]) {
        let packet = [&vec![0; self.header_len], frame].concat();
        self.rings[2 * pair + 1].offer(Some(&packet));
    }

    /// Waits for the next packet and gives the device another buffer.
    pub fn receive(&mut self, pair: usize) -> Vec<u8> {
        let ring = &mut self.rings[2 * pair];
        let packet = ring.wait();
        ring.offer(None);
        packet[self.header_len..].to_vec()
    }
}

/// A frame to the NIC's own address, different for each `n`.
pub fn frame(n: usize) -> Vec<u8> {
    frame_to([0x52, 0x54, 0, 0x12, 0x34, 0x56], n)
}

pub fn frame_to(mac: [u8; 6], n: usize) -> Vec<u8> {
    let mut frame = [&mac[..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5]].concat();
    frame.extend_from_slice(&n.to_le_bytes());
    frame.extend((0..n % 1400).map(|i| (i * 7 + n) as u8));
    frame
}
