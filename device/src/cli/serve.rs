// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic serve`: the NIC itself.
//!
//! Puts the layers together and runs the control thread's event loop: control socket, signals, and
//! what `plug_in` adds.

use std::sync::Arc;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use serde_json::json;

use super::frontend_socket::FrontendSocket;
use super::serve_options::{LinkMode, ServeArgs, ServeOptions};
use super::{Failure, print_json};
use crate::control::commands::Commands;
use crate::control::listen::{Access, bind};
use crate::control::server::Server;
use crate::control::stop::Stop;
use crate::nic::Nic;
use crate::nic::offload::Offloads;

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

    let uplink = open_uplink(&options)?;
    let nic = Arc::new(Nic::new(options.nic_config(uplink.offloads)));
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
    if let Some(path) = &options.control {
        let bound =
            bind(path, Access::Owner).map_err(|e| Failure::Operation(format!("--control: {e}")))?;
        let follow = options.link == LinkMode::Follow;
        let commands = Commands::new(Arc::clone(&nic), stop.clone(), follow);
        let server =
            Server::new(bound, &nic, commands).map_err(while_doing("make the control socket"))?;
        event_loop.add_subscriber(Box::new(server));
    }
    let plugged = plug_in(&options, uplink, socket, &nic, &stop, &mut event_loop)?;
    announce(&options);

    while !stop.requested() {
        event_loop.run().map_err(while_doing("wait for events"))?;
    }
    log::info!("ending");
    // The control socket, in the event loop, goes last: its end tells `ferronic quit` that all is
    // gone.
    drop(plugged);
    drop(event_loop);
    Ok(())
}

// SEAM (lead): the three items below are where uplink, workers and frontend come in.

/// The opened uplink. To become `Box<dyn Uplink>`.
struct OpenedUplink {
    offloads: Offloads,
}

/// Opens the uplink, before the NIC is made: its offloads are the NIC's.
fn open_uplink(_options: &ServeOptions) -> Result<OpenedUplink, Failure> {
    Ok(OpenedUplink {
        offloads: Offloads::NONE,
    })
}

/// Makes the workers and the frontend and adds to the event loop what they need on the control
/// thread. What it returns lives until the process is asked to stop, and ends threads and children
/// when dropped.
fn plug_in(
    _options: &ServeOptions,
    _uplink: OpenedUplink,
    socket: FrontendSocket,
    _nic: &Arc<Nic>,
    _stop: &Stop,
    _event_loop: &mut EventLoop,
) -> Result<impl Sized + use<>, Failure> {
    Ok(socket)
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
