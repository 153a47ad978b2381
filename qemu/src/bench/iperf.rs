// SPDX-License-Identifier: Apache-2.0 OR MIT
//! iperf3 between guest and host: TCP throughput and its cost, and the rate of small datagrams.
//!
//! Every round boots every set-up once and measures all transfers in it, in an order that starts
//! one further each round: a host that gets slower or faster does so for all, and nobody always
//! comes after the same neighbour. While one set-up is measured, no other guest exists.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::case::{Better, Case, rounded};
use super::cost::{Cost, HEADINGS, Meter};
use super::host::Weather;
use super::samples::Samples;
use super::setups::{Rig, Setup};
use super::{Args, Findings};
use crate::backend::Uplink;
use crate::lab::Lab;
use crate::machine::nic::Attach;
use crate::progress::{Step, say};
use crate::traffic::{Client, Direction, Transfer};

/// Payload of a small datagram: a frame of 106 octets, with room for iperf3's own header.
const DATAGRAM: u32 = 64;
/// Seconds at the start of each transfer that do not count towards its rate: TCP's slow start.
const WARM_UP: u32 = 1;

/// What goes over the cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    name: &'static str,
    direction: Direction,
    udp: bool,
}

const LOADS: [Load; 4] = [
    Load {
        name: "guest_to_host",
        direction: Direction::GuestToHost,
        udp: false,
    },
    Load {
        name: "host_to_guest",
        direction: Direction::HostToGuest,
        udp: false,
    },
    Load {
        name: "udp_guest_to_host",
        direction: Direction::GuestToHost,
        udp: true,
    },
    Load {
        name: "udp_host_to_guest",
        direction: Direction::HostToGuest,
        udp: true,
    },
];

/// A set-up of ours and those it is compared with.
struct Group {
    name: &'static str,
    ours: Setup,
    peers: &'static [Setup],
}

const GROUPS: [Group; 3] = [
    Group {
        name: "tap",
        ours: Setup::Ours(Attach::Netdev, Uplink::Tap),
        peers: &[Setup::QemuTap, Setup::PasstVhostUser, Setup::QemuUser],
    },
    Group {
        name: "device-tap",
        ours: Setup::Ours(Attach::Device, Uplink::Tap),
        peers: &[Setup::QemuTap, Setup::PasstVhostUser, Setup::QemuUser],
    },
    Group {
        name: "user",
        ours: Setup::Ours(Attach::Netdev, Uplink::User),
        peers: &[Setup::QemuUser, Setup::PasstStream, Setup::PasstVhostUser],
    },
];

/// One transfer.
#[derive(Debug)]
struct Measured {
    setup: Setup,
    load: Load,
    /// Gb/s of TCP, thousands of datagrams a second of UDP, as the receiver got them.
    rate: f64,
    retransmits: f64,
    lost_percent: f64,
    cost: Cost,
}

/// Measures everything.
pub fn run(lab: &Lab, args: &Args, weather: &mut Weather) -> Result<Findings> {
    let mut setups = all_setups();
    let mut measured = Vec::new();
    for round in 1..=args.rounds {
        for setup in setups.clone() {
            let what = format!("iperf round {round} of {}: {}", args.rounds, setup.name());
            let step = Step::start(&what);
            match measure(lab, setup, args) {
                Ok(all) => {
                    step.done();
                    say(format!("{what}: {}", summary(&all)));
                    all.iter().for_each(|m| weather.note(m.cost.span));
                    measured.extend(all);
                }
                Err(e) if setup.is_ours() => return Err(e.context(what)),
                Err(e) => {
                    drop(step);
                    // Ours can still be compared with the others.
                    say(format!("{what}: left out from here on: {e:#}"));
                    setups.retain(|s| *s != setup);
                }
            }
        }
        if let Some((first, others)) = setups.split_first() {
            setups = [others, &[*first]].concat();
        }
    }
    Ok(Findings {
        cases: cases(&measured),
        details: details(&measured),
    })
}

fn all_setups() -> Vec<Setup> {
    let mut setups = Vec::new();
    for group in &GROUPS {
        for setup in std::iter::once(group.ours).chain(group.peers.iter().copied()) {
            if !setups.contains(&setup) {
                setups.push(setup);
            }
        }
    }
    setups
}

/// All transfers in one set-up.
fn measure(lab: &Lab, setup: Setup, args: &Args) -> Result<Vec<Measured>> {
    let rig = Rig::start(lab, setup)?;
    // Not counted: under TCG the guest's code is translated when it first runs, and the transfer that
    // came first would pay for that.
    Client::new(&rig.cable.server, Direction::GuestToHost, WARM_UP)
        .run(&rig.machine.guest)
        .context("warm-up")?;
    let mut measured = Vec::new();
    for load in LOADS {
        let client =
            Client::new(&rig.cable.server, load.direction, args.seconds).with(&load.options());
        let meter = Meter::start(&rig)?;
        let transfer = client.run(&rig.machine.guest).context(load.name)?;
        let cost = meter.stop(&rig)?;
        measured.push(Measured {
            setup,
            load,
            rate: load.rate(&transfer),
            retransmits: transfer.retransmits as f64,
            lost_percent: transfer.lost_percent,
            cost,
        });
    }
    rig.stop()?;
    Ok(measured)
}

impl Load {
    fn options(self) -> String {
        let what = if self.udp {
            format!("--udp --bandwidth 0 --length {DATAGRAM}")
        } else {
            String::new()
        };
        format!("--omit {WARM_UP} {what}")
    }

    fn rate(self, transfer: &Transfer) -> f64 {
        if self.udp {
            transfer.gbps * 1e6 / f64::from(8 * DATAGRAM)
        } else {
            transfer.gbps
        }
    }

    fn unit(self) -> &'static str {
        if self.udp { "kdatagrams/s" } else { "Gb/s" }
    }
}

fn summary(measured: &[Measured]) -> String {
    let rates: Vec<_> = measured
        .iter()
        .map(|m| format!("{} {} {}", m.load.name, rounded(m.rate), m.load.unit()))
        .collect();
    rates.join(", ")
}

fn samples(
    measured: &[Measured],
    setup: Setup,
    load: Load,
    figure: impl Fn(&Measured) -> f64,
) -> Samples {
    measured
        .iter()
        .filter(|m| m.setup == setup && m.load == load)
        .map(figure)
        .collect()
}

fn cases(measured: &[Measured]) -> Vec<Case> {
    let mut cases = Vec::new();
    for group in &GROUPS {
        let mut compare = |name: String, unit, better, load, figure: fn(&Measured) -> f64| {
            let of = |setup| samples(measured, setup, load, figure);
            let peers = group
                .peers
                .iter()
                .map(|peer| (peer.name().into(), of(*peer)));
            let peers = peers
                .filter(|(_, samples)| samples.median().is_some())
                .collect();
            cases.push(Case {
                name,
                unit,
                better,
                ours: of(group.ours),
                peers,
            });
        };
        for load in LOADS {
            let name = format!("{} {}", group.name, load.name);
            compare(name, load.unit(), Better::More, load, |m| m.rate);
        }
        for load in LOADS.into_iter().filter(|load| !load.udp) {
            let name = format!("{} {} cpu", group.name, load.name);
            compare(name, "s/GB", Better::Less, load, |m| {
                m.cost.seconds_per_gigabyte()
            });
        }
    }
    cases
}

/// Why the figures are what they are: medians of what was counted during the transfers.
fn details(measured: &[Measured]) -> String {
    let mut text = String::from(
        "What the transfers took (medians; rx and tx as the guest sees them; irq are interrupts the guest took,\n\
         kick what our NIC was notified of; s/GB is processor time of QEMU and what is behind its NIC)\n",
    );
    let setups = all_setups();
    let width = setups.iter().map(|s| s.name().len()).max().unwrap_or(0);
    for load in LOADS {
        let _ = write!(text, "{}\n  {:width$}", load.name, "");
        for heading in HEADINGS.into_iter().chain(load.own_headings()) {
            let _ = write!(text, " {heading:>12}");
        }
        text.push('\n');
        for &setup in &setups {
            let median = |figure: &dyn Fn(&Measured) -> f64| {
                let median = samples(measured, setup, load, figure).median();
                median.map_or("-".to_owned(), rounded)
            };
            let _ = write!(text, "  {:width$}", setup.name());
            for heading in HEADINGS {
                let column = |m: &Measured| {
                    let columns = m.cost.columns();
                    columns
                        .iter()
                        .find(|(name, _)| *name == heading)
                        .map_or(f64::NAN, |(_, v)| *v)
                };
                let _ = write!(text, " {:>12}", median(&column));
            }
            let own: [&dyn Fn(&Measured) -> f64; 2] = if load.udp {
                [&|m| m.lost_percent, &|m| m.cost.span.rig_seconds]
            } else {
                [&|m| m.retransmits, &|m| m.cost.seconds_per_gigabyte()]
            };
            for figure in own {
                let _ = write!(text, " {:>12}", median(figure));
            }
            text.push('\n');
        }
    }
    text
}

impl Load {
    fn own_headings(self) -> [&'static str; 2] {
        if self.udp {
            ["lost-%", "cpu-s"]
        } else {
            ["resent", "s/GB"]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_up_is_measured_once_a_round_and_has_a_name_of_its_own() {
        let setups = all_setups();
        let names: std::collections::HashSet<_> = setups.iter().map(|s| s.name()).collect();
        assert_eq!(names.len(), setups.len());
        assert!(
            GROUPS
                .iter()
                .all(|g| g.ours.is_ours() && !g.peers.iter().any(|p| p.is_ours()))
        );
    }

    #[test]
    fn datagrams_are_counted_from_their_bits() {
        let transfer = Transfer {
            gbps: 0.0512,
            retransmits: 0,
            lost_percent: 0.0,
        };
        let udp = Load {
            name: "",
            direction: Direction::GuestToHost,
            udp: true,
        };
        assert_eq!(udp.rate(&transfer).round(), 100.0);
        assert_eq!(Load { udp: false, ..udp }.rate(&transfer), 0.0512);
    }
}
