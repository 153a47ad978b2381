// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What real QEMU has sent, from `tests/recorded/`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::client::{self, message};
use super::guest::event;

/// One message of the frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub request: u32,
    pub flags: u32,
    pub fds: usize,
    pub payload: Vec<u8>,
}

/// All recordings: name, octets of guest memory do not differ.
pub const ALL: [(&str, &str); 4] = [
    (
        "netdev-1",
        include_str!("../recorded/qemu-11.1-netdev-1.txt"),
    ),
    (
        "netdev-2",
        include_str!("../recorded/qemu-11.1-netdev-2.txt"),
    ),
    (
        "device-1",
        include_str!("../recorded/qemu-11.1-device-1.txt"),
    ),
    (
        "device-2",
        include_str!("../recorded/qemu-11.1-device-2.txt"),
    ),
];
const MEMORY: u64 = 512 << 20;

pub fn parse(text: &str) -> Vec<Message> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let [request, _, flags, fds, payload] = line
                .split(' ')
                .collect::<Vec<_>>()
                .try_into()
                .unwrap_or_else(|_| panic!("{line}"));
            let hex = if payload == "-" { "" } else { payload };
            let octet = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
            Message {
                request: request.parse().unwrap(),
                flags: u32::from_str_radix(&flags[2..], 16).unwrap(),
                fds: fds.parse().unwrap(),
                payload: (0..hex.len()).step_by(2).map(octet).collect(),
            }
        })
        .collect()
}

impl Message {
    pub fn bytes(&self) -> Vec<u8> {
        message(self.request, self.flags, &self.payload)
    }

    /// Whether the backend answers.
    pub fn is_answered(&self) -> bool {
        let asks = matches!(
            self.request,
            client::GET_FEATURES
                | client::GET_PROTOCOL_FEATURES
                | client::GET_QUEUE_NUM
                | client::GET_MAX_MEM_SLOTS
                | client::GET_VRING_BASE
                | client::GET_CONFIG
        );
        asks || self.flags & 8 != 0
    }

    /// Descriptors of the kind that came with it.
    pub fn descriptors(&self) -> Vec<OwnedFd> {
        let make = |_| match self.request {
            client::ADD_MEM_REG => {
                let memory = memfd_create("recorded", MemfdFlags::CLOEXEC).unwrap();
                ftruncate(&memory, MEMORY).unwrap();
                memory
            }
            client::SET_BACKEND_REQ_FD => UnixStream::pair().unwrap().0.into(),
            _ => event(),
        };
        (0..self.fds).map(make).collect()
    }

    /// Sends it, with descriptors.
    pub fn send(&self, stream: &UnixStream) {
        let fds = self.descriptors();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        client::send_with(stream, &self.bytes(), &fds).unwrap();
    }
}
