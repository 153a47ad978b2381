// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What driver and device have agreed on, and how it reaches workers and uplink.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::nic::Nic;
use crate::nic::control::{Change, DriverState, Outcome, Queues, VIRTIO_NET_OK};
use crate::nic::counters::{ControlCounters, PairCounters};
use crate::nic::features::{self, Features};
use crate::uplink::{Negotiated, Uplink};

use super::worker::Pair;

/// The driver's side of the NIC: features, filters, queue pairs in use.
#[derive(Debug)]
pub(super) struct Agreement {
    pub nic: Arc<Nic>,
    pub pairs: Vec<Arc<Pair>>,
    pub uplink: Box<dyn Uplink>,
    pub driver: Mutex<DriverState>,
}

impl Agreement {
    /// The driver's features as they can be relied on.
    pub fn features(&self) -> Features {
        self.driver.lock().features()
    }

    /// Starts afresh with `features`.
    pub fn negotiate(&self, features: Features) {
        let mut driver = self.driver.lock();
        driver.reset(features);
        self.apply_filter(&driver);
        self.apply_offloads(&driver);
        self.apply_coalescing(&driver);
        self.apply_hashing(&driver);
        // Until the driver says otherwise only the first pair is in use (5.1.6.5.6.1). Where the
        // frontend answers the control queue itself, it starts just the rings that are in use.
        let ours = driver.features().has(features::VIRTIO_NET_F_CTRL_VQ);
        drop(driver);
        self.enable_pairs(if ours { 1 } else { self.pairs.len() });
    }

    /// Carries out a command of the control queue (5.1.6.5).
    pub fn command(&self, command: &[u8]) -> Outcome {
        let mut driver = self.driver.lock();
        // The lock of the driver's state makes us the only writer of these.
        let counters = &self.nic.control_counters;
        counters.commands.add(1);
        let outcome = driver.handle(command, self);
        if outcome.ack == VIRTIO_NET_OK {
            counters.carried_out.add(1);
        }
        self.apply(&driver, outcome.change);
        outcome
    }

    /// Counts a command that is refused without a look at it.
    pub fn refuse_command(&self) {
        let _only_writer = self.driver.lock();
        self.nic.control_counters.commands.add(1);
    }

    /// Writes config space, where a legacy driver sets its address.
    pub fn write_config(&self, offset: u32, data: &[u8]) {
        let mut driver = self.driver.lock();
        let change = driver.write_config(offset, data);
        self.apply(&driver, change);
    }

    fn apply(&self, driver: &DriverState, change: Option<Change>) {
        match change {
            Some(Change::Filter | Change::Mac(_)) => self.apply_filter(driver),
            Some(Change::GuestOffloads(_)) => self.apply_offloads(driver),
            Some(Change::Coalescing) => self.apply_coalescing(driver),
            Some(Change::QueuePairs(_) | Change::Scaling) => {
                self.enable_pairs(usize::from(driver.queue_pairs()));
                self.apply_hashing(driver);
            }
            Some(Change::Hashing) => self.apply_hashing(driver),
            Some(Change::Announced) | None => {}
        }
    }

    fn apply_filter(&self, driver: &DriverState) {
        for pair in &self.pairs {
            pair.inlet.lock().filter = driver.filter().clone();
        }
    }

    fn apply_hashing(&self, driver: &DriverState) {
        for pair in &self.pairs {
            pair.inlet.lock().hashing = driver.hashing().cloned();
        }
        self.uplink.set_hashing(driver.hashing());
    }

    fn apply_offloads(&self, driver: &DriverState) {
        for pair in &self.pairs {
            pair.inlet.lock().set_offloads(driver.guest_offloads());
        }
        let negotiated = Negotiated {
            header_len: driver.features().header_len(),
            receive: driver.guest_offloads(),
        };
        if let Err(e) = self.uplink.negotiate(negotiated) {
            log::error!(
                "uplink {}: cannot set {negotiated:?}: {e}",
                self.nic.config.uplink
            );
        }
    }

    fn apply_coalescing(&self, driver: &DriverState) {
        for (index, pair) in self.pairs.iter().enumerate() {
            let [rx, tx] = [2 * index, 2 * index + 1].map(|index| driver.coalescing(index));
            let mut state = pair.lock();
            let changed = state.asked.ask(tx) | pair.inlet.lock().asked.ask(rx);
            drop(state);
            if changed {
                // What is held back may be due now (5.1.6.5.9).
                pair.wake();
            }
        }
    }

    fn enable_pairs(&self, count: usize) {
        for (index, pair) in self.pairs.iter().enumerate() {
            let mut state = pair.lock();
            let mut inlet = pair.inlet.lock();
            inlet.enabled = index < count;
            state.update_steering(&inlet, index);
            drop(inlet);
            drop(state);
            pair.wake();
        }
    }
}

impl Queues for Agreement {
    fn is_enabled(&self, index: usize) -> bool {
        self.pairs.get(index / 2).is_some_and(|pair| {
            if index.is_multiple_of(2) {
                pair.inlet.lock().rx.is_some()
            } else {
                pair.lock().tx.is_some()
            }
        })
    }

    fn counters(&self, pair: usize) -> Option<&PairCounters> {
        self.nic.counters.get(pair)
    }

    fn control_counters(&self) -> &ControlCounters {
        &self.nic.control_counters
    }
}
