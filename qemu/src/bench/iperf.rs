// SPDX-License-Identifier: Apache-2.0 OR MIT
//! TCP throughput, both ways.
//!
//! The rounds go over all contenders before any is measured again, so that a host that
//! gets slower or faster meanwhile does so for all of them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Args, Case, median};
use crate::backend::{Backend, Options, Uplink};
use crate::cable::Cable;
use crate::lab::Lab;
use crate::machine::nic::{Attach, Nic};
use crate::machine::{Machine, Spec};
use crate::net;
use crate::passt::Passt;
use crate::progress::say;
use crate::traffic::{Client, Direction};

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contender {
    Ours(Attach),
    QemuTap,
    QemuUser,
    Passt,
}

const CONTENDERS: [Contender; 5] = [
    Contender::Ours(Attach::Netdev),
    Contender::Ours(Attach::Device),
    Contender::QemuTap,
    Contender::QemuUser,
    Contender::Passt,
];

const DIRECTIONS: [(Direction, &str); 2] = [
    (Direction::GuestToHost, "guest to host"),
    (Direction::HostToGuest, "host to guest"),
];

impl Contender {
    fn name(self) -> String {
        match self {
            Contender::Ours(attach) => format!("ferronic, {}, tap", attach.name()),
            Contender::QemuTap => "QEMU virtio-net, tap".into(),
            Contender::QemuUser => "QEMU -netdev user".into(),
            Contender::Passt => "passt --vhost-user".into(),
        }
    }

    /// Throughput both ways, in the order of [`DIRECTIONS`].
    fn measure(self, lab: &Lab, seconds: u32) -> Result<Vec<f64>> {
        // Dropped last, after the machine that is plugged into them.
        let (mut backend, mut passt) = (None, None);
        let (nic, uplink) = match self {
            Contender::Ours(attach) => {
                net::make_tap(lab, false)?;
                let backend = backend.insert(Backend::start(lab, &Options::new(Uplink::Tap))?);
                (backend.nic(attach, 1)?, Uplink::Tap)
            }
            Contender::QemuTap => {
                net::make_tap(lab, false)?;
                (
                    Nic::Tap {
                        name: net::TAP.into(),
                        queues: 1,
                    },
                    Uplink::Tap,
                )
            }
            Contender::QemuUser => (Nic::User, Uplink::User),
            Contender::Passt => {
                let passt = passt.insert(Passt::start(lab)?);
                (
                    Nic::VhostUser {
                        socket: passt.socket.clone(),
                        queues: 1,
                    },
                    Uplink::User,
                )
            }
        };
        let machine = Machine::boot(lab, &Spec::new("bench", nic))?;
        let cable = Cable::lay(lab, &machine.guest, uplink)?;
        let measured = DIRECTIONS
            .iter()
            .map(|(direction, _)| {
                Ok(Client::new(&cable.server, *direction, seconds)
                    .run(&machine.guest)?
                    .gbps)
            })
            .collect();
        machine.quit()?;
        measured
    }
}

pub fn run(lab: &Lab, args: &Args) -> Result<Vec<Case>> {
    let mut results: BTreeMap<Contender, Vec<Vec<f64>>> = BTreeMap::new();
    for round in 1..=args.rounds {
        for contender in CONTENDERS {
            let gbps = contender
                .measure(lab, args.seconds)
                .with_context(|| contender.name())?;
            let shown: Vec<_> = gbps.iter().map(|g| format!("{g:.2}")).collect();
            say(format!(
                "round {round}, {}: {} Gb/s",
                contender.name(),
                shown.join(" and ")
            ));
            results.entry(contender).or_default().push(gbps);
        }
    }
    let middle = |contender: Contender, way: usize| {
        let rounds = results.get(&contender).into_iter().flatten();
        median(rounds.filter_map(|both| both.get(way)).copied().collect())
    };
    let mut cases = Vec::new();
    for (way, (_, direction)) in DIRECTIONS.iter().enumerate() {
        for attach in [Attach::Netdev, Attach::Device] {
            let peers = [Contender::QemuTap, Contender::QemuUser, Contender::Passt];
            let peers = peers
                .iter()
                .map(|peer| (peer.name(), middle(*peer, way)))
                .collect();
            let name = format!("iperf3 TCP, {direction}, {} attachment", attach.name());
            cases.push(Case::larger_is_better(
                name,
                "Gb/s",
                middle(Contender::Ours(attach), way),
                peers,
            ));
        }
    }
    Ok(cases)
}
