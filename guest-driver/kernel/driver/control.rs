// SPDX-License-Identifier: GPL-2.0

//! The control queue (VIRTIO 1.3, 5.1.6.5): commands to the device.
//!
//! Commands are rare and wait for their answer, in process context. They are looked for rather
//! than waited for by an interrupt: the answer mostly is there at once, and a device that never
//! gives one costs a bounded time.

use crate::{
    fault,
    net::Address,
    virtio::{
        Doorbell,
        Segment,
        Virtqueue, //
    }, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::Coherent,
    io::{
        io_read,
        io_write, //
    },
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Octets of the memory for a command and its acknowledgement.
const ROOM: usize = 4096;
/// Octets behind the acknowledgement, for what else the device answers.
const ANSWER: usize = 256;
/// How long an answer may take, in steps of [`STEP`].
const STEPS: u32 = 20_000;
/// Time between two looks for it.
const STEP: Delta = Delta::from_micros(50);
/// So often it is looked for before sleeping.
const SPINS: u32 = 200;

/// VIRTIO_NET_OK.
const OK: u8 = 0;

/// A command: class and command of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command(u8, u8);

/// VIRTIO_NET_CTRL_RX_PROMISC.
pub(super) const RX_PROMISC: Command = Command(0, 0);
/// VIRTIO_NET_CTRL_RX_ALLMULTI.
pub(super) const RX_ALLMULTI: Command = Command(0, 1);
/// VIRTIO_NET_CTRL_MAC_TABLE_SET.
const MAC_TABLE_SET: Command = Command(1, 0);
/// VIRTIO_NET_CTRL_MAC_ADDR_SET.
pub(super) const MAC_ADDR_SET: Command = Command(1, 1);
/// VIRTIO_NET_CTRL_VLAN_ADD.
pub(super) const VLAN_ADD: Command = Command(2, 0);
/// VIRTIO_NET_CTRL_VLAN_DEL.
pub(super) const VLAN_DEL: Command = Command(2, 1);
/// VIRTIO_NET_CTRL_ANNOUNCE_ACK.
pub(super) const ANNOUNCE_ACK: Command = Command(3, 0);
/// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
pub(super) const MQ_PAIRS_SET: Command = Command(4, 0);
/// VIRTIO_NET_CTRL_MQ_RSS_CONFIG.
pub(super) const MQ_RSS_CONFIG: Command = Command(4, 1);
/// VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET.
pub(super) const GUEST_OFFLOADS_SET: Command = Command(5, 0);

/// VIRTIO_NET_CTRL_NOTF_COAL_TX_SET.
pub(super) const NOTF_COAL_TX_SET: Command = Command(6, 0);
/// VIRTIO_NET_CTRL_NOTF_COAL_RX_SET.
pub(super) const NOTF_COAL_RX_SET: Command = Command(6, 1);
/// VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET.
pub(super) const NOTF_COAL_VQ_SET: Command = Command(6, 2);

/// VIRTIO_NET_CTRL_STATS_QUERY.
pub(super) const STATS_QUERY: Command = Command(8, 0);
/// VIRTIO_NET_CTRL_STATS_GET.
pub(super) const STATS_GET: Command = Command(8, 1);

/// How many addresses fit in a table, both lists together.
pub(super) const MAX_ADDRESSES: usize = (ROOM - 3 - 8) / size_of::<Address>();

/// The control queue and the memory of its commands.
pub(super) struct ControlQueue<'a> {
    queue: Virtqueue<()>,
    memory: Coherent<[u8]>,
    doorbell: Doorbell<'a>,
    /// A command was never answered: the device may still do so, so no other can be sent.
    stuck: bool,
}

impl<'a> ControlQueue<'a> {
    /// Around a queue that the device has.
    pub(super) fn new(
        dev: &Device<Bound>,
        mut queue: Virtqueue<()>,
        doorbell: Doorbell<'a>,
    ) -> Result<Self> {
        queue.disable_callback();
        Ok(Self {
            queue,
            memory: Coherent::zeroed_slice(dev, ROOM + ANSWER, GFP_KERNEL)?,
            doorbell,
            stuck: false,
        })
    }

    /// Has the device execute a command. May sleep.
    ///
    /// `EOPNOTSUPP` if it refuses, `ETIMEDOUT` if it does not answer, `EIO` if it misbehaves:
    /// after the latter two only a reset helps.
    pub(super) fn execute(&mut self, command: Command, data: &[u8]) -> Result {
        self.execute_parts(command, &[data], 0).map(|_| ())
    }

    /// Has the device execute a command that is answered with more than an acknowledgement.
    /// Returns how many octets the answer has. Errors as in [`Self::execute`].
    pub(super) fn ask(
        &mut self,
        command: Command,
        data: &[u8],
        answer: &mut [u8],
    ) -> Result<usize> {
        let room = answer.len().min(ANSWER);
        let len = self.execute_parts(command, &[data], room)?.min(room);
        for (i, octet) in answer.iter_mut().enumerate().take(len) {
            *octet = io_read!(self.memory, [try: ROOM + i]);
        }
        Ok(len)
    }

    /// The same with data in several parts, and room for an answer. Returns the answer's length.
    fn execute_parts(&mut self, command: Command, parts: &[&[u8]], answer: usize) -> Result<usize> {
        if self.stuck {
            return Err(ETIMEDOUT);
        }
        fault::point()?;
        let ack = ROOM - 1;
        let mut at = 0;
        self.put(&mut at, &[command.0, command.1])?;
        for part in parts {
            self.put(&mut at, part)?;
        }
        if at >= ack {
            return Err(E2BIG);
        }
        // Neither of the values of 5.1.6.5.
        io_write!(self.memory, [try: ack], 0xff);
        let addr = self.memory.dma_address();
        // CAST: Less than `ROOM`.
        let out = Segment {
            addr,
            len: at as u32,
        };
        let input = Segment {
            addr: addr.wrapping_add(ack as u64),
            // CAST: At most `ANSWER` more.
            len: 1 + answer as u32,
        };
        if self.queue.add(&[out], &[input], ()).is_err() {
            return Err(EIO);
        }
        if self.queue.publish() {
            self.doorbell.ring();
        }
        let written = self.wait()?;
        match io_read!(self.memory, [try: ack]) {
            // CAST: Not more than it could write.
            OK => Ok((written as usize).saturating_sub(1)),
            _ => Err(EOPNOTSUPP),
        }
    }

    fn put(&self, at: &mut usize, octets: &[u8]) -> Result {
        for octet in octets {
            io_write!(self.memory, [try: *at], *octet);
            *at = at.wrapping_add(1);
        }
        Ok(())
    }

    /// Waits for the answer. Returns how many octets were written.
    fn wait(&mut self) -> Result<u32> {
        for step in 0..STEPS {
            match self.queue.pop() {
                Ok(Some(used)) => return Ok(used.len),
                Ok(None) if step < SPINS => core::hint::spin_loop(),
                Ok(None) => fsleep(STEP),
                Err(_) => {
                    self.stuck = true;
                    return Err(EIO);
                }
            }
        }
        self.stuck = true;
        Err(ETIMEDOUT)
    }

    /// The number of the queue.
    pub(super) fn index(&self) -> u16 {
        self.queue.index()
    }

    /// Whether only a reset helps.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Sets which addresses to receive, besides the device's own (5.1.6.5.2).
    pub(super) fn set_addresses(&mut self, unicast: &[Address], multicast: &[Address]) -> Result {
        let length =
            |list: &[Address]| -> Result<[u8; 4]> { Ok(u32::try_from(list.len())?.to_le_bytes()) };
        self.execute_parts(
            MAC_TABLE_SET,
            &[
                &length(unicast)?,
                unicast.as_flattened(),
                &length(multicast)?,
                multicast.as_flattened(),
            ],
            0,
        )
        .map(|_| ())
    }
}
