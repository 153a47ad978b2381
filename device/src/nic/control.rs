// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a driver has made of the NIC, and the control queue commands with which it does so
//! (VIRTIO 1.3, 5.1.6.5).
//!
//! A command that is malformed, unknown or belongs to a feature that was not negotiated is refused
//! and changes nothing. Numbers are little-endian; so they are for a legacy driver too, whose
//! native order we take to be that.

use std::sync::Arc;

use super::config_space::MacWrite;
use super::counters::{ControlCounters, PairCounters};
use super::features::{
    Features, GUEST_OFFLOADS, VIRTIO_F_VERSION_1, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ,
};
use super::filter::{Filter, Modes};
use super::hashing::Hashing;
use super::offload::Offloads;
use super::{MacAddress, NicConfig};

mod coalescing;
mod scaling;
mod statistics;

pub use coalescing::Coalescing;
use coalescing::{
    VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET,
    VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET, VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET,
};
use scaling::{VIRTIO_NET_CTRL_MQ_HASH_CONFIG, VIRTIO_NET_CTRL_MQ_RSS_CONFIG};
use statistics::{VIRTIO_NET_CTRL_STATS, VIRTIO_NET_CTRL_STATS_GET, VIRTIO_NET_CTRL_STATS_QUERY};

/// The command was carried out.
pub const VIRTIO_NET_OK: u8 = 0;
/// The command was refused.
pub const VIRTIO_NET_ERR: u8 = 1;

const VIRTIO_NET_CTRL_RX: u8 = 0;
const VIRTIO_NET_CTRL_RX_PROMISC: u8 = 0;
const VIRTIO_NET_CTRL_RX_ALLMULTI: u8 = 1;
const VIRTIO_NET_CTRL_RX_ALLUNI: u8 = 2;
const VIRTIO_NET_CTRL_RX_NOMULTI: u8 = 3;
const VIRTIO_NET_CTRL_RX_NOUNI: u8 = 4;
const VIRTIO_NET_CTRL_RX_NOBCAST: u8 = 5;

const VIRTIO_NET_CTRL_MAC: u8 = 1;
const VIRTIO_NET_CTRL_MAC_TABLE_SET: u8 = 0;
const VIRTIO_NET_CTRL_MAC_ADDR_SET: u8 = 1;

const VIRTIO_NET_CTRL_VLAN: u8 = 2;
const VIRTIO_NET_CTRL_VLAN_ADD: u8 = 0;
const VIRTIO_NET_CTRL_VLAN_DEL: u8 = 1;

const VIRTIO_NET_CTRL_ANNOUNCE: u8 = 3;
const VIRTIO_NET_CTRL_ANNOUNCE_ACK: u8 = 0;

const VIRTIO_NET_CTRL_MQ: u8 = 4;
const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET: u8 = 0;

const VIRTIO_NET_CTRL_GUEST_OFFLOADS: u8 = 5;
const VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET: u8 = 0;

/// What a command, or a write to the configuration space, has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The receive filter: modes, tables or VLANs.
    Filter,
    /// The MAC address, in the receive filter and the configuration space.
    Mac(MacAddress),
    /// How many queue pairs are in use, between which the device chooses.
    QueuePairs(u16),
    /// Receive-side scaling, and with it how many queue pairs are in use.
    Scaling,
    /// What is hashed for reports, and that the device chooses between queue pairs.
    Hashing,
    /// What the driver may be handed unfinished.
    GuestOffloads(Offloads),
    /// How long interrupts of some queues may wait.
    Coalescing,
    /// The driver has announced itself.
    Announced,
}

/// What there is to know of the queues, of those who have them.
pub trait Queues {
    /// Whether the receive or transmit queue with this virtqueue index is enabled (5.1.2).
    fn is_enabled(&self, index: usize) -> bool;

    /// What a queue pair has counted.
    fn counters(&self, pair: usize) -> Option<&PairCounters>;

    /// What the control queue has counted, the command at hand included.
    fn control_counters(&self) -> &ControlCounters;
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For the driver: [`VIRTIO_NET_OK`] or [`VIRTIO_NET_ERR`].
    pub ack: u8,
    /// For the driver, behind `ack`: `command-specific-result`. Empty for most commands.
    pub result: Vec<u8>,
    /// For the device. Only a command that was carried out changes something.
    pub change: Option<Change>,
}

/// Why a command is refused. There is nobody to tell the reason to (5.1.6.5).
struct Refused;

type Handled = Result<Option<Change>, Refused>;

/// What a driver has made of the NIC.
#[derive(Clone, Debug)]
pub struct DriverState {
    permanent_mac: MacAddress,
    max_queue_pairs: u16,
    features: Features,
    filter: Filter,
    mac: MacAddress,
    mac_write: MacWrite,
    queue_pairs: u16,
    /// How packets are hashed, if they are.
    hashing: Option<Arc<Hashing>>,
    guest_offloads: Offloads,
    /// By virtqueue index.
    coalescing: Vec<Coalescing>,
    announce: bool,
}

impl DriverState {
    /// No driver has been there yet.
    pub fn new(config: &NicConfig) -> Self {
        let features = Features::default();
        DriverState {
            permanent_mac: config.mac,
            max_queue_pairs: config.queue_pairs,
            features,
            filter: Filter::new(features, config.mac),
            mac: config.mac,
            mac_write: MacWrite::over(config.mac),
            queue_pairs: 1,
            hashing: None,
            guest_offloads: Offloads::NONE,
            coalescing: vec![Coalescing::NONE; 2 * usize::from(config.queue_pairs)],
            announce: false,
        }
    }

    /// A driver has accepted these features: everything is as after a device reset, with one queue
    /// pair (5.1.6.5.6.2), no scaling and no hashes (5.1.6.5.6.4), the permanent MAC address, empty tables
    /// (5.1.6.5.2.1), all offloads that were negotiated (5.1.6.5.8.1) and no wishes for interrupts
    /// (5.1.6.5.9).
    pub fn reset(&mut self, acked: Features) {
        let features = acked.effective();
        *self = DriverState {
            permanent_mac: self.permanent_mac,
            max_queue_pairs: self.max_queue_pairs,
            features,
            filter: Filter::new(features, self.permanent_mac),
            mac: self.permanent_mac,
            mac_write: MacWrite::over(self.permanent_mac),
            queue_pairs: 1,
            hashing: None,
            guest_offloads: features.receive_offloads(),
            coalescing: vec![Coalescing::NONE; self.coalescing.len()],
            announce: false,
        };
    }

    /// The features in force ([`Features::effective`]).
    pub fn features(&self) -> Features {
        self.features
    }

    /// The receive filter.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The MAC address in force.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Queue pairs in use.
    pub fn queue_pairs(&self) -> u16 {
        self.queue_pairs
    }

    /// What the driver may be handed unfinished now.
    pub fn guest_offloads(&self) -> Offloads {
        self.guest_offloads
    }

    /// Whether the driver has been asked to announce itself and has not yet done so.
    pub fn announce_pending(&self) -> bool {
        self.announce
    }

    /// Asks the driver to announce itself (5.1.6.5.4); false if it cannot. The configuration space
    /// changes with it.
    pub fn request_announce(&mut self) -> bool {
        self.announce = self.features.has(VIRTIO_NET_F_GUEST_ANNOUNCE);
        self.announce
    }

    /// A driver writes to the configuration space, which is read-only but for the MAC address of a
    /// legacy driver that has no command for it (5.1.4.3).
    pub fn write_config(&mut self, offset: u32, data: &[u8]) -> Option<Change> {
        if self.features.has(VIRTIO_F_VERSION_1) || self.features.has(VIRTIO_NET_F_CTRL_MAC_ADDR) {
            return None;
        }
        let mac = self.mac_write.write(offset, data)?;
        // A frontend may write all of the space back for each octet that the driver writes.
        (mac != self.mac).then(|| self.set_mac(mac))
    }

    /// Carries out one command: class, command and command-specific-data, without what the device
    /// writes.
    pub fn handle(&mut self, command: &[u8], queues: &dyn Queues) -> Outcome {
        match self.dispatch(command, queues) {
            Ok((change, result)) => Outcome {
                ack: VIRTIO_NET_OK,
                result,
                change,
            },
            Err(Refused) => Outcome {
                ack: VIRTIO_NET_ERR,
                result: Vec::new(),
                change: None,
            },
        }
    }

    fn dispatch(
        &mut self,
        command: &[u8],
        queues: &dyn Queues,
    ) -> Result<(Option<Change>, Vec<u8>), Refused> {
        let [class, command, data @ ..] = command else {
            return Err(Refused);
        };
        let result = match (*class, *command) {
            (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET) => {
                self.get_queue_coalescing(data, queues)?
            }
            (VIRTIO_NET_CTRL_STATS, VIRTIO_NET_CTRL_STATS_QUERY) => self.query_statistics(data)?,
            (VIRTIO_NET_CTRL_STATS, VIRTIO_NET_CTRL_STATS_GET) => {
                self.get_statistics(data, queues)?
            }
            // All others change something and have no result.
            (class, command) => {
                let change = self.change(class, command, data, queues)?;
                return Ok((change, Vec::new()));
            }
        };
        Ok((None, result))
    }

    fn change(&mut self, class: u8, command: u8, data: &[u8], queues: &dyn Queues) -> Handled {
        match (class, command) {
            (VIRTIO_NET_CTRL_RX, mode) => self.set_mode(mode, data),
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => self.set_tables(data),
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => self.set_address(data),
            (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD) => self.set_vlan(data, true),
            (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL) => self.set_vlan(data, false),
            (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => self.announced(data),
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => self.set_queue_pairs(data),
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_RSS_CONFIG) => self.set_rss(data),
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_HASH_CONFIG) => self.set_hashes(data),
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                self.set_guest_offloads(data)
            }
            (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET) => {
                self.set_coalescing(1, data)
            }
            (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET) => {
                self.set_coalescing(0, data)
            }
            (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET) => {
                self.set_queue_coalescing(data, queues)
            }
            _ => Err(Refused),
        }
    }

    fn require(&self, bit: u32) -> Result<(), Refused> {
        if self.features.has(bit) {
            Ok(())
        } else {
            Err(Refused)
        }
    }

    fn set_mode(&mut self, mode: u8, data: &[u8]) -> Handled {
        let (feature, mode): (u32, fn(&mut Modes) -> &mut bool) = match mode {
            VIRTIO_NET_CTRL_RX_PROMISC => (VIRTIO_NET_F_CTRL_RX, |m| &mut m.promiscuous),
            VIRTIO_NET_CTRL_RX_ALLMULTI => (VIRTIO_NET_F_CTRL_RX, |m| &mut m.all_multicast),
            VIRTIO_NET_CTRL_RX_ALLUNI => (VIRTIO_NET_F_CTRL_RX_EXTRA, |m| &mut m.all_unicast),
            VIRTIO_NET_CTRL_RX_NOMULTI => (VIRTIO_NET_F_CTRL_RX_EXTRA, |m| &mut m.no_multicast),
            VIRTIO_NET_CTRL_RX_NOUNI => (VIRTIO_NET_F_CTRL_RX_EXTRA, |m| &mut m.no_unicast),
            VIRTIO_NET_CTRL_RX_NOBCAST => (VIRTIO_NET_F_CTRL_RX_EXTRA, |m| &mut m.no_broadcast),
            _ => return Err(Refused),
        };
        self.require(feature)?;
        let on = match data {
            [0] => false,
            [1] => true,
            _ => return Err(Refused),
        };
        *mode(self.filter.modes_mut()) = on;
        Ok(Some(Change::Filter))
    }

    fn set_tables(&mut self, data: &[u8]) -> Handled {
        self.require(VIRTIO_NET_F_CTRL_RX)?;
        let (unicast, data) = take_table(data)?;
        let (multicast, rest) = take_table(data)?;
        if !rest.is_empty() {
            return Err(Refused);
        }
        self.filter.set_tables(unicast, multicast);
        Ok(Some(Change::Filter))
    }

    fn set_address(&mut self, data: &[u8]) -> Handled {
        self.require(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
        let mac = MacAddress(exactly(data)?);
        if !mac.is_station() {
            return Err(Refused);
        }
        Ok(Some(self.set_mac(mac)))
    }

    fn set_mac(&mut self, mac: MacAddress) -> Change {
        self.mac = mac;
        self.mac_write = MacWrite::over(mac);
        self.filter.set_mac(mac);
        Change::Mac(mac)
    }

    fn set_vlan(&mut self, data: &[u8], wanted: bool) -> Handled {
        self.require(VIRTIO_NET_F_CTRL_VLAN)?;
        let id = u16::from_le_bytes(exactly(data)?);
        if self.filter.set_vlan(id, wanted) {
            Ok(Some(Change::Filter))
        } else {
            Err(Refused)
        }
    }

    fn announced(&mut self, data: &[u8]) -> Handled {
        self.require(VIRTIO_NET_F_GUEST_ANNOUNCE)?;
        let [] = exactly(data)?;
        let was_pending = std::mem::take(&mut self.announce);
        Ok(was_pending.then_some(Change::Announced))
    }

    fn set_queue_pairs(&mut self, data: &[u8]) -> Handled {
        self.require(VIRTIO_NET_F_MQ)?;
        let pairs = u16::from_le_bytes(exactly(data)?);
        if !(1..=self.max_queue_pairs).contains(&pairs) {
            return Err(Refused);
        }
        self.queue_pairs = pairs;
        self.steer_automatically();
        Ok(Some(Change::QueuePairs(pairs)))
    }

    /// An offload that is on but whose requirement is off (segmentation without checksums) counts
    /// as off, as in feature negotiation.
    fn set_guest_offloads(&mut self, data: &[u8]) -> Handled {
        self.require(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
        let wanted = Features(u64::from_le_bytes(exactly(data)?));
        let allowed = self.features.0 & GUEST_OFFLOADS.0;
        if wanted.0 & !allowed != 0 {
            return Err(Refused);
        }
        self.guest_offloads = wanted.effective().receive_offloads();
        Ok(Some(Change::GuestOffloads(self.guest_offloads)))
    }
}

/// The data, if it is as long as it must be.
fn exactly<const N: usize>(data: &[u8]) -> Result<[u8; N], Refused> {
    data.try_into().map_err(|_| Refused)
}

/// Takes one `struct virtio_net_ctrl_mac` off the front (5.1.6.5.2).
fn take_table(data: &[u8]) -> Result<(&[[u8; 6]], &[u8]), Refused> {
    let (entries, data) = data.split_first_chunk().ok_or(Refused)?;
    let entries = usize::try_from(u32::from_le_bytes(*entries)).map_err(|_| Refused)?;
    let octets = entries.checked_mul(6).ok_or(Refused)?;
    let (macs, rest) = data.split_at_checked(octets).ok_or(Refused)?;
    Ok((macs.as_chunks().0, rest))
}

#[cfg(test)]
mod tests;
