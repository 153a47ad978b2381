// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The port behind which is the rest of the world: a tap or a user-mode network.
//!
//! # Design
//! What guests send out is given to the uplink by their own workers, one at a time; what the uplink
//! has no room for waits, as it does for a guest without buffers, and the uplink's thread sends it
//! when there is room. What comes in is received by that thread, into memory of ours, since only
//! then it is known where it goes, and forwarded like a guest's.
//!
//! Its counters are seen from outside, like a guest's from the guest: what it receives is what the
//! switch sends out there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;

use crate::datapath::Frame;
use crate::datapath::inlet::{MOST_OCTETS, MOST_PACKETS};
use crate::datapath::wait_set::{Sleep, WaitSet};
use crate::nic::Nic;
use crate::nic::counters::{DropReason, QueueCounters};
use crate::nic::header::HASHLESS_HEADER;
use crate::nic::offload::Offloads;
use crate::ring::pieces::{Pieces, PiecesMut};
use crate::uplink::packet_queue::PacketQueue;
use crate::uplink::{MAX_PACKET, Negotiated, Received, Sent, Uplink, UplinkQueue};

use super::forward::Forwarder;
use super::incoming::{Incoming, Workshop};
use super::port::{End, Port};
use super::vlan::{Form, VlanId, VlanMode};
use super::{Switch, UPLINK, UPLINK_NAME};

/// Octets of the virtio-net header that the uplink's packets have.
const HEADER: usize = HASHLESS_HEADER;
/// Packets that come in before packets that wait to go out get their turn.
const BUDGET: usize = 64;
/// The token of the uplink's events.
const UPLINK_READY: u64 = 1;

/// The way out.
#[derive(Debug)]
pub(super) struct Egress {
    queue: Box<dyn UplinkQueue>,
    offloads: Offloads,
    waiting: PacketQueue,
}

impl Egress {
    /// Sends a frame out, or has it wait. What becomes of it is counted.
    pub fn put(
        &mut self,
        incoming: &Incoming<'_>,
        vlan: VlanId,
        form: Form,
        workshop: &mut Workshop,
        nic: &Nic,
    ) {
        let Some(counters) = nic.counters.first().map(|pair| &pair.rx) else {
            return;
        };
        if !nic.link_up() {
            return counters.drops.add(DropReason::LinkDown);
        }
        let emitted = incoming.emit(vlan, form, self.offloads, workshop, |frame| {
            self.send(frame, counters);
        });
        if let Err(reason) = emitted {
            counters.drops.add(reason);
        }
    }

    fn send(&mut self, frame: &Frame<'_>, counters: &QueueCounters) {
        let sent = match self.waiting.count() {
            0 => frame.with_packet(|packet| self.queue.send(packet)),
            _ => Sent::Busy,
        };
        match sent {
            Sent::Done => count(counters, frame.frame_len()),
            Sent::Dropped(reason) => counters.drops.add(reason),
            Sent::Busy => {
                if !frame.keep_in::<HEADER>(&mut self.waiting) {
                    counters.drops.add(DropReason::UplinkFull);
                }
            }
        }
    }

    /// Sends what waits, as far as there is room for it; with the cable out it is lost.
    fn drain(&mut self, nic: &Nic) {
        let Some(counters) = nic.counters.first().map(|pair| &pair.rx) else {
            return;
        };
        let link_up = nic.link_up();
        while let Some(packet) = self.waiting.front_mut() {
            let len = packet.len();
            let sent = match link_up {
                true => Pieces::with_bytes(packet, |packet| self.queue.send(packet)),
                false => Sent::Dropped(DropReason::LinkDown),
            };
            match sent {
                Sent::Done => count(counters, len.saturating_sub(HEADER)),
                Sent::Dropped(reason) => counters.drops.add(reason),
                Sent::Busy => break,
            }
            self.waiting.pop();
        }
        self.queue.flush();
    }

    /// Sends on its way what the uplink has gathered.
    pub fn flush(&mut self) {
        self.queue.flush();
    }
}

fn count(counters: &QueueCounters, frame_len: usize) {
    counters.packets.add(1);
    counters.bytes.add(frame_len as u64);
}

/// The uplink's port, with its thread. Dropping it ends the thread and removes the port.
#[derive(Debug)]
pub struct UplinkPort {
    switch: Arc<Switch>,
    port: Arc<Port>,
    uplink: Box<dyn Uplink>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread shares with who has started it.
#[derive(Debug)]
struct Shared {
    wait: WaitSet,
    stop: AtomicBool,
}

impl UplinkPort {
    /// Makes an uplink of one queue a port of the switch; `nic` has the port's link and counters.
    pub fn start(
        switch: Arc<Switch>,
        nic: Arc<Nic>,
        vlans: VlanMode,
        mut uplink: Box<dyn Uplink>,
    ) -> io::Result<Self> {
        let queue = uplink
            .take_queues()
            .pop()
            .ok_or_else(|| io::Error::other("the uplink has no queue"))?;
        let offloads = uplink.offloads();
        uplink.negotiate(Negotiated {
            header_len: HEADER,
            receive: offloads,
        })?;
        let shared = Arc::new(Shared {
            wait: WaitSet::new()?,
            stop: AtomicBool::new(false),
        });
        if let Some(fd) = queue.poll_fd() {
            let both = EventFlags::IN | EventFlags::OUT;
            shared.wait.watch(fd, UPLINK_READY, both)?;
        }
        let port = Arc::new(Port {
            index: UPLINK,
            name: UPLINK_NAME.into(),
            nic,
            vlans,
            end: End::Uplink(Mutex::new(Egress {
                queue,
                offloads,
                waiting: PacketQueue::new(MOST_PACKETS, MOST_OCTETS),
            })),
        });
        let worker = Worker {
            forwarder: Forwarder::new(Arc::clone(&switch), Arc::clone(&port), None),
            port: Arc::clone(&port),
            packet: vec![0; MAX_PACKET],
        };
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("switch-uplink".into())
                .spawn(move || worker.run(&shared))?
        };
        switch.change(|ports| ports.set(UPLINK, Some(Arc::clone(&port))));
        Ok(UplinkPort {
            switch,
            port,
            uplink,
            shared,
            thread: Some(thread),
        })
    }

    /// The port's NIC.
    pub fn nic(&self) -> &Arc<Nic> {
        &self.port.nic
    }

    /// Tells the uplink that the port's link is not what it was.
    pub fn link_changed(&self) {
        let up = self.port.nic.link_up();
        if !up {
            self.switch.table.forget(UPLINK);
        }
        if let Err(e) = self.uplink.set_link(up) {
            log::warn!("{UPLINK_NAME}: {e}");
        }
        self.shared.wait.wake();
    }
}

impl Drop for UplinkPort {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wait.wake();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            log::error!("the uplink's worker has panicked; see above");
        }
        self.switch.remove(&self.port);
    }
}

/// The thread.
#[derive(Debug)]
struct Worker {
    forwarder: Forwarder,
    port: Arc<Port>,
    packet: Vec<u8>,
}

impl Worker {
    fn run(mut self, shared: &Shared) {
        let End::Uplink(egress) = &Arc::clone(&self.port).end else {
            return;
        };
        let mut events = Vec::with_capacity(4);
        let mut sleep = Sleep::No;
        let mut readable = true;
        loop {
            if let Err(e) = shared.wait.wait(&mut events, sleep) {
                log::error!("{UPLINK_NAME}: {e}; the port stops");
                return;
            }
            if shared.stop.load(Ordering::Acquire) {
                return;
            }
            if !events.is_empty() {
                readable = true;
                egress.lock().drain(&self.port.nic);
            }
            let (more, due) = self.turn(egress, &mut readable);
            sleep = match due {
                _ if more => Sleep::No,
                Some(then) => Sleep::Until(then),
                None => Sleep::Forever,
            };
        }
    }

    /// Forwards what has come in; whether there is more, and when interrupts are due.
    fn turn(&mut self, egress: &Mutex<Egress>, readable: &mut bool) -> (bool, Option<Instant>) {
        let port = Arc::clone(&self.port);
        let Some(counters) = port.nic.counters.first().map(|pair| &pair.tx) else {
            return (false, None);
        };
        let link_up = port.nic.link_up();
        for _ in 0..BUDGET {
            if !*readable {
                break;
            }
            let received = PiecesMut::with_bytes(&mut self.packet, |mut room| {
                egress.lock().queue.receive(&mut room)
            });
            match received {
                Received::Packet(_) if !link_up => counters.drops.add(DropReason::LinkDown),
                Received::Packet(len) => {
                    let packet = self.packet.get(..len).unwrap_or_default();
                    let sent =
                        Pieces::with_bytes(packet, |packet| self.forwarder.forward(packet, HEADER));
                    match sent {
                        Sent::Done => count(counters, len.saturating_sub(HEADER)),
                        Sent::Dropped(reason) => counters.drops.add(reason),
                        // A forwarder takes everything.
                        Sent::Busy => {}
                    }
                }
                Received::Dropped(reason) => counters.drops.add(reason),
                Received::Empty => *readable = false,
            }
        }
        (*readable, self.forwarder.flush())
    }
}
