// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo lab shell`: the guest's console in this terminal.

use anyhow::Result;
use rustix::termios::tcgetwinsize;

use crate::backend::{Backend, Options, Uplink};
use crate::lab::Lab;
use crate::machine::Machine;
use crate::machine::nic::Attach;
use crate::net;
use crate::progress::say;

/// Options of `cargo lab shell`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How the NIC is plugged in
    #[arg(long, value_enum, default_value = "netdev")]
    pub attach: Attach,
    /// Where the cable goes
    #[arg(long, value_enum, default_value = "tap")]
    pub uplink: Uplink,
    /// Pairs of queues
    #[arg(long, default_value_t = 1)]
    pub queues: usize,
}

/// Runs a guest until its shell ends.
pub fn run(lab: &Lab, args: &Args) -> Result<()> {
    if args.uplink.needs_tap() {
        net::make_tap(lab, args.queues > 1)?;
    }
    let backend = Backend::start(
        lab,
        &Options {
            queues: args.queues,
            ..Options::new(args.uplink)
        },
    )?;
    let mut spec = lab.spec("shell", backend.nic(args.attach, args.queues)?);
    spec.shell = true;
    match args.uplink {
        Uplink::Tap | Uplink::Switch => {
            spec.init.push(format!("lab.address={}/24", net::GUEST_IP));
            say(format!("the host is {} to the guest", net::HOST_IP));
        }
        Uplink::User | Uplink::SwitchUser => spec.init.push("lab.dhcp".into()),
        Uplink::Loopback => spec.init.push(format!("lab.address={}/24", net::GUEST_IP)),
    }
    if let Ok(size) = tcgetwinsize(std::io::stdout()) {
        spec.init
            .push(format!("lab.tty={}x{}", size.ws_row, size.ws_col));
    }
    say(format!("the backend: {}", backend.command_line()));
    say(format!(
        "in another terminal: {} link down --control {}",
        lab.ferronic.display(),
        backend.control.display()
    ));
    say("`exit` ends the guest, Ctrl-A X ends QEMU");
    let machine = Machine::boot(lab, &spec)?;
    machine.wait()?;
    backend.terminate()
}
