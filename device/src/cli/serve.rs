// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic serve`: the NIC itself.
//!
//! Puts the layers together and runs the control thread's event loop: control socket, signals, and
//! the frontend's port.

use std::sync::{Arc, Weak};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use parking_lot::Mutex;
use serde_json::json;

use super::serve_options::{LinkMode, ServeArgs, ServeOptions};
use super::{Failure, print_json};
use crate::control::commands::Commands;
use crate::control::server::Server;
use crate::control::stop::Stop;
use crate::datapath::Dataplane;
use crate::frontend::port::{OnEnd, Port, Source};
use crate::nic::Nic;
use crate::socket::{Access, bind};
use crate::uplink::{self, OpenOptions, Uplink};

/// The control thread's event loop.
pub type EventLoop = EventManager<Box<dyn MutEventSubscriber>>;

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
    // Now, because an inherited descriptor must be taken before we open any of our own.
    let socket = options.frontend.open().map_err(operation)?;

    let stop = Stop::new().map_err(while_doing("make the stop request"))?;
    stop.on_signals().map_err(while_doing("catch signals"))?;
    let mut event_loop: EventLoop =
        EventManager::new().map_err(while_doing("make the event loop"))?;
    event_loop.add_subscriber(Box::new(stop.subscriber()));

    let carrier = Arc::new(Carrier::default());
    let uplink = open_uplink(&options, &carrier)?;
    let nic = Arc::new(Nic::new(options.nic_config(uplink.offloads())));
    carrier.connect(&nic);
    match options.link {
        LinkMode::Up => {}
        LinkMode::Down => {
            nic.set_link(false);
        }
        LinkMode::Follow => {
            let follower = super::follow::Follower::new(&nic);
            let follower = follower.map_err(while_doing("follow the uplink"))?;
            event_loop.add_subscriber(Box::new(follower));
        }
    }
    let mut control = None;
    if let Some(path) = &options.control {
        let bound =
            bind(path, Access::Owner).map_err(|e| Failure::Operation(format!("--control: {e}")))?;
        let follow = options.link == LinkMode::Follow;
        let commands = Commands::new(Arc::clone(&nic), stop.clone(), follow);
        let server =
            Server::new(bound, &nic, commands).map_err(while_doing("make the control socket"))?;
        control = Some(event_loop.add_subscriber(Box::new(server)));
    }
    plug_in(uplink, socket, &nic, &stop, &mut event_loop)?;
    announce(&options);

    while !stop.requested() {
        event_loop.run().map_err(while_doing("wait for events"))?;
    }
    log::info!("ending");
    // The control socket goes last: its end tells `ferronic quit` that all is gone.
    let control = control.map(|id| event_loop.remove_subscriber(id));
    drop(event_loop);
    drop(control);
    Ok(())
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
fn open_uplink(options: &ServeOptions, carrier: &Arc<Carrier>) -> Result<Box<dyn Uplink>, Failure> {
    let open = OpenOptions {
        queue_pairs: options.queue_pairs,
        mtu: options.mtu,
        passt: options.passt.clone(),
    };
    let carrier = Arc::clone(carrier);
    uplink::open(&options.uplink, &open, Arc::new(move |up| carrier.set(up))).map_err(operation)
}

/// Starts the workers and adds the frontend's port to the event loop.
fn plug_in(
    uplink: Box<dyn Uplink>,
    socket: Source,
    nic: &Arc<Nic>,
    stop: &Stop,
    event_loop: &mut EventLoop,
) -> Result<(), Failure> {
    let dataplane =
        Dataplane::start(Arc::clone(nic), uplink).map_err(while_doing("start the workers"))?;
    let stop = stop.clone();
    let on_end = OnEnd(Box::new(move || stop.request()));
    let port = Port::new(socket, Arc::clone(nic), Arc::new(dataplane), on_end);
    event_loop.add_subscriber(Box::new(
        port.map_err(while_doing("serve the frontend's socket"))?,
    ));
    Ok(())
}

fn announce(options: &ServeOptions) {
    let random = match options.mac_is_random {
        true => " (random; --mac keeps it)",
        false => "",
    };
    log::info!(
        "mac {}{random}, mtu {}, queue pairs {}, uplink {}",
        options.mac,
        options.mtu,
        options.queue_pairs,
        options.uplink
    );
    match &options.control {
        Some(path) => log::info!("control socket {}", path.display()),
        None => log::info!("no control socket: --control PATH makes one"),
    }
    log::info!("waiting for a frontend on {}", options.frontend);
}

fn operation(error: impl std::fmt::Display) -> Failure {
    Failure::Operation(error.to_string())
}

fn while_doing<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::Operation(format!("cannot {doing}: {error}"))
}
