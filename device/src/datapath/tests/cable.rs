// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An uplink whose far end is the test.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use crate::nic::counters::DropReason;
use crate::nic::offload::Offloads;
use crate::ring::pieces::{Pieces, PiecesMut};
use crate::uplink::{Negotiated, Received, Sent, Uplink, UplinkQueue};

/// What comes from the far end.
#[derive(Debug)]
enum Arrival {
    Packet(Vec<u8>),
    Lost(DropReason),
}

#[derive(Debug, Default)]
struct Wire {
    arriving: VecDeque<Arrival>,
    sent: Vec<Vec<u8>>,
    /// Packets that are taken before the uplink is full.
    space: usize,
    /// What is sent arrives, and takes space until it is received.
    looped: bool,
    /// Why everything that is sent is thrown away.
    refuse: Option<DropReason>,
    active: Vec<bool>,
    /// Packets moved in one direction before the other had a turn: sent?, how many.
    runs: Vec<(bool, usize)>,
}

impl Wire {
    fn moved(&mut self, sent: bool) {
        match self.runs.last_mut() {
            Some((direction, count)) if *direction == sent => *count += 1,
            _ => self.runs.push((sent, 1)),
        }
    }
}

/// One queue's far end.
#[derive(Clone, Debug)]
pub struct Cable {
    wire: Arc<Mutex<Wire>>,
    fd: Option<Arc<OwnedFd>>,
}

impl Cable {
    fn new(silent: bool) -> Cable {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let wire = Wire {
            space: usize::MAX,
            ..Wire::default()
        };
        Cable {
            wire: Arc::new(Mutex::new(wire)),
            fd: (!silent).then(|| Arc::new(eventfd(0, flags).unwrap())),
        }
    }

    fn signal(&self) {
        if let Some(fd) = &self.fd {
            rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
        }
    }

    pub fn arrive(&self, packet: Vec<u8>) {
        self.wire.lock().arriving.push_back(Arrival::Packet(packet));
        self.signal();
    }

    pub fn lose_one(&self, reason: DropReason) {
        self.wire.lock().arriving.push_back(Arrival::Lost(reason));
        self.signal();
    }

    /// Packets that the datapath has not taken yet.
    pub fn waiting(&self) -> usize {
        self.wire.lock().arriving.len()
    }

    /// Sets how many packets can be sent from now on.
    pub fn set_space(&self, packets: usize) {
        self.wire.lock().space = packets;
        if packets > 0 {
            self.signal();
        }
    }

    /// The same, with the queue's descriptor not saying so.
    pub fn set_space_unseen(&self, packets: usize) {
        self.wire.lock().space = packets;
    }

    pub fn refuse(&self, reason: Option<DropReason>) {
        self.wire.lock().refuse = reason;
    }

    /// Makes it a loop that holds so many packets.
    pub fn set_looped(&self, packets: usize) {
        let mut wire = self.wire.lock();
        (wire.looped, wire.space) = (true, packets);
    }

    pub fn take_sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.wire.lock().sent)
    }

    /// How many packets moved one way before one moved the other way: sent?, how many.
    pub fn take_runs(&self) -> Vec<(bool, usize)> {
        std::mem::take(&mut self.wire.lock().runs)
    }

    /// What the queue was told of taking part in receiving, without repetitions.
    pub fn take_active(&self) -> Vec<bool> {
        let mut told = std::mem::take(&mut self.wire.lock().active);
        told.dedup();
        told
    }
}

#[derive(Debug)]
struct CableQueue(Cable);

impl UplinkQueue for CableQueue {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd.as_ref().map(|fd| fd.as_fd())
    }

    fn send(&mut self, packet: Pieces<'_>) -> Sent {
        let mut wire = self.0.wire.lock();
        if let Some(reason) = wire.refuse {
            return Sent::Dropped(reason);
        }
        if wire.space == 0 {
            return Sent::Busy;
        }
        wire.space -= 1;
        wire.moved(true);
        let mut bytes = vec![0; packet.len()];
        assert_eq!(packet.copy_to(0, &mut bytes), packet.len());
        if wire.looped {
            wire.arriving.push_back(Arrival::Packet(bytes));
        } else {
            wire.sent.push(bytes);
        }
        Sent::Done
    }

    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received {
        let mut wire = self.0.wire.lock();
        let Some(arrival) = wire.arriving.pop_front() else {
            return Received::Empty;
        };
        wire.moved(false);
        if wire.looped {
            wire.space += 1;
        }
        match arrival {
            Arrival::Packet(packet) => {
                assert_eq!(room.copy_from(0, &packet), packet.len(), "room for all");
                Received::Packet(packet.len())
            }
            Arrival::Lost(reason) => Received::Dropped(reason),
        }
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        self.0.wire.lock().active.push(active);
        Ok(())
    }
}

/// What the uplink as a whole was told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub negotiated: Arc<Mutex<Vec<Negotiated>>>,
    pub links: Arc<Mutex<Vec<bool>>>,
}

#[derive(Debug)]
pub struct CableUplink {
    cables: Vec<Cable>,
    told: Told,
    pub offloads: Offloads,
}

impl CableUplink {
    /// An uplink with so many queues; a silent one has no descriptors.
    pub fn new(queues: usize, silent: bool) -> (Self, Vec<Cable>, Told) {
        let cables: Vec<Cable> = (0..queues).map(|_| Cable::new(silent)).collect();
        let told = Told::default();
        let uplink = CableUplink {
            cables: cables.clone(),
            told: told.clone(),
            offloads: Offloads::ALL,
        };
        (uplink, cables, told)
    }
}

impl Uplink for CableUplink {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn take_queues(&mut self) -> Vec<Box<dyn UplinkQueue>> {
        self.cables
            .drain(..)
            .map(|cable| Box::new(CableQueue(cable)) as Box<dyn UplinkQueue>)
            .collect()
    }

    fn negotiate(&self, negotiated: Negotiated) -> io::Result<()> {
        self.told.negotiated.lock().push(negotiated);
        Ok(())
    }

    fn set_link(&self, up: bool) -> io::Result<()> {
        self.told.links.lock().push(up);
        Ok(())
    }
}
