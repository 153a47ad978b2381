// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A frontend: connects to a backend and starts a queue pair there.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};

use super::memory::Memory;
use super::queue::{Queue, Shape};
use super::ring::{AREA, Form, Place};

/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VIRTIO_F_VERSION_1`, `VIRTIO_NET_F_MRG_RXBUF`.
const FEATURES: u64 = 1 << 32 | 1 << 15 | PROTOCOL_FEATURES;
const RING_PACKED: u64 = 1 << 34;

/// What a port is like.
#[derive(Debug, Clone, Copy)]
pub struct PortShape {
    /// The form of its rings.
    pub form: Form,
    /// Queue 0, on which it receives.
    pub receive: Shape,
    /// Queue 1, on which it sends.
    pub transmit: Shape,
}

impl PortShape {
    /// Memory for it: both rings, then both queues' buffers.
    pub fn memory(&self) -> Result<Memory> {
        let octets = 2 * AREA + self.receive.octets() + self.transmit.octets();
        Memory::new(octets.next_multiple_of(4096))
    }
}

/// A queue pair of a backend.
pub struct Port<'m> {
    /// Receives.
    pub rx: Queue<'m>,
    /// Sends.
    pub tx: Queue<'m>,
    /// The backend serves for as long as the connection is there.
    _frontend: Frontend,
}

impl fmt::Debug for Port<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Port { rx, tx, .. } = self;
        let mut port = f.debug_struct("Port");
        port.field("rx", rx).field("tx", tx).finish_non_exhaustive()
    }
}

impl<'m> Port<'m> {
    /// Plugs into the backend that listens at `socket`, with memory of [`PortShape::memory`]. All
    /// receive buffers are given to it.
    pub fn connect(memory: &'m Memory, shape: PortShape, socket: &Path) -> Result<Self> {
        let place = |size, at| Place { size, at };
        let PortShape {
            form,
            receive,
            transmit,
        } = shape;
        let at = 2 * AREA;
        let mut rx = Queue::new(memory, form, place(receive.size, 0), receive, at)?;
        let at = at + receive.octets();
        let tx = Queue::new(memory, form, place(transmit.size, AREA), transmit, at)?;
        for queue in [&rx, &tx] {
            queue.set_interrupts(false);
        }
        rx.refill();
        let mut frontend = connect(socket)?;
        plug_in(&mut frontend, memory, form, [&rx, &tx])
            .with_context(|| format!("cannot plug into the backend at {}", socket.display()))?;
        rx.publish()?;
        Ok(Port {
            rx,
            tx,
            _frontend: frontend,
        })
    }
}

fn connect(socket: &Path) -> Result<Frontend> {
    let what = || format!("cannot connect to {}", socket.display());
    let stream = UnixStream::connect(socket).with_context(what)?;
    stream.set_read_timeout(Some(PATIENCE)).with_context(what)?;
    stream
        .set_write_timeout(Some(PATIENCE))
        .with_context(what)?;
    Ok(Frontend::from_stream(stream, 2))
}

/// The whole handshake, from the owner to rings that are enabled.
fn plug_in(
    frontend: &mut Frontend,
    memory: &Memory,
    form: Form,
    queues: [&Queue<'_>; 2],
) -> Result<()> {
    frontend.set_owner()?;
    let wanted = match form {
        Form::Split => FEATURES,
        Form::Packed => FEATURES | RING_PACKED,
    };
    let offered = frontend.get_features()?;
    let missing = wanted & !offered;
    ensure!(missing == 0, "it does not offer features {missing:#x}");
    // Features first: what others have not acknowledged yet, the crate does not ask for.
    frontend.set_features(wanted)?;
    let protocol = VhostUserProtocolFeatures::REPLY_ACK & frontend.get_protocol_features()?;
    frontend.set_protocol_features(protocol)?;
    if !protocol.is_empty() {
        // So a refusal is heard where it was caused.
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    frontend.set_mem_table(&[memory.info()])?;
    for (index, queue) in queues.into_iter().enumerate() {
        let place = queue.place();
        frontend.set_vring_num(index, place.size)?;
        frontend.set_vring_base(index, queue.ring_base())?;
        frontend.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: place.size,
                queue_size: place.size,
                flags: 0,
                desc_table_addr: memory.user(place.desc()),
                used_ring_addr: memory.user(place.device()),
                avail_ring_addr: memory.user(place.driver()),
                log_addr: None,
            },
        )?;
        frontend.set_vring_call(index, &queue.call)?;
        frontend.set_vring_kick(index, &queue.kick)?;
    }
    for index in 0..queues.len() {
        frontend.set_vring_enable(index, true)?;
    }
    Ok(())
}
