// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a NIC takes that does nothing: memory of the process behind it, how soon that is there, and how
//! often it wakes up.
//!
//! Counted is what is behind the NIC: our backend, and passt where it is our uplink; passt as a vhost-user
//! back-end; DPDK's testpmd with one port. What QEMU itself does for a NIC of its own cannot be told
//! from what else it does, so those are left out. testpmd is started and looked at without a guest: it
//! polls, and so never sleeps to be woken up.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};

use super::case::{Better, Case, rounded};
use super::host::{Moment, Weather};
use super::passt::{self, Mode};
use super::ring::DPDK;
use super::samples::Samples;
use super::setups::{Rig, Setup};
use super::stage::{Processors, Stage};
use super::start::Starter;
use super::testpmd::{self, Topology};
use super::turns::{self, Subject};
use super::{Args, Findings};
use crate::backend::{Launch, Options, Uplink};
use crate::cable::INTERFACE;
use crate::lab::Lab;
use crate::machine::nic::Attach;
use crate::net;
use crate::process::{self, Memory};
use crate::progress::say;
use crate::sandbox::tool::ToolRoot;
use crate::traffic::{Client, Direction};

/// Starts in a round, of which the median counts.
const STARTS: usize = 9;
/// testpmd takes a second for each.
const STARTS_DPDK: usize = 3;
/// Until what a back-end starts beside itself is there.
const SETTLE: Duration = Duration::from_millis(500);
/// Until kernels have stopped asking whether a neighbour they have just talked to is still there
/// (`delay_first_probe_time`, 5 s).
const QUIET: Duration = Duration::from_secs(7);
/// How long wake-ups are counted.
const IDLE: Duration = Duration::from_secs(10);
/// Largest frame that testpmd is made ready for: no more than it is by default.
const FRAME: usize = 1514;

const TAP: Setup = Setup::Ours(Attach::Netdev, Uplink::Tap, 1);
const USER: Setup = Setup::Ours(Attach::Netdev, Uplink::User, 1);
const PASST: Setup = Setup::PasstVhostUser;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    Start,
    /// Its own memory when no guest has come yet.
    MemoryAlone,
    /// The same with a guest that does nothing.
    MemoryIdle,
    /// The same after traffic.
    MemoryUsed,
    /// That and files' pages, which may be shared: all beside guest memory.
    MemoryTotal,
    WakeUps,
}

const FIGURES: [Figure; 6] = [
    Figure::Start,
    Figure::MemoryAlone,
    Figure::MemoryIdle,
    Figure::MemoryUsed,
    Figure::MemoryTotal,
    Figure::WakeUps,
];

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Figure::Start => "start",
            Figure::MemoryAlone => "memory without guest",
            Figure::MemoryIdle => "memory idle",
            Figure::MemoryUsed => "memory after traffic",
            Figure::MemoryTotal => "memory with files after traffic",
            Figure::WakeUps => "idle wake-ups",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Figure::Start => "ms",
            Figure::WakeUps => "1/s",
            _ => "MiB",
        }
    }
}

/// What is behind a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    /// In a set-up with a guest.
    In(Setup),
    /// testpmd without one.
    Dpdk,
}

const CONTENDERS: [Contender; 4] = [
    Contender::In(TAP),
    Contender::In(USER),
    Contender::In(PASST),
    Contender::Dpdk,
];

/// Ours, and what it is compared with.
const GROUPS: [(&str, Setup, &[Contender]); 2] = [
    ("tap", TAP, &[Contender::In(PASST), Contender::Dpdk]),
    ("user", USER, &[Contender::In(PASST)]),
];

impl Subject for Contender {
    fn name(self) -> String {
        match self {
            Contender::In(setup) => setup.name(),
            Contender::Dpdk => DPDK.to_owned(),
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Contender::In(setup) if setup.is_ours())
    }
}

/// One value.
#[derive(Debug)]
struct Measured {
    subject: Contender,
    figure: Figure,
    value: f64,
}

/// Where testpmd can be had.
struct Dpdk {
    root: ToolRoot,
    processors: Processors,
}

/// Measures everything.
pub fn run(lab: &Lab, args: &Args, weather: &mut Weather) -> Result<Findings> {
    let stage = Stage::new(lab.run.clone(), lab.ferronic.clone()).ok();
    let dpdk = stage.and_then(|stage| {
        Some(Dpdk {
            processors: stage.processors,
            root: stage.dpdk?,
        })
    });
    let mut subjects = CONTENDERS.to_vec();
    if dpdk.is_none() {
        say(
            "DPDK could not be fetched, or there are no two processors: the bench goes on without it",
        );
        subjects.retain(|subject| *subject != Contender::Dpdk);
    }
    let measured = turns::take("footprint", args.rounds, subjects, summary, |subject| {
        measure(lab, dpdk.as_ref(), subject, args, weather)
    })?;
    Ok(Findings {
        cases: cases(&measured),
        details: "Memory is resident and without the guest's: what the process has for itself, in huge pages too; \
                  \"with files\"\nadds pages of programs and libraries, which processes share. ferronic-user is \
                  our backend and its passt.\n"
            .into(),
    })
}

fn measure(
    lab: &Lab,
    dpdk: Option<&Dpdk>,
    subject: Contender,
    args: &Args,
    weather: &mut Weather,
) -> Result<Vec<Measured>> {
    let mut all = alone(lab, dpdk, subject).context("without a guest")?;
    if let Contender::In(setup) = subject {
        all.extend(with_guest(lab, setup, args, weather).context("with a guest")?);
    }
    let measured = |(figure, value)| Measured {
        subject,
        figure,
        value,
    };
    Ok(all.into_iter().map(measured).collect())
}

/// Starts it, over and over, and looks at the last one.
fn alone(lab: &Lab, dpdk: Option<&Dpdk>, subject: Contender) -> Result<Vec<(Figure, f64)>> {
    let starts = match subject {
        Contender::In(_) => STARTS,
        Contender::Dpdk => STARTS_DPDK,
    };
    if subject == Contender::In(TAP) {
        net::make_tap(lab, false)?;
    }
    let mut times = Vec::new();
    let mut memory = 0.0;
    for number in 1..=starts {
        let started = starter(lab, dpdk, subject)?.start()?;
        times.push(started.took.as_secs_f64() * 1e3);
        if number == starts {
            std::thread::sleep(SETTLE);
            memory = mib(memory_behind(started.pid())?.own);
        }
    }
    let times: Samples = times.into_iter().collect();
    Ok(vec![
        (Figure::Start, times.median().unwrap_or(f64::NAN)),
        (Figure::MemoryAlone, memory),
    ])
}

fn starter(lab: &Lab, dpdk: Option<&Dpdk>, subject: Contender) -> Result<Starter> {
    let id = lab.unique(&subject.name());
    let socket = lab.run.dir.join(format!("{id}.sock"));
    let log = lab.run.logs.join(format!("{id}.log"));
    let (command, in_tool_root, socket) = match subject {
        Contender::In(Setup::Ours(_, uplink, _)) => {
            let launch = Launch::new(lab, &Options::new(uplink))?;
            let mut command = std::process::Command::new(&launch.binary);
            command.args(&launch.arguments).stdin(Stdio::null());
            (command, false, launch.socket)
        }
        Contender::In(_) => (passt::command(lab, Mode::VhostUser, &socket), true, socket),
        Contender::Dpdk => {
            let Dpdk { root, processors } = dpdk.context("DPDK is not there")?;
            let sockets = [socket.clone()];
            let command = testpmd::command(root, *processors, Topology::Loop, &sockets, FRAME);
            (command, true, socket)
        }
    };
    Ok(Starter {
        command,
        in_tool_root,
        socket,
        log,
    })
}

/// A guest that does nothing, and then something.
fn with_guest(
    lab: &Lab,
    setup: Setup,
    args: &Args,
    weather: &mut Weather,
) -> Result<Vec<(Figure, f64)>> {
    let rig = Rig::start(lab, setup)?;
    let pid = rig.behind_pid().context("QEMU alone is behind this NIC")?;
    let guest = &rig.machine.guest;
    // Neighbour and router discovery would be traffic, from either side.
    guest.sh(&format!(
        "sysctl -q -w net.ipv6.conf.{INTERFACE}.disable_ipv6=1"
    ))?;
    if setup == TAP {
        let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", net::TAP);
        fs::write(&path, "1\n").with_context(|| format!("cannot write {path}"))?;
    }
    std::thread::sleep(QUIET);
    let moment = Moment::now()?;
    let before = wakeups_behind(pid)?;
    std::thread::sleep(IDLE);
    let after = wakeups_behind(pid)?;
    weather.note(moment.until_now()?);
    let woken = after.saturating_sub(before) as f64 / IDLE.as_secs_f64();
    let idle = memory_behind(pid)?;
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        Client::new(&rig.cable.server, direction, args.seconds)
            .run(guest)
            .with_context(|| format!("{direction:?}"))?;
    }
    let used = memory_behind(pid)?;
    rig.stop()?;
    Ok(vec![
        (Figure::MemoryIdle, mib(idle.own)),
        (Figure::MemoryUsed, mib(used.own)),
        (Figure::MemoryTotal, mib(used.total())),
        (Figure::WakeUps, woken),
    ])
}

/// Of a process and those it has started.
fn memory_behind(pid: u32) -> Result<Memory> {
    process::family(pid)?.into_iter().map(Memory::of).sum()
}

/// The same.
fn wakeups_behind(pid: u32) -> Result<u64> {
    process::family(pid)?
        .into_iter()
        .map(process::wakeups)
        .sum()
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn summary(all: &[Measured]) -> String {
    let said: Vec<_> = all
        .iter()
        .map(|m| {
            format!(
                "{} {} {}",
                m.figure.name(),
                rounded(m.value),
                m.figure.unit()
            )
        })
        .collect();
    said.join(", ")
}

fn cases(measured: &[Measured]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, ours, peers) in GROUPS {
        for figure in FIGURES {
            let of = |subject| -> Samples {
                let wanted = |m: &&Measured| m.subject == subject && m.figure == figure;
                measured.iter().filter(wanted).map(|m| m.value).collect()
            };
            let peers = peers.iter().map(|peer| (peer.name(), of(*peer)));
            cases.push(Case {
                name: format!("footprint {name} {}", figure.name()),
                unit: figure.unit(),
                better: Better::Less,
                ours: of(Contender::In(ours)),
                peers: peers
                    .filter(|(_, samples)| samples.median().is_some())
                    .collect(),
            });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(subject: Contender, figure: Figure, value: f64) -> Measured {
        Measured {
            subject,
            figure,
            value,
        }
    }

    #[test]
    fn every_subject_is_compared_with_something() {
        for subject in CONTENDERS {
            let compared = GROUPS.iter().any(|(_, ours, peers)| {
                subject == Contender::In(*ours) || peers.contains(&subject)
            });
            assert!(compared, "{subject:?}");
        }
        assert!(GROUPS.iter().all(|(_, ours, _)| ours.is_ours()));
    }

    #[test]
    fn a_peer_is_in_a_case_only_where_it_was_measured() {
        let all = [
            measured(Contender::In(TAP), Figure::Start, 5.0),
            measured(Contender::Dpdk, Figure::Start, 500.0),
            measured(Contender::In(TAP), Figure::WakeUps, 0.0),
            measured(Contender::In(PASST), Figure::WakeUps, 1.0),
        ];
        let cases = cases(&all);
        let find = |name: &str| cases.iter().find(|case| case.name == name).unwrap();
        let names = |case: &Case| -> Vec<String> {
            case.peers.iter().map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(names(find("footprint tap start")), [DPDK]);
        let woken = find("footprint tap idle wake-ups");
        assert_eq!(names(woken), [PASST.name()]);
        assert_eq!(woken.ratio_to(&woken.peers[0].1), Some(f64::INFINITY));
        assert_eq!(find("footprint user start").ours.median(), None);
    }
}
