// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic serve`: the NIC itself.
//!
//! Puts the layers together and runs the control thread's event loop: control socket, signals, and
//! the frontend's port.

use std::path::Path;
use std::sync::{Arc, Weak};

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;

use super::serve_options::{LinkMode, Plan, ServeArgs, ServeOptions, Uplink};
use super::{Failure, print_json};
use crate::control::commands::Commands;
use crate::control::ports::{EventLoop, PortSpec, Ports, random_mac};
use crate::control::server::Server;
use crate::control::stop::Stop;
use crate::datapath::Dataplane;
use crate::datapath::workers::Workers;
use crate::frontend::port::{OnEnd, Port, Source};
use crate::nic::{MacAddress, Nic};
use crate::socket::{Access, bind};
use crate::switch::vlan::VlanMode;
use crate::switch::{UPLINK_NAME, UplinkPort};
use crate::uplink::{self, OpenOptions, UplinkSpec};

/// Prints what management software wants to know of a backend program (QEMU's
/// docs/interop/vhost-user.json, `VHostUserBackendCapabilities`).
pub fn print_capabilities() -> Result<(), Failure> {
    print_json(&json!({"type": "net"}))
}

/// Runs `ferronic serve`.
pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let options = ServeOptions::new(args)?;
    // Opens nothing: it writes to standard error.
    env_logger::Builder::new()
        .parse_filters(&options.log)
        .init();
    match &options.plan {
        Plan::Nic {
            frontend,
            uplink,
            mac,
            mac_is_random,
        } => {
            // Now, because an inherited descriptor must be taken before we open any of our own.
            let socket = frontend.open().map_err(operation)?;
            let process = Process::new()?;
            let random = match mac_is_random {
                true => " (random; --mac keeps it)",
                false => "",
            };
            log::info!(
                "mac {mac}{random}, mtu {}, queue pairs {}, uplink {uplink}",
                options.mtu,
                options.queue_pairs,
            );
            let process = serve_nic(process, &options, socket, uplink, *mac)?;
            log::info!("waiting for a frontend on {frontend}");
            process.run(|_| {})
        }
        Plan::Switch {
            ports,
            uplink,
            uplink_vlans,
        } => serve_switch(&options, ports, uplink.as_ref(), uplink_vlans),
    }
}

/// The control thread and what ends it.
struct Process {
    stop: Stop,
    event_loop: EventLoop,
    /// The control socket's place in the event loop.
    control: Option<SubscriberId>,
}

impl Process {
    fn new() -> Result<Self, Failure> {
        let stop = Stop::new().map_err(while_doing("make the stop request"))?;
        stop.on_signals().map_err(while_doing("catch signals"))?;
        let mut event_loop: EventLoop =
            EventManager::new().map_err(while_doing("make the event loop"))?;
        event_loop.add_subscriber(Box::new(stop.subscriber()));
        Ok(Process {
            stop,
            event_loop,
            control: None,
        })
    }

    /// Makes the control socket, if there is to be one.
    fn listen(&mut self, path: Option<&Path>, commands: Commands) -> Result<(), Failure> {
        let Some(path) = path else {
            log::info!("no control socket: --control PATH makes one");
            return Ok(());
        };
        let bound =
            bind(path, Access::Owner).map_err(|e| Failure::Operation(format!("--control: {e}")))?;
        let server =
            Server::new(bound, commands).map_err(while_doing("make the control socket"))?;
        self.control = Some(self.event_loop.add_subscriber(Box::new(server)));
        log::info!("control socket {}", path.display());
        Ok(())
    }

    /// Serves until asked to stop; `between` looks after the event loop when it is not at work.
    fn run(mut self, mut between: impl FnMut(&mut EventLoop)) -> Result<(), Failure> {
        while !self.stop.requested() {
            let events = self.event_loop.run();
            events.map_err(while_doing("wait for events"))?;
            between(&mut self.event_loop);
        }
        log::info!("ending");
        // The control socket goes last: its end tells `ferronic quit` that all is gone.
        let control = self.control.map(|id| self.event_loop.remove_subscriber(id));
        drop(self.event_loop);
        drop(control);
        Ok(())
    }
}

fn serve_nic(
    mut process: Process,
    options: &ServeOptions,
    socket: Source,
    spec: &UplinkSpec,
    mac: MacAddress,
) -> Result<Process, Failure> {
    let carrier = Arc::new(Carrier::default());
    let uplink = open_uplink(options, spec, options.queue_pairs, &carrier)?;
    let config = options.nic_config(mac, spec.to_string(), uplink.offloads());
    let nic = Arc::new(Nic::new(config));
    carrier.connect(&nic);
    match options.link {
        LinkMode::Up => {}
        LinkMode::Down => {
            nic.set_link(false);
        }
        LinkMode::Follow => {
            let follower = super::follow::Follower::new(&nic);
            let follower = follower.map_err(while_doing("follow the uplink"))?;
            process.event_loop.add_subscriber(Box::new(follower));
        }
    }
    let follow = options.link == LinkMode::Follow;
    let commands = Commands::new(Arc::clone(&nic), process.stop.clone(), follow);
    process.listen(options.control.as_deref(), commands)?;
    let workers = &options.workers;
    plug_in(
        uplink,
        workers,
        socket,
        &nic,
        &process.stop,
        &mut process.event_loop,
    )?;
    Ok(process)
}

fn serve_switch(
    options: &ServeOptions,
    specs: &[PortSpec],
    uplink: Option<&UplinkSpec>,
    vlans: &VlanMode,
) -> Result<(), Failure> {
    take_descriptors();
    let mut process = Process::new()?;
    let ports = Ports::new(options.port_defaults());
    let name = Uplink::Switch(uplink.cloned()).to_string();
    log::info!(
        "{name}, mtu {}, queue pairs {} a port",
        options.mtu,
        options.queue_pairs
    );
    if let Some(spec) = uplink {
        let carrier = Arc::new(Carrier::default());
        let opened = open_uplink(options, spec, 1, &carrier)?;
        // Its address is nobody's; it is there for its link and its counters.
        let mac = random_mac().map_err(operation)?;
        let nic = ports.nic(UPLINK_NAME, mac, spec.to_string());
        carrier.connect(&nic);
        let port = UplinkPort::start(Arc::clone(ports.switch()), nic, vlans.clone(), opened);
        let port = port.map_err(while_doing("connect the switch to its uplink"))?;
        ports.set_uplink(port, vlans.clone());
    }
    let commands = Commands::for_switch(Arc::clone(&ports), name, process.stop.clone());
    process.listen(options.control.as_deref(), commands)?;
    for spec in specs {
        ports
            .add(spec)
            .map_err(|e| Failure::Operation(format!("--port: {e}")))?;
    }
    ports.apply(&mut process.event_loop);
    let result = process.run(|event_loop| ports.apply(event_loop));
    ports.close();
    result
}

/// Takes all the descriptors that we may have. Each port whose frontend is connected needs some
/// thirty, and 1024 is what a process may usually open without asking.
fn take_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        log::warn!("cannot open more files than usual, so there cannot be many ports: {e}");
    }
}

/// The uplink's carrier, as last told; the NIC, once there is one, is told of changes.
#[derive(Default)]
struct Carrier(Mutex<(Option<bool>, Weak<Nic>)>);

impl Carrier {
    fn set(&self, up: bool) {
        let mut carrier = self.0.lock();
        carrier.0 = Some(up);
        if let Some(nic) = carrier.1.upgrade() {
            nic.set_uplink(up);
        }
    }

    fn connect(&self, nic: &Arc<Nic>) {
        let mut carrier = self.0.lock();
        carrier.1 = Arc::downgrade(nic);
        if let Some(up) = carrier.0 {
            nic.set_uplink(up);
        }
    }
}

/// Opens the uplink, before the NIC is made: its offloads are the NIC's.
fn open_uplink(
    options: &ServeOptions,
    spec: &UplinkSpec,
    queue_pairs: u16,
    carrier: &Arc<Carrier>,
) -> Result<Box<dyn uplink::Uplink>, Failure> {
    let open = OpenOptions {
        queue_pairs,
        mtu: options.mtu,
        passt: options.passt.clone(),
    };
    let carrier = Arc::clone(carrier);
    uplink::open(spec, &open, Arc::new(move |up| carrier.set(up))).map_err(operation)
}

/// Starts the workers and adds the frontend's port to the event loop.
fn plug_in(
    uplink: Box<dyn uplink::Uplink>,
    workers: &Workers,
    socket: Source,
    nic: &Arc<Nic>,
    stop: &Stop,
    event_loop: &mut EventLoop,
) -> Result<(), Failure> {
    let dataplane = Dataplane::start(Arc::clone(nic), uplink, workers)
        .map_err(while_doing("start the workers"))?;
    let stop = stop.clone();
    let on_end = OnEnd(Box::new(move || stop.request()));
    let port = Port::new(socket, Arc::clone(nic), Arc::new(dataplane), on_end);
    event_loop.add_subscriber(Box::new(
        port.map_err(while_doing("serve the frontend's socket"))?,
    ));
    Ok(())
}

fn operation(error: impl std::fmt::Display) -> Failure {
    Failure::Operation(error.to_string())
}

fn while_doing<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::Operation(format!("cannot {doing}: {error}"))
}
