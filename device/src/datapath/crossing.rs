// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Packets on their way from one queue pair to another: those that the uplink gives to a pair and
//! that receive-side scaling wants at another (VIRTIO 1.3, 5.1.6.5.7).
//!
//! # Design
//! Each pair has a box into which the others' workers put what is for it, and which its own worker
//! empties: only that one touches the pair's ring, decides on its interrupt and knows which buffers
//! are taken. Who puts the first packet in rings the worker's bell; until the box has been emptied
//! nobody rings again.
//!
//! A packet that crosses is copied once more than others, out of the buffers that it was received
//! into, which serve the next. The uplink finds out nothing of it.
//!
//! **Order of locks**: a pair, its inlet, a box. Whoever has a box takes no other lock, so nobody
//! ever has two pairs, two inlets or two boxes.
//!
//! # Limitations
//! What has no room in the box of a driver that leaves its queue without buffers is lost. The worker
//! that brings it counts that for its own queue: counters have one writer.

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::nic::flow_hash::FlowHash;
use crate::nic::header::{HASHLESS_HEADER, LONGEST_HEADER, VirtioNetHdr};
use crate::ring::pieces::PiecesMut;
use crate::uplink::packet_queue::PacketQueue;

use super::inlet::{MOST_OCTETS, MOST_PACKETS};
use super::wait_set::WaitSet;

/// The boxes of all pairs.
#[derive(Debug)]
pub(super) struct Crossing(Vec<Arrivals>);

/// What is on its way to one pair.
#[derive(Debug)]
struct Arrivals {
    /// What the pair's worker sleeps on.
    wait: Arc<WaitSet>,
    /// There are some. Changed under the lock only.
    some: AtomicBool,
    /// Made when it is first needed.
    packets: Mutex<Option<PacketQueue>>,
}

impl Crossing {
    /// Empty boxes for so many pairs.
    pub fn new(pairs: usize) -> io::Result<Self> {
        let arrivals = (0..pairs).map(|_| {
            Ok(Arrivals {
                wait: Arc::new(WaitSet::new()?),
                some: AtomicBool::new(false),
                packets: Mutex::default(),
            })
        });
        Ok(Crossing(arrivals.collect::<io::Result<_>>()?))
    }

    /// What each pair's worker is to sleep on, by number.
    pub fn wait_sets(&self) -> impl Iterator<Item = Arc<WaitSet>> {
        self.0.iter().map(|arrivals| Arc::clone(&arrivals.wait))
    }

    /// Sends a packet to a pair: the first `len` octets of `room`, with a virtio-net header of
    /// `header_len` octets, and its hash. False if there is no such pair or its box is full.
    pub fn send(
        &self,
        pair: usize,
        room: &PiecesMut<'_>,
        header_len: usize,
        len: usize,
        hash: Option<FlowHash>,
    ) -> bool {
        let (Some(arrivals), Some(frame_len)) = (self.0.get(pair), len.checked_sub(header_len))
        else {
            return false;
        };
        let mut packets = arrivals.packets.lock();
        let queue = packets.get_or_insert_with(|| PacketQueue::new(MOST_PACKETS, MOST_OCTETS));
        let kept = queue.push(LONGEST_HEADER + frame_len, |kept| {
            let (head, frame) = kept.split_first_chunk_mut::<LONGEST_HEADER>().ok_or(())?;
            // A legacy header is shorter, and has no `num_buffers`; that is filled in later.
            let mut octets = [0; HASHLESS_HEADER];
            let there = header_len.min(octets.len());
            room.copy_to(0, octets.get_mut(..there).unwrap_or(&mut []));
            let header = VirtioNetHdr::decode(&octets).unwrap_or_default();
            *head = header.with_hash(hash).encode();
            let whole = room.copy_to(header_len, frame) == frame_len;
            whole.then_some(()).ok_or(())
        });
        if kept != Some(Ok(())) {
            return false;
        }
        let first = !arrivals.some.swap(true, Ordering::AcqRel);
        drop(packets);
        if first {
            arrivals.wait.wake();
        }
        true
    }

    /// Whether there is something for a pair.
    pub fn is_waited_for(&self, pair: usize) -> bool {
        let arrivals = self.0.get(pair);
        arrivals.is_some_and(|arrivals| arrivals.some.load(Ordering::Acquire))
    }

    /// Takes all that is on its way to a pair, for memory in which nothing waits.
    pub fn take(&self, pair: usize, empty: &mut Option<PacketQueue>) {
        if let Some(arrivals) = self.0.get(pair) {
            let mut packets = arrivals.packets.lock();
            arrivals.some.store(false, Ordering::Release);
            mem::swap(&mut *packets, empty);
        }
    }
}
