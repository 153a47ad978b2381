// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Notification coalescing: how long the driver lets interrupts wait (VIRTIO 1.3, 5.1.6.5.9).
//!
//! These are the driver's wishes, for each queue the last one. What is made of them is the data
//! path's business.

use super::super::features::{VIRTIO_NET_F_NOTF_COAL, VIRTIO_NET_F_VQ_NOTF_COAL};
use super::{Change, DriverState, Handled, Queues, Refused, exactly};

pub(super) const VIRTIO_NET_CTRL_NOTF_COAL: u8 = 6;
pub(super) const VIRTIO_NET_CTRL_NOTF_COAL_TX_SET: u8 = 0;
pub(super) const VIRTIO_NET_CTRL_NOTF_COAL_RX_SET: u8 = 1;
pub(super) const VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET: u8 = 2;
pub(super) const VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET: u8 = 3;

/// `struct virtio_net_ctrl_coal`: what the driver wants of one queue. All zero after a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coalescing {
    /// Packets until the interrupt for the first of them.
    pub max_packets: u32,
    /// Microseconds until then.
    pub max_usecs: u32,
}

impl Coalescing {
    /// Nothing is wanted: it is left to the device.
    pub const NONE: Coalescing = Coalescing {
        max_packets: 0,
        max_usecs: 0,
    };

    fn from_bytes(bytes: [u8; 8]) -> Self {
        let [p0, p1, p2, p3, u0, u1, u2, u3] = bytes;
        Coalescing {
            max_packets: u32::from_le_bytes([p0, p1, p2, p3]),
            max_usecs: u32::from_le_bytes([u0, u1, u2, u3]),
        }
    }

    fn to_bytes(self) -> [u8; 8] {
        let [p0, p1, p2, p3] = self.max_packets.to_le_bytes();
        let [u0, u1, u2, u3] = self.max_usecs.to_le_bytes();
        [p0, p1, p2, p3, u0, u1, u2, u3]
    }
}

impl DriverState {
    /// What the driver wants of the queue with virtqueue index `index`.
    pub fn coalescing(&self, index: usize) -> Coalescing {
        self.coalescing.get(index).copied().unwrap_or_default()
    }

    /// For all receive queues, whose indices are even, or all transmit queues.
    pub(super) fn set_coalescing(&mut self, first: usize, data: &[u8]) -> Handled {
        self.require(VIRTIO_NET_F_NOTF_COAL)?;
        let wanted = Coalescing::from_bytes(exactly(data)?);
        for queue in self.coalescing.iter_mut().skip(first).step_by(2) {
            *queue = wanted;
        }
        Ok(Some(Change::Coalescing))
    }

    /// For one queue, which must be enabled.
    pub(super) fn set_queue_coalescing(&mut self, data: &[u8], queues: &dyn Queues) -> Handled {
        self.require(VIRTIO_NET_F_VQ_NOTF_COAL)?;
        let [i0, i1, _, _, wanted @ ..] = exactly::<12>(data)?;
        let index = usize::from(u16::from_le_bytes([i0, i1]));
        let queue = self.coalescing.get_mut(index).ok_or(Refused)?;
        if !queues.is_enabled(index) {
            return Err(Refused);
        }
        *queue = Coalescing::from_bytes(wanted);
        Ok(Some(Change::Coalescing))
    }

    /// The `struct virtio_net_ctrl_coal` of one queue, which must be enabled.
    pub(super) fn get_queue_coalescing(
        &self,
        data: &[u8],
        queues: &dyn Queues,
    ) -> Result<Vec<u8>, Refused> {
        self.require(VIRTIO_NET_F_VQ_NOTF_COAL)?;
        let [i0, i1, _, _] = exactly(data)?;
        let index = usize::from(u16::from_le_bytes([i0, i1]));
        let wanted = self.coalescing.get(index).ok_or(Refused)?;
        if !queues.is_enabled(index) {
            return Err(Refused);
        }
        Ok(wanted.to_bytes().to_vec())
    }
}
