// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo lab bench`: our NIC beside others, in the same guest or without any, in the same run.
//!
//! A bench measures *set-ups*, ours and its peers' ([`setups`], or [`stage`] where there is no guest),
//! and says what it found as a list of [`Case`]s: one figure of ours, the same figure of each peer, and
//! the ratio to the best.
//!
//! # Limitations
//! The figures compare set-ups on this host at this hour and are good for nothing else. What other
//! processes took of the processors meanwhile is measured and said ([`host`]).

mod case;
mod copy;
mod cost;
mod driver;
mod footprint;
mod guests;
mod host;
mod iperf;
mod latency;
mod passt;
mod plot;
mod ring;
mod samples;
mod setups;
mod stage;
mod start;
mod testpmd;
mod transfer;
mod turns;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::artefacts::dpdk;
use crate::cache::Cache;
use crate::lab::{Lab, Needs, When, ferronic};
use crate::progress::say;
use crate::sandbox::net::Run;
use case::Case;
use host::Weather;
use stage::Stage;

/// Options of `cargo lab bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure; everything if nothing is named
    #[arg(value_enum)]
    pub name: Option<Name>,
    /// Write the medians to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw all figures and their ranges into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// How often every set-up is measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// How long each transfer is measured
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// Of iperf, only these parts
    #[arg(long = "part", value_name = "PART", value_enum, value_delimiter = ',')]
    pub parts: Vec<iperf::Part>,
}

/// The benches there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// iperf3 between guest and host and from guest to guest, TCP and small UDP datagrams, with one
    /// and two pairs of queues
    Iperf,
    /// Memory of the process behind the NIC, how soon it is there, and how often it wakes up when idle
    Footprint,
    /// The guest's drivers, ours and Linux's own: throughput, small packets, delay, interrupts, and
    /// instructions a packet
    Driver,
    /// No guest: packets through rings, with a load generator on one processor and our NIC, or DPDK's
    /// vhost, polling on another
    Ring,
    /// No guest: from a kick to its interrupt through our NIC, beside threads that wake each other
    Latency,
    /// No guest: from one memory to another through our switch, beside copying the same octets
    Copy,
}

impl Name {
    const ALL: &[Name] = &[
        Name::Iperf,
        Name::Footprint,
        Name::Driver,
        Name::Ring,
        Name::Latency,
        Name::Copy,
    ];

    /// Whether guests are booted for it.
    fn has_guests(self) -> bool {
        matches!(self, Name::Iperf | Name::Footprint | Name::Driver)
    }
}

impl Args {
    fn names(&self) -> &[Name] {
        self.name.as_ref().map_or(Name::ALL, std::slice::from_ref)
    }

    /// Whether guests are booted.
    pub fn has_guests(&self) -> bool {
        self.names().iter().any(|name| name.has_guests())
    }
}

/// What has to be made for a bench.
pub fn needs(args: &Args) -> Needs {
    Needs {
        debug_kernel: When::Never,
        module: args.names().contains(&Name::Driver),
    }
}

/// Checks the options, and fetches what benches compare with and nothing else in the lab needs. Done outside of the run's
/// namespaces, where the network is.
pub fn prepare(args: &Args) -> Result<()> {
    if !args.parts.is_empty() && !args.names().contains(&Name::Iperf) {
        bail!("only the bench `iperf` has parts (--part)");
    }
    let compare = [Name::Ring, Name::Footprint];
    if args.names().iter().any(|name| compare.contains(name))
        && let Err(e) = dpdk::dpdk(&Cache::open()?)
    {
        say(format!("{e:#}; the bench goes on without DPDK"));
    }
    Ok(())
}

/// What a bench found.
#[derive(Debug)]
struct Findings {
    cases: Vec<Case>,
    /// What explains the figures, for people.
    details: String,
}

/// Runs one bench or all.
pub fn run(lab: &Lab, args: &Args) -> Result<()> {
    let setting = format!("guest on {}, 2 CPUs", lab.accel.name());
    measure(args, &setting, |name, weather| match name {
        Name::Iperf => iperf::run(lab, args, weather),
        Name::Footprint => footprint::run(lab, args, weather),
        Name::Driver => driver::run(lab, args, weather),
        name => without_guest(name, &lab.run, &lab.ferronic, args, weather),
    })
}

/// Runs one that has no guests.
pub fn run_without_guests(run: &Run, args: &Args) -> Result<()> {
    let ferronic = ferronic()?;
    measure(args, "no guest", |name, weather| {
        without_guest(name, run, &ferronic, args, weather)
    })
}

fn without_guest(
    name: Name,
    run: &Run,
    ferronic: &Path,
    args: &Args,
    weather: &mut Weather,
) -> Result<Findings> {
    let stage = Stage::new(run.clone(), ferronic.to_owned())?;
    match name {
        Name::Ring => ring::run(&stage, args, weather),
        Name::Latency => latency::run(&stage, args, weather),
        Name::Copy => copy::run(&stage, args, weather),
        Name::Iperf | Name::Footprint | Name::Driver => bail!("this bench needs guests"),
    }
}

fn measure(
    args: &Args,
    setting: &str,
    mut bench: impl FnMut(Name, &mut Weather) -> Result<Findings>,
) -> Result<()> {
    let mut weather = Weather::observe()?;
    let mut cases = Vec::new();
    let mut details = String::new();
    for name in args.names() {
        let found = bench(*name, &mut weather)?;
        cases.extend(found.cases);
        details += &found.details;
    }
    let setting = format!(
        "{setting}; rounds: {}, {} s a transfer",
        args.rounds, args.seconds
    );
    print!(
        "\n{setting}: median (min..max), and how many times better ours is\n\n{}\n{details}\n{}",
        case::table(&cases),
        weather.report(),
    );
    if let Some(path) = &args.json {
        write(path, serde_json::to_string_pretty(&cases)? + "\n")?;
    }
    if let Some(path) = &args.svg {
        let mut heading = vec![
            "How many times as good as the best peer, by the medians: more is to the right".into(),
            setting,
        ];
        heading.extend(weather.warning().map(str::to_owned));
        write(path, plot::svg(&cases, &heading))?;
    }
    Ok(())
}

fn write(path: &Path, text: String) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
