// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A driver of one queue, with buffers of its own: kicks only when asked to, and looks at what was
//! used only when interrupted.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::datapath::RingSetup;
use crate::ring::driver::{BUFFERS, Desc, Driver, NEXT, WRITE};
use crate::ring::memory::MemoryMap;
use crate::ring::virtqueue::Start;

/// One descriptor of a chain that the device has.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    desc: u16,
    addr: u64,
    len: u32,
    flags: u16,
}

#[derive(Debug)]
pub struct Guest {
    pub driver: Driver,
    free: VecDeque<u16>,
    chains: BTreeMap<u16, Vec<Buffer>>,
    /// Where the buffer of descriptor 0 lies, and how far apart they are.
    area: u64,
    stride: u64,
    kick: OwnedFd,
    call: OwnedFd,
}

/// A chain that came back: its head, and what the device wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    pub written: Vec<u8>,
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

/// Reads and clears an eventfd.
pub fn take_count(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

impl Guest {
    /// The queue in ring slot `slot`.
    pub fn new(map: Arc<MemoryMap>, slot: u64, size: u16, event_idx: bool) -> Self {
        const AREA: u64 = 0x4_0000;
        let stride = AREA / u64::from(size);
        Guest {
            driver: Driver::in_slot(map, slot, size, event_idx),
            free: (0..size).collect(),
            chains: BTreeMap::new(),
            area: BUFFERS + AREA * slot,
            stride,
            kick: event(),
            call: event(),
        }
    }

    /// The same with a packed ring.
    pub fn packed(mut self) -> Self {
        self.driver = self.driver.packed();
        self
    }

    /// The same with `VIRTIO_F_IN_ORDER`.
    pub fn in_order(mut self) -> Self {
        self.driver = self.driver.in_order();
        self
    }

    /// How the device starts the ring after so many chains of one descriptor.
    pub fn setup(&self, chains: u16) -> RingSetup {
        RingSetup {
            map: self.driver.map.clone(),
            layout: self.driver.layout,
            start: Start::At(self.driver.index(chains)),
            kick: Some(self.kick.try_clone().unwrap()),
            call: Some(self.call.try_clone().unwrap()),
        }
    }

    pub fn set_map(&mut self, map: Arc<MemoryMap>) {
        self.driver.set_map(map);
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Chains that the device has.
    pub fn outstanding(&self) -> usize {
        self.chains.len()
    }

    /// Writes a chain of buffers of these lengths and flags.
    fn chain(&mut self, lens: &[(usize, u16)]) -> u16 {
        let buffers: Vec<Buffer> = lens
            .iter()
            .map(|&(len, flags)| {
                assert!(len as u64 <= self.stride, "{len}");
                let desc = self.free.pop_front().expect("a free descriptor");
                let addr = self.area + self.stride * u64::from(desc);
                let len = len as u32;
                Buffer {
                    desc,
                    addr,
                    len,
                    flags,
                }
            })
            .collect();
        for (i, buffer) in buffers.iter().enumerate() {
            let next = buffers.get(i + 1).map(|next| next.desc);
            let desc = Desc {
                addr: buffer.addr,
                len: buffer.len,
                flags: buffer.flags | if next.is_some() { NEXT } else { 0 },
                next: next.unwrap_or(0),
            };
            let table = self.driver.layout.desc;
            self.driver.write_desc(table, buffer.desc, desc);
        }
        let head = buffers[0].desc;
        self.chains.insert(head, buffers);
        head
    }

    /// Writes a chain of readable buffers with `bytes` in them, cut up, and then room for so much.
    fn readable(&mut self, bytes: &[u8], cuts: &[usize], room: Option<usize>) -> u16 {
        let parts = cut(bytes, cuts);
        let mut lens: Vec<_> = parts.iter().map(|part| (part.len(), 0)).collect();
        lens.extend(room.map(|len| (len, WRITE)));
        let head = self.chain(&lens);
        for (buffer, part) in self.chains[&head].iter().zip(parts) {
            self.driver.write(buffer.addr, part);
        }
        self.offer_head(head);
        head
    }

    fn offer_head(&mut self, head: u16) {
        self.driver.offer(head);
        if self.driver.kick_wanted(1) {
            self.kick();
        }
    }

    pub fn kick(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// Offers one chain of empty buffers of these lengths.
    pub fn offer_room(&mut self, lens: &[usize]) -> u16 {
        let lens: Vec<_> = lens.iter().map(|&len| (len, WRITE)).collect();
        let head = self.chain(&lens);
        self.offer_head(head);
        head
    }

    /// Offers one chain that breaks the rules: its buffer is not in memory.
    pub fn offer_bad(&mut self, writable: bool) -> u16 {
        let head = self.chain(&[(1, 0)]);
        let desc = Desc {
            addr: u64::MAX - 100,
            len: 50,
            flags: if writable { WRITE } else { 0 },
            next: 0,
        };
        let table = self.driver.layout.desc;
        self.driver.write_desc(table, head, desc);
        self.offer_head(head);
        head
    }

    /// Sends a packet, in buffers of these lengths and the rest.
    pub fn send(&mut self, packet: &[u8], cuts: &[usize]) -> u16 {
        self.readable(packet, cuts, None)
    }

    /// Sends a command with room for its answer.
    pub fn command(&mut self, command: &[u8], cuts: &[usize]) -> u16 {
        self.readable(command, cuts, Some(1))
    }

    /// Sends a command with room for its answer and so much of a result.
    pub fn question(&mut self, command: &[u8], room: usize) -> u16 {
        self.readable(command, &[], Some(1 + room))
    }

    /// Interrupts since the last look.
    pub fn interrupts(&self) -> u64 {
        take_count(&self.call)
    }

    pub fn call(&self) -> &OwnedFd {
        &self.call
    }

    /// What was used, whether or not there was an interrupt.
    pub fn used(&mut self) -> Vec<Used> {
        let entries = self.driver.take_used();
        let used = entries.into_iter().map(|(head, len)| {
            let head = u16::try_from(head).unwrap();
            let buffers = self
                .chains
                .remove(&head)
                .expect("the device had this chain");
            let mut written = Vec::new();
            for buffer in buffers {
                if buffer.flags & WRITE != 0 {
                    let here = (len as usize - written.len()).min(buffer.len as usize);
                    written.extend(self.driver.read(buffer.addr, here));
                }
                self.free.push_back(buffer.desc);
            }
            assert_eq!(
                written.len(),
                len as usize,
                "no more written than there was room"
            );
            Used { head, written }
        });
        used.collect()
    }

    /// What an interrupt handler finds; nothing without an interrupt. Asks for the next.
    pub fn on_interrupt(&mut self) -> Vec<Used> {
        let mut used = Vec::new();
        if self.interrupts() > 0 {
            loop {
                used.extend(self.used());
                if !self.driver.ask_interrupt() {
                    break;
                }
            }
        }
        used
    }
}

/// Puts received packets together (VIRTIO 1.3, 5.1.6.4.2): the first buffer's header tells of how
/// many buffers they are. Chains that came back unused are passed over.
pub fn packets(used: Vec<Used>) -> Vec<Vec<u8>> {
    let mut used = used.into_iter();
    let mut packets = Vec::new();
    while let Some(Used { mut written, .. }) = used.next() {
        if written.is_empty() {
            continue;
        }
        let count = u16::from_le_bytes([written[10], written[11]]);
        assert!(count > 0);
        for _ in 1..count {
            written.extend(used.next().expect("a packet becomes visible whole").written);
        }
        // As it was before the device filled this in.
        written[10..12].copy_from_slice(&[0, 0]);
        packets.push(written);
    }
    packets
}

fn cut<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    for &at in cuts {
        let (part, after) = rest.split_at(at.min(rest.len()));
        parts.push(part);
        rest = after;
    }
    if !rest.is_empty() || parts.is_empty() {
        parts.push(rest);
    }
    parts
}

/// A packet of `len` octets with a plain header, for everybody (broadcast), unlike any other
/// number's.
pub fn packet(number: u32, len: usize) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet.extend([0xff; 6]);
    packet.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    packet.extend(number.to_le_bytes());
    let mut state = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while packet.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        packet.push(state as u8);
    }
    packet.truncate(len.max(26));
    packet
}
