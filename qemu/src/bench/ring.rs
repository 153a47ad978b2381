// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Packets through rings, without a guest: our NIC beside DPDK's vhost library, both polling on one
//! processor, driven by the same generator on another.
//!
//! - *loop*: what is sent comes back on the same queue pair. Ours has a loopback for its cable, testpmd
//!   forwards to the port that a packet came from.
//! - *transmit* and *receive*: from one port to another, through our switch and testpmd's pair of ports.
//!   What was taken from the sender is transmitted, what arrived is received; what is between them was
//!   dropped.
//!
//! Every round measures every load, ours and theirs right after one another, in turns of who comes
//! first. Each measurement has a new process.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::case::{Better, Case, rounded};
use super::host::{Moment, Weather};
use super::samples::Samples;
use super::stage::{Actor, Stage};
use super::testpmd::{self, Topology};
use super::{Args, Findings};
use crate::load::flow::{self, Counted, Ends, Fate, Flow};
use crate::load::frame::HEADER;
use crate::load::port::{Port, PortShape};
use crate::load::queue::Shape;
use crate::load::ring::Form;
use crate::load::tsc::Ticks;
use crate::progress::{Step, say};

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(200);
/// Octets of the frames.
const FRAMES: [usize; 4] = [64, 512, 1514, LARGEST];
/// 45 segments of 1448 octets, which is what TCP makes of 64 KiB, with one header.
pub const LARGEST: usize = 65226;
const FORMS: [Form; 2] = [Form::Split, Form::Packed];
const TOPOLOGIES: [Topology; 2] = [Topology::Loop, Topology::Pair];
/// The stations at the two ends.
const STATIONS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Options of ours that polls: our workers look on for so long after the last packet.
pub const POLLING: [&str; 2] = ["--poll-us", "1000"];
/// What DPDK's vhost is called in reports.
pub const DPDK: &str = "dpdk-vhost";

/// What goes through which rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The form of the rings.
    pub form: Form,
    /// Octets of a frame.
    pub frame: usize,
    /// How ports are joined.
    pub topology: Topology,
}

impl Load {
    /// The queues for it: buffers that one packet fits, or pages as Linux has for large ones.
    pub fn shape(self) -> PortShape {
        let packet = (HEADER + self.frame) as u32;
        let large = self.frame > 2000;
        PortShape {
            form: self.form,
            receive: Shape {
                size: if large { 1024 } else { 256 },
                len: if large { 4096 } else { 2048 },
                writable: true,
            },
            transmit: Shape {
                size: if large { 64 } else { 256 },
                len: packet,
                writable: false,
            },
        }
    }

    /// Its frame's size in reports.
    pub fn octets(self) -> String {
        match self.frame {
            LARGEST => "64K".to_owned(),
            octets => octets.to_string(),
        }
    }
}

/// Whose back-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Theirs,
}

/// One measurement.
#[derive(Debug)]
pub struct Measured {
    /// While packets were moved at full speed.
    pub counted: Counted,
    /// What became of all of them.
    pub fate: Fate,
    /// Cycles of the back-end's processor for each packet that arrived.
    pub cycles: f64,
}

/// Measures everything.
pub fn run(stage: &Stage, args: &Args, weather: &mut Weather) -> Result<Findings> {
    let mut whose = vec![Whose::Ours, Whose::Theirs];
    if stage.dpdk.is_none() {
        say("DPDK could not be fetched: ours is measured alone");
        whose.retain(|whose| *whose == Whose::Ours);
    } else if !testpmd::has_huge_pages() {
        say("no huge pages are free: DPDK's memory has small ones (sysctl vm.nr_hugepages=512)");
    }
    let mut all = Vec::new();
    for round in 1..=args.rounds {
        for load in loads() {
            let what = format!(
                "ring round {round} of {}: {} {} {}",
                args.rounds,
                load.form.name(),
                load.octets(),
                load.topology.verb()
            );
            let step = Step::start(&what);
            let mut said = Vec::new();
            for whose in whose.clone() {
                let measured = measure_one(stage, whose, load, args, weather);
                match measured.with_context(|| format!("{what}: {}", whose.name())) {
                    Ok(measured) => {
                        said.push(format!("{} {}", whose.name(), summary(&measured)));
                        all.push((whose, load, measured));
                    }
                    Err(e) if whose == Whose::Ours => return Err(e),
                    // Ours can still be measured.
                    Err(e) => said.push(format!("left out: {e:#}")),
                }
            }
            step.done();
            say(format!("{what}: {}", said.join("; ")));
        }
        whose.reverse();
    }
    Ok(Findings {
        cases: cases(&all),
        details: details(&all),
    })
}

fn loads() -> impl Iterator<Item = Load> {
    FORMS.into_iter().flat_map(|form| {
        TOPOLOGIES.into_iter().flat_map(move |topology| {
            FRAMES.into_iter().map(move |frame| Load {
                form,
                frame,
                topology,
            })
        })
    })
}

fn measure_one(
    stage: &Stage,
    whose: Whose,
    load: Load,
    args: &Args,
    weather: &mut Weather,
) -> Result<Measured> {
    let actor = match whose {
        Whose::Ours => stage.ferronic(load.topology, &POLLING)?,
        Whose::Theirs => stage.testpmd(load.topology, HEADER + load.frame)?,
    };
    let time = Duration::from_secs(args.seconds.into());
    let moment = Moment::now()?;
    let measured = measure(stage, &actor, load, time)?;
    weather.note(moment.until_now()?);
    Ok(measured)
}

/// Drives a back-end with a load for so long.
pub fn measure(stage: &Stage, actor: &Actor, load: Load, time: Duration) -> Result<Measured> {
    let work = || match (load.topology, &actor.sockets[..]) {
        (Topology::Loop, [socket]) => {
            let memory = load.shape().memory()?;
            let mut port = Port::connect(&memory, load.shape(), socket)?;
            drive(actor, Ends::Same(&mut port), load, time)
        }
        (Topology::Pair, [from, to]) => {
            let memories = [load.shape().memory()?, load.shape().memory()?];
            let mut from = Port::connect(&memories[0], load.shape(), from)?;
            let mut to = Port::connect(&memories[1], load.shape(), to)?;
            let [sender, receiver] = STATIONS;
            // A switch learns where the receiver is, as it would of any guest.
            flow::greet(&mut to, receiver, sender)?;
            let ends = Ends::Two {
                from: &mut from,
                to: &mut to,
            };
            drive(actor, ends, load, time)
        }
        _ => unreachable!("a back-end has as many sockets as its topology has ports"),
    };
    stage.on(stage.processors.generator, work)
}

fn drive(actor: &Actor, ends: Ends<'_, '_>, load: Load, time: Duration) -> Result<Measured> {
    let [from, to] = STATIONS;
    let mut flow = Flow::start(ends, load.frame, from, to)?;
    flow.run(WARM_UP)?;
    let (ticks, before) = (Ticks::start(), actor.processor_time()?);
    let counted = flow.run(time)?;
    let busy = actor.processor_time()? - before;
    let rate = ticks.and_then(|ticks| ticks.rate()).unwrap_or(f64::NAN);
    let fate = flow.finish()?;
    ensure!(
        fate.sampled > 0,
        "no packet was compared with what was sent"
    );
    Ok(Measured {
        cycles: busy as f64 * rate / counted.arrived as f64,
        counted,
        fate,
    })
}

impl Measured {
    fn transmitted(&self) -> f64 {
        self.counted.taken as f64 / self.counted.seconds / 1e6
    }

    fn received(&self) -> f64 {
        self.counted.arrived as f64 / self.counted.seconds / 1e6
    }

    pub fn lost_percent(&self) -> f64 {
        100.0 * self.fate.lost as f64 / self.fate.taken as f64
    }
}

impl Whose {
    fn name(self) -> &'static str {
        match self {
            Whose::Ours => "ours",
            Whose::Theirs => DPDK,
        }
    }
}

impl Topology {
    fn verb(self) -> &'static str {
        match self {
            Topology::Loop => "loop",
            Topology::Pair => "across",
        }
    }
}

fn summary(measured: &Measured) -> String {
    format!(
        "{} Mpackets/s, {} cycles, {} % lost",
        rounded(measured.received()),
        rounded(measured.cycles),
        rounded(measured.lost_percent())
    )
}

type All = [(Whose, Load, Measured)];
type Figure = fn(&Measured) -> f64;

fn samples(all: &All, whose: Whose, load: Load, figure: impl Fn(&Measured) -> f64) -> Samples {
    all.iter()
        .filter(|(w, l, _)| (*w, *l) == (whose, load))
        .map(|(_, _, measured)| figure(measured))
        .collect()
}

fn cases(all: &All) -> Vec<Case> {
    let mut cases = Vec::new();
    for load in loads() {
        let figures: &[(&str, Figure)] = match load.topology {
            Topology::Loop => &[("loop", Measured::received)],
            Topology::Pair => &[
                ("transmit", Measured::transmitted),
                ("receive", Measured::received),
            ],
        };
        let mut compare = |name: &str, unit, better, figure: &dyn Fn(&Measured) -> f64| {
            let theirs = samples(all, Whose::Theirs, load, figure);
            let peers = theirs.median().map(|_| (DPDK.into(), theirs));
            cases.push(Case {
                name: format!("ring {} {} {name}", load.form.name(), load.octets()),
                unit,
                better,
                ours: samples(all, Whose::Ours, load, figure),
                peers: peers.into_iter().collect(),
            });
        };
        for (name, figure) in figures {
            compare(name, "Mpackets/s", Better::More, figure);
        }
        let cycles = format!("{} cycles", load.topology.verb());
        compare(&cycles, "cycles/packet", Better::Less, &|m| m.cycles);
    }
    cases
}

/// What stands behind the figures: losses, and whether the generator had time left.
fn details(all: &All) -> String {
    let mut text = String::from(
        "Medians. lost: of the packets that the back-end took. waiting: the share of its turns in which the\n\
         generator found nothing to do. kicks: notifications that the back-end wanted, for 1000 packets.\n\
         Cycles are those of the time stamp counter while a thread of the back-end had a processor.\n",
    );
    let _ = writeln!(
        text,
        "  {:24} {:12} {:>9} {:>9} {:>9}",
        "", "", "lost-%", "waiting-%", "kicks"
    );
    for load in loads() {
        let name = format!(
            "{} {} {}",
            load.form.name(),
            load.octets(),
            load.topology.verb()
        );
        for whose in [Whose::Ours, Whose::Theirs] {
            let median = |figure: &dyn Fn(&Measured) -> f64| {
                let median = samples(all, whose, load, figure).median();
                median.map_or("-".to_owned(), rounded)
            };
            let kicks = |m: &Measured| 1e3 * m.counted.kicks as f64 / m.counted.taken as f64;
            let _ = writeln!(
                text,
                "  {name:24} {:12} {:>9} {:>9} {:>9}",
                whose.name(),
                median(&Measured::lost_percent),
                median(&|m| 100.0 * m.counted.idle),
                median(&kicks),
            );
        }
    }
    text
}
