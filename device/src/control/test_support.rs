// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the tests of control socket and command line share.

use std::sync::Arc;

use crate::nic::offload::Offloads;
use crate::nic::{Nic, NicConfig};

/// A NIC that is plugged in nowhere.
pub fn nic(queue_pairs: u16) -> Arc<Nic> {
    Arc::new(Nic::new(NicConfig {
        mac: "52:54:00:12:34:56".parse().unwrap(),
        mtu: 1500,
        speed: 10_000,
        queue_pairs,
        packed: true,
        rss: true,
        hash_report: true,
        offloads: Offloads::NONE,
        uplink: "loopback".into(),
    }))
}
