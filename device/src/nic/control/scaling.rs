// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is hashed and what for, as the control queue sets it: receive-side scaling (VIRTIO 1.3,
//! 5.1.6.5.7) and reports (5.1.6.5.6.4).
//!
//! Scaling takes the place of automatic steering, and the other way round: the last command of class
//! `VIRTIO_NET_CTRL_MQ` is the one in force (5.1.6.5.5). Only those that have a key and types change
//! what is hashed: a number of queue pairs leaves reports as they are.

use std::sync::Arc;

use super::super::features::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_RSS};
use super::super::flow_hash::{FlowHasher, SUPPORTED_HASH_TYPES};
use super::super::hashing::Hashing;
use super::super::rss::{MAX_TABLE, Rss};
use super::super::toeplitz::KEY_LEN;
use super::{Change, DriverState, Handled, Refused};

pub(super) const VIRTIO_NET_CTRL_MQ_RSS_CONFIG: u8 = 1;
pub(super) const VIRTIO_NET_CTRL_MQ_HASH_CONFIG: u8 = 2;

impl DriverState {
    /// How received packets are hashed, if they are: for receive-side scaling, for reports or for both.
    pub fn hashing(&self) -> Option<&Arc<Hashing>> {
        self.hashing.as_ref()
    }

    /// Takes a `struct virtio_net_rss_config`. Queues are in use up to the highest that it names.
    pub(super) fn set_rss(&mut self, data: &[u8]) -> Handled {
        self.require(VIRTIO_NET_F_RSS)?;
        let (head, data) = data.split_first_chunk().ok_or(Refused)?;
        let [t0, t1, t2, t3, m0, m1, u0, u1] = *head;
        let types = u32::from_le_bytes([t0, t1, t2, t3]);
        let mask = u16::from_le_bytes([m0, m1]);
        let unclassified = u16::from_le_bytes([u0, u1]);
        if mask >= MAX_TABLE {
            return Err(Refused);
        }
        let octets = 2 * (usize::from(mask) + 1);
        let (table, data) = data.split_at_checked(octets).ok_or(Refused)?;
        let entries = table.as_chunks().0.iter();
        let table = entries.map(|entry| u16::from_le_bytes(*entry)).collect();
        let (max_tx, key) = data.split_first_chunk().ok_or(Refused)?;
        let max_tx = u16::from_le_bytes(*max_tx);
        let hasher = hasher(types, key)?;
        let rss = Rss::new(table, unclassified).ok_or(Refused)?;
        // Of a queue's number fifteen bits count, and the sixteenth is to be zero: with it set there
        // is no such queue either.
        let pairs = 1..=self.max_queue_pairs;
        if !pairs.contains(&max_tx) || !pairs.contains(&rss.queues()) {
            return Err(Refused);
        }
        self.queue_pairs = max_tx.max(rss.queues());
        self.hashing = Some(Arc::new(Hashing::new(hasher, Some(rss))));
        Ok(Some(Change::Scaling))
    }

    /// Takes a `struct virtio_net_hash_config`. Queues in use are those that were, but which gets a
    /// packet is up to us.
    pub(super) fn set_hashes(&mut self, data: &[u8]) -> Handled {
        self.require(VIRTIO_NET_F_HASH_REPORT)?;
        // Not required for that bit (5.1.3.1), which makes the header longer in any case.
        self.require(VIRTIO_NET_F_CTRL_VQ)?;
        // What is reserved is not looked at: Linux has `max_tx_vq` there.
        let (head, key) = data.split_first_chunk::<12>().ok_or(Refused)?;
        let [t0, t1, t2, t3, ..] = *head;
        let hasher = hasher(u32::from_le_bytes([t0, t1, t2, t3]), key)?;
        let hashing = Hashing::new(hasher, None).reports_alone();
        self.hashing = hashing.map(Arc::new);
        Ok(Some(Change::Hashing))
    }

    /// Ends receive-side scaling. What is reported still is.
    pub(super) fn steer_automatically(&mut self) {
        let hashing = self.hashing.take();
        if self.features.has(VIRTIO_NET_F_HASH_REPORT) {
            let hashing = hashing.and_then(|hashing| hashing.reports_alone());
            self.hashing = hashing.map(Arc::new);
        }
    }
}

/// What `hash_types`, `hash_key_length` and `hash_key_data` ask for. Octets behind the key are not looked
/// at: Linux sends one, the padding of its structure.
fn hasher(types: u32, data: &[u8]) -> Result<FlowHasher, Refused> {
    let (len, data) = data.split_first().ok_or(Refused)?;
    let key = data.get(..usize::from(*len)).ok_or(Refused)?;
    let keyless = key.is_empty() && types != 0;
    if types & !SUPPORTED_HASH_TYPES != 0 || key.len() > KEY_LEN || keyless {
        return Err(Refused);
    }
    Ok(FlowHasher::new(types, key))
}
