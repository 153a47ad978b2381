// SPDX-License-Identifier: Apache-2.0 OR MIT
//! iperf3 between guest and host: TCP throughput and its cost, and the rate of small datagrams; and
//! between guests ([`guests`]).
//!
//! Every round boots every set-up once and measures all transfers in it. While one set-up is measured,
//! no other guest exists.

use anyhow::Result;

use super::host::Weather;
use super::setups::{Rig, Setup};
use super::transfer::{self, Group, Load, Measured};
use super::turns::{self, Subject};
use super::{Args, Findings, guests};
use crate::backend::Uplink;
use crate::lab::Lab;
use crate::machine::nic::Attach;
use crate::traffic::Direction::{GuestToHost, HostToGuest};

/// Parts of this bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// One pair of queues, one stream
    One,
    /// One and two pairs of queues, several streams
    Queues,
    /// From guest to guest
    Guests,
}

const ONE: &[Load] = &[
    Load::tcp("guest_to_host", GuestToHost),
    Load::tcp("host_to_guest", HostToGuest),
    Load::udp("udp_guest_to_host", GuestToHost),
    Load::udp("udp_host_to_guest", HostToGuest),
];

/// The kernels spread streams over queues by a hash, so with four it is unlikely that one pair has all.
const SEVERAL: &[Load] = &[
    Load::tcp("guest_to_host_x4", GuestToHost).streams(4),
    Load::tcp("host_to_guest_x4", HostToGuest).streams(4),
    Load::udp("udp_guest_to_host_x4", GuestToHost).streams(4),
    Load::udp("udp_host_to_guest_x4", HostToGuest).streams(4),
];

/// A set-up of ours and those it is compared with.
struct Comparison {
    part: Part,
    name: &'static str,
    ours: Setup,
    peers: &'static [Setup],
}

const TAP: [Setup; 2] = [
    Setup::Ours(Attach::Netdev, Uplink::Tap, 1),
    Setup::Ours(Attach::Netdev, Uplink::Tap, 2),
];
const DEVICE_TAP: [Setup; 2] = [
    Setup::Ours(Attach::Device, Uplink::Tap, 1),
    Setup::Ours(Attach::Device, Uplink::Tap, 2),
];
/// passt has one pair of queues and no option for more.
const TAP_PEERS: [&[Setup]; 2] = [
    &[Setup::QemuTap(1), Setup::PasstVhostUser],
    &[Setup::QemuTap(2), Setup::PasstVhostUser],
];

const COMPARISONS: [Comparison; 7] = [
    Comparison {
        part: Part::One,
        name: "tap",
        ours: TAP[0],
        peers: &[Setup::QemuTap(1), Setup::PasstVhostUser, Setup::QemuUser],
    },
    Comparison {
        part: Part::One,
        name: "device-tap",
        ours: DEVICE_TAP[0],
        peers: &[Setup::QemuTap(1), Setup::PasstVhostUser, Setup::QemuUser],
    },
    Comparison {
        part: Part::One,
        name: "user",
        ours: Setup::Ours(Attach::Netdev, Uplink::User, 1),
        peers: &[Setup::QemuUser, Setup::PasstStream, Setup::PasstVhostUser],
    },
    Comparison {
        part: Part::Queues,
        name: "tap-1q",
        ours: TAP[0],
        peers: TAP_PEERS[0],
    },
    Comparison {
        part: Part::Queues,
        name: "tap-2q",
        ours: TAP[1],
        peers: TAP_PEERS[1],
    },
    Comparison {
        part: Part::Queues,
        name: "device-tap-1q",
        ours: DEVICE_TAP[0],
        peers: TAP_PEERS[0],
    },
    Comparison {
        part: Part::Queues,
        name: "device-tap-2q",
        ours: DEVICE_TAP[1],
        peers: TAP_PEERS[1],
    },
];

/// What the columns of the tables are.
const DETAILS: &str = "\
What the transfers took (medians; rx and tx as the guest sees them; irq are interrupts the guest took,
kick what our NIC was notified of; s/GB is processor time of QEMU and what is behind its NIC)
";

/// Measures everything, or the parts that were asked for.
pub fn run(lab: &Lab, args: &Args, weather: &mut Weather) -> Result<Findings> {
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let comparisons: Vec<_> = COMPARISONS.iter().filter(|c| wanted(c.part)).collect();
    let mut measured = turns::take(
        "iperf",
        args.rounds,
        setups(&comparisons),
        transfer::summary,
        |setup| {
            let all = measure(lab, setup, loads(&comparisons, setup), args)?;
            transfer::note(weather, &all);
            Ok(all)
        },
    )?;
    let mut groups: Vec<Group> = comparisons.iter().map(|c| c.group()).collect();
    if wanted(Part::Guests) {
        measured.extend(guests::run(lab, args, weather)?);
        groups.extend(guests::groups());
    }
    Ok(Findings {
        cases: transfer::cases(&groups, &measured),
        details: DETAILS.to_owned() + &transfer::details(&measured),
    })
}

impl Comparison {
    fn loads(&self) -> &'static [Load] {
        match self.part {
            Part::Queues => SEVERAL,
            Part::One | Part::Guests => ONE,
        }
    }

    fn has(&self, setup: Setup) -> bool {
        self.ours == setup || self.peers.contains(&setup)
    }

    fn group(&self) -> Group {
        Group {
            name: self.name,
            ours: self.ours.name(),
            peers: self.peers.iter().map(|peer| peer.name()).collect(),
            loads: self.loads(),
        }
    }
}

fn setups(comparisons: &[&Comparison]) -> Vec<Setup> {
    let mut setups = Vec::new();
    for comparison in comparisons {
        for setup in std::iter::once(&comparison.ours).chain(comparison.peers) {
            if !setups.contains(setup) {
                setups.push(*setup);
            }
        }
    }
    setups
}

/// What is to be measured in a set-up: all that it is compared in.
fn loads(comparisons: &[&Comparison], setup: Setup) -> Vec<Load> {
    let mut loads = Vec::new();
    for comparison in comparisons.iter().filter(|c| c.has(setup)) {
        for load in comparison.loads() {
            if !loads.contains(load) {
                loads.push(*load);
            }
        }
    }
    loads
}

/// All transfers in one set-up.
fn measure(lab: &Lab, setup: Setup, loads: Vec<Load>, args: &Args) -> Result<Vec<Measured>> {
    let rig = Rig::start(lab, setup)?;
    let server = &rig.cable.server;
    let guest = &rig.machine.guest;
    transfer::warm_up(guest, server)?;
    let measured = loads
        .into_iter()
        .map(|load| load.measure(setup.name(), (guest, rig.backend()), server, args.seconds))
        .collect::<Result<_>>()?;
    rig.stop()?;
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_set_up_is_measured_once_a_round_and_has_a_name_of_its_own() {
        let all: Vec<_> = COMPARISONS.iter().collect();
        let setups = setups(&all);
        let names: HashSet<_> = setups.iter().map(|s| s.name()).collect();
        assert_eq!(names.len(), setups.len());
        assert!(
            COMPARISONS
                .iter()
                .all(|c| c.ours.is_ours() && !c.peers.iter().any(|p| p.is_ours()))
        );
    }

    #[test]
    fn comparisons_have_names_of_their_own() {
        let names: HashSet<_> = COMPARISONS.iter().map(|c| c.name).collect();
        assert_eq!(names.len(), COMPARISONS.len());
    }

    #[test]
    fn a_set_up_is_measured_in_all_that_it_is_compared_in() {
        let all: Vec<_> = COMPARISONS.iter().collect();
        assert_eq!(loads(&all, TAP[0]), [ONE, SEVERAL].concat());
        assert_eq!(loads(&all, TAP[1]), SEVERAL);
        assert_eq!(loads(&all, Setup::QemuUser), ONE);
        let queues: Vec<_> = all.into_iter().filter(|c| c.part == Part::Queues).collect();
        assert_eq!(loads(&queues, TAP[0]), SEVERAL);
        assert!(!setups(&queues).contains(&Setup::QemuUser));
    }
}
