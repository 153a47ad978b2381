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

use std::os::fd::OwnedFd;

use crate::nic::Attachment;

use super::backend::F_PROTOCOL_FEATURES;

/// Octets of a message header: request, flags, size.
pub const HEADER_LEN: usize = 12;
/// The largest payload; the crate has the same limit.
pub const MAX_PAYLOAD: usize = 4096;
/// Protocol version 1, in the lowest bits of the flags.
const VERSION: u32 = 1;

// Requests of the frontend that the relay looks at.
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_BACKEND_REQ_FD: u32 = 21;
const RESET_DEVICE: u32 = 34;
const ADD_MEM_REG: u32 = 37;
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

    fn request(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.bytes.first_chunk()?))
    }

    fn payload_u64(&self) -> Option<u64> {
        Some(u64::from_ne_bytes(
            *self.bytes.get(HEADER_LEN..)?.first_chunk()?,
        ))
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
#[derive(Debug, Default)]
pub struct Relay {
    attachment: Option<Attachment>,
    backend_channel: Option<OwnedFd>,
    has_memory: bool,
}

impl Relay {
    /// Whether the frontend has handed over guest memory: a driver is about to start.
    pub fn has_memory(&self) -> bool {
        self.has_memory
    }

    /// The attachment, once it is known.
    pub fn attachment(&self) -> Option<Attachment> {
        self.attachment
    }

    /// The socket on which the backend may send requests, where the frontend has opened one.
    pub fn backend_channel(&self) -> Option<&OwnedFd> {
        self.backend_channel.as_ref()
    }

    /// Takes a message of the frontend and gives what the crate is to get, in order.
    pub fn from_frontend(&mut self, frame: Frame) -> impl Iterator<Item = Frame> {
        let mut follow_up = None;
        match frame.request() {
            Some(SET_PROTOCOL_FEATURES) => {
                let config = frame.payload_u64().unwrap_or(0) >> PROTOCOL_F_CONFIG & 1 == 1;
                self.attachment = Some(if config {
                    Attachment::Device
                } else {
                    Attachment::Netdev
                });
                follow_up = Some(accept_protocol_features());
            }
            Some(SET_MEM_TABLE | ADD_MEM_REG) => self.has_memory = true,
            Some(RESET_DEVICE) => follow_up = Some(accept_protocol_features()),
            Some(SET_BACKEND_REQ_FD) => {
                // Without a copy the link of the device attachment cannot be shown; the message
                // itself still serves the crate.
                self.backend_channel = frame.fds.first().and_then(|fd| fd.try_clone().ok());
            }
            _ => {}
        }
        std::iter::once(frame).chain(follow_up)
    }
}

fn accept_protocol_features() -> Frame {
    Frame::new(SET_FEATURES, &F_PROTOCOL_FEATURES.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requests(relay: &mut Relay, frame: Frame) -> Vec<(u32, Option<u64>)> {
        relay
            .from_frontend(frame)
            .map(|f| (f.request().unwrap(), f.payload_u64()))
            .collect()
    }

    #[test]
    fn qemu_netdev_start_up_gets_its_features_in_time() {
        // As recorded from QEMU 11.1, `-netdev vhost-user`, up to the first SET_VRING_ENABLE.
        const GET_FEATURES: u32 = 1;
        const SET_OWNER: u32 = 3;
        const GET_PROTOCOL_FEATURES: u32 = 15;
        const GET_QUEUE_NUM: u32 = 17;
        const SET_VRING_ENABLE: u32 = 18;
        let mut relay = Relay::default();
        let mut out = Vec::new();
        for (request, payload) in [
            (GET_FEATURES, &[][..]),
            (GET_PROTOCOL_FEATURES, &[]),
            (SET_PROTOCOL_FEATURES, &0x2007u64.to_ne_bytes()),
            (GET_QUEUE_NUM, &[]),
            (SET_OWNER, &[]),
            (RESET_DEVICE, &[]),
            (SET_VRING_ENABLE, &[0; 8]),
        ] {
            out.extend(requests(&mut relay, Frame::new(request, payload)));
        }
        let accepted = Some(F_PROTOCOL_FEATURES);
        assert_eq!(
            out,
            [
                (GET_FEATURES, None),
                (GET_PROTOCOL_FEATURES, None),
                (SET_PROTOCOL_FEATURES, Some(0x2007)),
                (SET_FEATURES, accepted),
                (GET_QUEUE_NUM, None),
                (SET_OWNER, None),
                (RESET_DEVICE, None),
                (SET_FEATURES, accepted),
                (SET_VRING_ENABLE, Some(0)),
            ]
        );
        assert_eq!(relay.attachment(), Some(Attachment::Netdev));
    }

    #[test]
    fn a_frontend_that_wants_config_space_is_the_device_attachment() {
        let mut relay = Relay::default();
        assert_eq!(relay.attachment(), None);
        let frame = Frame::new(
            SET_PROTOCOL_FEATURES,
            &(1u64 << PROTOCOL_F_CONFIG).to_ne_bytes(),
        );
        requests(&mut relay, frame);
        assert_eq!(relay.attachment(), Some(Attachment::Device));
    }

    #[test]
    fn the_backend_channel_is_copied_and_passed_on() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut frame = Frame::new(SET_BACKEND_REQ_FD, &[]);
        frame.fds.push(theirs.into());
        let mut relay = Relay::default();
        let passed: Vec<Frame> = relay.from_frontend(frame).collect();
        assert_eq!(passed.len(), 1);
        assert_eq!(passed[0].fds.len(), 1);
        assert!(relay.backend_channel().is_some());
        drop(ours);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_passed_on_first_and_unchanged(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let frame = Frame { bytes: bytes.clone(), fds: Vec::new() };
            let out: Vec<Frame> = Relay::default().from_frontend(frame).collect();
            prop_assert_eq!(&out[0].bytes, &bytes);
            prop_assert!(out.len() <= 2);
        }

        #[test]
        fn announced_lengths_are_bounded(header in any::<[u8; HEADER_LEN]>()) {
            if let Some(len) = payload_len(&header) {
                prop_assert!(len <= MAX_PAYLOAD);
            }
        }
    }
}
