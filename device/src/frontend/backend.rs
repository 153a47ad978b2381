// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What vhost-user-backend asks the device.

use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use vmm_sys_util::epoll::EventSet;

use crate::nic::Attachment;
use crate::nic::features::Features;
use crate::ring::virtqueue::MAX_SIZE;

use super::host::{GuestMemory, RingHost};
use super::vring::NicVring;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: there are more features to talk about.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features that the crate implements and the NIC has a use for. `SEND_RARP` and
/// `NET_SET_MTU` are left out: the crate hangs up on them.
pub const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// The device, for one connection.
#[derive(Clone, Debug)]
pub struct Backend {
    host: Arc<RingHost>,
}

impl Backend {
    /// The device whose rings run in `host`.
    pub fn new(host: Arc<RingHost>) -> Self {
        Backend { host }
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = NicVring;

    fn num_queues(&self) -> usize {
        self.host.dataplane.queue_count()
    }

    fn max_queue_size(&self) -> usize {
        usize::from(MAX_SIZE)
    }

    fn features(&self) -> u64 {
        // Asked on the crate's thread, for the first time before it handles anything that is not
        // trivial.
        self.host.lifeline.hold();
        let offered = Features::offered(&self.host.nic.config);
        let frontend = self.host.nic.frontend();
        // QEMU asks once more when it has said which attachment it is.
        let offered = match frontend.and_then(|frontend| frontend.attachment) {
            Some(Attachment::Netdev) => offered.without_control_queue(),
            Some(Attachment::Device) | None => offered,
        };
        offered.0 | F_PROTOCOL_FEATURES
    }

    fn acked_features(&self, features: u64) {
        let features = features & !F_PROTOCOL_FEATURES;
        self.host
            .nic
            .update_frontend(|info| info.features = features);
        self.host.negotiate(Features(features));
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        PROTOCOL_FEATURES
    }

    fn reset_device(&self) {
        self.host.nic.update_frontend(|info| info.features = 0);
        self.host.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // Each ring is told by itself.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.host.dataplane.read_config(offset, size)
    }

    fn set_config(&self, offset: u32, data: &[u8]) -> io::Result<()> {
        self.host.dataplane.write_config(offset, data);
        Ok(())
    }

    fn update_memory(&self, memory: GuestMemory) -> io::Result<()> {
        self.host.lifeline.hold();
        self.host.set_memory(&memory)
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // The data path has threads of its own.
        Vec::new()
    }

    fn handle_event(&self, _: u16, _: EventSet, _: &[NicVring], _: usize) -> io::Result<()> {
        // Comes only from the crate's threads, of which there are none.
        Ok(())
    }
}
