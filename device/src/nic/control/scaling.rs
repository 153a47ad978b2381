// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Receive-side scaling, as the control queue sets it (VIRTIO 1.3, 5.1.6.5.7).
//!
//! It takes the place of automatic steering, and the other way round: the last command of class
//! `VIRTIO_NET_CTRL_MQ` is the one in force.

use std::sync::Arc;

use super::super::features::VIRTIO_NET_F_RSS;
use super::super::flow_hash::{FlowHasher, SUPPORTED_HASH_TYPES};
use super::super::rss::{MAX_TABLE, Rss};
use super::super::toeplitz::KEY_LEN;
use super::{Change, DriverState, Handled, Refused};

pub(super) const VIRTIO_NET_CTRL_MQ_RSS_CONFIG: u8 = 1;

impl DriverState {
    /// Receive-side scaling, if that is what the driver wants.
    pub fn rss(&self) -> Option<&Arc<Rss>> {
        self.rss.as_ref()
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
        let rss = Rss::new(hasher(types, key)?, table, unclassified).ok_or(Refused)?;
        // Of a queue's number fifteen bits count, and the sixteenth is to be zero: with it set there
        // is no such queue either.
        let pairs = 1..=self.max_queue_pairs;
        if !pairs.contains(&max_tx) || !pairs.contains(&rss.queues()) {
            return Err(Refused);
        }
        self.queue_pairs = max_tx.max(rss.queues());
        self.rss = Some(Arc::new(rss));
        Ok(Some(Change::Scaling))
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
