// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Forwarding: what comes in at one port goes out at others.
//!
//! # Design
//! Each thread that brings packets in has a [`Forwarder`] of its own: the worker of a guest's queue
//! pair, and that of the uplink. It looks up the port and copies the packet there itself. The inlet
//! of a port stays open from one packet to the next, since most of a turn's packets go the same
//! way, and is closed when a packet goes elsewhere or the turn ends. Then interrupts are raised, one
//! for each inlet that was used. Every [`YIELD_PACKETS`] packets or [`YIELD_OCTETS`] octets what was put
//! in is shown to the driver, and others who wait for an inlet get it. At most one is open, and nothing is waited for while it is.
//!
//! Which ports there are is a list that is replaced when one comes or goes. A forwarder has the list
//! that was in force when its turn began, and looks at one number to know that it still is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::datapath::{Delivery, Inlet};
use crate::nic::counters::DropReason;
use crate::ring::pieces::Pieces;
use crate::uplink::Sent;

use super::incoming::{Incoming, Workshop};
use super::port::{End, Port};
use super::table::{Key, PortIndex};
use super::vlan::VlanId;
use super::{MAX_PORTS, PortList, Switch};

/// After so many packets into one inlet others who wait for it get it,
const YIELD_PACKETS: usize = 16;
/// and after so many octets.
const YIELD_OCTETS: usize = 128 << 10;
/// Group addresses that no bridge forwards (IEEE 802.1Q, 8.6.3): 01-80-C2-00-00-00 to -0F.
const RESERVED: [u8; 5] = [0x01, 0x80, 0xc2, 0, 0];

/// The inlet that is open.
#[derive(Debug)]
struct Open {
    port: PortIndex,
    queue: usize,
    inlet: Arc<Inlet>,
    delivery: Delivery,
    packets: usize,
    octets: usize,
}

/// An inlet that was left for another.
#[derive(Debug)]
struct Left {
    port: PortIndex,
    inlet: Arc<Inlet>,
}

/// An inlet whose interrupt was held back, and until when.
#[derive(Debug)]
struct Owed {
    inlet: Arc<Inlet>,
    due: Instant,
}

/// What forwards the packets that one thread brings in at a port.
#[derive(Debug)]
pub(super) struct Forwarder {
    switch: Arc<Switch>,
    port: Arc<Port>,
    ports: Arc<PortList>,
    /// Of `ports`.
    version: u64,
    /// Seconds, as the table counts them; none before the turn's first packet.
    now: Option<u32>,
    /// The source that was learned last in this turn. Those of most packets of a turn are the same, and
    /// so are their destinations.
    learned: Option<Key>,
    /// The destination that was looked up last in this turn, since then, and where it is.
    found: Option<(Key, PortIndex)>,
    out: Out,
}

/// The way out at other ports.
#[derive(Debug)]
struct Out {
    /// Number of the queue that the packets come from: a flow's packets go to the queue of that
    /// number. `None` where all come from one, and flows have to be told apart by what is in them.
    queue: Option<usize>,
    open: Option<Open>,
    /// The uplink was given something that it may hold until it is told that this was all.
    uplink_used: bool,
    /// Inlets that were left for others in this turn, with interrupts to be decided on at its end.
    left: Vec<Left>,
    /// The queues of each port that are in `left`, a bit each.
    marks: Box<[u32; MAX_PORTS + 1]>,
    owed: Vec<Owed>,
    workshop: Workshop,
}

impl Forwarder {
    pub fn new(switch: Arc<Switch>, port: Arc<Port>, queue: Option<usize>) -> Self {
        Forwarder {
            ports: Arc::default(),
            version: 0,
            now: None,
            learned: None,
            found: None,
            switch,
            port,
            out: Out {
                queue,
                open: None,
                uplink_used: false,
                left: Vec::new(),
                marks: Box::new([0; MAX_PORTS + 1]),
                owed: Vec::new(),
                workshop: Workshop::default(),
            },
        }
    }

    /// The time of this turn; with its first packet the list of ports is brought up to date.
    fn begin(&mut self) -> u32 {
        if let Some(now) = self.now {
            return now;
        }
        let version = self.switch.version.load(Ordering::Acquire);
        if version != self.version {
            self.ports = self.switch.list();
            self.version = version;
        }
        let now = self.switch.now();
        self.now = Some(now);
        now
    }

    /// Forwards one packet, whose virtio-net header has `header_len` octets.
    pub fn forward(&mut self, packet: Pieces<'_>, header_len: usize) -> Sent {
        let from_guest = matches!(self.port.end, End::Guest(_));
        let incoming = match Incoming::new(packet, header_len, from_guest) {
            Ok(incoming) => incoming,
            Err(reason) => return Sent::Dropped(reason),
        };
        let (source, destination) = (incoming.source(), incoming.destination());
        let group = |mac: [u8; 6]| mac[0] & 1 == 1;
        let vlan = self.port.vlans.ingress(incoming.tag);
        let Some(vlan) = vlan.filter(|_| !group(source)) else {
            return Sent::Dropped(DropReason::NotForwarded);
        };
        if destination.starts_with(&RESERVED) && destination[5] < 0x10 {
            return Sent::Dropped(DropReason::NotForwarded);
        }
        let now = self.begin();
        let own = self.port.index;
        self.out.workshop.clear();
        self.learn(Key::new(vlan, source), now);
        if !group(destination)
            && let Some(port) = self.find(Key::new(vlan, destination), now)
        {
            // One that is gone since the list was made, and one that was never of this VLAN, has
            // no addresses in the table for longer than a moment.
            let to = self.ports.get(port).filter(|_| port != own);
            let Some(to) = to.filter(|to| to.vlans.egress(vlan).is_some()) else {
                return Sent::Dropped(DropReason::NotForwarded);
            };
            self.out.put(to, &incoming, vlan);
            return Sent::Done;
        }
        for port in self.ports.iter().filter(|port| port.index != own) {
            self.out.put(port, &incoming, vlan);
        }
        Sent::Done
    }

    /// Has the table know that a frame from this address has come in here.
    fn learn(&mut self, source: Key, now: u32) {
        if self.learned != Some(source) {
            self.switch.table.learn(source, self.port.index, now);
            self.learned = Some(source);
            // It may be the one that was looked up.
            self.found = None;
        }
    }

    /// The port that the address is behind, if that is known. One that moves to another port while a
    /// turn goes on is found where it was until that is over.
    fn find(&mut self, destination: Key, now: u32) -> Option<PortIndex> {
        match self.found {
            Some((found, port)) if found == destination => Some(port),
            _ => {
                let port = self.switch.table.find(destination, now)?;
                self.found = Some((destination, port));
                Some(port)
            }
        }
    }

    /// Ends the turn: everything that was put in becomes visible, and interrupts that are due are
    /// raised. `Some` is when the next is.
    pub fn flush(&mut self) -> Option<Instant> {
        self.now = None;
        self.learned = None;
        self.found = None;
        self.out.end();
        if std::mem::take(&mut self.out.uplink_used)
            && let Some(port) = self.ports.uplink()
            && let End::Uplink(egress) = &port.end
        {
            egress.lock().flush();
        }
        self.out.pay()
    }
}

impl Drop for Forwarder {
    /// The guest that sends is gone, and nobody comes back for what it owes.
    fn drop(&mut self) {
        self.out.end();
        for Owed { inlet, .. } in self.out.owed.drain(..) {
            inlet.open().close_now();
        }
    }
}

impl Out {
    /// Sends a frame out at a port, if that is of the frame's VLAN.
    fn put(&mut self, port: &Port, incoming: &Incoming<'_>, vlan: VlanId) {
        let Some(form) = port.vlans.egress(vlan) else {
            return;
        };
        match &port.end {
            End::Guest(guest) => {
                let number = || self.queue.unwrap_or_else(|| incoming.flow());
                let wish = guest.wish(|| incoming.start());
                let Some((queue, inlet)) = wish.inlet.or_else(|| guest.inlet(number)) else {
                    return;
                };
                self.open(port.index, queue, inlet);
                let Some(open) = &mut self.open else {
                    return;
                };
                let offloads = open.delivery.offloads();
                let emitted = incoming.emit(vlan, form, offloads, &mut self.workshop, |frame| {
                    // All segments are of one flow.
                    match wish.hash {
                        Some(hash) => open.delivery.put(&frame.with_hash(hash)),
                        None => open.delivery.put(frame),
                    }
                    open.packets += 1;
                    open.octets += frame.frame_len();
                });
                if let Err(reason) = emitted {
                    open.delivery.lose(reason);
                }
            }
            End::Uplink(egress) => {
                // Nobody has two locks.
                self.leave();
                self.uplink_used = true;
                egress
                    .lock()
                    .put(incoming, vlan, form, &mut self.workshop, &port.nic);
            }
        }
    }

    /// Has the inlet of this port and queue be the one that is open.
    fn open(&mut self, port: PortIndex, queue: usize, inlet: &Arc<Inlet>) {
        if let Some(open) = &mut self.open
            && open.port == port
            && open.queue == queue
            && Arc::ptr_eq(&open.inlet, inlet)
        {
            if open.packets >= YIELD_PACKETS || open.octets >= YIELD_OCTETS {
                open.delivery.yield_now();
                (open.packets, open.octets) = (0, 0);
            }
            return;
        }
        self.leave();
        self.open = Some(Open {
            port,
            queue,
            delivery: inlet.open(),
            inlet: Arc::clone(inlet),
            packets: 0,
            octets: 0,
        });
    }

    /// Closes the inlet that is open, because another is wanted.
    fn leave(&mut self) {
        let Some(Open {
            port,
            queue,
            inlet,
            delivery,
            ..
        }) = self.open.take()
        else {
            return;
        };
        let undecided = delivery.leave();
        let bit = 1u32.checked_shl(queue as u32).unwrap_or(0);
        if undecided
            && let Some(marks) = self.marks.get_mut(usize::from(port))
            && *marks & bit == 0
        {
            *marks |= bit;
            self.left.push(Left { port, inlet });
        }
    }

    /// Ends the turn: closes all inlets that were used in it, each once.
    fn end(&mut self) {
        if let Some(Open {
            inlet, delivery, ..
        }) = self.open.take()
        {
            let due = delivery.close();
            self.owe(inlet, due);
        }
        while let Some(Left { port, inlet }) = self.left.pop() {
            if let Some(marks) = self.marks.get_mut(usize::from(port)) {
                *marks = 0;
            }
            let due = inlet.open().close();
            self.owe(inlet, due);
        }
    }

    /// Notes until when the interrupt of an inlet is held back, if it is.
    fn owe(&mut self, inlet: Arc<Inlet>, due: Option<Instant>) {
        let known = self
            .owed
            .iter()
            .position(|owed| Arc::ptr_eq(&owed.inlet, &inlet));
        match (due, known) {
            (Some(due), Some(at)) => {
                if let Some(owed) = self.owed.get_mut(at) {
                    owed.due = due;
                }
            }
            (Some(due), None) => self.owed.push(Owed { inlet, due }),
            (None, Some(at)) => {
                self.owed.swap_remove(at);
            }
            (None, None) => {}
        }
    }

    /// Raises the interrupts that were held back and are due; when the next is.
    fn pay(&mut self) -> Option<Instant> {
        if self.owed.is_empty() {
            return None;
        }
        let now = Instant::now();
        while let Some(at) = self.owed.iter().position(|owed| owed.due <= now) {
            let Owed { inlet, .. } = self.owed.swap_remove(at);
            // Another may have raised it meanwhile, and put more in, for which it is not due yet.
            if let Some(due) = inlet.open().close() {
                self.owed.push(Owed { inlet, due });
            }
        }
        self.owed.iter().map(|owed| owed.due).min()
    }
}
