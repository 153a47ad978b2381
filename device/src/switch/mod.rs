// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A learning Ethernet switch between guests: each of its ports is a NIC that another frontend
//! plugs in, and one may be an uplink.
//!
//! ```text
//!   guest A                          guest B
//!   transmit ring ── worker of A ──> receive ring      one copy, by the worker of A
//!                        │
//!                        └─ table: which port is an address behind
//! ```
//!
//! * [`table`]: the addresses, and the ports that they are behind.
//! * [`vlan`]: of which VLANs a port is a member.
//! * `incoming`: what is looked at in a frame, and what is done to it for its receiver.
//! * `forward`: from one port to the others.
//! * `port`: a port, as those see it who forward to it.
//! * `queue`: a port, as the data path sees it: an uplink.
//! * `uplink_port`: the port behind which is the rest of the world, and its thread.
//!
//! It is a layer between the data path and the frontend, and not one of the uplinks: to copy a
//! packet once, the sender's worker must put it into the receiver's ring itself, and rings belong to
//! the data path ([`crate::datapath::Inlet`]). docs/switch.md has the whole of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::datapath::Inlet;
use crate::nic::Nic;

mod forward;
mod incoming;
mod port;
mod queue;
pub mod table;
#[cfg(test)]
mod tests;
mod uplink_port;
pub mod vlan;

pub use port::Port;
pub use queue::SwitchUplink;
pub use uplink_port::UplinkPort;

use port::{End, Guest};
use table::{Address, PortIndex, Table};
use vlan::VlanMode;

/// The most guests on one switch.
pub const MAX_PORTS: usize = 64;
/// The uplink's number, which is no guest's.
const UPLINK: PortIndex = MAX_PORTS as PortIndex;
/// The uplink's name.
pub const UPLINK_NAME: &str = "uplink";

/// The ports there are, by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortList(Vec<Option<Arc<Port>>>);

impl PortList {
    fn get(&self, index: PortIndex) -> Option<&Port> {
        self.0.get(usize::from(index))?.as_deref()
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Port>> {
        self.0.iter().flatten()
    }

    fn uplink(&self) -> Option<&Port> {
        self.get(UPLINK)
    }

    fn set(&mut self, index: PortIndex, port: Option<Arc<Port>>) {
        let index = usize::from(index);
        if self.0.len() <= index {
            self.0.resize(index + 1, None);
        }
        if let Some(place) = self.0.get_mut(index) {
            *place = port;
        }
    }
}

/// Why there is no port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortError {
    /// There are as many as can be.
    Full,
    /// Another has that name.
    NameTaken(String),
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortError::Full => write!(f, "the switch has {MAX_PORTS} ports already"),
            PortError::NameTaken(name) => write!(f, "there is a port '{name}' already"),
        }
    }
}

impl std::error::Error for PortError {}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    table: Table,
    started: Instant,
    ports: Mutex<Arc<PortList>>,
    /// Changes with `ports`. Changed under its lock only.
    version: AtomicU64,
}

impl Default for Switch {
    fn default() -> Self {
        Switch {
            table: Table::default(),
            started: Instant::now(),
            ports: Mutex::default(),
            version: AtomicU64::new(1),
        }
    }
}

impl Switch {
    /// A switch without ports.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn now(&self) -> u32 {
        // Seconds of more than a century are as good as any.
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn list(&self) -> Arc<PortList> {
        Arc::clone(&self.ports.lock())
    }

    /// The ports there are now; the uplink's is the last.
    pub fn ports(&self) -> Vec<Arc<Port>> {
        self.list().iter().cloned().collect()
    }

    /// The addresses that are known, and the names of the ports that they are behind; by port, then
    /// VLAN, then address.
    pub fn addresses(&self) -> Vec<(Address, String)> {
        let ports = self.list();
        let mut addresses = self.table.list(self.now());
        addresses.sort_unstable_by_key(|a| (a.port, a.vlan, a.mac));
        let named = addresses.into_iter().filter_map(|address| {
            let port = ports.get(address.port)?;
            Some((address, port.name.clone()))
        });
        named.collect()
    }

    fn change<R>(&self, change: impl FnOnce(&mut PortList) -> R) -> R {
        let mut ports = self.ports.lock();
        let mut next = PortList::clone(&ports);
        let result = change(&mut next);
        *ports = Arc::new(next);
        self.version.fetch_add(1, Ordering::Release);
        result
    }

    /// Makes a port for a guest's NIC. The uplink to give that NIC is the port; when it is dropped
    /// the port is gone. Nothing reaches the guest before [`Switch::connect`].
    pub fn add(
        self: &Arc<Self>,
        name: &str,
        nic: Arc<Nic>,
        vlans: VlanMode,
    ) -> Result<SwitchUplink, PortError> {
        let port = self.change(|ports| {
            if name == UPLINK_NAME || ports.iter().any(|port| port.name == name) {
                return Err(PortError::NameTaken(name.into()));
            }
            let index = (0..UPLINK)
                .find(|index| ports.get(*index).is_none())
                .ok_or(PortError::Full)?;
            let port = Arc::new(Port {
                index,
                name: name.into(),
                nic,
                vlans,
                end: End::Guest(Guest::default()),
            });
            ports.set(index, Some(Arc::clone(&port)));
            Ok(port)
        })?;
        Ok(SwitchUplink::new(Arc::clone(self), port))
    }

    /// Gives the switch the receive queues of the port's NIC; to be called once, with
    /// [`Dataplane::inlets`](crate::datapath::Dataplane::inlets).
    pub fn connect(&self, name: &str, inlets: Vec<Arc<Inlet>>) {
        let ports = self.list();
        if let Some(port) = ports.iter().find(|port| port.name == name)
            && let End::Guest(guest) = &port.end
            && guest.inlets.set(inlets).is_err()
        {
            log::error!("port {name} was connected twice");
        }
    }

    /// Takes a port away.
    fn remove(&self, port: &Port) {
        self.change(|ports| ports.set(port.index, None));
        // Not before: its own workers have ended, and so nobody learns it again.
        self.table.forget(port.index);
    }
}
