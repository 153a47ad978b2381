// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A frontend that says what QEMU 11.1 says, in the order in which QEMU says it (see
//! `tests/recorded/`), and anything else that a test wants said.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::PATIENCE;
use super::guest::{Driver, Guest, MEMORY, RING_SIZE, Ring, USER, event};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

/// What QEMU acknowledges of what is offered.
pub const NETDEV: u64 = 0xa029;
pub const DEVICE: u64 = 0xa229;
pub const F_CONFIG: u64 = 1 << 9;
/// VERSION_1, EVENT_IDX, MQ, MAC, MRG_RXBUF and protocol features.
pub const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 22 | 1 << 5 | 1 << 15 | 1 << 30;
/// With the control queue: CTRL_VQ, CTRL_RX, STATUS.
pub const CONTROL: u64 = FEATURES | 1 << 17 | 1 << 18 | 1 << 16;

const NEED_REPLY: u32 = 8;
const REPLY: u32 = 4;

#[derive(Debug)]
pub struct Client {
    pub stream: UnixStream,
    /// Requests of the backend arrive here.
    pub channel: UnixStream,
    has_memory: bool,
    offered: u64,
}

pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request, flags, payload.len() as u32] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Index and value, as many ring messages have it.
pub fn state(index: u32, value: u32) -> Vec<u8> {
    [index.to_ne_bytes(), value.to_ne_bytes()].concat()
}

pub fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    (&mut &*stream).write_all(&bytes[sent..])
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        Client::over(UnixStream::connect(path).unwrap())
    }

    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let (channel, _) = UnixStream::pair().unwrap();
        Client {
            stream,
            channel,
            has_memory: false,
            offered: u64::MAX,
        }
    }

    /// Sends a message; the backend may have closed, which is for the next answer to tell.
    pub fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let _ = send_with(&self.stream, &message(request, flags, payload), fds);
    }

    /// The next reply's request and payload; `None` when the backend has closed.
    pub fn reply(&mut self) -> Option<(u32, Vec<u8>)> {
        let mut header = [0; 12];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => panic!("no answer in {PATIENCE:?}"),
            Err(_) => return None,
        }
        let word = |i: usize| u32::from_ne_bytes(header[4 * i..4 * i + 4].try_into().unwrap());
        assert_eq!(word(1), 1 | REPLY);
        let mut payload = vec![0; word(2) as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Some((word(0), payload))
    }

    /// Asks; `None` when the backend has closed.
    pub fn ask(&mut self, request: u32, payload: &[u8]) -> Option<Vec<u8>> {
        self.send(request, 1, payload, &[]);
        let (answered, payload) = self.reply()?;
        assert_eq!(answered, request);
        Some(payload)
    }

    pub fn ask_u64(&mut self, request: u32) -> u64 {
        let answer = self.ask(request, &[]).expect("the backend has closed");
        u64::from_ne_bytes(answer.try_into().unwrap())
    }

    /// Says and waits for the acknowledgement: its value, or `None` when the backend has closed.
    pub fn try_set(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Option<u64> {
        self.send(request, 1 | NEED_REPLY, payload, fds);
        let (answered, payload) = self.reply()?;
        assert_eq!(answered, request);
        Some(u64::from_ne_bytes(payload.try_into().unwrap()))
    }

    pub fn set(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let ack = self.try_set(request, payload, fds);
        assert_eq!(ack, Some(0), "request {request} {payload:x?}");
    }

    /// Whether the backend has closed; waits for it.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(e) => e.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// From connecting to the first start of a driver; `protocol` is what to acknowledge.
    pub fn handshake(&mut self, protocol: u64) {
        self.offered = self.ask_u64(GET_FEATURES);
        assert_eq!(self.ask_u64(GET_PROTOCOL_FEATURES) & protocol, protocol);
        self.send(SET_PROTOCOL_FEATURES, 1, &words(&[protocol]), &[]);
        let queues = self.ask_u64(GET_QUEUE_NUM);
        assert_eq!(self.ask_u64(GET_MAX_MEM_SLOTS), 509);
        let (channel, theirs) = UnixStream::pair().unwrap();
        self.channel = channel;
        self.set(SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
        self.send(SET_OWNER, 1, &[], &[]);
        for index in 0..queues {
            // QEMU's first interrupt goes nowhere; the driver's comes when it has started.
            self.set(SET_VRING_CALL, &words(&[index]), &[event().as_fd()]);
            self.set(SET_VRING_ERR, &words(&[index]), &[event().as_fd()]);
        }
        if protocol & F_CONFIG == 0 {
            self.send(RESET_DEVICE, 1, &[], &[]);
            for index in 0..queues as u32 {
                self.set(SET_VRING_ENABLE, &state(index, 0), &[]);
            }
        }
    }

    pub fn share_memory(&mut self, guest: &Guest) {
        if !std::mem::replace(&mut self.has_memory, true) {
            let region = words(&[0, 0, MEMORY, USER, 0]);
            self.set(ADD_MEM_REG, &region, &[guest.memfd.as_fd()]);
        }
    }

    pub fn set_ring(&mut self, ring: &Ring) {
        let index = ring.index;
        self.send(SET_VRING_NUM, 1, &state(index, RING_SIZE.into()), &[]);
        self.send(SET_VRING_BASE, 1, &state(index, ring.base.into()), &[]);
        self.set_addresses(ring);
        self.set(
            SET_VRING_KICK,
            &words(&[index.into()]),
            &[ring.kick.as_fd()],
        );
        self.set(
            SET_VRING_CALL,
            &words(&[index.into()]),
            &[ring.call.as_fd()],
        );
    }

    pub fn set_addresses(&mut self, ring: &Ring) {
        let head = state(ring.index, 0);
        let at = words(&[
            USER + ring.desc(),
            USER + ring.used(),
            USER + ring.avail(),
            0,
        ]);
        self.send(SET_VRING_ADDR, 1, &[head, at].concat(), &[]);
    }

    pub fn enable(&mut self, index: u32, on: bool) {
        self.set(SET_VRING_ENABLE, &state(index, on.into()), &[]);
    }

    /// Starts a driver on queue pairs, as for a netdev: pair by pair.
    pub fn start_netdev(&mut self, driver: &Driver, features: u64) {
        for pair in driver.rings.chunks(2) {
            for ring in pair {
                self.enable(ring.index, true);
            }
            self.send(SET_FEATURES, 1, &words(&[features & self.offered]), &[]);
            self.share_memory(&driver.guest);
            for ring in pair {
                self.set_ring(ring);
            }
        }
    }

    /// Starts a driver as for the device attachment: all rings, then all enabled.
    pub fn start_device(&mut self, driver: &Driver, features: u64) {
        self.send(SET_FEATURES, 1, &words(&[features & self.offered]), &[]);
        self.share_memory(&driver.guest);
        for ring in &driver.rings {
            self.set_ring(ring);
        }
        for ring in &driver.rings {
            self.enable(ring.index, true);
        }
        for ring in &driver.rings {
            let index = words(&[ring.index.into()]);
            self.set(SET_VRING_CALL, &index, &[ring.call.as_fd()]);
        }
    }

    /// Stops all rings and notes where they are to go on.
    pub fn stop(&mut self, driver: &mut Driver) {
        for ring in &driver.rings {
            self.enable(ring.index, false);
        }
        for ring in &mut driver.rings {
            ring.base = self.base(ring.index);
        }
    }

    pub fn base(&mut self, index: u32) -> u16 {
        let answer = self.ask(GET_VRING_BASE, &state(index, 0)).unwrap();
        assert_eq!(answer[..4], index.to_ne_bytes());
        u32::from_ne_bytes(answer[4..].try_into().unwrap()) as u16
    }

    /// Whether the backend says that config space has changed, within the time.
    pub fn config_changed(&mut self, patience: std::time::Duration) -> bool {
        self.channel.set_read_timeout(Some(patience)).unwrap();
        let mut header = [0; 12];
        match self.channel.read_exact(&mut header) {
            Ok(()) => {
                assert_eq!(header, message(2, 1, &[])[..]);
                true
            }
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::WouldBlock, "{e}");
                false
            }
        }
    }

    /// The `status` field of config space.
    pub fn status(&mut self) -> u16 {
        let request = [state(6, 2), vec![0; 4], vec![0; 2]].concat();
        let answer = self.ask(GET_CONFIG, &request).unwrap();
        u16::from_le_bytes(answer[12..].try_into().unwrap())
    }
}
