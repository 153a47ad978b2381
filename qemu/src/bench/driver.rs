// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guest drivers: ours beside Linux's own, on the same kernel, the same device, in the same run.
//!
//! Two kinds of figures. Rates and delays are measured as users would, and vary with the host. What
//! a packet costs the guest is counted in instructions: QEMU translates the guest one instruction a
//! nanosecond of its clock (`-icount`), so the guest's clock counts the instructions of its one CPU,
//! and the host's load is nothing to it. A program in the guest uses up what nobody else wants
//! (`qemu/guest/soak`); what is missing to what it gets when it is alone is what the load has cost.
//! Everything counts: the driver, the stack above it, iperf3. The drivers differ, the rest is the same.

use std::time::Duration;

use anyhow::{Context, Result};

use super::case::{Better, Case, rounded};
use super::cost::Meter;
use super::host::Weather;
use super::samples::Samples;
use super::setups::{Rig, Setup};
use super::{Args, Findings};
use crate::accel::Accel;
use crate::backend::Uplink;
use crate::cable::INTERFACE;
use crate::driver::Driver;
use crate::guest::{Guest, Running};
use crate::lab::Lab;
use crate::machine::nic::Attach;
use crate::net::{HOST_IP, TAP};
use crate::progress::{Step, say};
use crate::traffic::{Client, Direction};

/// The devices. Ours with several interrupts, ours with one, and one that is not ours.
const DEVICES: [(&str, Setup); 3] = [
    ("netdev", Setup::Ours(Attach::Netdev, Uplink::Tap, 1)),
    ("device", Setup::Ours(Attach::Device, Uplink::Tap, 1)),
    ("qemu", Setup::QemuTap(1)),
];
const DRIVERS: [Driver; 2] = [Driver::Ferronic, Driver::C];
/// What the stock driver is called in reports.
const PEER: &str = "virtio_net";

/// Payload of a small datagram, as in the other benches.
const DATAGRAM: u32 = 64;
/// Octets of a frame that pktgen sends: the smallest that Ethernet knows, less the checksum.
const FRAME: u32 = 60;
/// Where the program that uses up what is left keeps its account.
const SOAKED: &str = "/run/soak";
/// How long it is left alone before what it gets is looked at, and for how long that is.
const SETTLE: Duration = Duration::from_secs(3);
const CALIBRATION: Duration = Duration::from_secs(10);
/// How long a guest may take for a load, which `-icount` makes slow.
const LIMIT: Duration = Duration::from_secs(600);

/// What is measured: name, unit, which way is up.
type Figure = (&'static str, &'static str, Better);

const TO_HOST: Figure = ("tcp_guest_to_host", "Gb/s", Better::More);
const TO_GUEST: Figure = ("tcp_host_to_guest", "Gb/s", Better::More);
const IRQS_OUT: Figure = ("tcp_guest_to_host_irq", "per 1000 packets", Better::Less);
const IRQS_IN: Figure = ("tcp_host_to_guest_irq", "per 1000 packets", Better::Less);
const PKTGEN: Figure = ("pktgen_transmit", "kpackets/s", Better::More);
const IRQS_PKTGEN: Figure = ("pktgen_transmit_irq", "per 1000 packets", Better::Less);
const KICKS_PKTGEN: Figure = ("pktgen_transmit_kicks", "per 1000 packets", Better::Less);
const IRQS_UDP: Figure = ("udp_receive_irq", "per 1000 packets", Better::Less);
const UDP: Figure = ("udp_receive", "kdatagrams/s", Better::More);
const ROUND_TRIP: Figure = ("round_trip", "us", Better::Less);
const COST_PKTGEN: Figure = ("pktgen_transmit_cost", "instructions/packet", Better::Less);
const COST_UDP: Figure = ("udp_receive_cost", "instructions/packet", Better::Less);
const COST_PING: Figure = ("round_trip_cost", "instructions/ping", Better::Less);
const COST_OUT: Figure = ("tcp_guest_to_host_cost", "instructions/KiB", Better::Less);
const COST_IN: Figure = ("tcp_host_to_guest_cost", "instructions/KiB", Better::Less);

const FIGURES: [Figure; 15] = [
    TO_HOST,
    TO_GUEST,
    PKTGEN,
    IRQS_PKTGEN,
    KICKS_PKTGEN,
    UDP,
    IRQS_UDP,
    ROUND_TRIP,
    IRQS_OUT,
    IRQS_IN,
    COST_PKTGEN,
    COST_UDP,
    COST_PING,
    COST_OUT,
    COST_IN,
];

/// One value.
#[derive(Debug)]
struct Measured {
    device: &'static str,
    driver: Driver,
    figure: Figure,
    value: f64,
}

/// Measures everything.
pub fn run(lab: &Lab, args: &Args, weather: &mut Weather) -> Result<Findings> {
    let mut order: Vec<(&'static str, Setup, Driver)> = DEVICES
        .into_iter()
        .flat_map(|(name, setup)| DRIVERS.map(|driver| (name, setup, driver)))
        .collect();
    let mut measured = Vec::new();
    let mut note = |all: Vec<(Figure, f64)>, device, driver, what: &str| {
        let said: Vec<_> = all
            .iter()
            .map(|((name, unit, _), value)| format!("{name} {} {unit}", rounded(*value)))
            .collect();
        say(format!("{what}: {}", said.join(", ")));
        measured.extend(all.into_iter().map(|(figure, value)| Measured {
            device,
            driver,
            figure,
            value,
        }));
    };
    for round in 1..=args.rounds {
        for &(device, setup, driver) in &order {
            let what = format!(
                "driver round {round} of {}: {} on {device}",
                args.rounds,
                driver.name()
            );
            let step = Step::start(&what);
            let all = rates(lab, setup, driver, args, weather).context(what.clone())?;
            step.done();
            note(all, device, driver, &what);
        }
        // As in the other benches: nobody always comes after the same neighbour.
        order.rotate_left(1);
    }
    for (device, setup, driver) in order {
        let what = format!("driver cost: {} on {device}", driver.name());
        let step = Step::start(&what);
        let all = costs(lab, setup, driver).context(what.clone())?;
        step.done();
        note(all, device, driver, &what);
    }
    Ok(Findings {
        cases: cases(&measured),
        details: String::new(),
    })
}

fn rates(
    lab: &Lab,
    setup: Setup,
    driver: Driver,
    args: &Args,
    weather: &mut Weather,
) -> Result<Vec<(Figure, f64)>> {
    let rig = Rig::start_with(lab, setup, |spec| spec.driver = Some(driver))?;
    let guest = &rig.machine.guest;
    let server = &rig.cable.server;
    // Not counted: the guest's code is translated when it first runs.
    Client::new(server, Direction::GuestToHost, 1)
        .run(guest)
        .context("warm-up")?;
    let mut all = Vec::new();
    for (direction, rate, irqs) in [
        (Direction::GuestToHost, TO_HOST, IRQS_OUT),
        (Direction::HostToGuest, TO_GUEST, IRQS_IN),
    ] {
        let client = Client::new(server, direction, args.seconds).with("--omit 1");
        let meter = Meter::start(guest, rig.backend())?;
        let transfer = client.run(guest).context(rate.0)?;
        let cost = meter.stop()?;
        weather.note(cost.span);
        all.push((rate, transfer.gbps));
        all.push((irqs, cost.interrupts_per_packet() * 1e3));
    }
    let udp = Client::new(server, Direction::HostToGuest, args.seconds)
        .with(&format!("--omit 1 --udp --bandwidth 0 --length {DATAGRAM}"));
    let meter = Meter::start(guest, rig.backend())?;
    let transfer = udp.run(guest).context(UDP.0)?;
    let cost = meter.stop()?;
    all.push((IRQS_UDP, cost.interrupts_per_packet() * 1e3));
    all.push((UDP, transfer.gbps * 1e6 / f64::from(8 * DATAGRAM)));
    // A first run of pktgen tells how many packets the time is enough for.
    let pps = pktgen(lab, guest, 20_000)?;
    let meter = Meter::start(guest, rig.backend())?;
    let pps = pktgen(lab, guest, (pps * f64::from(args.seconds)) as u64)?;
    let cost = meter.stop()?;
    all.push((PKTGEN, pps / 1e3));
    all.push((IRQS_PKTGEN, cost.interrupts_per_packet() * 1e3));
    if let Some(kicks) = cost.kicks_per_packet() {
        all.push((KICKS_PKTGEN, kicks * 1e3));
    }
    all.push((ROUND_TRIP, pings(guest, 2000 * args.seconds)?));
    rig.stop()?;
    Ok(all)
}

/// What everything costs the guest, in instructions.
fn costs(lab: &Lab, setup: Setup, driver: Driver) -> Result<Vec<(Figure, f64)>> {
    let rig = Rig::start_with(lab, setup, |spec| {
        spec.driver = Some(driver);
        spec.cpus = 1;
        spec.accel = Some(Accel::Counting);
    })?;
    let guest = &rig.machine.guest;
    let server = &rig.cable.server;
    let mut all = Vec::new();
    let counter = Counter::start(guest)?;
    let packets = 100_000;
    pktgen(lab, guest, 1000)?;
    let spent = counter.count(|| pktgen(lab, guest, packets).map(|_| ()))?;
    all.push((COST_PKTGEN, spent / packets as f64));

    let count = 5000;
    pings(guest, 100)?;
    let spent = counter.count(|| pings(guest, count).map(|_| ()))?;
    all.push((COST_PING, spent / f64::from(count)));

    // So many octets, however long they take.
    let run = |direction, options: &str| -> Result<f64> {
        let mut client = Client::new(server, direction, 0).with(options);
        client.by_amount = true;
        let received = || {
            number(
                guest,
                &format!("cat /sys/class/net/{INTERFACE}/statistics/rx_packets"),
            )
        };
        let before = received()?;
        let output = guest.try_sh(&client.command(), LIMIT)?;
        crate::traffic::Transfer::parse(&output.stdout)?;
        Ok(received()? - before)
    };
    let mib = 256;
    for (direction, figure) in [
        (Direction::GuestToHost, COST_OUT),
        (Direction::HostToGuest, COST_IN),
    ] {
        let options = format!("--bytes {mib}M");
        run(direction, "--bytes 4M")?;
        let spent = counter.count(|| run(direction, &options).map(|_| ()))?;
        all.push((figure, spent / f64::from(mib * 1024)));
    }
    // At a rate that a guest keeps up with whose clock goes slowly.
    let options = format!("--udp --bandwidth 1M --length {DATAGRAM} --bytes 1M");
    let mut got = 0.0;
    let spent = counter.count(|| {
        got = run(Direction::HostToGuest, &options)?;
        Ok(())
    })?;
    all.push((COST_UDP, spent / got));
    rig.stop()?;
    Ok(all)
}

/// Counts instructions in a guest on a counting clock.
#[derive(Debug)]
struct Counter<'a> {
    guest: &'a Guest,
    _soak: Running<'a>,
    /// Instructions of a round of the program that uses up what is left.
    round: f64,
}

impl<'a> Counter<'a> {
    /// Starts the program, and looks what it gets when it is alone.
    fn start(guest: &'a Guest) -> Result<Self> {
        let soak = guest.spawn(&format!("exec soak {SOAKED}"))?;
        let mut counter = Counter {
            guest,
            _soak: soak,
            round: 0.0,
        };
        std::thread::sleep(SETTLE);
        let before = counter.read()?;
        std::thread::sleep(CALIBRATION);
        let after = counter.read()?;
        counter.round = (after.0 - before.0) / (after.1 - before.1);
        Ok(counter)
    }

    /// Nanoseconds, which are instructions, and rounds done.
    fn read(&self) -> Result<(f64, f64)> {
        let text = self.guest.sh(&format!("od -A n -t u8 -N 16 {SOAKED}"))?;
        parse_pair(&text).with_context(|| format!("{SOAKED} holds: {text}"))
    }

    /// Instructions that others than the program execute meanwhile.
    fn count(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let before = self.read()?;
        work()?;
        let after = self.read()?;
        Ok((after.0 - before.0) - (after.1 - before.1) * self.round)
    }
}

fn parse_pair(text: &str) -> Option<(f64, f64)> {
    let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Sends small frames from the kernel as fast as it goes: packets a second.
fn pktgen(lab: &Lab, guest: &Guest, packets: u64) -> Result<f64> {
    let address = lab.tool("cat", &[&format!("/sys/class/net/{TAP}/address")])?;
    // To the far end's address, so that its kernel takes the frames; to a port where nobody is.
    let script = format!(
        "set -e; modprobe pktgen; cd /proc/net/pktgen; \
         echo rem_device_all > kpktgend_0; echo add_device {INTERFACE} > kpktgend_0; \
         for word in 'count {packets}' 'pkt_size {FRAME}' 'delay 0' 'clone_skb 0' 'dst {HOST_IP}' \
             'dst_mac {}' 'udp_dst_min 9' 'udp_dst_max 9'; do echo \"$word\" > {INTERFACE}; done; \
         echo start > pgctrl; cat {INTERFACE}; echo rem_device_all > kpktgend_0",
        address.trim()
    );
    let report = guest.sh_within(&script, LIMIT)?;
    parse_pktgen(&report).with_context(|| format!("pktgen says:\n{report}"))
}

fn parse_pktgen(report: &str) -> Option<f64> {
    report
        .split_whitespace()
        .find_map(|word| word.strip_suffix("pps")?.parse().ok())
}

/// The mean round trip to the far end's kernel, in microseconds.
fn pings(guest: &Guest, count: u32) -> Result<f64> {
    let report = guest.sh_within(&format!("ping -q -f -c {count} {HOST_IP}"), LIMIT)?;
    parse_ping(&report).with_context(|| format!("ping says:\n{report}"))
}

fn parse_ping(report: &str) -> Option<f64> {
    let line = report.lines().find(|line| line.starts_with("rtt"))?;
    let mean = line.split('=').nth(1)?.split('/').nth(1)?;
    Some(mean.parse::<f64>().ok()? * 1e3)
}

fn number(guest: &Guest, command: &str) -> Result<f64> {
    let text = guest.sh(command)?;
    text.trim()
        .parse()
        .with_context(|| format!("`{command}` printed no number: {text}"))
}

fn cases(measured: &[Measured]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (device, _) in DEVICES {
        for figure in FIGURES {
            let (name, unit, better) = figure;
            let of = |driver| -> Samples {
                measured
                    .iter()
                    .filter(|m| (m.device, m.driver) == (device, driver) && m.figure.0 == name)
                    .map(|m| m.value)
                    .collect()
            };
            let ours = of(Driver::Ferronic);
            // Only our NIC counts notifications.
            if ours.median().is_none() {
                continue;
            }
            cases.push(Case {
                name: format!("{device} {name}"),
                unit,
                better,
                ours,
                peers: vec![(PEER.into(), of(Driver::C))],
            });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let pktgen = "Result: OK: 235294(c235294+d0) usec, 20000 (60byte,0frags)\n  85000pps 40Mb/sec (40800000bps) errors: 0\n";
        assert_eq!(parse_pktgen(pktgen), Some(85000.0));
        let ping = "--- 10.77.0.1 ping statistics ---\nrtt min/avg/max/mdev = 0.061/0.125/0.510/0.020 ms, ipg/ewma 0.1/0.1 ms\n";
        assert_eq!(parse_ping(ping), Some(125.0));
        assert_eq!(parse_pair("   5000  7\n"), Some((5000.0, 7.0)));
        for parse in [parse_pktgen, parse_ping] {
            assert_eq!(parse("nonsense"), None);
        }
        assert_eq!(parse_pair("5"), None);
    }

    #[test]
    fn every_figure_has_a_name_of_its_own() {
        let names: std::collections::HashSet<_> = FIGURES.iter().map(|f| f.0).collect();
        assert_eq!(names.len(), FIGURES.len());
    }
}
