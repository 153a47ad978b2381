// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo lab demo`: the main job from end to end, with a report.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::backend::{Backend, Options, Uplink};
use crate::cable::{Cable, INTERFACE};
use crate::carrier::{Delay, Watch};
use crate::driver::Driver;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::machine::nic::Attach;
use crate::net;
use crate::progress::Step;
use crate::traffic::{self, Client, Direction, Transfer};

/// How long each throughput is measured.
const SECONDS: u32 = 5;
/// How often the cable is pulled.
const FLAPS: u32 = 5;
/// How long it stays out, and in.
const FLAP_PAUSE: Duration = Duration::from_millis(700);
/// How long the traffic under way may take to flow again. TCP doubles its time-out with every loss,
/// so it may sit still for some seconds before it tries again.
const RESUME: Duration = Duration::from_secs(10);

/// Options of `cargo lab demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How the NIC is plugged in
    #[arg(long, value_enum, default_value = "netdev")]
    pub attach: Attach,
    /// Where the cable goes
    #[arg(long, value_enum, default_value = "tap")]
    pub uplink: Uplink,
    /// Write the figures to this file too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What `--json` writes.
#[derive(Debug, Serialize)]
struct Figures {
    driver: &'static str,
    attach: &'static str,
    uplink: &'static str,
    accel: &'static str,
    guest_to_host_gbps: f64,
    host_to_guest_gbps: f64,
    guest_to_host_retransmits: u64,
    host_to_guest_retransmits: u64,
    carrier_down_ms: f64,
    carrier_up_ms: f64,
    carrier_error_ms: f64,
    flaps: u32,
}

/// Runs the demonstration.
pub fn run(lab: &Lab, args: &Args) -> Result<()> {
    if args.uplink.needs_tap() {
        net::make_tap(lab, false)?;
    }
    let start = Instant::now();
    let backend = Backend::start(lab, &Options::new(args.uplink))?;
    let listening = start.elapsed();

    let step = Step::start(format!("booting the guest ({})", lab.accel.name()));
    let machine = Machine::boot(lab, &lab.spec("demo", backend.nic(args.attach, 1)?))?;
    let mut cable = Cable::lay(lab, &machine.guest, args.uplink)?;
    step.done();

    let to_host = measure(&machine, &cable, Direction::GuestToHost)?;
    let to_guest = measure(&machine, &cable, Direction::HostToGuest)?;
    let (down, up) = flap(lab, &machine, &backend, &mut cable, args.uplink)?;
    let stats = backend.control(&["stats"])?;
    let status = backend.control(&["status"])?;

    let (qemu, boot_time) = (machine.command_line.clone(), machine.boot_time);
    machine.quit()?;
    backend.terminate()?;

    let figures = Figures {
        driver: lab.driver.name(),
        attach: args.attach.name(),
        uplink: args.uplink.name(),
        accel: lab.accel.name(),
        guest_to_host_gbps: to_host.gbps,
        host_to_guest_gbps: to_guest.gbps,
        guest_to_host_retransmits: to_host.retransmits,
        host_to_guest_retransmits: to_guest.retransmits,
        carrier_down_ms: down.ms,
        carrier_up_ms: up.ms,
        carrier_error_ms: down.error_ms.max(up.error_ms),
        flaps: FLAPS,
    };
    let mut report = report(&figures, lab.driver);
    let _ = writeln!(
        report,
        "  backend listening after {} ms, guest up after {:.1} s\n",
        listening.as_millis(),
        boot_time.as_secs_f64()
    );
    let _ = writeln!(
        report,
        "The NIC at the end\n{}\n{}",
        indent(&status),
        indent(&stats)
    );
    report += &by_hand(args.uplink, &backend.command_line(), &qemu);
    print!("{report}");
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&figures)?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn measure(machine: &Machine, cable: &Cable, direction: Direction) -> Result<Transfer> {
    let way = match direction {
        Direction::GuestToHost => "guest to host",
        Direction::HostToGuest => "host to guest",
    };
    let step = Step::start(format!("iperf3, {way}"));
    let transfer = Client::new(&cable.server, direction, SECONDS).run(&machine.guest)?;
    step.done();
    Ok(transfer)
}

/// Pulls the cable and puts it back under traffic; the medians of how long the guest takes to see it.
fn flap(
    lab: &Lab,
    machine: &Machine,
    backend: &Backend,
    cable: &mut Cable,
    uplink: Uplink,
) -> Result<(Delay, Delay)> {
    let step = Step::start(format!("pulling the cable {FLAPS} times under traffic"));
    let client = Client::new(&cable.server, Direction::GuestToHost, 3600);
    let flow = client.start(&machine.guest)?;
    let watch = Watch::start(&machine.guest, INTERFACE)?;
    let (mut downs, mut ups) = (Vec::new(), Vec::new());
    for _ in 0..FLAPS {
        std::thread::sleep(FLAP_PAUSE);
        downs.push(watch.time(false, || backend.set_link(false))?);
        std::thread::sleep(FLAP_PAUSE);
        ups.push(watch.time(true, || backend.set_link(true))?);
    }
    drop(watch);
    if matches!(uplink, Uplink::User | Uplink::SwitchUser) {
        // passt ends TCP connections and makes its own on the other side. After losses it may
        // answer the guest's TCP for tens of seconds with nothing, also with no ferronic about
        // (`passt --vhost-user`, QMP's set_link). So a new connection has to do.
        flow.kill()?;
        cable.lay_again(lab, &machine.guest, uplink)?;
        Client::new(&cable.server, Direction::GuestToHost, 1).run(&machine.guest)?;
    } else {
        traffic::wait_flow(&machine.guest, Direction::GuestToHost, 1_000_000, RESUME)?;
        flow.kill()?;
    }
    step.done();
    Ok((median(downs), median(ups)))
}

fn median(mut delays: Vec<Delay>) -> Delay {
    delays.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    delays.get(delays.len() / 2).copied().unwrap_or(Delay {
        ms: f64::NAN,
        error_ms: f64::NAN,
    })
}

fn report(f: &Figures, driver: Driver) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "\nFerronic: {} attachment, uplink {}, guest on {}, {}",
        f.attach,
        f.uplink,
        f.accel,
        driver.description()
    );
    let _ = writeln!(
        text,
        "  guest to host   {:6.2} Gb/s   {} segments sent again",
        f.guest_to_host_gbps, f.guest_to_host_retransmits
    );
    let _ = writeln!(
        text,
        "  host to guest   {:6.2} Gb/s   {} segments sent again",
        f.host_to_guest_gbps, f.host_to_guest_retransmits
    );
    let _ = writeln!(
        text,
        "  carrier down    {:6.1} ms     median of {}, from `ferronic link down` to the guest's kernel",
        f.carrier_down_ms, f.flaps
    );
    let _ = writeln!(
        text,
        "  carrier up      {:6.1} ms     announcing it; clocks compared to within {:.1} ms",
        f.carrier_up_ms, f.carrier_error_ms
    );
    text
}

fn by_hand(uplink: Uplink, backend: &str, qemu: &str) -> String {
    let mut text =
        String::from("The same by hand (the sockets' directory is gone: choose another)\n");
    if uplink.needs_tap() {
        let _ = writeln!(
            text,
            "  ip tuntap add dev {0} mode tap vnet_hdr && ip addr add {1}/24 dev {0} && ip link set {0} up",
            net::TAP,
            net::HOST_IP
        );
    }
    let _ = writeln!(text, "  {backend}");
    let _ = writeln!(text, "  {qemu}");
    text
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
