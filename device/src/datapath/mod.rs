// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The workers: ring <-> uplink.
//!
//! One thread serves a queue pair (`worker`): `tx` moves packets from the guest's ring to the
//! uplink, `rx` the other way. One more serves the control queue (`control_queue`), where the
//! frontend leaves that to us. [`Dataplane`] is what the layer above starts and stops rings with;
//! it knows rings by their virtqueue index (VIRTIO 1.3, 5.1.2) and gets guest memory, kick and
//! interrupt as plain descriptors, so that any way of plugging the NIC in can drive it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use crate::nic::Nic;
use crate::nic::config_space::ConfigSpace;
use crate::nic::control::DriverState;
use crate::nic::features::{self, Features};
use crate::ring::memory::MemoryMap;
use crate::ring::virtqueue::{Format, Layout, Ring, RingError, Start};
use crate::uplink::{MAX_PACKET, Uplink};

mod agreement;
mod control_queue;
mod crossing;
pub(crate) mod inlet;
mod moderation;
mod notify;
mod rx;
#[cfg(test)]
pub(crate) mod tests;
mod tx;
pub(crate) mod wait_set;
mod worker;
pub mod workers;

use agreement::Agreement;
use control_queue::ControlQueue;
use crossing::Crossing;
pub use inlet::{Delivery, Frame, Inlet};
use notify::Interrupt;
use rx::{ReceiveFormat, Receiver};
use tx::Transmitter;
use worker::{Pair, Side};
use workers::Workers;

/// Packets moved in one direction before the other gets its turn.
const BUDGET: usize = 64;
/// The smallest frame: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Ethernet header with a VLAN tag.
const ETHERNET_HEADER: usize = 14 + 4;
/// The largest frame: 64 KiB of segmented payload behind the Ethernet header.
const MAX_FRAME: usize = 65535 + ETHERNET_HEADER;
/// The largest packet: header and frame.
const LARGEST: usize = MAX_PACKET;

/// Whether a turn left something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The budget was spent; there is more.
    More,
    /// All done until something happens.
    Waits,
}

/// All that is needed to start a ring.
#[derive(Debug)]
pub struct RingSetup {
    /// Guest memory.
    pub map: Arc<MemoryMap>,
    /// Where the ring lies.
    pub layout: Layout,
    /// Where it goes on.
    pub start: Start,
    /// Becomes readable when the driver notifies; none for a driver that never does.
    pub kick: Option<OwnedFd>,
    /// Raises the queue's interrupt; none for a driver that only polls.
    pub call: Option<OwnedFd>,
}

/// Why a ring was not started.
#[derive(Debug)]
pub enum StartError {
    /// No queue has this index.
    NoSuchQueue(usize),
    /// The ring itself is not usable.
    Ring(RingError),
    /// Its kick cannot be watched.
    Kick(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::NoSuchQueue(index) => write!(f, "this NIC has no virtqueue {index}"),
            StartError::Ring(e) => e.fmt(f),
            StartError::Kick(e) => write!(f, "its kick descriptor cannot be watched: {e}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Which queue a virtqueue index means (5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Queue(usize, Side),
    Control,
}

/// The rings, the uplink and the threads between them.
#[derive(Debug)]
pub struct Dataplane {
    agreement: Arc<Agreement>,
    control: Arc<ControlQueue>,
    /// Kicks that are watched by a worker, by virtqueue index.
    kicks: Mutex<Vec<Option<OwnedFd>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Dataplane {
    /// Starts the workers; no ring is active yet.
    pub fn start(nic: Arc<Nic>, uplink: Box<dyn Uplink>, workers: &Workers) -> io::Result<Self> {
        let mut dataplane = Dataplane::new(nic, uplink, workers)?;
        // Linux shows the first 15 octets.
        let port = dataplane.agreement.nic.port_name();
        let port = port.map_or(String::new(), |name| format!("{name}/"));
        // From here on dropping the dataplane ends the threads that were started.
        for (index, pair) in dataplane.agreement.pairs.iter().enumerate() {
            let pair = pair.clone();
            let cpu = workers.next_cpu();
            let run = move || {
                if let Some(cpu) = cpu {
                    workers::pin(cpu);
                }
                pair.run();
            };
            dataplane
                .threads
                .push(spawn(format!("{port}pair-{index}"), run)?);
        }
        let control = dataplane.control.clone();
        dataplane
            .threads
            .push(spawn(format!("{port}control-queue"), move || {
                control.run()
            })?);
        Ok(dataplane)
    }

    /// All but the threads: the caller has the pairs take [turns](Dataplane::turn).
    pub fn new(nic: Arc<Nic>, mut uplink: Box<dyn Uplink>, workers: &Workers) -> io::Result<Self> {
        let driver = DriverState::new(&nic.config);
        let queues = uplink.take_queues();
        // The driver is told of as many pairs as were configured, and there are counters for those.
        if queues.len() != usize::from(nic.config.queue_pairs) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "uplink {} has {} queues where {} are needed, one for each queue pair",
                    nic.config.uplink,
                    queues.len(),
                    nic.config.queue_pairs
                ),
            ));
        }
        let crossing = Arc::new(Crossing::new(queues.len())?);
        let pairs = (queues.into_iter().zip(crossing.wait_sets()).enumerate())
            .map(|(i, (queue, wait))| {
                let filter = driver.filter().clone();
                let crossing = Arc::clone(&crossing);
                Pair::new(nic.clone(), i, queue, filter, workers.poll, wait, crossing)
            })
            .map(|pair| pair.map(Arc::new))
            .collect::<io::Result<Vec<_>>>()?;
        let agreement = Arc::new(Agreement {
            nic,
            pairs,
            uplink,
            driver: Mutex::new(driver),
        });
        let control = Arc::new(ControlQueue::new(agreement.clone())?);
        Ok(Dataplane {
            kicks: Mutex::new((0..2 * agreement.pairs.len()).map(|_| None).collect()),
            agreement,
            control,
            threads: Vec::new(),
        })
    }

    /// Lets all workers, that have no threads, work until they would sleep with nothing left to do.
    #[cfg(test)]
    pub(crate) fn settle(&self) {
        self.control.settle();
        for pair in &self.agreement.pairs {
            pair.settle();
        }
    }

    /// Lets the first pair's worker, that has no thread, sleep so long and then take the turns that
    /// it has something for; how long it would sleep after that.
    #[cfg(test)]
    pub(crate) fn work(&self, sleep: wait_set::Sleep) -> wait_set::Sleep {
        self.agreement.pairs[0].work(sleep)
    }

    /// Has each pair, that has no thread, take one turn on the caller's; whether there is more to do at
    /// once. Nothing is waited for.
    pub fn turn(&self) -> bool {
        let mut more = false;
        for pair in &self.agreement.pairs {
            more |= pair.turn() == Some(wait_set::Sleep::No);
        }
        more
    }

    /// Virtqueues that there can be: the pairs' and the control queue.
    pub fn queue_count(&self) -> usize {
        2 * self.agreement.pairs.len() + 1
    }

    /// The receive sides of the pairs, for an uplink that puts packets in itself
    /// ([`UplinkQueue::pushes`](crate::uplink::UplinkQueue::pushes)).
    pub fn inlets(&self) -> Vec<Arc<Inlet>> {
        let pairs = self.agreement.pairs.iter();
        pairs.map(|pair| Arc::clone(&pair.inlet)).collect()
    }

    /// Takes note of the features that the driver has accepted. Rings that start from now on use
    /// them.
    pub fn negotiate(&self, features: Features) {
        self.agreement.negotiate(features);
    }

    /// Reads config space (5.1.4).
    pub fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let agreement = &self.agreement;
        let driver = agreement.driver.lock();
        ConfigSpace::new(&agreement.nic.config, &driver, agreement.nic.link_up()).read(offset, size)
    }

    /// Writes config space.
    pub fn write_config(&self, offset: u32, data: &[u8]) {
        self.agreement.write_config(offset, data);
    }

    /// Tells workers and uplink that the link is not what it was.
    pub fn link_changed(&self) {
        let up = self.agreement.nic.link_up();
        if up {
            // The driver tells the network where it is now (5.1.6.5.4).
            self.agreement.driver.lock().request_announce();
        }
        if let Err(e) = self.agreement.uplink.set_link(up) {
            log::warn!("uplink {}: {e}", self.agreement.nic.config.uplink);
        }
        self.uplink_changed();
    }

    /// Has the workers look at the uplink, which may have packets now of which it has not told.
    pub fn uplink_changed(&self) {
        for pair in &self.agreement.pairs {
            pair.wake();
        }
    }

    /// The control queue comes after the pairs, of which there is one unless the driver accepted
    /// several ([`Features::has_pairs`]).
    fn role(&self, index: usize, features: Features) -> Option<Role> {
        let pairs = self.agreement.pairs.len();
        let control = if features.has_pairs() { 2 * pairs } else { 2 };
        if features.has(features::VIRTIO_NET_F_CTRL_VQ) && index == control {
            return Some(Role::Control);
        }
        let side = if index.is_multiple_of(2) {
            Side::Rx
        } else {
            Side::Tx
        };
        (index / 2 < pairs).then_some(Role::Queue(index / 2, side))
    }

    /// Starts the ring of virtqueue `index`.
    pub fn start_ring(&self, index: usize, setup: RingSetup) -> Result<(), StartError> {
        self.stop_ring(index);
        let features = self.agreement.features();
        let Some(role) = self.role(index, features) else {
            return Err(StartError::NoSuchQueue(index));
        };
        let format = Format {
            packed: features.has(features::VIRTIO_F_RING_PACKED),
            // Into what the driver sends nothing is written. Of all else it must hear how much was.
            batches: features.has(features::VIRTIO_F_IN_ORDER)
                && matches!(role, Role::Queue(_, Side::Tx)),
        };
        let ring =
            Ring::new(format, &setup.map, setup.layout, setup.start).map_err(StartError::Ring)?;
        match role {
            Role::Control => self.control.start(index, ring, setup),
            Role::Queue(pair, side) => self.start_queue(pair, side, features, ring, setup),
        }
    }

    fn start_queue(
        &self,
        pair_index: usize,
        side: Side,
        features: Features,
        ring: Ring,
        setup: RingSetup,
    ) -> Result<(), StartError> {
        let index = queue_index(pair_index, side);
        let pair = self.agreement.pairs.get(pair_index);
        let counters = self.agreement.nic.counters.get(pair_index);
        let (Some(pair), Some(counters)) = (pair, counters) else {
            return Err(StartError::NoSuchQueue(index));
        };
        let interrupt = Interrupt::new(setup.call);
        let header_len = features.header_len();
        let mut state = pair.lock();
        if let Some(kick) = &setup.kick {
            pair.watch(side, kick.as_fd()).map_err(StartError::Kick)?;
        }
        match side {
            Side::Rx => {
                let largest = if features.receive_offloads().any_segmentation() {
                    LARGEST
                } else {
                    usize::from(self.agreement.nic.config.mtu) + ETHERNET_HEADER + header_len
                };
                let mergeable = features.has(features::VIRTIO_NET_F_MRG_RXBUF);
                let format = ReceiveFormat {
                    header_len,
                    mergeable,
                    largest,
                };
                let mut inlet = pair.inlet.lock();
                inlet.rx = Some(Receiver::new(ring, setup.map, interrupt, format));
                inlet.asked.decided(counters.rx.packets.get());
                state.update_steering(&inlet, pair_index);
            }
            Side::Tx => {
                let offloads = features.transmit_offloads();
                let tx = Transmitter::new(ring, setup.map, interrupt, header_len, offloads);
                state.tx = Some(tx);
                state.asked.decided(counters.tx.packets.get());
            }
        }
        if let Some(slot) = self.kicks.lock().get_mut(index) {
            *slot = setup.kick;
        }
        drop(state);
        // What the driver made available before the ring was ours is not notified again.
        pair.wake();
        Ok(())
    }

    /// Stops the ring of virtqueue `index` and tells where it stands, as
    /// [`Start::At`] takes it; `None` when it was not started or has broken since.
    pub fn stop_ring(&self, index: usize) -> Option<u16> {
        // Asked first: what the index meant when the ring started may not be what it means now.
        if let Some(position) = self.control.stop(index) {
            return Some(position);
        }
        let pair = self.agreement.pairs.get(index / 2)?;
        let counters = self.agreement.nic.counters.get(index / 2)?;
        let mut state = pair.lock();
        if let Some(kick) = self.kicks.lock().get_mut(index).and_then(Option::take) {
            pair.unwatch(kick.as_fd());
        }
        if index.is_multiple_of(2) {
            let mut inlet = pair.inlet.lock();
            let position = inlet.stop();
            state.update_steering(&inlet, index / 2);
            position
        } else {
            state.tx.take().map(|tx| tx.stop(&counters.tx))
        }
    }

    /// Gives the ring of virtqueue `index` another interrupt, and raises it: an interrupt that was
    /// due while it changed may have reached nobody.
    pub fn set_interrupt(&self, index: usize, call: Option<OwnedFd>) {
        let Some(call) = self.control.set_interrupt(index, call) else {
            return;
        };
        let Some(pair) = self.agreement.pairs.get(index / 2) else {
            return;
        };
        let interrupt = Interrupt::new(call);
        let mut state = pair.lock();
        let Some(counters) = self.agreement.nic.counters.get(index / 2) else {
            return;
        };
        if index.is_multiple_of(2) {
            if let Some(rx) = &mut pair.inlet.lock().rx {
                interrupt.raise(&counters.rx);
                rx.interrupt = interrupt;
            }
        } else if let Some(tx) = &mut state.tx {
            interrupt.raise(&counters.tx);
            tx.interrupt = interrupt;
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        for pair in &self.agreement.pairs {
            pair.stop();
        }
        self.control.end();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a worker has panicked; see above");
            }
        }
    }
}

fn queue_index(pair: usize, side: Side) -> usize {
    match side {
        Side::Rx => 2 * pair,
        Side::Tx => 2 * pair + 1,
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(run)
}
