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
    /// The permanent address.
    pub mac: String,
    /// The MTU.
    pub mtu: u16,
    /// Pairs of queues.
    pub queue_pairs: u16,
    /// What the uplink is.
    pub uplink: String,
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

/// Answer to `query-stats`, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Stats {
    /// The queue pairs.
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
    /// Interrupts sent.
    pub interrupts: u64,
    /// Interrupts the driver had asked not to get.
    pub interrupts_suppressed: u64,
    /// Kicks seen.
    pub kicks: u64,
    /// Times the ring was found broken.
    pub ring_errors: u64,
}
