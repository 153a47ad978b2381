// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Passes vhost-user messages between the frontend and the crate, and puts right what they disagree
//! on. Pure: frames in, frames out.
//!
//! # Why it exists
//! * QEMU 11 sends `RESET_DEVICE` and `SET_VRING_ENABLE(0)` before its first `SET_FEATURES`. The
//!   crate refuses `SET_VRING_ENABLE` until `VHOST_USER_F_PROTOCOL_FEATURES` was *accepted by
//!   SET_FEATURES* and hangs up; QEMU connects again, for ever. The specification wants it
//!   negotiated, which it is as soon as the frontend talks of protocol features. So the relay sends
//!   the crate a `SET_FEATURES` with just that bit after `SET_PROTOCOL_FEATURES`, and again after
//!   `RESET_DEVICE`, upon which the crate forgets it.
//! * The crate has no sender for `CONFIG_CHANGE_MSG`, which is how the link of the device
//!   attachment goes up and down. The relay keeps a copy of the backend channel for it.
//! * Which attachment the frontend is shows in the messages only: one that wants config space asks
//!   for `VHOST_USER_PROTOCOL_F_CONFIG`.
//! * The crate takes and gives 16 bits as the base of a vring. For a packed ring that is descriptor
//!   and wrap counter, which is all that a device needs that uses buffers in order; the frontend
//!   wants them twice, for available and for used descriptors, and gets them from here.
//! * The crate trusts its frontend further than we do: [`check`](super::check) looks first, and
//!   protocol features that were not offered are taken out of `SET_PROTOCOL_FEATURES`, since the
//!   crate would take messages that belong to them.

use std::os::fd::OwnedFd;

use crate::nic::Attachment;
use crate::nic::features::{Features, VIRTIO_F_RING_PACKED};

use super::backend::{F_PROTOCOL_FEATURES, PROTOCOL_FEATURES};
use super::check::{Check, Refused};

/// Octets of a message header: request, flags, size.
pub const HEADER_LEN: usize = 12;
/// The largest payload; the crate has the same limit.
pub const MAX_PAYLOAD: usize = 4096;
/// Protocol version 1, in the lowest bits of the flags.
const VERSION: u32 = 1;

/// Requests of the frontend that are looked at here.
pub(super) mod request {
    pub const SET_FEATURES: u32 = 2;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const RESET_DEVICE: u32 = 34;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}
/// Request of the backend, on the backend channel.
const CONFIG_CHANGE_MSG: u32 = 2;
/// Bit number of `VHOST_USER_PROTOCOL_F_CONFIG`.
const PROTOCOL_F_CONFIG: u32 = 9;

/// A vhost-user message and the descriptors that came with it.
#[derive(Debug, Default)]
pub struct Frame {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// Descriptors.
    pub fds: Vec<OwnedFd>,
}

impl Frame {
    /// A message without descriptors.
    fn new(request: u32, payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        // The payloads that we make are a few octets long.
        for word in [request, VERSION, payload.len() as u32] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(payload);
        Frame {
            bytes,
            fds: Vec::new(),
        }
    }

    /// `CONFIG_CHANGE_MSG`, for the backend channel.
    pub fn config_change() -> Self {
        Frame::new(CONFIG_CHANGE_MSG, &[])
    }

    pub(super) fn request(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.bytes.first_chunk()?))
    }

    /// `N` octets of the payload from `offset` on.
    pub(super) fn payload<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes
            .get(HEADER_LEN + offset..)?
            .first_chunk()
            .copied()
    }

    fn payload_u64(&self) -> Option<u64> {
        self.payload(0).map(u64::from_ne_bytes)
    }

    fn set_payload<const N: usize>(&mut self, offset: usize, value: [u8; N]) {
        if let Some(payload) = self.bytes.get_mut(HEADER_LEN + offset..)
            && let Some(octets) = payload.first_chunk_mut()
        {
            *octets = value;
        }
    }
}

/// The payload length that a header announces; `None` if it is longer than any message.
pub fn payload_len(header: &[u8; HEADER_LEN]) -> Option<usize> {
    let size = u32::from_ne_bytes(*header.last_chunk()?);
    usize::try_from(size)
        .ok()
        .filter(|&size| size <= MAX_PAYLOAD)
}

/// What the relay knows of one frontend.
#[derive(Debug)]
pub struct Relay {
    check: Check,
    attachment: Option<Attachment>,
    backend_channel: Option<OwnedFd>,
    has_memory: bool,
    stopping: bool,
    /// As last set by the frontend; none after a reset.
    features: u64,
}

impl Relay {
    /// A relay to a NIC with so many virtqueues.
    pub fn new(queue_count: usize) -> Self {
        Relay {
            check: Check::new(queue_count),
            attachment: None,
            backend_channel: None,
            has_memory: false,
            stopping: false,
            features: 0,
        }
    }

    /// Whether the frontend has handed over guest memory: a driver is about to start.
    pub fn has_memory(&self) -> bool {
        self.has_memory
    }

    /// Whether the frontend has begun to stop rings. The crate may not have got as far yet.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// The attachment, once it is known.
    pub fn attachment(&self) -> Option<Attachment> {
        self.attachment
    }

    /// The socket on which the backend may send requests, where the frontend has opened one.
    pub fn backend_channel(&self) -> Option<&OwnedFd> {
        self.backend_channel.as_ref()
    }

    /// Takes a message of the frontend and gives what the crate is to get, in order. An error when
    /// the frontend must be dropped.
    pub fn from_frontend(
        &mut self,
        mut frame: Frame,
    ) -> Result<impl Iterator<Item = Frame>, Refused> {
        self.check.frame(&frame)?;
        let mut follow_up = None;
        match frame.request() {
            Some(request::SET_FEATURES) => self.features = frame.payload_u64().unwrap_or(0),
            Some(request::SET_PROTOCOL_FEATURES) => {
                let features = frame.payload_u64().unwrap_or(0) & PROTOCOL_FEATURES.bits();
                frame.set_payload(0, features.to_ne_bytes());
                self.attachment = Some(if features >> PROTOCOL_F_CONFIG & 1 == 1 {
                    Attachment::Device
                } else {
                    Attachment::Netdev
                });
                follow_up = Some(self.accept_protocol_features());
            }
            Some(request::SET_MEM_TABLE | request::ADD_MEM_REG) => self.has_memory = true,
            Some(request::SET_VRING_ENABLE) => {
                self.stopping = frame.payload::<4>(4).map(u32::from_ne_bytes) == Some(0);
            }
            Some(request::GET_VRING_BASE) => self.stopping = true,
            Some(request::RESET_DEVICE) => {
                self.stopping = true;
                self.features = 0;
                follow_up = Some(self.accept_protocol_features());
            }
            Some(request::SET_BACKEND_REQ_FD) => {
                // Without a copy the link of the device attachment cannot be shown; the message
                // itself still serves the crate.
                self.backend_channel = frame.fds.first().and_then(|fd| fd.try_clone().ok());
            }
            _ => {}
        }
        Ok(std::iter::once(frame).chain(follow_up))
    }

    /// Looks at an answer of the crate before the frontend gets it.
    pub fn from_crate(&self, mut frame: Frame) -> Frame {
        let packed = Features(self.features).has(VIRTIO_F_RING_PACKED);
        if packed
            && frame.request() == Some(request::GET_VRING_BASE)
            && let Some(base) = frame.payload(4).map(u32::from_ne_bytes)
        {
            let place = base & 0xffff;
            frame.set_payload(4, (place | place << 16).to_ne_bytes());
        }
        frame
    }

    /// What the frontend has accepted, and that there are protocol features. A frontend may set the
    /// two in either order.
    fn accept_protocol_features(&self) -> Frame {
        let features = self.features | F_PROTOCOL_FEATURES;
        Frame::new(request::SET_FEATURES, &features.to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requests(relay: &mut Relay, frame: Frame) -> Vec<(u32, Option<u64>)> {
        relay
            .from_frontend(frame)
            .unwrap()
            .map(|f| (f.request().unwrap(), f.payload_u64()))
            .collect()
    }

    fn u64_frame(request: u32, value: u64) -> Frame {
        Frame::new(request, &value.to_ne_bytes())
    }

    #[test]
    fn features_set_before_protocol_features_are_not_forgotten() {
        let mut relay = Relay::new(5);
        let features = 0x1_0000_0000 | F_PROTOCOL_FEATURES;
        requests(&mut relay, u64_frame(request::SET_FEATURES, features));
        let out = requests(&mut relay, u64_frame(request::SET_PROTOCOL_FEATURES, 1));
        assert_eq!(out[1], (request::SET_FEATURES, Some(features)));
        let out = requests(&mut relay, Frame::new(request::RESET_DEVICE, &[]));
        assert_eq!(out[1], (request::SET_FEATURES, Some(F_PROTOCOL_FEATURES)));
    }

    #[test]
    fn protocol_features_that_were_not_offered_are_taken_out() {
        let mut relay = Relay::new(5);
        let out = requests(
            &mut relay,
            u64_frame(request::SET_PROTOCOL_FEATURES, u64::MAX),
        );
        let expected = Some(PROTOCOL_FEATURES.bits());
        assert_eq!(out[0], (request::SET_PROTOCOL_FEATURES, expected));
    }

    #[test]
    fn rings_that_stop_are_known_before_the_crate_has_stopped_them() {
        let enable = |on: u8| Frame::new(request::SET_VRING_ENABLE, &[0, 0, 0, 0, on, 0, 0, 0]);
        let mut relay = Relay::new(5);
        requests(&mut relay, enable(1));
        assert!(!relay.is_stopping());
        requests(&mut relay, enable(0));
        assert!(relay.is_stopping());
        requests(&mut relay, enable(1));
        requests(&mut relay, Frame::new(request::GET_VRING_BASE, &[0; 8]));
        assert!(relay.is_stopping());
    }

    #[test]
    fn a_frontend_that_wants_config_space_is_the_device_attachment() {
        let mut relay = Relay::new(5);
        assert_eq!(relay.attachment(), None);
        let config = 1 << PROTOCOL_F_CONFIG;
        requests(
            &mut relay,
            u64_frame(request::SET_PROTOCOL_FEATURES, config),
        );
        assert_eq!(relay.attachment(), Some(Attachment::Device));
    }

    #[test]
    fn the_backend_channel_is_copied_and_passed_on() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut frame = Frame::new(request::SET_BACKEND_REQ_FD, &[]);
        frame.fds.push(theirs.into());
        let mut relay = Relay::new(5);
        let passed: Vec<Frame> = relay.from_frontend(frame).unwrap().collect();
        assert_eq!(passed.len(), 1);
        assert_eq!(passed[0].fds.len(), 1);
        assert!(relay.backend_channel().is_some());
        drop(ours);
    }

    #[test]
    fn the_base_of_a_packed_ring_is_whole() {
        let answer = |relay: &Relay| {
            let payload = [2u32, 0x8007].map(u32::to_ne_bytes).concat();
            let frame = relay.from_crate(Frame::new(request::GET_VRING_BASE, &payload));
            [frame.payload(0), frame.payload(4)].map(|word| word.map(u32::from_ne_bytes))
        };
        let mut relay = Relay::new(5);
        assert_eq!(answer(&relay), [Some(2), Some(0x8007)]);
        let packed = 1 << VIRTIO_F_RING_PACKED;
        requests(&mut relay, u64_frame(request::SET_FEATURES, packed));
        assert_eq!(answer(&relay), [Some(2), Some(0x8007_8007)]);
        // One that is too short, and another.
        for frame in [
            Frame::new(request::GET_VRING_BASE, &[1; 7]),
            Frame::new(request::SET_VRING_BASE, &[1; 8]),
        ] {
            let bytes = frame.bytes.clone();
            assert_eq!(relay.from_crate(frame).bytes, bytes);
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_refused_or_passed_on_first_and_unchanged(
            request in 0..60u32,
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let frame = Frame::new(request, &payload);
            let bytes = frame.bytes.clone();
            if let Ok(out) = Relay::new(5).from_frontend(frame) {
                let out: Vec<Frame> = out.collect();
                if request != request::SET_PROTOCOL_FEATURES {
                    prop_assert_eq!(&out[0].bytes, &bytes);
                }
                prop_assert_eq!(out[0].bytes.len(), bytes.len());
                prop_assert!(out.len() <= 2);
            }
        }

        #[test]
        fn a_frame_of_any_length_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let len = bytes.len();
            let frame = Frame { bytes, fds: Vec::new() };
            if let Ok(mut out) = Relay::new(5).from_frontend(frame) {
                prop_assert_eq!(out.next().unwrap().bytes.len(), len);
            }
        }

        #[test]
        fn announced_lengths_are_bounded(header in any::<[u8; HEADER_LEN]>()) {
            if let Some(len) = payload_len(&header) {
                prop_assert!(len <= MAX_PAYLOAD);
            }
        }
    }
}
