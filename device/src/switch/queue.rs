// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A port of the switch as the data path of its NIC sees it: an uplink, which takes everything it is
//! given and is never asked for packets.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::nic::hashing::Hashing;
use crate::nic::header::HASHLESS_HEADER;
use crate::nic::offload::Offloads;
use crate::ring::pieces::{Pieces, PiecesMut};
use crate::uplink::{Negotiated, Received, Sent, Uplink, UplinkQueue};

use super::Switch;
use super::forward::Forwarder;
use super::port::{End, Port};

/// A port, as its NIC's uplink. Dropping it removes the port.
#[derive(Debug)]
pub struct SwitchUplink {
    switch: Arc<Switch>,
    port: Arc<Port>,
    header_len: Arc<AtomicUsize>,
    taken: bool,
}

impl SwitchUplink {
    pub(super) fn new(switch: Arc<Switch>, port: Arc<Port>) -> Self {
        SwitchUplink {
            switch,
            port,
            header_len: Arc::new(AtomicUsize::new(HASHLESS_HEADER)),
            taken: false,
        }
    }
}

impl Uplink for SwitchUplink {
    /// All: what the receiver does not take unfinished is finished for it.
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn take_queues(&mut self) -> Vec<Box<dyn UplinkQueue>> {
        if std::mem::replace(&mut self.taken, true) {
            return Vec::new();
        }
        let queue = |index| {
            let (switch, port) = (Arc::clone(&self.switch), Arc::clone(&self.port));
            Box::new(SwitchQueue {
                forwarder: Forwarder::new(switch, Arc::clone(&port), Some(index)),
                header_len: Arc::clone(&self.header_len),
                port,
                index,
            }) as Box<dyn UplinkQueue>
        };
        let queues = usize::from(self.port.nic.config.queue_pairs);
        (0..queues).map(queue).collect()
    }

    fn negotiate(&self, negotiated: Negotiated) -> io::Result<()> {
        self.header_len
            .store(negotiated.header_len, Ordering::Relaxed);
        Ok(())
    }

    fn set_hashing(&self, hashing: Option<&Arc<Hashing>>) {
        if let End::Guest(guest) = &self.port.end {
            guest.set_hashing(hashing);
        }
    }

    fn set_link(&self, up: bool) -> io::Result<()> {
        if !up {
            // Whoever was behind the cable is not any more.
            self.switch.table.forget(self.port.index);
        }
        Ok(())
    }
}

impl Drop for SwitchUplink {
    fn drop(&mut self) {
        self.switch.remove(&self.port);
    }
}

/// One queue of a port.
#[derive(Debug)]
struct SwitchQueue {
    forwarder: Forwarder,
    header_len: Arc<AtomicUsize>,
    port: Arc<Port>,
    index: usize,
}

impl UplinkQueue for SwitchQueue {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn send(&mut self, packet: Pieces<'_>) -> Sent {
        let header_len = self.header_len.load(Ordering::Relaxed);
        self.forwarder.forward(packet, header_len)
    }

    fn flush(&mut self) -> Option<Instant> {
        self.forwarder.flush()
    }

    fn pushes(&self) -> bool {
        true
    }

    fn receive(&mut self, _: &mut PiecesMut<'_>) -> Received {
        Received::Empty
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if let End::Guest(guest) = &self.port.end {
            guest.set_active(self.index, active);
        }
        Ok(())
    }
}
