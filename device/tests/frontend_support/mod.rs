// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the tests of the frontend share: the device as `ferronic serve` puts it together, a cable
//! whose far end the test holds, and (in the modules) a frontend and a guest's driver.
#![allow(dead_code, missing_docs, reason = "each test uses its part")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps as _,
};
use ferronic::datapath::Dataplane;
use ferronic::datapath::workers::Workers;
use ferronic::frontend::port::{OnEnd, Port, Source};
use ferronic::nic::offload::Offloads;
use ferronic::nic::{Nic, NicConfig};
use ferronic::ring::pieces::{Pieces, PiecesMut};
use ferronic::socket::{Access, bind};
use ferronic::uplink::{Negotiated, Received, Sent, Uplink, UplinkQueue};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};

pub mod client;
pub mod guest;
pub mod recorded;

pub const PATIENCE: Duration = Duration::from_secs(10);
pub const MAC: &str = "52:54:00:12:34:56";

/// Waits until `true`.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A cable; the test is at its far end.
#[derive(Debug, Default)]
pub struct Cable {
    plugs: Vec<Arc<Plug>>,
    pub negotiated: Mutex<Vec<Negotiated>>,
    pub links: Mutex<Vec<bool>>,
    /// The next negotiation panics.
    pub trap: AtomicBool,
}

#[derive(Debug)]
struct Plug {
    from_nic: Mutex<VecDeque<Vec<u8>>>,
    arrived: Condvar,
    to_nic: Mutex<VecDeque<Vec<u8>>>,
    wake: OwnedFd,
}

impl Cable {
    fn new(pairs: u16) -> Arc<Self> {
        let plug = |_| {
            Arc::new(Plug {
                from_nic: Mutex::default(),
                arrived: Condvar::new(),
                to_nic: Mutex::default(),
                wake: eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
            })
        };
        Arc::new(Cable {
            plugs: (0..pairs).map(plug).collect(),
            ..Cable::default()
        })
    }

    /// The next packet, header included, that the NIC has sent.
    pub fn take(&self, pair: usize) -> Vec<u8> {
        let plug = &self.plugs[pair];
        let mut packets = plug.from_nic.lock();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = packets.pop_front() {
                return packet;
            }
            let late = plug.arrived.wait_until(&mut packets, deadline);
            assert!(!late.timed_out(), "no packet came out of the NIC");
        }
    }

    /// How many packets wait to be taken.
    pub fn waiting(&self, pair: usize) -> usize {
        self.plugs[pair].from_nic.lock().len()
    }

    /// Sends the NIC a frame, behind an empty header.
    pub fn give(&self, pair: usize, frame: &[u8]) {
        let plug = &self.plugs[pair];
        let header_len = self.negotiated.lock().last().map_or(12, |n| n.header_len);
        let packet = [&vec![0; header_len], frame].concat();
        plug.to_nic.lock().push_back(packet);
        rustix::io::write(&plug.wake, &1u64.to_ne_bytes()).unwrap();
    }

    /// How many frames the NIC has not taken yet.
    pub fn untaken(&self, pair: usize) -> usize {
        self.plugs[pair].to_nic.lock().len()
    }
}

#[derive(Debug)]
struct NearEnd(Arc<Cable>);

#[derive(Debug)]
struct NearPlug(Arc<Plug>);

impl UplinkQueue for NearPlug {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.wake.as_fd())
    }

    fn send(&mut self, packet: Pieces<'_>) -> Sent {
        let mut bytes = vec![0; packet.len()];
        assert_eq!(packet.copy_to(0, &mut bytes), bytes.len());
        self.0.from_nic.lock().push_back(bytes);
        self.0.arrived.notify_all();
        Sent::Done
    }

    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received {
        match self.0.to_nic.lock().pop_front() {
            Some(packet) => Received::Packet(room.copy_from(0, &packet)),
            None => Received::Empty,
        }
    }
}

impl Uplink for NearEnd {
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn take_queues(&mut self) -> Vec<Box<dyn UplinkQueue>> {
        let queue = |plug: &Arc<Plug>| Box::new(NearPlug(plug.clone())) as Box<dyn UplinkQueue>;
        self.0.plugs.iter().map(queue).collect()
    }

    fn negotiate(&self, negotiated: Negotiated) -> io::Result<()> {
        assert!(
            !self.0.trap.swap(false, Ordering::AcqRel),
            "as the test wants it"
        );
        self.0.negotiated.lock().push(negotiated);
        Ok(())
    }

    fn set_link(&self, up: bool) -> io::Result<()> {
        self.0.links.lock().push(up);
        Ok(())
    }
}

/// The whole device behind its vhost-user socket, with a control thread of its own.
pub struct Device {
    pub nic: Arc<Nic>,
    pub cable: Arc<Cable>,
    path: PathBuf,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    // Last: the directory goes when the socket has gone.
    _directory: Option<tempfile::TempDir>,
}

struct Stop {
    fd: OwnedFd,
    requested: AtomicBool,
    turns: AtomicU64,
}

struct Stopper(Arc<Stop>);

impl MutEventSubscriber for Stopper {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.0.requested.store(true, Ordering::Release);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        ops.add(Events::new(&self.0.fd, EventSet::IN)).unwrap();
    }
}

impl Device {
    /// A device with so many queue pairs, at a path of its own.
    pub fn new(pairs: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut device = Device::at(&directory.path().join("vhost-user"), pairs);
        device._directory = Some(directory);
        device
    }

    /// One at `path`.
    pub fn at(path: &Path, pairs: u16) -> Self {
        let source = Source::Bound(bind(path, Access::Umask).unwrap());
        Device::on(source, path, pairs)
    }

    /// One that takes frontends from `source`.
    pub fn on(source: Source, path: &Path, pairs: u16) -> Self {
        let nic = Arc::new(Nic::new(NicConfig {
            mac: MAC.parse().unwrap(),
            mtu: 1500,
            speed: 10_000,
            queue_pairs: pairs,
            packed: true,
            rss: true,
            hash_report: true,
            offloads: Offloads::ALL,
            uplink: "test".into(),
        }));
        let cable = Cable::new(pairs);
        let stop = Arc::new(Stop {
            fd: eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
            requested: AtomicBool::new(false),
            turns: AtomicU64::new(0),
        });
        let (ready, is_ready) = mpsc::channel();
        let thread = {
            let (nic, near, stop) = (nic.clone(), NearEnd(cable.clone()), stop.clone());
            thread::spawn(move || {
                let dataplane =
                    Dataplane::start(nic.clone(), Box::new(near), &Workers::default()).unwrap();
                let ended = stop.clone();
                let on_end = OnEnd(Box::new(move || end(&ended)));
                let port = Port::new(source, nic, Arc::new(dataplane), on_end).unwrap();
                let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
                manager.add_subscriber(Box::new(Stopper(stop.clone())));
                manager.add_subscriber(Box::new(port));
                ready.send(()).unwrap();
                while !stop.requested.load(Ordering::Acquire) {
                    manager.run().unwrap();
                    stop.turns.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        is_ready.recv().unwrap();
        Device {
            nic,
            cable,
            path: path.to_owned(),
            stop,
            thread: Some(thread),
            _directory: None,
        }
    }

    /// Where its socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rings that are active now.
    pub fn active(&self) -> u32 {
        self.nic.frontend().map_or(0, |info| info.rings_active)
    }

    /// Waits until the control thread sleeps.
    pub fn is_quiet(&self) {
        let turns = || self.stop.turns.load(Ordering::Relaxed);
        eventually("the control thread sleeps", || {
            let before = turns();
            thread::sleep(Duration::from_millis(20));
            turns() == before
        });
    }

    /// Whether the control thread has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

fn end(stop: &Stop) {
    rustix::io::write(&stop.fd, &1u64.to_ne_bytes()).unwrap();
}

impl Drop for Device {
    /// Ends it, and fails the test if that takes for ever or it has panicked.
    fn drop(&mut self) {
        end(&self.stop);
        let Some(thread) = self.thread.take() else {
            return;
        };
        if thread::panicking() {
            return;
        }
        eventually("the control thread ends", || thread.is_finished());
        thread.join().unwrap();
    }
}

/// A frontend that is through the handshake of the netdev attachment.
pub fn netdev(device: &Device) -> client::Client {
    let mut client = client::Client::connect(device.path());
    client.handshake(client::NETDEV);
    client
}

/// A frontend that is through the handshake of the device attachment.
pub fn device_attachment(device: &Device) -> client::Client {
    let mut client = client::Client::connect(device.path());
    client.handshake(client::DEVICE);
    client
}

/// Packets pass both ways through every pair, each with its content and its interrupt.
pub fn traffic(device: &Device, driver: &mut guest::Driver, pairs: usize, seed: usize) {
    use guest::{RING_SIZE, frame};
    for n in seed..seed + 3 * usize::from(RING_SIZE) {
        let pair = n % pairs;
        driver.send(pair, &frame(n));
        let sent = device.cable.take(pair);
        let header = vec![0; driver.header_len];
        assert_eq!(sent, [header, frame(n)].concat());
        driver.rings[2 * pair + 1].wait();
        device.cable.give(pair, &frame(n + 1));
        assert_eq!(driver.receive(pair), frame(n + 1));
    }
}

/// A well-behaved frontend is served.
pub fn works(device: &Device) {
    use client::FEATURES;
    use guest::{Driver, HEADER, frame};
    let mut client = netdev(device);
    let mut driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    driver.send(0, &frame(7));
    assert_eq!(device.cable.take(0)[HEADER..], frame(7));
    driver.rings[1].wait();
    device.cable.give(0, &frame(8));
    assert_eq!(driver.receive(0), frame(8));
    drop(client);
    eventually("it is gone", || device.nic.frontend().is_none());
}
