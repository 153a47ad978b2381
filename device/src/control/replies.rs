// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The shapes of the answers, written by the server and read by the subcommands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::nic::FrontendInfo;
use crate::nic::counters::PairCounters;

/// Answer to `query-link`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LinkReply {
    /// Whether the cable is in.
    pub up: bool,
    /// Whether the far side of the uplink is there.
    pub uplink_up: bool,
    /// Whether the link follows the uplink (`--link follow`).
    pub follow: bool,
    /// Mbit/s.
    pub speed: u32,
}

/// Answer to `link-set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSetReply {
    /// Whether the link was in the other state before.
    pub changed: bool,
}

/// Answer to `query-status`. `running` and `status` are those of QEMU's command of this name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StatusReply {
    /// Always true: who answers, runs.
    pub running: bool,
    /// Always `running`.
    pub status: String,
    /// Version of the backend.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_seconds: u64,
    /// The permanent address; a switch has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The MTU.
    pub mtu: u16,
    /// Pairs of queues.
    pub queue_pairs: u16,
    /// What the uplink is.
    pub uplink: String,
    /// Ports of the switch, if it is one; the uplink's included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<usize>,
}

/// One port of the answer to `query-ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortReply {
    /// Its name.
    pub name: String,
    /// Where its frontend is waited for; the uplink has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// The permanent address of its NIC; the uplink has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its VLANs: `vlan 10`, or `trunk all, native 1`.
    pub vlans: String,
    /// Whether the cable is in.
    pub up: bool,
    /// Whether a frontend is connected; for the uplink, whether its far side is there.
    pub connected: bool,
    /// How many addresses are known to be behind it.
    pub addresses: usize,
    /// Packets that the switch has sent out there.
    pub received: u64,
    /// Packets that have come in there.
    pub sent: u64,
    /// Packets lost, in both directions.
    pub drops: u64,
}

/// Answer to `query-ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsReply {
    /// The ports.
    pub ports: Vec<PortReply>,
}

/// One address of the answer to `query-addresses`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressReply {
    /// Its VLAN.
    pub vlan: u16,
    /// The address.
    pub mac: String,
    /// The port that it is behind.
    pub port: String,
    /// Seconds since a frame came from it.
    pub age: u32,
}

/// Answer to `query-addresses`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressesReply {
    /// The addresses.
    pub addresses: Vec<AddressReply>,
}

/// Answer to `query-frontend`.
#[derive(Clone, Debug, Serialize)]
pub struct FrontendReply {
    /// Whether one is connected.
    pub connected: bool,
    /// What is known of it.
    #[serde(flatten)]
    pub info: Option<FrontendInfo>,
}

/// Answer to `query-stats`, as the server writes it.
#[derive(Debug, Serialize)]
pub struct StatsReply<'a> {
    /// The queue pairs.
    pub queues: Vec<PairReply<'a>>,
}

/// Answer to `query-stats` for one port of a switch, as the server writes it.
#[derive(Debug, Serialize)]
pub struct PortStatsReply<'a> {
    /// The port's name.
    pub port: &'a str,
    /// Its queue pairs.
    pub queues: Vec<PairReply<'a>>,
}

/// One queue pair of a [`StatsReply`].
#[derive(Debug, Serialize)]
pub struct PairReply<'a> {
    /// Its number, from 0.
    pub index: usize,
    /// Its counters.
    #[serde(flatten)]
    pub counters: &'a PairCounters,
}

/// Answer to `query-frontend`, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Frontend {
    /// Whether one is connected.
    pub connected: bool,
    /// `netdev` or `device`, once known.
    pub attachment: Option<String>,
    /// Its process id, where known.
    pub pid: Option<i32>,
    /// VIRTIO feature bits the driver has accepted.
    #[serde(default)]
    pub features: u64,
    /// Rings that are started and enabled.
    #[serde(default)]
    pub rings_active: u32,
}

/// Answer to `query-stats`, as a client reads it: of a NIC its queue pairs, of a switch its ports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Stats {
    /// The queue pairs.
    #[serde(default)]
    pub queues: Vec<PairStats>,
    /// The ports.
    #[serde(default)]
    pub ports: Vec<PortStats>,
}

/// One port of [`Stats`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PortStats {
    /// Its name.
    pub port: String,
    /// Its queue pairs.
    pub queues: Vec<PairStats>,
}

/// One queue pair of [`Stats`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PairStats {
    /// Its number, from 0.
    pub index: usize,
    /// Uplink to guest.
    pub rx: QueueStats,
    /// Guest to uplink.
    pub tx: QueueStats,
}

/// One queue of [`Stats`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct QueueStats {
    /// Packets that went all the way.
    pub packets: u64,
    /// Their octets.
    pub bytes: u64,
    /// Packets that did not, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Packets that were for another queue by receive-side scaling.
    pub steered: u64,
    /// Interrupts sent.
    pub interrupts: u64,
    /// Interrupts the driver had asked not to get.
    pub interrupts_suppressed: u64,
    /// Kicks seen.
    pub kicks: u64,
    /// Times the ring was found broken.
    pub ring_errors: u64,
}
